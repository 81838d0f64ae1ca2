"""What a notebook shows while it works, each with a static twin for headless runs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import ipywidgets as ipw
import numpy as np
import pandas as pd
from IPython.display import HTML, Audio, DisplayHandle, display

from fedser_utils.analysis.figures import uar_by_round
from fedser_utils.data.audio import SAMPLE_RATE, playable
from fedser_utils.workbook.display import is_live
from fedser_utils.workbook.study.study_plan import clock


class TrainingMonitor:
    """A monitor for ``runtimes.train``: a line of text, a bar, and the UAR so far, after every
    evaluation. It shows what the run's folder holds, so it shows the same for a run that is being
    trained elsewhere, or that is finished. As widgets a page that is opened again finds it;
    headless, its last state stays in the output notebook.

    rounds: of the whole run.
    """

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.bar = ipw.IntProgress(max=rounds, description="rounds", layout={"width": "40em"})
        self.line = ipw.HTML("waiting for the first evaluation")
        self.picture = ipw.Image(format="png", layout={"width": "32em", "display": "none"})
        self.widget = ipw.VBox([self.bar, self.line, self.picture])
        self.widget.add_class("fedser-monitor")  # to be found by
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
        shown = [HTML(text), figure]
        if not self._handles:
            self._handles = [display(each, display_id=True) for each in shown]
        else:
            for handle, each in zip(self._handles, shown, strict=True):
                handle.update(each)


def progress(rounds: pd.DataFrame, last: int) -> str:
    """Where a run is, in a line: the last evaluated round, about how long it still takes, its
    clients, bytes moved, who was missing and why. rounds: rows of ``rounds.csv``; last: the run's
    last round."""
    each = rounds.groupby("round").first()
    now = each.iloc[-1]
    sent, received = (each[name].sum() / 1e6 for name in ("bytes_sent", "bytes_received"))
    missing = "; ".join(each["missing"].dropna().loc[lambda text: text != ""])
    return (
        f"round {each.index[-1]} of {last}{_left(each, last)}: "
        f"{now['clients_replied']} of {now['clients_asked']} clients "
        f"replied; {sent:.1f} MB to the clients, {received:.1f} MB from them; "
        f"missing: {missing or 'nobody'}"
    )


def _left(each: pd.DataFrame, last: int) -> str:
    """How long it will take at the pace of the last two evaluations. each: a row per round."""
    if each.index[-1] == last:
        return ", finished"
    if len(each) < 2 or "time" not in each:
        return ""
    times = pd.to_datetime(each["time"])
    pace = (times.iloc[-1] - times.iloc[-2]) / (each.index[-1] - each.index[-2])
    seconds = pace.total_seconds() * (last - each.index[-1])
    return f", about {clock(seconds)} left" if seconds >= 0 else ""


def player(waveform: np.ndarray, *, rate: int = SAMPLE_RATE) -> str:
    """HTML that plays a sound, (samples,) at ``rate`` Hz in [-1, 1), as a 16-bit WAV that it
    holds."""
    held = base64.b64encode(playable(waveform, rate=rate)).decode()
    return f'<audio controls preload="auto" src="data:audio/wav;base64,{held}"></audio>'


def players(heard: pd.DataFrame, classes: Sequence[str], *, truth: str) -> HTML:
    """A table of WAVs to play, with what the model decides on each: rows of ``evaluation.heard``.
    The sounds are stored in the notebook, so they play wherever it is opened."""
    rows = []
    for sound, path, y_pred in heard[["sound", "path", "y_pred"]].itertuples(index=False):
        said = escape(classes[y_pred])
        said = said if classes[y_pred] == truth else f"<b>{said}</b>"
        player = Audio(filename=str(path))._repr_html_()
        rows.append(f"<tr><td>{escape(sound)}</td><td>{player}</td><td>{said}</td></tr>")
    head = f"<tr><th>sound</th><th></th><th>decision (truth: {escape(truth)})</th></tr>"
    return HTML(f"<table>{head}{''.join(rows)}</table>")
