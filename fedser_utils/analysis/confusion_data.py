"""Decisions of one setting (model, attack, condition, round): their confusion matrix, their UAR,
what changes from one setting to another, and the clips in a cell. Never imports torch.

Everything comes from rows of ``predictions.parquet`` with the seed of each run, as ``05_analysis``
joins them; where a model has several seeds, all their rows count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedser_utils.analysis import comparisons, metrics
from fedser_utils.analysis.tables import KEY, class_order, sort_rows
from fedser_utils.core.seeding import rng


class Setting(NamedTuple):
    """What a matrix is of."""

    model: str
    attack: str
    condition: str
    round: int


class Score(NamedTuple):
    """uar: percent, the mean over seeds; low, high: its 95 % interval (bootstrap over speakers;
    NaN for one speaker); n: clips of a seed, the fewest; speakers; seeds."""

    uar: float
    low: float
    high: float
    n: int
    speakers: int
    seeds: tuple[int, ...]


class Decisions:
    """Rows of predictions, found by their setting.

    settings: those that exist, in the paper's order; classes: all that are true or decided.
    Raises ValueError for no rows.
    """

    def __init__(self, predictions: pd.DataFrame) -> None:
        if predictions.empty:
            raise ValueError("there are no decisions: the table of predictions has no rows")
        self._predictions = predictions
        found = predictions.groupby(list(Setting._fields), sort=False).indices
        self._places = {Setting(*key[:3], int(key[3])): places for key, places in found.items()}
        keys = sort_rows(pd.DataFrame([s[:3] for s in self._places], columns=KEY).drop_duplicates())
        place = {key: number for number, key in enumerate(keys.itertuples(index=False, name=None))}
        self.settings = sorted(self._places, key=lambda s: (place[s[:3]], s.round))
        self.classes = class_order(
            {*predictions["y_true"].unique(), *predictions["y_pred"].unique()}
        )
        self._codes = [
            pd.Categorical(predictions[name], categories=self.classes).codes.astype(int)
            for name in ("y_true", "y_pred")
        ]
        self._scores: dict[Setting, Score] = {}
        self._gains: dict[tuple[Setting, Setting], tuple[float, float, float]] = {}

    def rows(self, setting: Setting) -> pd.DataFrame:
        """The rows of a setting. Raises KeyError where it does not exist."""
        return self._predictions.take(self._places[setting])

    def counts(self, setting: Setting) -> pd.DataFrame:
        """(classes, classes): rows true, columns decided."""
        places, k = self._places[setting], len(self.classes)
        truth, said = (codes[places] for codes in self._codes)
        flat = np.bincount(truth * k + said, minlength=k * k)
        return pd.DataFrame(flat.reshape(k, k), index=self.classes, columns=self.classes)

    def score(self, setting: Setting) -> Score:
        """The UAR of a setting and its interval, computed once."""
        if setting not in self._scores:
            self._scores[setting] = score(self.rows(setting))
        return self._scores[setting]

    def gain(self, before: Setting, after: Setting) -> tuple[float, float, float]:
        """``gain`` of two settings, computed once."""
        if (before, after) not in self._gains:
            self._gains[before, after] = gain(self.rows(before), self.rows(after))
        return self._gains[before, after]


def score(rows: pd.DataFrame) -> Score:
    """The UAR of the rows of one setting, as in Table 3."""
    each = metrics.uar_by(rows, ["run", "draw"]).groupby("run")["uar"].mean()
    speakers, low, high = rows["speaker"].nunique(), float("nan"), float("nan")
    if speakers > 1:  # with one there is nothing to draw from
        low, high = metrics.uar_interval(
            rows["y_true"], rows["y_pred"], rows["speaker"], seeds=rows["run"],
            generator=rng(0, "bootstrap"),
        )  # fmt: skip
    n = int(rows.groupby("run")["clip"].nunique().min())
    seeds = tuple(sorted(int(seed) for seed in rows["seed"].unique()))
    return Score(float(each.mean()), low, high, n, speakers, seeds)


def gain(before: pd.DataFrame, after: pd.DataFrame) -> tuple[float, float, float]:
    """UAR(after) - UAR(before) in points and its 95 % interval, over the seeds that both have:
    the same clips, and in each resample the same speakers.

    Raises ValueError where they have no seed in common or a seed's clips differ.
    """
    paired = comparisons.pair_decisions(before, after)
    if paired.empty:
        seeds = (sorted(int(s) for s in rows["seed"].unique()) for rows in (before, after))
        raise ValueError("no seed in common: {} and {}".format(*seeds))
    each = [
        metrics.uar_by(paired.rename(columns={said: "y_pred"}), ["seed"])["uar"]
        for said in ("before", "after")
    ]
    bounds = metrics.gain_interval(
        paired["y_true"], paired["before"], paired["after"], paired["speaker"],
        seeds=paired["seed"], generator=rng(0, "bootstrap"),
    )  # fmt: skip
    return float((each[1] - each[0]).mean()), *bounds


def shares(counts: pd.DataFrame) -> pd.DataFrame:
    """Percent of each row; NaN in the row of a class without clips."""
    return 100 * counts.div(counts.sum(axis=1).replace(0, np.nan), axis=0)


def most_confused(counts: pd.DataFrame) -> tuple[str, str] | None:
    """(truth, decision) of the most frequent confusion; None if there is none."""
    wrong = counts.to_numpy().copy()
    np.fill_diagonal(wrong, 0)
    if not wrong.any():
        return None
    row, column = np.unravel_index(wrong.argmax(), wrong.shape)
    return counts.index[row], counts.columns[column]


def in_cell(rows: pd.DataFrame, truth: str, decision: str) -> pd.DataFrame:
    """The clips that are ``truth`` and were taken for ``decision``: clip, speaker, note (in which
    of several seeds, "" if there is one), sorted by clip."""
    chosen = rows[(rows["y_true"] == truth) & (rows["y_pred"] == decision)]
    several = len(rows["seed"].unique()) > 1
    found = [
        (*key, "seed " + ", ".join(map(str, sorted(own.unique()))) if several else "")
        for key, own in chosen.groupby(["clip", "speaker"])["seed"]
    ]
    return pd.DataFrame(found, columns=["clip", "speaker", "note"])


def in_either(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """The clips of two ``in_cell``: note says whether one is only in the first, (a), in both, or
    only in the second, (b); in this order."""
    mine, its = (set(zip(own["clip"], own["speaker"], strict=True)) for own in (first, second))
    parts = {
        "only in (a)": mine - its,
        "in (a) and (b)": mine & its,
        "only in (b)": its - mine,
    }
    found = [(*pair, note) for note, pairs in parts.items() for pair in sorted(pairs)]
    return pd.DataFrame(found, columns=["clip", "speaker", "note"])


def nearest(wanted: Setting, settings: Sequence[Setting]) -> Setting:
    """The setting that exists and shares most with ``wanted``: the model before the attack, that
    before the condition, and the nearest round."""

    def agreement(other: Setting) -> tuple:
        same = tuple(mine == its for mine, its in zip(wanted[:3], other[:3], strict=True))
        return *same, -abs(wanted.round - other.round)

    return max(settings, key=agreement)


def default_settings(settings: Sequence[Setting]) -> tuple[Setting, Setting | None]:
    """What to show first, and with what to compare it: nature under an attack after the last
    round, and the model trained with that attack; if there are no such two, the first model
    after its last round, and None."""
    last, known = max(setting.round for setting in settings), set(settings)
    for attack in ("pgd", "fgsm", "deepfool"):
        pair = [Setting(model, attack, "adversarial", last) for model in ("nature", attack)]
        if known.issuperset(pair):
            return pair[0], pair[1]
    return nearest(settings[0]._replace(round=last), settings), None
