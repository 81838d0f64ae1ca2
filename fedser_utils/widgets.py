"""What a notebook shows while it works, each with a static twin for headless runs."""

from __future__ import annotations

import pandas as pd
from IPython.display import DisplayHandle, display

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
