"""What a notebook shows while it works, each with a static twin for headless runs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import pandas as pd
from IPython.display import HTML, Audio, DisplayHandle, display

from fedser_utils.figures import uar_by_round


class Monitor:
    """A monitor for ``runtimes.train``: a line of text and a picture, redrawn after every
    evaluation. Headless, the last state of them stays in the output notebook."""

    def __init__(self) -> None:
        self._handles: list[DisplayHandle] = []

    def __call__(self, rounds: pd.DataFrame) -> None:
        """rounds: rows of ``rounds.csv`` so far."""
        shown = [HTML(f"<p>{escape(progress(rounds))}</p>"), uar_by_round(rounds)]
        if not self._handles:
            self._handles = [display(each, display_id=True) for each in shown]
        else:
            for handle, each in zip(self._handles, shown, strict=True):
                handle.update(each)


def progress(rounds: pd.DataFrame) -> str:
    """Where a run is, in a line: the last evaluated round, its clients, bytes moved, who was
    missing and why. rounds: rows of ``rounds.csv``."""
    each = rounds.groupby("round").first()
    last = each.iloc[-1]
    sent, received = (each[name].sum() / 1e6 for name in ("bytes_sent", "bytes_received"))
    missing = "; ".join(each["missing"].dropna().loc[lambda text: text != ""])
    return (
        f"round {each.index[-1]}: {last['clients_replied']} of {last['clients_asked']} clients "
        f"replied; {sent:.1f} MB to the clients, {received:.1f} MB from them; "
        f"missing: {missing or 'nobody'}"
    )


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
