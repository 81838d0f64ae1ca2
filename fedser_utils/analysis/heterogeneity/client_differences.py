"""How much clients differ in labels and inputs before training, and in UAR after it.

clips: a run's ``clips.parquet``; predictions: of its ``predictions.parquet``.
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


def column_by_client(clips: pd.DataFrame, column: str = "corpus") -> pd.Series:
    """Return client -> the one value of ``column`` of its training clips, or "several"."""
    values = clips[clips["split"] == "train"].groupby("client")[column]
    return values.min().where(values.min() == values.max(), SEVERAL).replace("", UNKNOWN)


def corpus_sizes(clips: pd.DataFrame) -> pd.DataFrame:
    """Return the clients, clips and sample rate (Hz) of each corpus and language."""
    groups = clips.groupby(["corpus", "language"])
    return groups.agg(clients=("client", "nunique"), clips=("clip", "size"), rate=("rate", "max"))


def label_skew(clips: pd.DataFrame) -> pd.DataFrame:
    """Return the distance of each client's labels from those of all clients.

    Columns: client, corpus, language, n (training clips), classes (that occur in them), distance
    (total variation between its shares of the classes and the pooled ones, 0 to 1), by_chance
    (the distance expected of as many clips drawn from the pool: half the sum over the classes of
    sqrt(2 p (1 - p) / (pi n)), the normal approximation).
    """
    train = clips[clips["split"] == "train"]
    counts = pd.crosstab(train["client"], train["emotion"])
    n, pooled = counts.sum(axis=1), counts.sum() / counts.to_numpy().sum()
    spread = np.sqrt(2 * pooled * (1 - pooled) / np.pi).sum() / 2
    table = pd.DataFrame(
        {
            "corpus": column_by_client(clips),
            "language": column_by_client(clips, "language"), "n": n,
            "classes": (counts > 0).sum(axis=1),
            "distance": counts.div(n, axis=0).sub(pooled).abs().sum(axis=1) / 2,
            "by_chance": spread / np.sqrt(n),
        }
    )  # fmt: skip
    return table.rename_axis("client").reset_index()


def input_shift(
    log_mels: np.ndarray, clips: pd.DataFrame, *, by: str = "corpus", balanced: bool = True
) -> pd.DataFrame:
    """Return mean and deviation of every Mel band over the frames of each group's training clips.

    log_mels: (clips, frames, bands), in the order of ``clips``; may be a memory map, read in
    pieces. by: the column that groups them. balanced: the emotions that every group has count alike
    in each group, so that groups do not differ by their mix of emotions; without such an emotion,
    all clips count. Columns: ``by`` (first "all" groups together), band, mean, std, n.
    """
    train = clips[clips["split"] == "train"]
    cells = dict(list(train.groupby([by, "emotion"])))
    sizes = pd.Series({key: len(cell) for key, cell in cells.items()}).unstack(fill_value=0)
    shared = sizes.columns[(sizes > 0).all()]
    if not balanced or shared.empty:
        weights = sizes.astype(float)
    else:  # a group's weight among the groups stays, and is divided evenly
        sizes = sizes[shared]
        weights = pd.DataFrame({emotion: sizes.mean(axis=1) for emotion in shared})
    used = [key for key in cells if key[1] in weights.columns]
    moments = {key: _moments(log_mels, cells[key].index.to_numpy()) for key in used}
    groups = {ALL: used} | {name: [key for key in used if key[0] == name] for name in sizes.index}
    tables = []
    for name, keys in groups.items():
        share = np.array([weights.loc[key] for key in keys])
        first, second = np.tensordot(share / share.sum(), [moments[key] for key in keys], 1)
        n = sum(int(sizes.loc[key]) for key in keys)
        std = np.sqrt(np.maximum(second - first**2, 0))
        rows = {by: name or UNKNOWN, "band": range(len(first)), "mean": first, "std": std, "n": n}
        tables.append(pd.DataFrame(rows))
    return pd.concat(tables, ignore_index=True)


def _moments(log_mels: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of every band and of its square, (bands,) each, over some clips' frames."""
    first = second = 0.0
    for start in range(0, len(places), _CHUNK):
        piece = np.asarray(log_mels[places[start : start + _CHUNK]], dtype=np.float64)
        first, second = first + piece.sum((0, 1)), second + np.square(piece).sum((0, 1))
    frames = len(places) * log_mels.shape[1]
    return first / frames, second / frames


def shift_by_group(bands: pd.DataFrame) -> pd.DataFrame:
    """Return one row per group of ``input_shift``: its name, n, distance (the mean over bands of
    the absolute difference from the mean of all, in their standard deviations), loudness (the same
    signed: how much of it is one level for all bands), spread (the mean over bands of its standard
    deviation, as a share of theirs)."""
    by = bands.columns[0]
    pooled = bands[bands[by] == ALL].set_index("band")
    rows = []
    for name, group in bands[bands[by] != ALL].groupby(by, sort=False):
        group = group.set_index("band")
        shift = (group["mean"] - pooled["mean"]) / pooled["std"]
        spread = (group["std"] / pooled["std"]).mean()
        rows.append((name, group["n"].iloc[0], shift.abs().mean(), shift.mean(), spread))
    return pd.DataFrame(rows, columns=[by, "n", "distance", "loudness", "spread"])


def with_clips(predictions: pd.DataFrame, clips: pd.DataFrame) -> pd.DataFrame:
    """Return decisions with the corpus, language and client of their clips. Raises ValueError if a
    clip of the decisions is not in ``clips``, or twice."""
    facts = clips[["clip", *SCOPES]].replace({"language": {"": UNKNOWN}})
    rows = predictions.merge(facts, on="clip", validate="many_to_one")
    if len(rows) != len(predictions):
        raise ValueError(f"{len(predictions) - len(rows)} decisions are on clips not in the table")
    return rows


def uar_by_scope(
    predictions: pd.DataFrame, clips: pd.DataFrame, *, scopes: Sequence[str] = SCOPES
) -> pd.DataFrame:
    """Return one run's UAR after its last round: on all test clips, each corpus, language, client.

    predictions, clips: of one run. Columns: scope (all, corpus, language, client), name, attack,
    condition, uar (percent, over the classes that occur there; the mean over draws), classes (how
    many those are), n (test clips).
    """
    rows = with_clips(last_round(predictions), clips).assign(all=ALL)
    tables = []
    for scope in (ALL, *scopes):
        by = [scope, *_GROUP]
        draws = uar_by(rows, [*by, "draw"]).groupby(by, sort=False)
        means = draws.agg(uar=("uar", "mean"), n=("n", "first")).reset_index()
        classes = rows.groupby(by, sort=False)["y_true"].nunique().rename("classes").reset_index()
        of_scope = means.merge(classes, on=by).rename(columns={scope: "name"})
        tables.append(of_scope.assign(scope=scope))
    columns = ["scope", "name", *_GROUP, "uar", "classes", "n"]
    return pd.concat(tables, ignore_index=True)[columns]


def spread(uars: pd.DataFrame) -> pd.DataFrame:
    """Return how evenly clients are served; uars: of ``uar_by_scope``.

    Columns: attack, condition, clients (how many), mean and deviation over them (percent; NaN for
    one), worst (its name), worst_uar, worst_n (its test clips), median_n (of all clients), low and
    high (quartiles over clients).
    """
    clients = uars[uars["scope"] == "client"].sort_values("uar", kind="stable")
    groups = clients.groupby(_GROUP, sort=False)
    table = groups.agg(
        clients=("name", "nunique"), mean=("uar", "mean"), deviation=("uar", "std"),
        worst=("name", "first"), worst_uar=("uar", "first"), worst_n=("n", "first"),
        median_n=("n", "median"),
    )  # fmt: skip
    bounds = groups["uar"].quantile([0.25, 0.75]).unstack()
    return table.assign(low=bounds[0.25], high=bounds[0.75]).reset_index()


def mean_over_seeds(uars: pd.DataFrame) -> pd.DataFrame:
    """Return ``uar_by_scope`` of several seeds as one: the mean uar, the fewest classes and n."""
    columns = {"uar": "mean", "classes": "min", "n": "min"}
    return uars.groupby(["scope", "name", *_GROUP], sort=False).agg(columns).reset_index()


def uar_by_alpha(uars: pd.DataFrame, *, attack: str = "pgd") -> pd.DataFrame:
    """Return UAR against a Dirichlet partition's alpha. uars: rows of ``uar_by_scope`` of several
    runs, with the columns alpha and seed.

    Columns: alpha, condition (original; adversarial and randomised_adversarial under ``attack``),
    seeds, uar (percent, the mean over seeds), n; over clients worst, worst_uar and the quartiles
    low and high.
    """
    rows = uars[uars["attack"].eq(attack) | uars["condition"].eq("original")]
    table = []
    for (alpha, condition), group in rows.groupby(["alpha", "condition"], sort=False):
        means = mean_over_seeds(group)
        row = means.loc[means["scope"] == ALL, ["uar", "n"]].iloc[0].to_dict()
        served = spread(means).iloc[0][["worst", "worst_uar", "low", "high"]].to_dict()
        facts = {"alpha": alpha, "condition": condition, "seeds": group["seed"].nunique()}
        table.append(facts | row | served)
    return pd.DataFrame(table).sort_values("alpha", kind="stable", ignore_index=True)
