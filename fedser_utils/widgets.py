"""What a notebook shows while it works, each with a static twin for headless runs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import pandas as pd
from IPython.display import HTML, Audio, DisplayHandle, display

from fedser_utils.figures import uar_by_round


class LiveCurve:
    """A monitor for ``federated.train``: one picture, redrawn after every evaluation. Headless,
    the last state of it stays in the output notebook."""

    def __init__(self) -> None:
        self._handle: DisplayHandle | None = None

    def __call__(self, rounds: pd.DataFrame) -> None:
        """rounds: rows of ``rounds.csv`` so far."""
        picture = uar_by_round(rounds)
        if self._handle is None:
            self._handle = display(picture, display_id=True)
        else:
            self._handle.update(picture)


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
