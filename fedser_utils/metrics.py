"""What is reported: unweighted average recall, its interval, and the paper's z-test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, recall_score
from statsmodels.stats.proportion import proportions_ztest

from fedser_utils.seeding import rng

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
    groups = rows.groupby(list(columns), sort=False, dropna=False)
    found = groups.apply(
        lambda own: pd.Series({"uar": uar(own["y_true"], own["y_pred"]), "n": len(own)})
    )
    return found.reset_index().astype({"n": int})


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
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = 2000,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the UAR in percent, clustered by speaker.

    Whole speakers are drawn with replacement, since clips of one speaker are not independent; a
    class that a resample does not hold does not count in its mean.
    """
    classes = np.unique(np.concatenate([y_true, y_pred]))
    frame = pd.DataFrame({"t": np.asarray(y_true), "p": np.asarray(y_pred), "s": list(speakers)})
    counts = np.stack(
        [confusion_matrix(own["t"], own["p"], labels=classes) for _, own in frame.groupby("s")]
    )
    hits, totals = np.diagonal(counts, axis1=1, axis2=2), counts.sum(2)
    shares = np.full(len(counts), 1 / len(counts))
    weights = generator.multinomial(len(counts), shares, size=resamples)
    hits, totals = weights @ hits, weights @ totals
    recall = np.divide(hits, totals, out=np.full(hits.shape, np.nan), where=totals > 0)
    low, high = np.quantile(100 * np.nanmean(recall, axis=1), [(1 - level) / 2, (1 + level) / 2])
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


def conditions(attack: str) -> tuple[str, str]:
    """The conditions without and with randomisation, in the paper's words."""
    if attack == "none":
        return "original", "randomised"
    return "adversarial", "randomised_adversarial"


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
