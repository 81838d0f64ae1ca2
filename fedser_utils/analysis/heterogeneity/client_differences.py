"""How unlike the clients are, before any training and after it: labels, inputs, results.

Read from the clips' table, the log-Mels and the decisions alone. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fedser_utils.analysis.metrics import uar_by
from fedser_utils.analysis.tables import last_round

ALL, SEVERAL, UNKNOWN = "all", "several", "unknown"
SCOPES = ("corpus", "language", "client")
_GROUP = ["attack", "condition"]
_CHUNK = 64  # clips read at a time: 6 MB of the paper's log-Mels


def of_clients(clips: pd.DataFrame, column: str = "corpus") -> pd.Series:
    """Client -> the one value of ``column`` that its training clips have, or "several"."""
    own = clips[clips["split"] == "train"].groupby("client")[column]
    return own.min().where(own.min() == own.max(), SEVERAL).replace("", UNKNOWN)


def label_skew(clips: pd.DataFrame) -> pd.DataFrame:
    """How far each client's labels are from all clients'. clips: a run's ``clips.parquet``.

    Columns: client, corpus, language, n (training clips), classes (that occur in them), distance
    (total variation between its shares of the classes and the pooled ones, 0 to 1), by_chance
    (the distance to be expected of as many clips drawn from the pool: half the sum over the
    classes of sqrt(2 p (1 - p) / (pi n)), the normal approximation).
    """
    train = clips[clips["split"] == "train"]
    counts = pd.crosstab(train["client"], train["emotion"])
    n, pooled = counts.sum(axis=1), counts.sum() / counts.to_numpy().sum()
    spread = np.sqrt(2 * pooled * (1 - pooled) / np.pi).sum() / 2
    table = pd.DataFrame(
        {
            "corpus": of_clients(clips), "language": of_clients(clips, "language"), "n": n,
            "classes": (counts > 0).sum(axis=1),
            "distance": counts.div(n, axis=0).sub(pooled).abs().sum(axis=1) / 2,
            "by_chance": spread / np.sqrt(n),
        }
    )  # fmt: skip
    return table.rename_axis("client").reset_index()


def input_shift(
    log_mels: np.ndarray, clips: pd.DataFrame, *, by: str = "corpus", balanced: bool = True
) -> pd.DataFrame:
    """Mean and deviation of every Mel band over the frames of each group's training clips.

    log_mels: (clips, frames, bands), in the table's order, may be a memory map; read in pieces.
    by: the column of ``clips`` that groups them. balanced: all emotions that every group has count
    alike in each group, so that groups do not differ by their mix of emotions; without such an
    emotion, all clips count.

    Returns a row per group and band, first of "all" groups together: ``by``, band, mean, std, n.
    """
    train = clips[clips["split"] == "train"]
    cells = dict(list(train.groupby([by, "emotion"])))
    sizes = pd.Series({key: len(own) for key, own in cells.items()}).unstack(fill_value=0)
    shared = sizes.columns[(sizes > 0).all()]
    if not balanced or shared.empty:
        weights = sizes.astype(float)
    else:  # a group keeps its weight among the groups, and shares it out evenly
        sizes = sizes[shared]
        weights = pd.DataFrame({emotion: sizes.mean(axis=1) for emotion in shared})
    used = [key for key in cells if key[1] in weights.columns]
    moments = {key: _moments(log_mels, cells[key].index.to_numpy()) for key in used}
    groups = {ALL: used} | {name: [key for key in used if key[0] == name] for name in sizes.index}
    found = []
    for name, keys in groups.items():
        share = np.array([weights.loc[key] for key in keys])
        first, second = np.tensordot(share / share.sum(), [moments[key] for key in keys], 1)
        n = sum(int(sizes.loc[key]) for key in keys)
        std = np.sqrt(np.maximum(second - first**2, 0))
        rows = {by: name or UNKNOWN, "band": range(len(first)), "mean": first, "std": std, "n": n}
        found.append(pd.DataFrame(rows))
    return pd.concat(found, ignore_index=True)


def _moments(log_mels: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of every band and of its square, over all frames of some clips."""
    first = second = 0.0
    for start in range(0, len(places), _CHUNK):
        piece = np.asarray(log_mels[places[start : start + _CHUNK]], dtype=np.float64)
        first, second = first + piece.sum((0, 1)), second + np.square(piece).sum((0, 1))
    frames = len(places) * log_mels.shape[1]
    return first / frames, second / frames


def shift_by_group(bands: pd.DataFrame) -> pd.DataFrame:
    """One row per group of ``input_shift``: its name, n, distance (the mean over bands of the
    difference from the mean of all, in their standard deviations), loudness (the same with its
    sign: how much of it is one level for all bands), spread (the mean over bands of its standard
    deviation, as a share of theirs)."""
    by = bands.columns[0]
    pooled = bands[bands[by] == ALL].set_index("band")
    rows = []
    for name, own in bands[bands[by] != ALL].groupby(by, sort=False):
        own = own.set_index("band")
        moved = (own["mean"] - pooled["mean"]) / pooled["std"]
        spread = (own["std"] / pooled["std"]).mean()
        rows.append((name, own["n"].iloc[0], moved.abs().mean(), moved.mean(), spread))
    return pd.DataFrame(rows, columns=[by, "n", "distance", "loudness", "spread"])


def joined(predictions: pd.DataFrame, clips: pd.DataFrame) -> pd.DataFrame:
    """Decisions with the corpus, language and client of their clips. Raises ValueError where a
    clip of the decisions is not in the table, or twice."""
    facts = clips[["clip", *SCOPES]].replace({"language": {"": UNKNOWN}})
    rows = predictions.merge(facts, on="clip", validate="many_to_one")
    if len(rows) != len(predictions):
        raise ValueError(f"{len(predictions) - len(rows)} decisions are on clips not in the table")
    return rows


def results(
    predictions: pd.DataFrame, clips: pd.DataFrame, *, scopes: Sequence[str] = SCOPES
) -> pd.DataFrame:
    """One run's UAR after its last round: of all test clips, each corpus, language and client.

    predictions, clips: of one run. Columns: scope (all, corpus, language, client), name, attack,
    condition, uar (percent, over the classes that occur there; the mean over draws), classes (how
    many those are), n (test clips).
    """
    rows = joined(last_round(predictions), clips).assign(all=ALL)
    found = []
    for scope in (ALL, *scopes):
        by = [scope, *_GROUP]
        each = uar_by(rows, [*by, "draw"]).groupby(by, sort=False)
        means = each.agg(uar=("uar", "mean"), n=("n", "first")).reset_index()
        classes = rows.groupby(by, sort=False)["y_true"].nunique().rename("classes").reset_index()
        own = means.merge(classes, on=by).rename(columns={scope: "name"})
        found.append(own.assign(scope=scope))
    columns = ["scope", "name", *_GROUP, "uar", "classes", "n"]
    return pd.concat(found, ignore_index=True)[columns]


def spread(results: pd.DataFrame) -> pd.DataFrame:
    """How evenly clients are served: per attack and condition their number (clients), mean and
    deviation over them (percent; NaN for one), quartiles low and high, worst (its name),
    worst_uar, worst_n (its test clips), median_n (of all clients)."""
    own = results[results["scope"] == "client"].sort_values("uar", kind="stable")
    groups = own.groupby(_GROUP, sort=False)
    table = groups.agg(
        clients=("name", "nunique"), mean=("uar", "mean"), deviation=("uar", "std"),
        worst=("name", "first"), worst_uar=("uar", "first"), worst_n=("n", "first"),
        median_n=("n", "median"),
    )  # fmt: skip
    bounds = groups["uar"].quantile([0.25, 0.75]).unstack()
    return table.assign(low=bounds[0.25], high=bounds[0.75]).reset_index()


def over_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """``results`` of several seeds as one: uar is their mean, classes and n the fewest."""
    how = {"uar": "mean", "classes": "min", "n": "min"}
    return results.groupby(["scope", "name", *_GROUP], sort=False).agg(how).reset_index()


def by_alpha(results: pd.DataFrame, *, attack: str = "pgd") -> pd.DataFrame:
    """What a Dirichlet partition's alpha does. results: rows of ``results`` of several runs, with
    the columns alpha and seed.

    Columns: alpha, condition (original; adversarial and randomised_adversarial under ``attack``),
    uar (percent, the mean over seeds), over clients worst, worst_uar and the quartiles low and
    high, n, seeds.
    """
    own = results[results["attack"].eq(attack) | results["condition"].eq("original")]
    found = []
    for (alpha, condition), each in own.groupby(["alpha", "condition"], sort=False):
        means = over_seeds(each)
        row = means.loc[means["scope"] == ALL, ["uar", "n"]].iloc[0].to_dict()
        served = spread(means).iloc[0][["worst", "worst_uar", "low", "high"]].to_dict()
        facts = {"alpha": alpha, "condition": condition, "seeds": each["seed"].nunique()}
        found.append(facts | row | served)
    return pd.DataFrame(found).sort_values("alpha", kind="stable", ignore_index=True)
