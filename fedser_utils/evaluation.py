"""A model under the paper's four conditions -> one row per clip and condition (section 6.3).

original and randomised clips; adversarial clips, made against the plain model; and the same
adversarial clips seen through the randomisation. The attacker here does not know of the
randomisation: a non-adaptive protocol.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedser_utils.attacks import predictions
from fedser_utils.metrics import conditions, uar
from fedser_utils.models import VGG15, folded
from fedser_utils.randomisation import Draw, Randomise, RandomisedModel
from fedser_utils.seeding import generator

Attack = Callable[..., Tensor]
BATCH = {"cpu": 16, "cuda": 128}


def evaluate(
    model: VGG15,
    x: Tensor,
    y: Tensor,
    *,
    attacks: Mapping[str, Attack],
    randomise: Randomise,
    seed: int,
    pool: Executor | None = None,
) -> pd.DataFrame:
    """The decisions of ``model`` on every clip under every condition.

    x: (n, 1, frames, mels) standardised log-Mel; y: (n,) labels; attacks: name -> function
    ``(model, x, y) -> x_adv``; seed: of the randomisation's draws, one per clip and condition.

    Returns n rows per condition: attack ("none" for the unattacked), condition, draw, index
    (of the clip in x), y_pred.
    """
    plain = folded(model)
    size = BATCH[x.device.type]
    run = map if pool is None else pool.map

    def over_batches(function: Callable[..., Tensor], *columns: Tensor) -> Tensor:
        parts = zip(*(column.split(size) for column in columns), strict=True)
        return torch.cat(list(run(lambda part: function(*part), parts)))

    def decide(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return plain(x).argmax(1)

    def decide_randomised(x: Tensor, sizes: Tensor, offsets: Tensor) -> Tensor:
        return decide(randomise(x, Draw(sizes, offsets)))

    rows = []
    for name in ("none", *attacks):
        seen = x
        if name != "none":
            seen = over_batches(functools.partial(attacks[name], plain), x, y)
        draw = randomise.draw(len(x), generator(seed, "randomise", name))
        plainly, randomly = over_batches(decide, seen), over_batches(decide_randomised, seen, *draw)
        for condition, decided in zip(conditions(name), (plainly, randomly), strict=True):
            columns = {"attack": name, "condition": condition, "draw": 0}
            columns |= {"index": np.arange(len(x)), "y_pred": decided.cpu().numpy()}
            rows.append(pd.DataFrame(columns))
    return pd.concat(rows, ignore_index=True)


def uar_under(
    model: VGG15, x: Tensor, y: Tensor, attacks: Mapping[tuple, Attack], *, pool: Executor
) -> pd.DataFrame:
    """UAR in percent under each of several attacks: a column ``attack``, ``value``, ``uar``.

    attacks: (name, value of the strength that varies) -> function ``(model, x, y) -> x_adv``.
    """
    plain, size = folded(model), BATCH[x.device.type]
    rows = []
    for (name, value), attack in attacks.items():
        parts = zip(x.split(size), y.split(size), strict=True)
        seen = pool.map(lambda part, a=attack: predictions(plain, a(plain, *part)), parts)
        rows.append((name, value, uar(y.cpu(), torch.cat(list(seen)).cpu())))
    return pd.DataFrame(rows, columns=["attack", "value", "uar"])


def uar_over_draws(
    model: VGG15,
    x: Tensor,
    y: Tensor,
    *,
    randomise: Randomise,
    draws: int,
    seed: int,
    pool: Executor,
) -> pd.Series:
    """UAR in percent behind the randomisation, once per draw: (draws,)."""
    plain, size = folded(model), BATCH[x.device.type]

    def once(number: int) -> float:
        guarded = RandomisedModel(plain, randomise, generator(seed, "draw", number))
        return uar(y.cpu(), torch.cat([predictions(guarded, part) for part in x.split(size)]).cpu())

    return pd.Series(list(pool.map(once, range(draws))), name="uar")
