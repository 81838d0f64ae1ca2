"""What models decide on clips, attacked or not, as tidy rows.

``evaluate`` is the paper's protocol (section 6.3): original and randomised clips; adversarial
clips, crafted on the undefended model; and the same adversarial clips, randomised. The attacker
does not know of the randomisation: it is not adaptive.
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
    """Return ``function`` of the columns, computed batch by batch and concatenated.

    columns: tensors of one length, (n, ...). The batch size suits the device, divided by the
    ``copies`` that the function makes of each clip; where a batch exceeds the GPU's memory, its
    halves are tried. On a CPU the batches run side by side on ``pool`` (None: on a new one).
    generators: batch number -> the ``generator`` that the function is called with, so that the
    order of the workers changes nothing.
    """
    device = columns[0].device.type
    size = max(1, BATCH[device] // copies)
    batches = list(zip(*(column.split(size) for column in columns), strict=True))

    def run(number: int) -> Tensor:
        options = {} if generators is None else {"generator": generators(number)}
        return _within_memory(partial(function, **options), batches[number])

    if device != "cpu":
        return torch.cat([run(number) for number in range(len(batches))])
    with worker_pool(device) if pool is None else nullcontext(pool) as workers:
        return torch.cat(list(workers.map(run, range(len(batches)))))


def _within_memory(function: Callable[..., Tensor], columns: Sequence[Tensor]) -> Tensor:
    """Return ``function(*columns)``, of each half alone where the GPU's memory does not suffice."""
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
    """Return what ``model`` decides on every clip under the paper's four conditions.

    model: decides and is attacked, as ``vgg.attack_target`` makes it. x: (n, 1, frames, mels)
    standardised log-Mel; y: (n,) labels; attacks: name -> function ``(model, x, y) -> x_adv``;
    seed: of the randomisation's draws, one per clip and condition.

    Returns n rows per condition: attack ("none" for the unattacked), condition, draw, index
    (of the clip in x), y_pred.
    """

    def randomised_decisions(x: Tensor, sizes: Tensor, offsets: Tensor) -> Tensor:
        return predictions(model, randomise(x, Draw(sizes, offsets)))

    rows = []
    for name in ("none", *attacks):
        x_adv = x if name == "none" else in_batches(partial(attacks[name], model), x, y, pool=pool)
        draw = randomise.draw(len(x), generator(seed, "randomise", name))
        sizes, offsets = (part.to(x.device) for part in draw)
        decisions = (
            in_batches(partial(predictions, model), x_adv, pool=pool),
            in_batches(randomised_decisions, x_adv, sizes, offsets, pool=pool),
        )
        for condition, y_pred in zip(conditions(name), decisions, strict=True):
            rows.append(draw_rows(y_pred, attack=name, condition=condition))
    columns = ["attack", "condition", "draw", "index", "y_pred"]
    return pd.concat(rows, ignore_index=True)[columns]


def conditions(attack: str) -> tuple[str, str]:
    """Return the paper's names of the conditions without and with randomisation."""
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
    """Return what models decide on clips that were attacked through ``source``.

    x: (n, 1, frames, mels) standardised log-Mel; y: (n,) labels; attacks: (name, the value of its
    strength that varies, or None) -> function ``(model, x, y) -> x_adv``, or None for no attack;
    targets: name -> model that classifies the clips, the source itself if None; seed: of attacks
    that take a generator; bf16: of the attacks' gradients.

    Returns a row per target, attack and clip: target, attack, value, index, y_true, y_pred.
    """
    target_model = attack_target(source, bf16=bf16)
    targets = {n: fold_batch_norm(m) for n, m in (targets or {"source": source}).items()}
    rows = []
    for (name, value), attack in attacks.items():
        x_adv = x
        if attack is not None:
            random = "generator" in inspect.signature(attack).parameters
            draws = partial(generator, seed, name, value) if random else None
            x_adv = in_batches(partial(attack, target_model), x, y, pool=pool, generators=draws)
        for target, model in targets.items():
            y_pred = in_batches(partial(predictions, model), x_adv, pool=pool)
            columns = {"target": target, "attack": name, "value": value}
            columns |= {"index": np.arange(len(x)), "y_true": y.cpu(), "y_pred": y_pred.cpu()}
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
    """Return ``under_attacks`` from every model to every model, with the column source."""
    options = {"targets": models, "bf16": bf16, "pool": pool}
    rows = [
        under_attacks(source, x, y, {("transfer", None): attack}, **options).assign(source=name)
        for name, source in models.items()
    ]
    return pd.concat(rows, ignore_index=True)


def fooling_rate(model: nn.Module, x: Tensor, attacks: Mapping[str, Attack]) -> pd.Series:
    """Return the percentage of clips whose decision each attack changes. x: (n, ...)."""
    before = predictions(model, x)
    shares = {
        name: 100 * (predictions(model, attack(model, x, before)) != before).double().mean().item()
        for name, attack in attacks.items()
    }
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
    """Return how large each attack's perturbations are, a row per attack.

    x: (n, 1, frames, mels) standardised log-Mel; y: (n,) labels; mean, std: (mels,) of the
    standardisation. The columns are the medians over clips of ``perceptibility``'s measures.
    """
    target_model, rows = attack_target(model, bf16=bf16), []
    for name, attack in attacks.items():
        x_adv = in_batches(partial(attack, target_model), x, y)
        sizes = perceptibility(x, x_adv, mean=mean, std=std)
        rows.append({"attack": name} | {n: size.median().item() for n, size in sizes.items()})
    return pd.DataFrame(rows)


def predict_sounds(
    model: Model,
    listen: Callable[[Tensor], Tensor],
    sounds: Mapping[str, Tensor],
    folder: Path,
    *,
    rate: int = SAMPLE_RATE,
) -> pd.DataFrame:
    """Write sounds as 16-bit WAVs, and return what the model decides on each file.

    listen: (1, samples) at ``rate`` Hz -> (1, 1, frames, mels); sounds: name -> (1, samples).
    Returns a row per sound: sound, path, y_pred.
    """
    rows = []
    for name, waveform in sounds.items():
        path = audio.write(folder / f"{name}.wav", waveform[0].cpu().numpy(), rate=rate)
        x = listen(log_mel.load_waveform(path, rate=rate, device=waveform.device))
        rows.append((name, path, predictions(model, x).item()))
    return pd.DataFrame(rows, columns=["sound", "path", "y_pred"])


def draw_rows(y_pred: Tensor, **columns: Any) -> pd.DataFrame:
    """Return rows draw, index, y_pred and ``columns``, of decisions (draws, n) or (n,)."""
    y_pred = y_pred.cpu().numpy().reshape(-1, y_pred.shape[-1])
    draw, index = np.indices(y_pred.shape).reshape(2, -1)
    return pd.DataFrame({"draw": draw, "index": index, "y_pred": y_pred.ravel()} | columns)


def with_clips(
    rows: pd.DataFrame, clips: pd.DataFrame, classes: Sequence[str], **columns: Any
) -> pd.DataFrame:
    """Return the rows with clip, speaker, and y_true and y_pred by name.

    rows: index (of the clip in ``clips``), y_pred and perhaps y_true (of the class; without it
    the clip's emotion is the truth); columns: further ones to add.
    """
    by_clip, by_name = clips.iloc[rows["index"]], np.array(classes)
    truth = by_name[rows["y_true"]] if "y_true" in rows else by_clip["emotion"].to_numpy()
    names = {name: by_clip[name].to_numpy() for name in ("clip", "speaker")}
    names |= {"y_true": truth, "y_pred": by_name[rows["y_pred"]]}
    return rows.drop(columns="index").assign(**columns, **names)
