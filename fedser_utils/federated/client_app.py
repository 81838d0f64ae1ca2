"""Flower's ClientApp: a client's replies to join, train, statistics and evaluate messages.

It is the same in every runtime. In a deployment the recordings never leave the client: the server
receives counts and sums when it joins, weights after training, confusion counts after evaluation.

context.node_config: partition-id, the client's index among the sorted clients; in a deployment also
data and state, its folders of recordings and of saved states. context.run_config: settings, as
JSON; in a simulation also state, the folder of all clients' states.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedser_utils.core import checkpoints
from fedser_utils.core.devices import resolve_device, worker_pool
from fedser_utils.core.seeding import derive
from fedser_utils.core.settings import Settings
from fedser_utils.data.client_data import ClientData, load_client_data
from fedser_utils.data.federation import Federation, load_federation
from fedser_utils.federated.client import (
    client_clips,
    evaluate_round,
    fit,
    local_arrays,
    state_after,
    statistics,
    thread_model,
)
from fedser_utils.learning import vgg
from fedser_utils.learning.local_training import Arrays

logging.getLogger("flwr").setLevel(logging.ERROR)  # it warns that evaluation is ours
log = logging.getLogger(__name__)

JOIN = "query.join"  # message type: which client a node is
STATISTICS = "query.statistics"  # message type: the batch-norm statistics of the model sent
PACKED = "packed"  # name of the one array in which weights travel (``vgg.pack``)

client_app = ClientApp()


class _Client(NamedTuple):
    """The client that a message is for. clips: part ("train" or "test") -> (x, y); states: the
    folder of its saved states; None: they stay in Flower's Context."""

    settings: Settings
    name: str
    clips: Callable[[str], tuple[Tensor, Tensor]]
    data: Federation
    states: Path | None


def _settings(context: Context) -> Settings:
    return Settings(**json.loads(str(context.run_config["settings"])))


def _client_data(context: Context) -> ClientData:
    """Return the recordings in this node's folder, with their log-Mels."""
    data, state = str(context.node_config["data"]), str(context.node_config["state"])
    settings = _settings(context)
    return load_client_data(
        data, seed=settings.seed, cache=f"{state}/cache", front=settings.front_end,
        level=settings.level,
    )  # fmt: skip


def _client(message: Message, context: Context) -> _Client:
    settings, node = _settings(context), context.node_config
    if "data" not in node:
        data, root = load_federation(settings), context.run_config.get("state")
        name = data.clients[int(node["partition-id"])]
        states = Path(str(root)) / name if root else None
        return _Client(
            settings, name, lambda part: client_clips(settings, name, part), data, states
        )
    local, config = _client_data(context), message.content["config"]
    by_client = settings.standardisation == "client"
    standard = None if by_client else (config["mean"], config["std"])
    data = local.federation(config["classes"], standard)

    def clips(part: str) -> tuple[Tensor, Tensor]:
        return data.tensors(data.table(part), device=resolve_device(settings))

    states = Path(str(node["state"])) / str(config["run"])
    return _Client(settings, local.client, clips, data, states)


@client_app.query("join")
def join(message: Message, context: Context) -> Message:
    """Reply with the client's index. In a deployment also: "sums", first and second moments of its
    training clips, (bands,) each; "counts", class -> [training clips, test clips]."""
    node = context.node_config
    content = RecordDict()
    measures = {name: int(node[name]) for name in ("partition-id", "num-partitions")}
    if "data" in node:
        local = _client_data(context)
        sums = local.sums()
        content["sums"] = as_record({"first": sums.first, "second": sums.second})
        content["counts"] = MetricRecord(local.counts())
        measures["frames"] = int(sums.count)
    content["metrics"] = MetricRecord(measures)
    return Message(content, reply_to=message)


@client_app.train()
def train_client(message: Message, context: Context) -> Message:
    """Train the weights in the message for one round; reply with the client's weights, its number
    of clips, its loss, and whether its optimiser was fresh. Saves the client's state."""
    client = _client(message, context)
    config = message.content["config"]
    number = int(config["server-round"])
    state = _load_state(client, context, before=number)
    clips = client.clips("train")
    update = fit(
        client.settings, client.name, clips, _weights(message, client), number, state,
        proximal_mu=float(config.get("proximal-mu", 0.0)),
    )  # fmt: skip
    if new_state := state_after(client.settings, update):
        _save_state(client, context, number, new_state)
    fresh = bool(new_state) and state is None
    measures = {"num-examples": len(clips[1]), "train-loss": update.loss, "fresh": int(fresh)}
    weights = update.weights
    if PACKED in message.content["arrays"]:
        weights = {PACKED: vgg.pack(weights)}
    return reply_to(message, weights, **measures)


def _weights(message: Message, client: _Client) -> Arrays:
    """Return the weights in a message, by name."""
    arrays = dict(message.content["arrays"].to_torch_state_dict())
    if PACKED not in arrays:
        return arrays
    model = thread_model(client.settings, len(client.data.classes))
    return vgg.unpack(arrays[PACKED], vgg.state_arrays(model))


def _load_state(client: _Client, context: Context, *, before: int) -> Arrays | None:
    """Return the client's newest state of a round before that, or None."""
    if client.states is None:
        record = context.state.get("optimiser")
        return dict(record.to_torch_state_dict()) if record else None
    try:
        checkpoint = checkpoints.load(client.states, before=before)
    except checkpoints.CheckpointError as error:
        log.warning("client %s: %s", client.name, error)
        checkpoint = None
    if checkpoint is None:
        if before > 1:
            log.warning("client %s: no optimiser state, starting with a fresh one", client.name)
        return None
    return {name: torch.from_numpy(v) for name, v in checkpoint[1]["optimiser"].items()}


def _save_state(client: _Client, context: Context, number: int, state: Arrays) -> None:
    if client.states is None:
        context.state["optimiser"] = as_record(state)
        return
    every = client.settings.checkpoint_every or client.settings.eval_every

    def keep(rounds: list[int]) -> Collection[int]:
        """The newest, and those that the server needs if it resumes from a checkpoint."""
        ends = [number, number // every * every, (number // every - 1) * every]
        return {max((r for r in rounds if r <= end), default=number) for end in ends}

    parts = {"optimiser": {name: on_host(value) for name, value in state.items()}}
    checkpoints.save(client.states, number, parts, keep=keep)


@client_app.query("statistics")
def batch_statistics(message: Message, context: Context) -> Message:
    """Reply with the batch-norm statistics of the client's training clips in the model sent."""
    client = _client(message, context)
    arrays = statistics(client.settings, client.clips("train"), _weights(message, client))
    return Message(RecordDict({"arrays": as_record(arrays)}), reply_to=message)


@client_app.evaluate()
def evaluate_client(message: Message, context: Context) -> Message:
    """Reply with confusion counts on the client's test clips: "attack/condition" -> (classes x
    classes) counts, flat, a row for each true class."""
    client = _client(message, context)
    classes = len(client.data.classes)
    model = thread_model(client.settings, classes)
    number = int(message.content["config"]["server-round"])
    weights = _weights(message, client)
    if client.settings.batch_norm == "local":
        weights |= local_arrays(_load_state(client, context, before=number + 1) or {})
    vgg.load_arrays(model, weights).eval()
    x, y = client.clips("test")
    seed = derive(client.settings.seed, "evaluation", number, client.name)
    with worker_pool(x.device.type) as pool:
        rows = evaluate_round(client.settings, model, (x, y), number, seed=seed, pool=pool)
    rows["cell"] = y.cpu().numpy()[rows["index"]] * classes + rows["y_pred"]
    counts = {
        f"{attack}/{condition}": np.bincount(cells, minlength=classes**2).tolist()
        for (attack, condition), cells in rows.groupby(["attack", "condition"], sort=False)["cell"]
    }
    return Message(RecordDict({"metrics": MetricRecord(counts)}), reply_to=message)


def as_record(arrays: Mapping[str, Tensor | np.ndarray]) -> ArrayRecord:
    """Return the arrays, or tensors on any device, as Flower's record."""
    return ArrayRecord({name: Array(np.asarray(on_host(v))) for name, v in arrays.items()})


def on_host(value: Tensor | np.ndarray) -> np.ndarray:
    """Return a tensor's values, from any device, as a NumPy array."""
    return value.cpu().numpy() if isinstance(value, Tensor) else value


def reply_to(message: Message, weights: Arrays, **measures: float) -> Message:
    """Return a reply of weights and measures, of which Flower's strategies read num-examples."""
    content = RecordDict({"arrays": as_record(weights), "metrics": MetricRecord(measures)})
    return Message(content, reply_to=message)
