"""Assigning clips to clients: by speaker, evenly, or with skewed labels or numbers of clips.

Test clips are assigned as training clips are, so that both have a client's distribution.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from fedser_utils.core.errors import InputError, choose
from fedser_utils.core.seeding import rng
from fedser_utils.core.settings import DEFAULT_SKEW, PARTITIONS, client_name

DRAWS = 100  # at most, until every client has a training clip


def assign_clients(
    clips: pd.DataFrame, *, how: str, count: int, alpha: float | None, seed: int
) -> pd.Series:
    """Return the client of every row of ``clips`` (clip, speaker, emotion, split).

    how: "speaker", each is a client. Otherwise ``count`` clients: "iid", equal shares at random;
    "dirichlet", of each class a share drawn from a Dirichlet distribution (Hsu et al., 2019);
    "quantity", of all clips one such share (Li et al., 2022). alpha: the distribution's, equal for
    all clients; small: very unequal shares; None: ``settings.DEFAULT_SKEW``.

    Raises InputError where in each of ``DRAWS`` draws a client has no training clip.
    """
    choose("partition", how, PARTITIONS)
    if how == "speaker":
        return clips["speaker"].copy()
    trains = (clips["split"] == "train").sum()
    if count > trains:
        raise InputError(f"client_count {count} is more than the {trains} training clips")
    alpha = DEFAULT_SKEW.get(how) if alpha is None else alpha
    generator = rng(seed, "partition", how)
    for _ in range(DRAWS):
        client = _draw(clips, how, count, alpha, generator)
        if client[clips["split"] == "train"].nunique() == count:
            return client.map(client_name)
    raise InputError(
        f"skew_alpha {alpha:g} leaves some of {count} clients without a training clip; choose a "
        "larger one, or a smaller client_count"
    )


def _draw(
    clips: pd.DataFrame, how: str, count: int, alpha: float | None, generator: np.random.Generator
) -> pd.Series:
    """The number of a client for every row."""
    numbers = np.zeros(len(clips), int)
    labels = clips["emotion"] if how == "dirichlet" else np.full(len(clips), "")
    table = pd.DataFrame({"label": labels, "split": clips["split"], "clip": clips["clip"]})
    table["place"] = np.arange(len(clips))
    for _, of_label in table.sort_values("clip").groupby("label"):
        share = np.full(count, 1 / count)
        if how in DEFAULT_SKEW:
            share = generator.dirichlet(np.full(count, alpha))
        for _, part in of_label.groupby("split"):
            cuts = np.round(np.cumsum(share)[:-1] * len(part)).astype(int)
            shares = np.split(generator.permutation(part["place"].to_numpy()), cuts)
            for number, places in enumerate(shares):
                numbers[places] = number
    return pd.Series(numbers, index=clips.index)
