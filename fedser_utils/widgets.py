"""What a notebook shows while it works, each with a static twin for headless runs."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

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


def players(files: Mapping[str, Path], heard: Mapping[str, str], *, truth: str) -> HTML:
    """A table of WAVs to play: name -> file, and what the model hears in each. The sounds are
    stored in the notebook, so they play wherever it is opened."""
    rows = [
        f"<tr><td>{escape(name)}</td><td>{Audio(filename=str(path))._repr_html_()}</td>"
        f"<td>{'<b>' * (heard[name] != truth)}{escape(heard[name])}</td></tr>"
        for name, path in files.items()
    ]
    head = f"<tr><th>sound</th><th></th><th>heard as (spoken: {escape(truth)})</th></tr>"
    return HTML(f"<table>{head}{''.join(rows)}</table>")
