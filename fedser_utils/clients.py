"""One client of the federation, in Flower's terms: a ClientApp around ``training.client_update``.

Wherever a client runs, its round is ``fit`` on its own clips.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

for name in ("FLWR_DISABLE_UPDATE_CHECK", "FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED"):
    os.environ.setdefault(name, "1" if "DISABLE" in name else "0")  # before Flower is imported

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedser_utils import attacks, models
from fedser_utils.config import InputError, Settings
from fedser_utils.partition import load_federation
from fedser_utils.seeding import generator
from fedser_utils.training import Arrays, Update, client_update

logging.getLogger("flwr").setLevel(logging.ERROR)  # it warns that evaluation is ours


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


@functools.lru_cache(maxsize=4096)
def _client_clips(settings: Settings, client: str) -> tuple[Tensor, Tensor]:
    data = load_federation(settings)
    return data.tensors(data.table("train", client), device=device_of(settings))


def fit(
    settings: Settings, client: str, weights: Arrays, round_number: int, optimiser: Arrays | None
) -> tuple[Update, int]:
    """One client's round: its new weights and optimiser state, and its number of clips.

    The first round is natural, since the attack needs a trained model (paper, section 5.2). All
    randomness belongs to (seed, round, client).
    """
    device = device_of(settings)
    if getattr(_workspace, "settings", None) != settings:  # a model for each thread, reused
        _workspace.model = new_model(settings, len(load_federation(settings).classes)).to(device)
        _workspace.settings = settings
    adversarial = settings.attack != "none" and round_number > 1
    x, y = _client_clips(settings, client)
    update = client_update(
        _workspace.model,
        weights,
        x,
        y,
        generator=generator(settings.seed, "round", round_number, client),
        epochs=settings.local_epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        optimiser=optimiser if settings.client_state == "keep" else None,
        attack=attack_of(settings, settings.attack) if adversarial else None,
        alpha=settings.alpha,
        bf16=uses_bf16(settings, device),
    )
    return update, len(x)


client_app = ClientApp()


@client_app.train()
def train_client(message: Message, context: Context) -> Message:
    """A round in Flower's terms. context.node_config: partition-id, the client's place among the
    sorted clients; context.run_config: settings, as JSON; context.state keeps Adam's state."""
    settings = Settings(**json.loads(str(context.run_config["settings"])))
    client = load_federation(settings).clients[int(context.node_config["partition-id"])]
    kept = context.state.get("optimiser")
    update, count = fit(
        settings,
        client,
        dict(message.content["arrays"].to_torch_state_dict()),
        int(message.content["config"]["server-round"]),
        dict(kept.to_torch_state_dict()) if kept else None,
    )
    if settings.client_state == "keep":
        context.state["optimiser"] = as_record(update.optimiser)
    return reply_to(message, update.weights, examples=count, clients=1, loss=update.loss)


def as_record(arrays: Mapping[str, Tensor | np.ndarray]) -> ArrayRecord:
    return ArrayRecord({k: Array(np.asarray(on_host(v))) for k, v in arrays.items()})


def on_host(value: Tensor | np.ndarray) -> np.ndarray:
    return value.cpu().numpy() if isinstance(value, Tensor) else value


def reply_to(
    message: Message, weights: Arrays, *, examples: int, clients: int, loss: float
) -> Message:
    measures = {"num-examples": examples, "num-clients": clients, "train-loss": loss}
    content = RecordDict({"arrays": as_record(weights), "metrics": MetricRecord(measures)})
    return Message(content, reply_to=message)
