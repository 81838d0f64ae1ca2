"""A client's work by a run's settings: one round of training, and an evaluation on test clips."""

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
from fedser_utils.learning import batch_norm, vgg
from fedser_utils.learning.local_training import Arrays, Update, client_update
from fedser_utils.robustness import evaluation
from fedser_utils.robustness.randomisation import Randomise

LOCAL_PREFIX = "own/"  # before the names, in a client's state, of arrays that never leave it


def is_fast(settings: Settings) -> bool:
    """Return whether the cohort trains through ``gpu_engine``: on request, or on a GPU. In other
    runtimes a process may live for one message only, too short for the engine's preparation."""
    if settings.runtime != "cohort" or settings.batch_norm == "local":
        return False
    if settings.engine == "auto":
        return resolve_device(settings) != "cpu"
    return settings.engine == "fast"


def new_model(settings: Settings, classes: int) -> vgg.VGG15:
    """Return the run's untrained model: the same for the same seed, width and norm."""
    init = generator(settings.seed, "init")
    return vgg.build(classes, width=settings.width, norm=settings.norm, generator=init)


_workspace = threading.local()


def thread_model(settings: Settings, classes: int) -> vgg.VGG15:
    """Return this thread's model, which is reused: load weights before anything else."""
    if getattr(_workspace, "key", None) != (settings, classes):
        _workspace.model = new_model(settings, classes).to(resolve_device(settings))
        _workspace.key = settings, classes
    return _workspace.model


def evaluation_target(settings: Settings, model: vgg.VGG15) -> nn.Module:
    """Return the model that is evaluated and attacked in place of ``model``.

    With the fast engine on a GPU it is compiled, once for each thread, and every call loads it
    with the weights of its ``model``.
    """
    device = resolve_device(settings)
    bf16 = uses_bf16(settings, device)
    if device == "cpu" or not (bf16 and is_fast(settings)):
        return vgg.attack_target(model, bf16=bf16)
    key = settings.width, settings.norm, len(model.classifier[2].bias), device
    if getattr(_workspace, "target_key", None) != key:
        _workspace.target_model = vgg.Bf16GradientModel(model, compiled=True)
        _workspace.target_key = key
    _workspace.target_model.copy_from(model)
    return _workspace.target_model


def fit(
    settings: Settings, client: str, clips: tuple[Tensor, Tensor], weights: Arrays,
    round_number: int, state: Arrays | None, *, proximal_mu: float = 0.0,
) -> Update:  # fmt: skip
    """Train the weights received for one round on one client's clips; return its update.

    clips: x (n, 1, frames, mels), standardised log-Mel, and y (n,), class indices. weights: as
    ``vgg.state_arrays``. state: ``state_after`` of the client's last round; None: a fresh Adam.
    In an adversarial round (``is_adversarial``) half of the clips are attacked with the weights
    received. All draws come from ``client_generator``.
    """
    adversarial = is_adversarial(settings, round_number)
    model, state = thread_model(settings, len(weights["classifier.2.bias"])), state or {}
    local = local_arrays(state)
    if settings.batch_norm == "local" and not local:
        local = {name: weights[name] for name in batch_norm.batch_norm_names(model)}
    optimiser = {name: value for name, value in state.items() if not name.startswith(LOCAL_PREFIX)}
    return client_update(
        model, weights, *clips, generator=client_generator(settings, client, round_number),
        epochs=settings.local_epochs, batch_size=settings.batch_size,
        learning_rate=learning_rate_in(settings, round_number), optimiser=optimiser or None,
        local_arrays=local, alpha=settings.alpha, proximal_mu=proximal_mu,
        attack=attacks.make_attack(settings, settings.attack) if adversarial else None,
        bf16=uses_bf16(settings, resolve_device(settings)),
    )  # fmt: skip


def state_after(settings: Settings, update: Update) -> Arrays:
    """Return the client's state for its next round: Adam's arrays (unless ``client_state`` is
    reset), and its local arrays under ``LOCAL_PREFIX``."""
    optimiser = update.optimiser if settings.client_state == "keep" else {}
    return optimiser | {LOCAL_PREFIX + name: value for name, value in update.local_arrays.items()}


def local_arrays(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the local arrays in a client's state, by their names in the model."""
    return {
        name.removeprefix(LOCAL_PREFIX): value
        for name, value in state.items()
        if name.startswith(LOCAL_PREFIX)
    }


def learning_rate_in(settings: Settings, round_number: int) -> float:
    """Return the learning rate of the clients' Adam in a round (1, 2, ...)."""
    return settings.learning_rate * settings.learning_rate_decay ** (round_number - 1)


def statistics(settings: Settings, clips: tuple[Tensor, Tensor], weights: Arrays) -> Arrays:
    """Return the batch-norm statistics (``batch_statistics``) of a client's clips (x, y) in
    the model of these weights."""
    model = thread_model(settings, len(weights["classifier.2.bias"]))
    return batch_norm.batch_statistics(vgg.load_arrays(model, weights), clips[0])


def is_adversarial(settings: Settings, round_number: int) -> bool:
    """Return whether a round trains on attacked clips. The first is natural, since the attack
    needs a trained model (paper, section 5.2)."""
    return settings.attack != "none" and round_number > 1


def client_generator(settings: Settings, client: str, round_number: int) -> torch.Generator:
    """Return the generator of all draws that belong to (seed, round, client)."""
    return generator(settings.seed, "round", round_number, client)


def attack_names(settings: Settings, round_number: int) -> list[str]:
    """Return the attacks that a run is evaluated under after a round: the one it is trained with,
    or all for natural training; none where ``attack_every`` leaves the round out."""
    every = settings.attack_every
    if every and round_number % every and round_number != settings.rounds:
        return []
    return sorted(attacks.ATTACKS) if settings.attack == "none" else [settings.attack]


def evaluate_round(
    settings: Settings, model: vgg.VGG15, clips: tuple[Tensor, Tensor], round_number: int, *,
    seed: int, pool: Executor | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Evaluate a model on test clips (x, y) as the settings say after a round; return the rows of
    ``evaluation.evaluate``."""
    names = attack_names(settings, round_number)
    return evaluation.evaluate(
        evaluation_target(settings, model), *clips, seed=seed, pool=pool,
        attacks={name: attacks.make_attack(settings, name) for name in names},
        randomise=Randomise.on(settings.front_end.shape, mode=settings.resize),
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def client_clips(settings: Settings, client: str, part: str) -> tuple[Tensor, Tensor]:
    """Return (x, y) of a client's ``part`` (train, test) on the settings' device; cached. The
    recordings must be readable here (cohort, simulation)."""
    data = load_federation(settings)
    return data.tensors(data.table(part, client), device=resolve_device(settings))
