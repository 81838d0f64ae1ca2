"""One client of the federation, in Flower's terms: a ClientApp around ``training.client_update``.

Wherever a client runs, its round is ``fit`` on its own clips. In a deployment it has nothing but
its own recordings (node_config: data), and its clips never leave it: the server learns counts and
sums when it joins, weights when it trains, and confusion counts when it evaluates.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

for name in ("FLWR_DISABLE_UPDATE_CHECK", "FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED"):
    os.environ.setdefault(name, "1" if "DISABLE" in name else "0")  # before Flower is imported

import numpy as np
import pandas as pd
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedser_utils import attacks, checkpoints, evaluation, models
from fedser_utils.config import InputError, Settings
from fedser_utils.partition import Federation, Share, load_federation, load_share
from fedser_utils.randomisation import Randomise
from fedser_utils.seeding import derive, generator
from fedser_utils.training import Arrays, Update, client_update
from fedser_utils.workers import worker_pool

logging.getLogger("flwr").setLevel(logging.ERROR)  # it warns that evaluation is ours
log = logging.getLogger(__name__)

JOIN = "query.join"  # the message type by which the server gets to know a client
PACKED = "packed"  # the name of the one array in which weights travel, as in ``models.packed``


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


def _model(settings: Settings, classes: int) -> models.VGG15:
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
        _model(settings, len(weights["classifier.2.bias"])),
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


def decisions(
    settings: Settings,
    model: models.VGG15,
    clips: tuple[Tensor, Tensor],
    *,
    seed: int,
    pool: Executor | None = None,
) -> pd.DataFrame:
    """Rows of ``evaluation.evaluate``: a run's evaluation on test clips (x, y)."""
    names = sorted(attacks.ATTACKS) if settings.attack == "none" else [settings.attack]
    return evaluation.evaluate(
        model,
        *clips,
        attacks={name: attack_of(settings, name) for name in names},
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


# what a client answers, in Flower's terms --------------------------------------------------------
# context.node_config: partition-id, the client's place among the sorted clients; in a deployment
# also data and state, the folders with its recordings and of its own. context.run_config:
# settings, as JSON; in a simulation also state, the folder of all clients' states.

client_app = ClientApp()


class _Here(NamedTuple):
    """Where a message has arrived."""

    settings: Settings
    client: str
    clips: Callable[[str], tuple[Tensor, Tensor]]  # of a part, "train" or "test"
    data: Federation
    states: Path | None  # where the optimiser's state is kept; None: in Flower's Context


def _settings(context: Context) -> Settings:
    return Settings(**json.loads(str(context.run_config["settings"])))


def _share(context: Context) -> Share:
    """The node's own recordings."""
    data, state = str(context.node_config["data"]), str(context.node_config["state"])
    return load_share(data, seed=_settings(context).seed, cache=f"{state}/cache")


def _here(message: Message, context: Context) -> _Here:
    settings, node = _settings(context), context.node_config
    config = message.content["config"]
    if "data" in node:
        share = _share(context)
        data = share.federation(config["classes"], config["mean"], config["std"])
        states = Path(str(node["state"])) / str(config["run"])

        def clips(part: str) -> tuple[Tensor, Tensor]:
            return data.tensors(data.table(part), device=device_of(settings))

        return _Here(settings, share.client, clips, data, states)
    data = load_federation(settings)
    client = data.clients[int(node["partition-id"])]
    root = context.run_config.get("state")
    states = Path(str(root)) / client if root else None
    return _Here(settings, client, lambda part: client_clips(settings, client, part), data, states)


@client_app.query("join")
def join(message: Message, context: Context) -> Message:
    """Which client this is; with recordings of its own also what the standardisation and the
    evaluation need: sums over its training clips, and counts of clips per emotion."""
    node = context.node_config
    content = RecordDict()
    measures = {name: int(node[name]) for name in ("partition-id", "num-partitions")}
    if "data" in node:
        share = _share(context)
        sums = share.sums()
        content["sums"] = as_record({"first": sums.first, "second": sums.second})
        content["counts"] = MetricRecord(share.counts())
        measures["frames"] = int(sums.count)
    content["metrics"] = MetricRecord(measures)
    return Message(content, reply_to=message)


@client_app.train()
def train_client(message: Message, context: Context) -> Message:
    """A round: ``fit``, with the optimiser's state where this client keeps it."""
    here = _here(message, context)
    config = message.content["config"]
    number = int(config["server-round"])
    optimiser = _recall(here, context, number)
    clips = here.clips("train")
    update = fit(
        here.settings,
        here.client,
        clips,
        _weights(message, here),
        number,
        optimiser,
        proximal_mu=float(config.get("proximal-mu", 0.0)),
    )
    if here.settings.client_state == "keep":
        _remember(here, context, number, update.optimiser)
    fresh = here.settings.client_state == "keep" and optimiser is None
    measures = {"num-examples": len(clips[1]), "train-loss": update.loss, "fresh": int(fresh)}
    weights = update.weights
    if PACKED in message.content["arrays"]:
        weights = {PACKED: models.packed(weights)}
    return reply_to(message, weights, **measures)


def _weights(message: Message, here: _Here) -> Arrays:
    """The weights in a message, by name."""
    arrays = dict(message.content["arrays"].to_torch_state_dict())
    if PACKED not in arrays:
        return arrays
    model = _model(here.settings, len(here.data.classes))
    return models.unpacked(arrays[PACKED], models.state_arrays(model))


def _recall(here: _Here, context: Context, number: int) -> Arrays | None:
    """The optimiser's state after this client's last round before ``number``, if it is there."""
    if here.states is None:
        kept = context.state.get("optimiser")
        return dict(kept.to_torch_state_dict()) if kept else None
    try:
        found = checkpoints.load(here.states, before=number)
    except checkpoints.CheckpointError as error:
        log.warning("client %s: %s", here.client, error)
        found = None
    if found is None and number > 1:
        log.warning("client %s: no optimiser state, starting with a fresh one", here.client)
    return {k: torch.from_numpy(v) for k, v in found[1]["optimiser"].items()} if found else None


def _remember(here: _Here, context: Context, number: int, optimiser: Arrays) -> None:
    if here.states is None:
        context.state["optimiser"] = as_record(optimiser)
        return
    every = here.settings.checkpoint_every or here.settings.eval_every

    def keep(rounds: list[int]) -> Collection[int]:
        """The newest, and what the server needs if it goes back to one of its checkpoints."""
        ends = [number, number // every * every, (number // every - 1) * every]
        return {max((r for r in rounds if r <= end), default=number) for end in ends}

    parts = {"optimiser": {k: on_host(v) for k, v in optimiser.items()}}
    checkpoints.save(here.states, number, parts, keep=keep)


@client_app.evaluate()
def evaluate_client(message: Message, context: Context) -> Message:
    """Confusion counts on this client's test clips: attack/condition -> classes x classes, flat,
    rows of the truth."""
    here = _here(message, context)
    model = _model(here.settings, len(here.data.classes))
    models.load_arrays(model, _weights(message, here)).eval()
    x, y = here.clips("test")
    number = int(message.content["config"]["server-round"])
    seed = derive(here.settings.seed, "evaluation", number, here.client)
    with worker_pool(x.device.type) as pool:
        rows = decisions(here.settings, model, (x, y), seed=seed, pool=pool)
    classes = len(here.data.classes)
    cells = y.cpu().numpy()[rows["index"]] * classes + rows["y_pred"]
    counts = {
        f"{attack}/{condition}": np.bincount(own, minlength=classes**2).tolist()
        for (attack, condition), own in cells.groupby([rows["attack"], rows["condition"]])
    }
    return Message(RecordDict({"metrics": MetricRecord(counts)}), reply_to=message)


def as_record(arrays: Mapping[str, Tensor | np.ndarray]) -> ArrayRecord:
    return ArrayRecord({k: Array(np.asarray(on_host(v))) for k, v in arrays.items()})


def on_host(value: Tensor | np.ndarray) -> np.ndarray:
    return value.cpu().numpy() if isinstance(value, Tensor) else value


def reply_to(message: Message, weights: Arrays, **measures: float) -> Message:
    """A reply with weights and measures, of which Flower's strategies read num-examples."""
    measures = {name.replace("_", "-"): value for name, value in measures.items()}
    content = RecordDict({"arrays": as_record(weights), "metrics": MetricRecord(measures)})
    return Message(content, reply_to=message)
