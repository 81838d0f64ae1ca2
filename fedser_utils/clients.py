"""What one client of the federation computes, by a run's settings: its round, and decisions."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from fedser_utils import attacks, evaluation, models
from fedser_utils.config import InputError, Settings
from fedser_utils.partition import load_federation
from fedser_utils.randomisation import Randomise
from fedser_utils.seeding import generator
from fedser_utils.training import Arrays, Update, client_update


def device_of(settings: Settings) -> str:
    """The torch device these settings mean. Raises InputError where it is not there."""
    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {settings.device!r} is not available; choose from auto, cpu")
    return settings.device


def uses_bf16(settings: Settings, device: str) -> bool:
    """Whether training runs under bf16 autocast: on request, or where it is fast."""
    if settings.precision == "auto":
        return device != "cpu" or cpu_has_bf16()
    return settings.precision == "bf16"


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies in bf16; where it does not, bf16 is several times slower
    than fp32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def attack_of(settings: Settings, name: str, **changes: Any) -> Callable[..., Tensor]:
    """The attack called ``name`` at these settings' strength, but for ``changes``."""
    strength = {
        key: getattr(settings, key) for key in ("epsilon", "step_size", "steps", "overshoot")
    }
    return attacks.configured(name, **(strength | changes))


def new_model(settings: Settings, classes: int) -> models.VGG15:
    """The run's untrained model: the same for the same seed and width."""
    return models.build(classes, width=settings.width, generator=generator(settings.seed, "init"))


_workspace = threading.local()


def model_of(settings: Settings, classes: int) -> models.VGG15:
    """A model for each thread, reused: whoever takes it overwrites its weights."""
    if getattr(_workspace, "key", None) != (settings, classes):
        _workspace.model = new_model(settings, classes).to(device_of(settings))
        _workspace.key = settings, classes
    return _workspace.model


def fit(
    settings: Settings,
    client: str,
    clips: tuple[Tensor, Tensor],
    weights: Arrays,
    round_number: int,
    optimiser: Arrays | None,
    *,
    proximal_mu: float = 0.0,
) -> Update:
    """One client's round on its training clips (x, y): its new weights and optimiser state.

    The first round is natural, since the attack needs a trained model (paper, section 5.2). All
    randomness belongs to (seed, round, client).
    """
    adversarial = settings.attack != "none" and round_number > 1
    return client_update(
        model_of(settings, len(weights["classifier.2.bias"])),
        weights,
        *clips,
        generator=generator(settings.seed, "round", round_number, client),
        epochs=settings.local_epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        optimiser=optimiser if settings.client_state == "keep" else None,
        attack=attack_of(settings, settings.attack) if adversarial else None,
        alpha=settings.alpha,
        proximal_mu=proximal_mu,
        bf16=uses_bf16(settings, device_of(settings)),
    )


def attack_names(settings: Settings) -> list[str]:
    """The attacks a run is evaluated under: its own, or all where it was trained without one."""
    return sorted(attacks.ATTACKS) if settings.attack == "none" else [settings.attack]


def decisions(
    settings: Settings,
    model: models.VGG15,
    clips: tuple[Tensor, Tensor],
    *,
    seed: int,
    pool: Executor | None = None,
) -> pd.DataFrame:
    """Rows of ``evaluation.evaluate``: a run's evaluation on test clips (x, y)."""
    return evaluation.evaluate(
        model,
        *clips,
        attacks={name: attack_of(settings, name) for name in attack_names(settings)},
        randomise=Randomise(mode=settings.resize),
        seed=seed,
        bf16=uses_bf16(settings, device_of(settings)),
        pool=pool,
    )


@functools.lru_cache(maxsize=4096)
def client_clips(settings: Settings, client: str, part: str) -> tuple[Tensor, Tensor]:
    """(x, y) of one client of a federation that is within reach; kept, on the device."""
    data = load_federation(settings)
    return data.tensors(data.table(part, client), device=device_of(settings))
