"""Unweighted average recall (UAR), its bootstrap intervals, and tests of paired decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, recall_score
from statsmodels.stats import contingency_tables
from statsmodels.stats.proportion import proportions_ztest

from fedser_utils.core.seeding import rng

BY = ["run", "model", "round", "attack", "condition"]


def uar(y_true: Sequence, y_pred: Sequence) -> float:
    """Return the unweighted average recall in percent: the mean over the classes that occur in
    ``y_true`` of the share of their clips recognised. Raises ValueError for no clips.

    >>> uar([0, 0, 0, 1], [0, 0, 1, 1])
    83.33333333333334
    """
    if not len(y_true):
        raise ValueError("UAR of no clips is undefined")
    labels = np.unique(y_true)
    return 100 * recall_score(y_true, y_pred, labels=labels, average="macro", zero_division=0)


def uar_by(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the UAR in percent of every group of rows (y_true, y_pred): ``columns``, uar, n."""
    options = {"sort": False, "dropna": False}
    right = rows.assign(uar=100.0 * (rows["y_true"] == rows["y_pred"]), n=1)
    # thousands of groups: scikit-learn's recall, one by one, would take most of a minute
    recalls = right.groupby([*columns, "y_true"], **options).agg({"uar": "mean", "n": "sum"})
    groups = recalls.reset_index().groupby(list(columns), **options)
    return groups.agg({"uar": "mean", "n": "sum"}).reset_index()


def uar_over_draws(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the UAR in percent of every group of rows (draw, y_true, y_pred), averaged over draws:
    ``columns``, uar, deviation (over the draws; 0 for one), draws (how many), n (clips)."""
    groups = uar_by(rows, [*columns, "draw"]).groupby(list(columns), sort=False, dropna=False)
    table = groups.agg(
        uar=("uar", "mean"), deviation=("uar", "std"), draws=("uar", "size"), n=("n", "first")
    )
    return table.fillna({"deviation": 0.0}).reset_index()


def certified_uar(rows: pd.DataFrame, columns: Sequence[str], *, points: int) -> pd.DataFrame:
    """Return the UAR in percent of certified decisions at rising radii: ``columns``, value (the
    radius), uar.

    rows: y_true, y_pred, radius (within which y_pred is certified). A decision counts as right at
    a radius only if it is certified beyond it. points: how many radii, from 0 to the largest.
    """
    table = []
    for names, group in rows.groupby(list(columns), sort=False):
        for radius in np.linspace(0, rows["radius"].max(), points):
            certified = group["y_pred"].where(group["radius"] > radius, "")
            table.append((*names, radius, uar(group["y_true"], certified)))
    return pd.DataFrame(table, columns=[*columns, "value", "uar"])


def worst_case(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per clip (``index``): a wrong decision, and the attack that led to it, if any
    of the clip's rows has one, else a right one."""
    wrong_first = rows.assign(right=rows["y_true"] == rows["y_pred"])
    wrong_first = wrong_first.sort_values("right", kind="stable")
    return wrong_first.drop_duplicates("index").drop(columns="right").sort_values("index")


def war(y_true: Sequence, y_pred: Sequence) -> float:
    """Return the weighted average recall (accuracy) in percent."""
    return 100 * float(np.mean(np.asarray(y_true) == np.asarray(y_pred)))


def confusion(y_true: Sequence, y_pred: Sequence, classes: Sequence) -> pd.DataFrame:
    """Return the confusion matrix, (classes, classes) clips: rows true, columns predicted."""
    counts = confusion_matrix(y_true, y_pred, labels=list(classes))
    return pd.DataFrame(counts, index=list(classes), columns=list(classes))


def uar_interval(
    y_true: Sequence,
    y_pred: Sequence,
    speakers: Sequence,
    *,
    before: Sequence | None = None,
    seeds: Sequence | None = None,
    generator: np.random.Generator | None = None,
    level: float = 0.95,
    resamples: int = 2000,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the UAR in percent, clustered by speaker.

    y_true, y_pred, speakers, before, seeds: (clips,). With ``before``, earlier decisions on the
    same clips, it is the interval of the difference UAR(y_pred) - UAR(before), with the same
    speakers drawn for both; with ``seeds``, of the mean over seeds, where a drawn speaker comes
    with all its seeds. generator: otherwise that of all tables, ``rng(0, "bootstrap")``.

    Clips of one speaker are not independent, so whole speakers are drawn with replacement. A class
    without clips in a resample does not count in its mean.
    """
    sides = [y_pred] if before is None else [y_pred, before]
    counts = [_counts(y_true, decisions, speakers, seeds) for decisions in sides]
    drawn, n = generator or rng(0, "bootstrap"), counts[0].shape[1]
    weights = drawn.multinomial(n, np.full(n, 1 / n), size=resamples)  # (resamples, speakers)
    uars = [_resampled(one, weights) for one in counts]
    return _bounds(uars[0] if before is None else uars[0] - uars[1], level)


def mean_interval(values: Sequence[float], *, resamples: int = 2000) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a mean; values: (n,), independent."""
    drawn = rng(0, "bootstrap").choice(np.asarray(values), (resamples, len(values)))
    return _bounds(drawn.mean(axis=1), 0.95)


def summary(rows: pd.DataFrame, *, seed: str = "run") -> dict[str, Any]:
    """Return the UAR of rows (y_true, y_pred, speaker, draw) as tables report it.

    seed: the column that tells the seeds apart. Keys: n (clips of a seed, the fewest), speakers,
    seeds (how many), uar (percent, the mean over seeds and their draws), ci_low, ci_high (95 %,
    ``uar_interval``).
    """
    draws = uar_by(rows, [seed, "draw"]).groupby(seed)
    uars, n = draws["uar"].mean(), int(draws["n"].first().min())
    low, high = uar_interval(rows["y_true"], rows["y_pred"], rows["speaker"], seeds=rows[seed])
    row = {"n": n, "speakers": rows["speaker"].nunique(), "seeds": len(uars)}
    return row | {"uar": float(uars.mean()), "ci_low": low, "ci_high": high}


def _counts(
    y_true: Sequence, y_pred: Sequence, speakers: Sequence, seeds: Sequence | None
) -> np.ndarray:
    """Return clips recognised, and all clips: (2, speakers, seeds, classes)."""
    seeds = np.zeros(len(y_true)) if seeds is None else seeds
    places = [np.unique(np.asarray(v), return_inverse=True)[1] for v in (speakers, seeds, y_true)]
    counts = np.zeros((2, *(place.max() + 1 for place in places)))
    np.add.at(counts[0], tuple(places), np.asarray(y_true) == np.asarray(y_pred))
    np.add.at(counts[1], tuple(places), 1)
    return counts


def _resampled(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean over seeds of the UAR in percent of every resample: (resamples,)."""
    hits, totals = np.tensordot(weights, counts[0], 1), np.tensordot(weights, counts[1], 1)
    recall = np.ma.divide(hits, totals)  # masked where a class has no clip in a resample
    return 100 * np.asarray(recall.mean(axis=2).mean(axis=1))


def _bounds(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def z_test(better: float, worse: float, n: int) -> tuple[float, float]:
    """Return z and p of the paper's one-tailed z-test: whether ``better`` is larger.

    better, worse: UAR in percent over the same ``n`` clips. With the pooled rate p = (b + w) / 2,
    z = (b - w) / sqrt(2 p (1 - p) / n). It takes a UAR for a share of n independent clips, which
    is an approximation.
    """
    counts = np.array([better, worse]) / 100 * n
    if better == worse:
        return 0.0, 0.5
    z, p = proportions_ztest(counts, np.array([n, n]), alternative="larger")
    return float(z), float(p)


def mcnemar(y_true: Sequence, before: Sequence, after: Sequence) -> float:
    """Return the two-sided p of McNemar's exact test: whether two decisions on the same clips are
    equally often right. Only clips that exactly one of the two gets right count. It tests accuracy
    rather than UAR, and takes clips for independent."""
    right = [np.asarray(y_true) == np.asarray(y_pred) for y_pred in (before, after)]
    counts = confusion_matrix(*right, labels=[False, True])
    return float(contingency_tables.mcnemar(counts, exact=True).pvalue)


def combine_p_values(p: Sequence[float]) -> float:
    """Return one p for those of several seeds: twice their median, at most 1; one seed's p stays.

    It is valid under any dependence of the seeds (Rüger, 1978; Meinshausen et al., 2009, with
    gamma 0.5); seeds share speakers and clips, so they are not independent.
    """
    return float(p[0] if len(p) == 1 else min(1, 2 * np.median(p)))


def scores(predictions: pd.DataFrame, *, intervals: bool = False) -> pd.DataFrame:
    """Return one row per run, model, round, attack and condition of ``predictions.parquet``.

    Further columns: uar and war (percent, the mean over draws), n (clips), draws; with
    ``intervals`` ci_low and ci_high (95 %, ``uar_interval``).
    """

    def score(rows: pd.DataFrame) -> pd.Series:
        draws = [draw for _, draw in rows.groupby("draw")]
        row: dict[str, Any] = {
            "uar": np.mean([uar(draw["y_true"], draw["y_pred"]) for draw in draws]),
            "war": np.mean([war(draw["y_true"], draw["y_pred"]) for draw in draws]),
            "n": len(draws[0]),
            "draws": len(draws),
        }
        if intervals:
            bounds = uar_interval(rows["y_true"], rows["y_pred"], rows["speaker"])
            row |= dict(zip(("ci_low", "ci_high"), bounds, strict=True))
        return pd.Series(row)

    table = predictions.groupby(BY, sort=False, observed=True).apply(score, include_groups=False)
    return table.reset_index().astype({"n": int, "draws": int})
