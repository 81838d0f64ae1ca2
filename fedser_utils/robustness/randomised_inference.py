"""What the randomisation gives and costs: decisions over its draws, their averages, its tuning.

The attacker here does not know of it; ``adaptive_attacks`` has the one who does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedser_utils.analysis.metrics import uar
from fedser_utils.attacks import Model, make_attack
from fedser_utils.core.devices import worker_pool
from fedser_utils.core.seeding import generator
from fedser_utils.learning.vgg import fold_batch_norm
from fedser_utils.robustness.evaluation import BATCH, draw_rows, in_batches, with_clips
from fedser_utils.robustness.loaded_model import LoadedModel
from fedser_utils.robustness.randomisation import RESIZE_MODES, Randomise, RandomisedModel


def logits_over_draws(
    model: Model,
    x: Tensor,
    *,
    randomise: Randomise,
    draws: int,
    seed: int,
    pool: Executor | None = None,
) -> Tensor:
    """Return the logits behind the randomisation, (draws, n, classes).

    model: of the enlarged images; x: (n, 1, frames, mels). The same seed gives the same draws,
    whatever x holds.
    """

    def several(x: Tensor, generator: torch.Generator) -> Tensor:
        randomised = RandomisedModel(model, randomise, generator)
        with torch.no_grad():
            return torch.stack([randomised(x) for _ in range(draws)], 1)

    generators = partial(generator, seed, "draws")
    return in_batches(several, x, pool=pool, generators=generators).transpose(0, 1)


def averaged_decisions(logits: Tensor, k: int) -> Tensor:
    """Return (draws // k, n), the decisions of the mean logits over k draws at a time. logits:
    (draws, n, classes)."""
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
    """Return the UAR in percent, mean over draws, of every randomisation in a grid.

    clips: name, such as "original" and "pgd" -> (n, 1, frames, mels); y: (n,) labels; margins: of
    frames and mels, as ``Randomise.with_margins`` takes them; values: of the padding. Returns a
    row per setting: frames, mels, value, a column for each of ``clips``, and their mean, the score.
    """
    rows, shape = [], next(iter(clips.values())).shape[2:]
    for (frames, mels), value in product(margins, values):
        randomise = Randomise.with_margins(frames, mels, shape=shape, value=value, mode=mode)
        row = {"frames": frames, "mels": mels, "value": value}
        for name, x in clips.items():
            options = {"randomise": randomise, "draws": draws, "seed": seed, "pool": pool}
            y_pred = logits_over_draws(model, x, **options).argmax(2).cpu()
            row[name] = sum(uar(y.cpu(), of_draw) for of_draw in y_pred) / draws
        rows.append(row)
    grid = pd.DataFrame(rows)
    return grid.assign(score=grid[list(clips)].mean(axis=1))


def milliseconds_per_clip(function: Callable[[], object], *, clips: int, repeats: int = 3) -> float:
    """Return the wall-clock milliseconds per clip, the best of several repeats after a warm-up.
    function: processes ``clips`` clips and returns when it is done."""
    function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds) / clips


def draw_example(loaded: LoadedModel, *, draws: int = 2) -> tuple[list[np.ndarray], list[str]]:
    """Return the first test clip and random draws of it, and a title for each: images of
    (frames, mels) and, randomised, (W'', H'')."""
    randomise = loaded.randomise
    draw = randomise.draw(draws, generator(loaded.settings.seed, "picture"))
    x = randomise(loaded.x[:1].repeat(draws, 1, 1, 1), draw)
    frames, mels = loaded.x.shape[2:]
    titles = [f"resized to {tuple(s.tolist())}, offset {tuple(o.tolist())}" for s, o in zip(*draw)]
    images = [loaded.x[0, 0].cpu().numpy(), *x[:, 0].cpu().numpy()]
    return images, [f"original, {frames} x {mels}", *titles]


def tune_randomisation(
    loaded: LoadedModel, clips: pd.DataFrame, *, margins: Sequence[int], values: Sequence[float]
) -> pd.DataFrame:
    """Return ``grid_search`` over original clips and PGD's, with two draws each.

    clips: rows of the federation's training clips; margins: of frames (of Mel bands a quarter,
    and one more); values: of the padding, in standardised log-Mel.
    """
    x, y = loaded.data.tensors(clips, device=loaded.device)
    pgd = partial(make_attack(loaded.settings, "pgd"), loaded.target_model)
    with worker_pool(loaded.device) as pool:
        return grid_search(
            fold_batch_norm(loaded.model),
            {"original": x, "pgd": in_batches(pgd, x, y, pool=pool)},
            y, margins=[(frames, frames // 4 + 1) for frames in margins], values=values,
            mode=loaded.settings.resize, draws=2, seed=loaded.settings.seed, pool=pool,
        )  # fmt: skip


def predictions_over_draws(
    loaded: LoadedModel, grid: pd.DataFrame, *, draws: int, averages: Sequence[int]
) -> pd.DataFrame:
    """Return the decisions on the test clips, original and attacked by PGD, behind every variant
    of the randomisation.

    grid: of ``tune_randomisation``, whose best row is the variant "tuned"; averages: numbers of
    draws whose logits are averaged too, behind the run's own variant. PGD attacks the plain model.
    Returns a row per attack (none: "original"), variant, averaged, draw and clip.
    """
    made, shape = loaded.settings, loaded.x.shape[2:]
    best = grid.loc[grid["score"].idxmax()]
    variants = {mode: Randomise.on(shape, mode=mode) for mode in RESIZE_MODES}
    variants["tuned"] = Randomise.with_margins(
        int(best["frames"]), int(best["mels"]), shape=shape, value=best["value"], mode=made.resize
    )
    plain = fold_batch_norm(loaded.model)
    pgd = partial(make_attack(made, "pgd"), loaded.target_model)
    rows = []
    with worker_pool(loaded.device) as pool:
        clips = {"original": loaded.x, "pgd": in_batches(pgd, loaded.x, loaded.y, pool=pool)}
        for name, x in clips.items():
            y_pred = in_batches(plain, x, pool=pool).argmax(1)
            rows.append(draw_rows(y_pred, attack=name, variant="none", averaged=1))
            for variant, randomise in variants.items():
                options = {"randomise": randomise, "draws": draws, "seed": made.seed, "pool": pool}
                logits = logits_over_draws(plain, x, **options)
                for k in [1, *(_averages(averages, draws) if variant == made.resize else [])]:
                    y_pred = averaged_decisions(logits, k)
                    rows.append(draw_rows(y_pred, attack=name, variant=variant, averaged=k))
    facts = {"run": loaded.run.id, "model": made.model, "round": made.rounds}
    return with_clips(pd.concat(rows), loaded.test, loaded.data.classes, **facts)


def randomisation_cost(loaded: LoadedModel, *, draws: int, averages: Sequence[int]) -> pd.DataFrame:
    """Return the milliseconds per clip of decisions without the randomisation, behind one draw and
    averaged over several: defence, ms per clip, device. averages: as ``predictions_over_draws``
    has them."""
    plain, x = fold_batch_norm(loaded.model), loaded.x[: BATCH[loaded.x.device.type]]
    defences = {"none": partial(in_batches, plain, x)}
    for k in (1, *_averages(averages, draws)):
        options = {"randomise": loaded.randomise, "draws": k, "seed": 0}
        defences[f"randomised, {k} draws"] = partial(logits_over_draws, plain, x, **options)
    cost = [(name, milliseconds_per_clip(f, clips=len(x))) for name, f in defences.items()]
    return pd.DataFrame(cost, columns=["defence", "ms per clip"]).assign(device=loaded.device)


def _averages(averages: Sequence[int], draws: int) -> list[int]:
    """The numbers of draws to average that are more than one and not more than there are."""
    return [k for k in averages if 1 < k <= draws]
