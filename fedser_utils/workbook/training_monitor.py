"""TrainingMonitor: how far a training run is; in headless runs as text and a picture."""

from __future__ import annotations

import io
from datetime import timedelta
from html import escape

import ipywidgets as ipw
import pandas as pd
from IPython.display import HTML, DisplayHandle, display

from fedser_utils.analysis.figures import uar_by_round
from fedser_utils.workbook.display import is_live


class TrainingMonitor:
    """A monitor for ``runtimes.train``, called with the rows of ``rounds.csv`` at each evaluation.

    It displays a line of text, a bar and the UAR so far. As it reads only the run's folder, it
    shows the same for a run that another process trains, and for a finished one. Its widgets
    outlive a closed page; headless, its last state stays in the output notebook.

    rounds: of the whole run.
    """

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.bar = ipw.IntProgress(max=rounds, description="rounds", layout={"width": "40em"})
        self.line = ipw.HTML("waiting for the first evaluation")
        self.picture = ipw.Image(format="png", layout={"width": "32em", "display": "none"})
        self.widget = ipw.VBox([self.bar, self.line, self.picture])
        self.widget.add_class("fedser-monitor")  # for tests in a browser
        self._handles: list[DisplayHandle] = []
        if is_live():
            display(self.widget)

    def __call__(self, rounds: pd.DataFrame) -> None:
        """rounds: rows of ``rounds.csv`` so far."""
        text, figure = f"<p>{escape(progress(rounds, self.rounds))}</p>", uar_by_round(rounds)
        self.bar.value, self.line.value = int(rounds["round"].max()), text
        if is_live():
            file = io.BytesIO()
            figure.savefig(file, format="png")
            self.picture.value, self.picture.layout.display = file.getvalue(), None
            return
        parts = [HTML(text), figure]
        if not self._handles:
            self._handles = [display(part, display_id=True) for part in parts]
        else:
            for handle, part in zip(self._handles, parts, strict=True):
                handle.update(part)


def progress(rounds: pd.DataFrame, last: int) -> str:
    """Return how far a run is, as one line: its last evaluated round, the time left, replies,
    megabytes sent and received, missing clients and why.

    rounds: rows of ``rounds.csv``; last: the run's last round.
    """
    evaluated = rounds.groupby("round").first()
    latest = evaluated.iloc[-1]
    sent, received = (evaluated[f"bytes_{way}"].sum() / 1e6 for way in ("sent", "received"))
    missing = "; ".join(text for text in evaluated["missing"].dropna() if text)
    return (
        f"round {evaluated.index[-1]} of {last}{_time_left(evaluated, last)}: "
        f"{latest['clients_replied']} of {latest['clients_asked']} clients "
        f"replied; {sent:.1f} MB to the clients, {received:.1f} MB from them; "
        f"missing: {missing or 'nobody'}"
    )


def _time_left(evaluated: pd.DataFrame, last: int) -> str:
    """Return the time that the rest takes at the pace of the last two evaluations, as a phrase.
    evaluated: a row per round."""
    if evaluated.index[-1] == last:
        return ", finished"
    if len(evaluated) < 2 or "time" not in evaluated:
        return ""
    times = pd.to_datetime(evaluated["time"])
    pace = (times.iloc[-1] - times.iloc[-2]) / (evaluated.index[-1] - evaluated.index[-2])
    seconds = round(pace.total_seconds() * (last - evaluated.index[-1]))
    return f", about {timedelta(seconds=seconds)} left" if seconds >= 0 else ""
