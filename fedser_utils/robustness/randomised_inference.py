"""What the randomisation costs and gives: decisions over its draws, their mean, its tuning.

The attacker here does not know of it; ``adaptive_attacks`` has the one who does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import product

import pandas as pd
import torch
from torch import Tensor

from fedser_utils.analysis.metrics import uar
from fedser_utils.attacks import Model
from fedser_utils.core.seeding import generator
from fedser_utils.robustness.evaluation import in_batches
from fedser_utils.robustness.randomisation import Randomise, RandomisedModel


def logits_over_draws(
    model: Model,
    x: Tensor,
    *,
    randomise: Randomise,
    draws: int,
    seed: int,
    pool: Executor | None = None,
) -> Tensor:
    """The logits behind the randomisation, (draws, n, classes). model: of the enlarged images.
    The same seed gives the same draws, whatever x holds."""

    def several(x: Tensor, generator: torch.Generator) -> Tensor:
        randomised = RandomisedModel(model, randomise, generator)
        with torch.no_grad():
            return torch.stack([randomised(x) for _ in range(draws)], 1)

    return in_batches(
        several, x, pool=pool, generators=partial(generator, seed, "draws")
    ).transpose(0, 1)


def averaged_decisions(logits: Tensor, k: int) -> Tensor:
    """The decisions of the mean over k draws at a time. logits: (draws, n, classes). Returns
    (draws // k, n)."""
    groups = logits[: len(logits) // k * k].unflatten(0, (-1, k))
    return groups.mean(1).argmax(2)


def grid_search(
    model: Model,
    clips: Mapping[str, Tensor],
    y: Tensor,
    *,
    margins: Sequence[tuple[int, int]],
    values: Sequence[float],
    mode: str,
    draws: int,
    seed: int,
    pool: Executor | None = None,
) -> pd.DataFrame:
    """UAR in percent, mean over draws, of every randomisation in a grid.

    clips: name, such as "original" and "pgd" -> (n, 1, frames, mels); margins: of frames and mels,
    as ``Randomise.with_margins`` takes them; values: of the padding. Returns a row per setting:
    frames, mels, value, a column for each of ``clips``, and their mean, the score.
    """
    rows, shape = [], next(iter(clips.values())).shape[2:]
    for (frames, mels), value in product(margins, values):
        randomise = Randomise.with_margins(frames, mels, shape=shape, value=value, mode=mode)
        row = {"frames": frames, "mels": mels, "value": value}
        for name, x in clips.items():
            options = {"randomise": randomise, "draws": draws, "seed": seed, "pool": pool}
            decided = logits_over_draws(model, x, **options).argmax(2).cpu()
            row[name] = sum(uar(y.cpu(), one) for one in decided) / draws
        rows.append(row)
    found = pd.DataFrame(rows)
    return found.assign(score=found[list(clips)].mean(axis=1))


def milliseconds_per_clip(function: Callable[[], object], *, clips: int, repeats: int = 3) -> float:
    """Wall-clock milliseconds per clip, the best of several repeats after one to warm up.
    function: works on ``clips`` clips and returns when it is done."""
    function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds) / clips
