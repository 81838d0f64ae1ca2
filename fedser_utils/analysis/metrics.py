"""What is reported: unweighted average recall, its intervals, and tests of paired decisions."""

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
    """Unweighted average recall in percent: the mean, over the classes that occur in ``y_true``,
    of the share of their clips recognised. Raises ValueError for no clips.

    >>> uar([0, 0, 0, 1], [0, 0, 1, 1])
    83.33333333333334
    """
    if not len(y_true):
        raise ValueError("UAR of no clips is undefined")
    labels = np.unique(y_true)
    return 100 * recall_score(y_true, y_pred, labels=labels, average="macro", zero_division=0)


def uar_by(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The UAR in percent of every group of rows (y_true, y_pred): ``columns``, uar, n."""
    how = {"sort": False, "dropna": False}
    right = rows.assign(uar=100.0 * (rows["y_true"] == rows["y_pred"]), n=1)
    # thousands of groups: scikit-learn's recall, one by one, would take most of a minute
    recalls = right.groupby([*columns, "y_true"], **how).agg({"uar": "mean", "n": "sum"})
    groups = recalls.reset_index().groupby(list(columns), **how)
    return groups.agg({"uar": "mean", "n": "sum"}).reset_index()


def uar_over_draws(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The UAR in percent of every group of rows (draw, y_true, y_pred), draw by draw: ``columns``,
    uar (mean), deviation (over the draws; 0 for one), draws, n (clips)."""
    each = uar_by(rows, [*columns, "draw"]).groupby(list(columns), sort=False, dropna=False)
    found = each.agg(
        uar=("uar", "mean"), deviation=("uar", "std"), draws=("uar", "size"), n=("n", "first")
    )
    return found.fillna({"deviation": 0.0}).reset_index()


def certified_uar(rows: pd.DataFrame, columns: Sequence[str], *, points: int) -> pd.DataFrame:
    """UAR in percent of certain decisions at rising radii: ``columns``, value (the radius), uar.

    rows: y_true, y_pred, radius (within which y_pred is certain). A decision counts at a radius
    only if it is certain beyond it. points: how many radii, from 0 to the largest.
    """
    found = []
    for names, own in rows.groupby(list(columns), sort=False):
        for radius in np.linspace(0, rows["radius"].max(), points):
            said = own["y_pred"].where(own["radius"] > radius, "")
            found.append((*names, radius, uar(own["y_true"], said)))
    return pd.DataFrame(found, columns=[*columns, "value", "uar"])


def worst_case(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per clip (``index``): recognised only if it is in all of the clip's rows, else one
    of the wrong decisions, and the attack that led to it."""
    wrong_first = rows.assign(right=rows["y_true"] == rows["y_pred"])
    wrong_first = wrong_first.sort_values("right", kind="stable")
    return wrong_first.drop_duplicates("index").drop(columns="right").sort_values("index")


def war(y_true: Sequence, y_pred: Sequence) -> float:
    """Weighted average recall (accuracy) in percent."""
    return 100 * float(np.mean(np.asarray(y_true) == np.asarray(y_pred)))


def confusion(y_true: Sequence, y_pred: Sequence, classes: Sequence) -> pd.DataFrame:
    """Counts, (classes, classes): rows true, columns predicted."""
    counts = confusion_matrix(y_true, y_pred, labels=list(classes))
    return pd.DataFrame(counts, index=list(classes), columns=list(classes))


def uar_interval(
    y_true: Sequence,
    y_pred: Sequence,
    speakers: Sequence,
    *,
    seeds: Sequence | None = None,
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = 2000,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the UAR in percent, clustered by speaker.

    Whole speakers are drawn with replacement, since clips of one speaker are not independent; a
    class that a resample does not hold does not count in its mean. With ``seeds`` (one value per
    clip) it is the interval of the seeds' mean UAR; a drawn speaker comes with all its seeds.
    """
    counts = _counts(y_true, y_pred, speakers, seeds)
    return _bounds(_resampled(counts, _weights(counts, resamples, generator)), level)


def gain_interval(
    y_true: Sequence,
    before: Sequence,
    after: Sequence,
    speakers: Sequence,
    *,
    seeds: Sequence | None = None,
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = 2000,
) -> tuple[float, float]:
    """Like ``uar_interval``, of the difference UAR(after) - UAR(before) of two decisions on the
    same clips: each resample draws the same speakers for both."""
    old, new = (_counts(y_true, y_pred, speakers, seeds) for y_pred in (before, after))
    weights = _weights(old, resamples, generator)
    return _bounds(_resampled(new, weights) - _resampled(old, weights), level)


def _counts(
    y_true: Sequence, y_pred: Sequence, speakers: Sequence, seeds: Sequence | None
) -> np.ndarray:
    """Clips recognised, and all clips: (2, speakers, seeds, classes)."""
    seeds = np.zeros(len(y_true)) if seeds is None else seeds
    places = [np.unique(np.asarray(v), return_inverse=True)[1] for v in (speakers, seeds, y_true)]
    counts = np.zeros((2, *(place.max() + 1 for place in places)))
    np.add.at(counts[0], tuple(places), np.asarray(y_true) == np.asarray(y_pred))
    np.add.at(counts[1], tuple(places), 1)
    return counts


def _weights(counts: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """How often each resample draws each speaker: (resamples, speakers)."""
    speakers = counts.shape[1]
    return generator.multinomial(speakers, np.full(speakers, 1 / speakers), size=resamples)


def _resampled(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean over seeds of the UAR in percent of every resample: (resamples,)."""
    hits, totals = np.tensordot(weights, counts[0], 1), np.tensordot(weights, counts[1], 1)
    recall = np.ma.divide(hits, totals)  # masked where a resample holds no clip of a class
    return 100 * np.asarray(recall.mean(axis=2).mean(axis=1))


def _bounds(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def z_test(better: float, worse: float, n: int) -> tuple[float, float]:
    """The paper's one-tailed z-test of two rates over the same number of clips.

    better, worse: UAR in percent; n: clips. Tests whether ``better`` is larger, with the pooled
    rate. It treats UAR as a share of n independent clips, which is an approximation.

    Returns z and p.
    """
    counts = np.array([better, worse]) / 100 * n
    if better == worse:
        return 0.0, 0.5
    z, p = proportions_ztest(counts, np.array([n, n]), alternative="larger")
    return float(z), float(p)


def mcnemar(y_true: Sequence, before: Sequence, after: Sequence) -> float:
    """Two-sided p of McNemar's exact test: whether two decisions on the same clips are equally
    often right. Only clips that exactly one of the two gets right count. It tests accuracy rather
    than UAR, and treats clips as independent."""
    right = [np.asarray(y_true) == np.asarray(said) for said in (before, after)]
    counts = confusion_matrix(*right, labels=[False, True])
    return float(contingency_tables.mcnemar(counts, exact=True).pvalue)


def combine_p_values(p: Sequence[float]) -> float:
    """One p for the p of several seeds: twice their median, at most 1; one seed's p stays.

    It holds under any dependence of the seeds (Rüger, 1978; Meinshausen et al., 2009, with
    gamma 0.5); seeds share speakers and clips, so they are not independent.
    """
    return float(p[0] if len(p) == 1 else min(1, 2 * np.median(p)))


def scores(predictions: pd.DataFrame, *, intervals: bool = False) -> pd.DataFrame:
    """Rows of ``predictions.parquet`` -> one row per run, model, round, attack and condition.

    Columns besides those: uar, war in percent, n clips, draws; with ``intervals`` also ci_low
    and ci_high, a 95 % bootstrap clustered by speaker. Several draws are averaged.
    """

    def score(rows: pd.DataFrame) -> pd.Series:
        draws = [own for _, own in rows.groupby("draw")]
        out: dict[str, Any] = {
            "uar": np.mean([uar(own["y_true"], own["y_pred"]) for own in draws]),
            "war": np.mean([war(own["y_true"], own["y_pred"]) for own in draws]),
            "n": len(draws[0]),
            "draws": len(draws),
        }
        if intervals:
            bounds = uar_interval(
                rows["y_true"], rows["y_pred"], rows["speaker"], generator=rng(0, "bootstrap")
            )
            out |= dict(zip(("ci_low", "ci_high"), bounds, strict=True))
        return pd.Series(out)

    table = predictions.groupby(BY, sort=False, observed=True).apply(score, include_groups=False)
    return table.reset_index().astype({"n": int, "draws": int})
