"""Models, clips, attacks and defences -> tidy rows of decisions.

``evaluate`` is the paper's protocol (section 6.3): original and randomised clips; adversarial
clips, made against the plain model; and the same adversarial clips seen through the
randomisation. The attacker there does not know of the randomisation: it is not adaptive.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fedser_utils.attacks import Model, perceptibility, predictions
from fedser_utils.core.devices import worker_pool
from fedser_utils.core.seeding import generator
from fedser_utils.data import audio, log_mel
from fedser_utils.data.audio import SAMPLE_RATE
from fedser_utils.learning.vgg import VGG15, attack_target, fold_batch_norm
from fedser_utils.robustness.randomisation import Draw, Randomise

log = logging.getLogger(__name__)

Attack = Callable[..., Tensor]
BATCH = {"cpu": 4, "cuda": 128}


def in_batches(
    function: Callable[..., Tensor],
    *columns: Tensor,
    pool: Executor | None = None,
    generators: Callable[[int], torch.Generator] | None = None,
    copies: int = 1,
) -> Tensor:
    """``function`` over batches of ``columns`` (equally long tensors), joined again.

    The batches are of a size that suits the device, divided by the ``copies`` that the function
    makes of each clip; on a CPU they run side by side on the pool's workers, on a pool of their own
    if None. Where memory does not suffice for a batch, its halves are tried.
    generators: a function that draws is given, as ``generator``, what this makes of a batch's
    number, so that the workers' order changes nothing.
    """
    device = columns[0].device.type
    size = max(1, BATCH[device] // copies)
    batches = list(zip(*(column.split(size) for column in columns), strict=True))

    def run(number: int) -> Tensor:
        own = {} if generators is None else {"generator": generators(number)}
        return _within_memory(partial(function, **own), batches[number])

    if device != "cpu":
        return torch.cat([run(number) for number in range(len(batches))])
    with worker_pool(device) if pool is None else nullcontext(pool) as workers:
        return torch.cat(list(workers.map(run, range(len(batches)))))


def _within_memory(function: Callable[..., Tensor], columns: Sequence[Tensor]) -> Tensor:
    """``function(*columns)``; where the GPU's memory does not suffice, of one half and the
    other."""
    try:
        return function(*columns)
    except torch.OutOfMemoryError:
        n = len(columns[0])
        if n == 1:
            raise
        log.warning("a batch of %d clips does not fit into memory, trying halves", n)
    halves = zip(*(column.tensor_split(2) for column in columns), strict=True)
    return torch.cat([_within_memory(function, half) for half in halves])


def evaluate(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    attacks: Mapping[str, Attack],
    randomise: Randomise,
    seed: int,
    pool: Executor | None = None,
) -> pd.DataFrame:
    """The decisions of ``model`` on every clip under every condition.

    model: what decides and is attacked, as ``vgg.attackable`` makes it. x: (n, 1, frames, mels)
    standardised log-Mel; y: (n,) labels; attacks: name -> function ``(model, x, y) -> x_adv``;
    seed: of the randomisation's draws, one per clip and condition.

    Returns n rows per condition: attack ("none" for the unattacked), condition, draw, index
    (of the clip in x), y_pred.
    """

    def randomly(x: Tensor, sizes: Tensor, offsets: Tensor) -> Tensor:
        return predictions(model, randomise(x, Draw(sizes, offsets)))

    rows = []
    for name in ("none", *attacks):
        seen = x
        if name != "none":
            seen = in_batches(partial(attacks[name], model), x, y, pool=pool)
        draw = randomise.draw(len(x), generator(seed, "randomise", name))
        sizes, offsets = (part.to(x.device) for part in draw)
        decided = (
            in_batches(partial(predictions, model), seen, pool=pool),
            in_batches(randomly, seen, sizes, offsets, pool=pool),
        )
        for condition, said in zip(conditions(name), decided, strict=True):
            columns = {"attack": name, "condition": condition, "draw": 0}
            columns |= {"index": np.arange(len(x)), "y_pred": said.cpu().numpy()}
            rows.append(pd.DataFrame(columns))
    return pd.concat(rows, ignore_index=True)


def conditions(attack: str) -> tuple[str, str]:
    """The conditions without and with randomisation, in the paper's words."""
    if attack == "none":
        return "original", "randomised"
    return "adversarial", "randomised_adversarial"


def under_attacks(
    source: VGG15,
    x: Tensor,
    y: Tensor,
    attacks: Mapping[tuple[str, float | None], Attack | None],
    *,
    targets: Mapping[str, VGG15] | None = None,
    seed: int = 0,
    bf16: bool = False,
    pool: Executor | None = None,
) -> pd.DataFrame:
    """What models decide on clips that were attacked with the help of ``source``.

    attacks: (name, the value of its strength that varies, or None) -> function
    ``(model, x, y) -> x_adv``, or None for the clips as they are; targets: name -> model that is
    shown the clips, the source itself if None; seed: of attacks that take a generator; bf16: of
    the attacks' gradients.

    Returns a row per target, attack and clip: target, attack, value, index, y_true, y_pred.
    """
    aim = attack_target(source, bf16=bf16)
    judges = {n: fold_batch_norm(m) for n, m in (targets or {"source": source}).items()}
    rows = []
    for (name, value), attack in attacks.items():
        seen = x
        if attack is not None:
            draws = "generator" in inspect.signature(attack).parameters
            own = partial(generator, seed, name, value) if draws else None
            seen = in_batches(partial(attack, aim), x, y, pool=pool, generators=own)
        for target, judge in judges.items():
            said = in_batches(partial(predictions, judge), seen, pool=pool)
            columns = {"target": target, "attack": name, "value": value}
            columns |= {"index": np.arange(len(x)), "y_true": y.cpu(), "y_pred": said.cpu()}
            rows.append(pd.DataFrame(columns))
    return pd.concat(rows, ignore_index=True)


def transfer(
    models: Mapping[str, VGG15],
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    bf16: bool = False,
    pool: Executor | None = None,
) -> pd.DataFrame:
    """``under_attacks`` from every model to every model, with the column source."""
    rows = []
    for name, source in models.items():
        options = {"targets": models, "bf16": bf16, "pool": pool}
        found = under_attacks(source, x, y, {("transfer", None): attack}, **options)
        rows.append(found.assign(source=name))
    return pd.concat(rows, ignore_index=True)


def fooling_rate(model: nn.Module, x: Tensor, attacks: Mapping[str, Attack]) -> pd.Series:
    """The share of clips in percent whose decision each attack changes."""
    before = predictions(model, x)
    changed = {
        name: predictions(model, attack(model, x, before)) != before
        for name, attack in attacks.items()
    }
    shares = {name: 100 * wrong.double().mean().item() for name, wrong in changed.items()}
    return pd.Series(shares, name="fooled [%]")


def perturbation_sizes(
    model: VGG15,
    x: Tensor,
    y: Tensor,
    attacks: Mapping[str, Attack],
    *,
    mean: Tensor,
    std: Tensor,
    bf16: bool = False,
) -> pd.DataFrame:
    """How large each attack's perturbations are: the medians of ``perceptibility``'s measures,
    a row per attack. mean, std: (mels,) of the standardisation."""
    aim, rows = attack_target(model, bf16=bf16), []
    for name, attack in attacks.items():
        moved = in_batches(partial(attack, aim), x, y)
        found = perceptibility(x, moved, mean=mean, std=std)
        rows.append({"attack": name} | {key: each.median().item() for key, each in found.items()})
    return pd.DataFrame(rows)


def predict_sounds(
    model: Model,
    listen: Callable[[Tensor], Tensor],
    sounds: Mapping[str, Tensor],
    folder: Path,
    *,
    rate: int = SAMPLE_RATE,
) -> pd.DataFrame:
    """Write sounds as 16-bit WAVs, and what the model decides on each file as it was written.

    listen: (1, samples) at ``rate`` Hz -> (1, 1, frames, mels); sounds: name -> (1, samples).
    Returns a row per sound: sound, path, y_pred.
    """
    rows = []
    for name, waveform in sounds.items():
        path = audio.write(folder / f"{name}.wav", waveform[0].cpu().numpy(), rate=rate)
        back = listen(log_mel.load_waveform(path, rate=rate, device=waveform.device))
        rows.append((name, path, predictions(model, back).item()))
    return pd.DataFrame(rows, columns=["sound", "path", "y_pred"])


def draw_rows(decided: Tensor, **facts: Any) -> pd.DataFrame:
    """Rows (draw, index, y_pred, and the facts) of decisions (draws, n) or (n,)."""
    decided = decided.cpu().numpy().reshape(-1, decided.shape[-1])
    draw, index = np.indices(decided.shape).reshape(2, -1)
    return pd.DataFrame({"draw": draw, "index": index, "y_pred": decided.ravel()} | facts)


def with_clips(
    rows: pd.DataFrame, clips: pd.DataFrame, classes: Sequence[str], **facts: Any
) -> pd.DataFrame:
    """Rows with an index (of the clip) and y_pred (of the class) -> rows with clip, speaker,
    y_true and y_pred by name, and the facts. clips: the table that the index counts in, whose
    emotion is the truth, unless the rows have a y_true (of the class) of their own."""
    of_clip, by_name = clips.iloc[rows["index"]], np.array(classes)
    truth = by_name[rows["y_true"]] if "y_true" in rows else of_clip["emotion"].to_numpy()
    names = {name: of_clip[name].to_numpy() for name in ("clip", "speaker")}
    names |= {"y_true": truth, "y_pred": by_name[rows["y_pred"]]}
    return rows.drop(columns="index").assign(**facts, **names)
