"""Confusion matrices of a setting (model, attack, condition, round), its UAR, what changes from
one setting to another, and the clips in a cell.

predictions: rows of ``predictions.parquet`` with the column seed, as ``study_results`` joins them;
of a model with several seeds, the rows of all count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedser_utils.analysis import comparisons, metrics
from fedser_utils.analysis.labels import KEY, class_order, sort_rows


class Setting(NamedTuple):
    """The model, attack, condition and round of a confusion matrix."""

    model: str
    attack: str
    condition: str
    round: int


class Score(NamedTuple):
    """A UAR in percent (the mean over seeds), its 95 % interval low, high (bootstrap over speakers;
    NaN for one speaker), n (clips of a seed, the fewest), speakers, and the seeds."""

    uar: float
    low: float
    high: float
    n: int
    speakers: int
    seeds: tuple[int, ...]


class Decisions:
    """Rows of predictions by their setting.

    settings: those that exist, in the paper's order; classes: all that are true or predicted.
    Raises ValueError for no rows.
    """

    def __init__(self, predictions: pd.DataFrame) -> None:
        if predictions.empty:
            raise ValueError("there are no decisions: the table of predictions has no rows")
        self._predictions = predictions
        groups = predictions.groupby(list(Setting._fields), sort=False).indices
        self._places = {Setting(*key[:3], int(key[3])): rows for key, rows in groups.items()}
        keys = sort_rows(pd.DataFrame([s[:3] for s in self._places], columns=KEY).drop_duplicates())
        place = {key: number for number, key in enumerate(keys.itertuples(index=False, name=None))}
        self.settings = sorted(self._places, key=lambda s: (place[s[:3]], s.round))
        self.classes = class_order(
            {*predictions["y_true"].unique(), *predictions["y_pred"].unique()}
        )
        self._scores: dict[Setting, Score] = {}
        self._gains: dict[tuple[Setting, Setting], tuple[float, float, float]] = {}

    def rows(self, setting: Setting) -> pd.DataFrame:
        """Return the rows of a setting. Raises KeyError where it does not exist."""
        return self._predictions.take(self._places[setting])

    def counts(self, setting: Setting) -> pd.DataFrame:
        """Return the confusion matrix, (classes, classes) clips: rows true, columns predicted."""
        rows = self.rows(setting)
        return metrics.confusion(rows["y_true"], rows["y_pred"], self.classes)

    def score(self, setting: Setting) -> Score:
        """Return the UAR of a setting and its interval, computed once."""
        if setting not in self._scores:
            self._scores[setting] = score(self.rows(setting))
        return self._scores[setting]

    def gain(self, before: Setting, after: Setting) -> tuple[float, float, float]:
        """Return the ``gain`` of two settings, computed once."""
        if (before, after) not in self._gains:
            self._gains[before, after] = gain(self.rows(before), self.rows(after))
        return self._gains[before, after]


def score(rows: pd.DataFrame) -> Score:
    """Return the UAR of the rows of one setting, as in Table 3."""
    row = metrics.summary(rows)
    one = row["speakers"] == 1  # nothing to draw from
    low, high = (float("nan") if one else row[name] for name in ("ci_low", "ci_high"))
    seeds = tuple(sorted(int(seed) for seed in rows["seed"].unique()))
    return Score(row["uar"], low, high, row["n"], row["speakers"], seeds)


def gain(before: pd.DataFrame, after: pd.DataFrame) -> tuple[float, float, float]:
    """Return UAR(after) - UAR(before) in points and its 95 % interval, over the seeds that both
    have: the same clips, and in each resample the same speakers.

    Raises ValueError where they have no seed in common or a seed's clips differ.
    """
    paired = comparisons.pair_decisions(before, after)
    if paired.empty:
        seeds = (sorted(int(s) for s in rows["seed"].unique()) for rows in (before, after))
        raise ValueError("no seed in common: {} and {}".format(*seeds))
    row = comparisons.paired_gain(paired)
    return float(row["gain"]), row["ci_low"], row["ci_high"]


def shares(counts: pd.DataFrame) -> pd.DataFrame:
    """Return percent of each row of a confusion matrix; NaN for a class without clips."""
    return 100 * counts.div(counts.sum(axis=1).replace(0, np.nan), axis=0)


def cell_text(value: float, *, signed: bool = False) -> str:
    """Return a cell's number without decimals: ``12``, signed ``+12`` or ``−12``, NaN as a dash."""
    if np.isnan(value):
        return "–"
    number = f"{value:+.0f}" if signed and round(value) else f"{abs(value):.0f}"
    return number.replace("-", "−")


def most_confused(counts: pd.DataFrame) -> tuple[str, str] | None:
    """Return (truth, prediction) of the most frequent confusion; None if there is none."""
    wrong = counts.to_numpy().copy()
    np.fill_diagonal(wrong, 0)
    if not wrong.any():
        return None
    row, column = np.unravel_index(wrong.argmax(), wrong.shape)
    return counts.index[row], counts.columns[column]


def in_cell(rows: pd.DataFrame, truth: str, decision: str) -> pd.DataFrame:
    """Return the clips of class ``truth`` predicted as ``decision``: clip, speaker, note (in which
    of several seeds, "" if there is one), sorted by clip."""
    chosen = rows[(rows["y_true"] == truth) & (rows["y_pred"] == decision)]
    several = len(rows["seed"].unique()) > 1
    clips = [
        (*key, "seed " + ", ".join(map(str, sorted(seeds.unique()))) if several else "")
        for key, seeds in chosen.groupby(["clip", "speaker"])["seed"]
    ]
    return pd.DataFrame(clips, columns=["clip", "speaker", "note"])


def in_either(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Return the clips of two ``in_cell``, noted as only in the first, (a), in both, or only in the
    second, (b); in this order."""
    a, b = (set(zip(rows["clip"], rows["speaker"], strict=True)) for rows in (first, second))
    parts = {"only in (a)": a - b, "in (a) and (b)": a & b, "only in (b)": b - a}
    clips = [(*pair, note) for note, pairs in parts.items() for pair in sorted(pairs)]
    return pd.DataFrame(clips, columns=["clip", "speaker", "note"])


def nearest(wanted: Setting, settings: Sequence[Setting]) -> Setting:
    """Return the setting that agrees most with ``wanted``: first in the model, then the attack, the
    condition, and the nearest round."""

    def agreement(other: Setting) -> tuple:
        same = (value == wanted[place] for place, value in enumerate(other[:3]))
        return *same, -abs(wanted.round - other.round)

    return max(settings, key=agreement)


def default_settings(settings: Sequence[Setting]) -> tuple[Setting, Setting | None]:
    """Return the setting to show first and the one to compare it with: nature under an attack after
    the last round, and the model trained with that attack; without such a pair, the first model
    after its last round, and None."""
    last, known = max(setting.round for setting in settings), set(settings)
    for attack in ("pgd", "fgsm", "deepfool"):
        pair = [Setting(model, attack, "adversarial", last) for model in ("nature", attack)]
        if known.issuperset(pair):
            return pair[0], pair[1]
    return nearest(settings[0]._replace(round=last), settings), None
