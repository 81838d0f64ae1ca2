"""What stands in the way of clients that are not alike, in words, computed from what was measured:
drift, batch statistics, inputs, labels; and what the remedies aimed at each came to.

Never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from fedser_utils.analysis.heterogeneity.client_differences import ALL
from fedser_utils.analysis.heterogeneity.interventions import AGAINST
from fedser_utils.analysis.heterogeneity.lessons import judged
from fedser_utils.core.seeding import rng

RESAMPLES = 2000
LITTLE = 0.05  # of a difference of cosines


def obstacles(
    *,
    drift: pd.DataFrame | None = None,
    batch_norm: pd.DataFrame | None = None,
    inputs: pd.DataFrame | None = None,
    labels: pd.DataFrame | None = None,
    table: pd.DataFrame | None = None,
) -> list[str]:
    """A line for each thing that was measured. drift, batch_norm: as of ``client_drift``; inputs:
    ``client_differences.shift_by_group``; labels: ``client_differences.label_skew``; table:
    ``outcomes.table``, for what the remedies that are aimed at it came to."""
    found: list[str] = []
    for name, rows, say in (
        ("drift", drift, _drift),
        ("batch norm", batch_norm, _batch_norm),
        ("input", inputs, _inputs),
        ("labels", labels, _labels),
    ):
        if rows is not None and len(rows):
            found += [*say(rows), *(_aimed(name, table) if table is not None else ())]
    return found


def _drift(rows: pd.DataFrame) -> Iterable[str]:
    cosine = rows["cosine"]
    yield (
        f"Updates of {len(rows)} clients have a cosine of {cosine.mean():.2f} to their mean "
        f"(from {cosine.min():.2f} to {cosine.max():.2f}), and move the weights by "
        f"{100 * rows['relative'].min():.1f} to {100 * rows['relative'].max():.1f} % of their norm."
    )
    both = rows.dropna(subset=["inside", "outside"])
    if len(both) < 2:
        yield "Corpora with several clients each are too few to say whether updates differ by them."
        return
    apart = (both["inside"] - both["outside"]).to_numpy()
    low, high = _interval(apart)
    text = (
        f"cosine {both['inside'].mean():.2f} inside a corpus against {both['outside'].mean():.2f} "
        f"across, a difference of {apart.mean():.2f} [{low:.2f}, {high:.2f}] over {len(both)} "
        "clients"
    )
    if low > 0:
        much = "" if apart.mean() > LITTLE else ", but hardly"
        yield f"Updates of different corpora point apart{much}: {text}."
    elif high < 0:
        yield f"Updates point apart more inside corpora than across them: {text}."
    else:
        yield f"Whether updates point apart by corpus cannot be told: {text}."


def _interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean over clients."""
    drawn = rng(0, "bootstrap").choice(values, (RESAMPLES, len(values)))
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _batch_norm(rows: pd.DataFrame) -> Iterable[str]:
    means = rows.groupby("corpus", sort=False)[["mean_shift", "variance_shift"]].mean()
    floor = means.loc[ALL]
    each = means.drop(ALL).sort_values("mean_shift", ascending=False)
    listed = ", ".join(f"{name} {row.mean_shift:.2f}" for name, row in each.iterrows())
    further = (each["mean_shift"] > floor["mean_shift"]).sum()
    yield (
        "Batch statistics differ from the model's, in its standard deviations over all layers: "
        f"{listed}; all corpora together {floor['mean_shift']:.2f}. {further} of {len(each)} "
        f"{'corpora is' if further == 1 else 'corpora are'} further from it than the mixture."
    )
    worst = each.index[0]
    own = rows[rows["corpus"] == worst].set_index("layer")["mean_shift"]
    yield f"{worst} is furthest in layer {own.idxmax()} of {len(own)} ({own.max():.2f})."


def _inputs(rows: pd.DataFrame) -> Iterable[str]:
    by = rows.columns[0]
    each = rows.sort_values("distance", ascending=False)
    listed = ", ".join(
        f"{getattr(row, by)} {row.distance:.2f} (of which level {row.loudness:+.2f})"
        for row in each.itertuples()
    )
    yield (
        f"Inputs, each {by}'s mean per Mel band from that of all, in standard deviations: {listed}."
    )


def _labels(rows: pd.DataFrame) -> Iterable[str]:
    worst = rows.loc[(rows["distance"] - rows["by_chance"]).idxmax()]
    yield (
        f"Labels of {len(rows)} clients are {rows['distance'].mean():.2f} from all clients' "
        f"(total variation), where {rows['by_chance'].mean():.2f} is to be expected by chance; "
        f"furthest {worst['client']} ({worst['distance']:.2f}, {worst['classes']} classes in "
        f"{worst['n']} clips)."
    )


def _aimed(name: str, table: pd.DataFrame) -> Iterable[str]:
    """What the remedies against one obstacle came to, of those that were trained."""
    aimed = table[table["remedy"].isin(AGAINST.get(name, ())) & table["gain"].notna()]
    if len(aimed):
        each = zip(aimed["remedy"], aimed["gain"], judged(aimed), strict=True)
        listed = ", ".join(f"{remedy} {gain:+.1f} ({said})" for remedy, gain, said in each)
        yield f"Aimed at this: {listed}."
