"""What one client of the federation computes, by a run's settings: its round, and decisions."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from fedser_utils import attacks
from fedser_utils.core.devices import resolve_device, uses_bf16
from fedser_utils.core.seeding import generator
from fedser_utils.core.settings import Settings
from fedser_utils.data.federation import load_federation
from fedser_utils.learning import vgg
from fedser_utils.learning.local_training import Arrays, Update, client_update
from fedser_utils.robustness import evaluation
from fedser_utils.robustness.randomisation import Randomise


def is_fast(settings: Settings) -> bool:
    """Whether the cohort trains through ``gpu_engine``: on request, or on a GPU. In the other
    runtimes a process may live for one message, and what ``gpu_engine`` prepares would not pay."""
    if settings.runtime != "cohort" or settings.batch_norm == "local":
        return False
    if settings.engine == "auto":
        return resolve_device(settings) != "cpu"
    return settings.engine == "fast"


def new_model(settings: Settings, classes: int) -> vgg.VGG15:
    """The run's untrained model: the same for the same seed, width and norm."""
    begin = generator(settings.seed, "init")
    return vgg.build(classes, width=settings.width, norm=settings.norm, generator=begin)


_workspace = threading.local()


def model_of(settings: Settings, classes: int) -> vgg.VGG15:
    """A model for each thread, reused: whoever takes it overwrites its weights."""
    if getattr(_workspace, "key", None) != (settings, classes):
        _workspace.model = new_model(settings, classes).to(resolve_device(settings))
        _workspace.key = settings, classes
    return _workspace.model


def evaluation_target(settings: Settings, model: vgg.VGG15) -> nn.Module:
    """What decides and is attacked in the model's place. With the fast engine on a GPU it is
    compiled, once for each thread, and holds the model that was asked for last."""
    device = resolve_device(settings)
    bf16 = uses_bf16(settings, device)
    if device == "cpu" or not (bf16 and is_fast(settings)):
        return vgg.attack_target(model, bf16=bf16)
    key = settings.width, settings.norm, len(model.classifier[2].bias), device
    if getattr(_workspace, "target_key", None) != key:
        _workspace.target_model = vgg.Bf16GradientModel(model, compiled=True)
        _workspace.target_key = key
    _workspace.target_model.take(model)
    return _workspace.target_model


def fit(
    settings: Settings,
    client: str,
    clips: tuple[Tensor, Tensor],
    weights: Arrays,
    round_number: int,
    state: Arrays | None,
    *,
    proximal_mu: float = 0.0,
) -> Update:
    """One client's round on its training clips (x, y). state: what was ``kept`` of its last one.

    Half of the clips are attacked where ``is_adversarial``; all draws are of ``randomness``.
    """
    adversarial = is_adversarial(settings, round_number)
    model, state = model_of(settings, len(weights["classifier.2.bias"])), state or {}
    own = local_arrays(state)
    if settings.batch_norm == "local" and not own:
        own = {name: weights[name] for name in vgg.batch_norm_names(model)}
    optimiser = {name: value for name, value in state.items() if not name.startswith(LOCAL_PREFIX)}
    return client_update(
        model,
        weights,
        *clips,
        generator=client_generator(settings, client, round_number),
        epochs=settings.local_epochs,
        batch_size=settings.batch_size,
        learning_rate=learning_rate_in(settings, round_number),
        optimiser=optimiser or None,
        local_arrays=own,
        attack=attacks.make_attack(settings, settings.attack) if adversarial else None,
        alpha=settings.alpha,
        proximal_mu=proximal_mu,
        bf16=uses_bf16(settings, resolve_device(settings)),
    )


LOCAL_PREFIX = "own/"  # how names begin, in what a client keeps, of arrays that never leave it


def state_after(settings: Settings, update: Update) -> Arrays:
    """What a client keeps of a round for its next: its optimiser's state, and its own arrays."""
    optimiser = update.optimiser if settings.client_state == "keep" else {}
    return optimiser | {
        f"{LOCAL_PREFIX}{name}": value for name, value in update.local_arrays.items()
    }


def local_arrays(state: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of its own in what a client keeps, by name."""
    return {
        n.removeprefix(LOCAL_PREFIX): value
        for n, value in state.items()
        if n.startswith(LOCAL_PREFIX)
    }


def learning_rate_in(settings: Settings, round_number: int) -> float:
    """The learning rate of a client's Adam in a round."""
    return settings.learning_rate * settings.learning_rate_decay ** (round_number - 1)


def statistics(settings: Settings, clips: tuple[Tensor, Tensor], weights: Arrays) -> Arrays:
    """``vgg.batch_statistics`` of a client's clips (x, y) in the model of these weights."""
    model = model_of(settings, len(weights["classifier.2.bias"]))
    return vgg.batch_statistics(vgg.load_arrays(model, weights), clips[0])


def is_adversarial(settings: Settings, round_number: int) -> bool:
    """Whether a round trains on attacked clips. The first is natural, since the attack needs a
    trained model (paper, section 5.2)."""
    return settings.attack != "none" and round_number > 1


def client_generator(settings: Settings, client: str, round_number: int) -> torch.Generator:
    """All of a client's draws in a round: they belong to (seed, round, client)."""
    return generator(settings.seed, "round", round_number, client)


def attack_names(settings: Settings, round_number: int) -> list[str]:
    """The attacks a run is evaluated under after a round: its own, or all where it was trained
    without one; none where ``attack_every`` leaves the round out."""
    every = settings.attack_every
    if every and round_number % every and round_number != settings.rounds:
        return []
    return sorted(attacks.ATTACKS) if settings.attack == "none" else [settings.attack]


def decisions(
    settings: Settings,
    model: vgg.VGG15,
    clips: tuple[Tensor, Tensor],
    round_number: int,
    *,
    seed: int,
    pool: Executor | None = None,
) -> pd.DataFrame:
    """Rows of ``evaluation.evaluate``: a run's evaluation on test clips (x, y) after a round."""
    names = attack_names(settings, round_number)
    return evaluation.evaluate(
        evaluation_target(settings, model),
        *clips,
        attacks={name: attacks.make_attack(settings, name) for name in names},
        randomise=Randomise.on(settings.front_end.shape, mode=settings.resize),
        seed=seed,
        pool=pool,
    )


@functools.lru_cache(maxsize=4096)
def client_clips(settings: Settings, client: str, part: str) -> tuple[Tensor, Tensor]:
    """(x, y) of one client of a federation that is within reach; kept, on the device."""
    data = load_federation(settings)
    return data.tensors(data.table(part, client), device=resolve_device(settings))
