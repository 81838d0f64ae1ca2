"""What a client answers, in Flower's terms: a ClientApp around ``client.fit``.

Wherever a client runs, its round is the same. In a deployment it has nothing but its own
recordings, and they never leave it: the server learns counts and sums when it joins, weights when
it trains, and confusion counts when it evaluates.

context.node_config: partition-id, the client's place among the sorted clients; in a deployment also
data and state, the folders with its recordings and of its own. context.run_config: settings, as
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
from fedser_utils.core.devices import worker_pool
from fedser_utils.core.seeding import derive
from fedser_utils.core.settings import Settings
from fedser_utils.data.federation import ClientData, Federation, load_client_data, load_federation
from fedser_utils.federated.client import (
    client_clips,
    decisions,
    fit,
    local_arrays,
    model_of,
    resolve_device,
    state_after,
    statistics,
)
from fedser_utils.learning import vgg
from fedser_utils.learning.local_training import Arrays

logging.getLogger("flwr").setLevel(logging.ERROR)  # it warns that evaluation is ours
log = logging.getLogger(__name__)

JOIN = "query.join"  # the message type by which the server gets to know a client
STATISTICS = "query.statistics"  # and by which it asks for the batch norm of the model it sends
PACKED = "packed"  # the name of the one array in which weights travel, as in ``vgg.packed``


client_app = ClientApp()


class _Received(NamedTuple):
    """Where a message has arrived."""

    settings: Settings
    client: str
    clips: Callable[[str], tuple[Tensor, Tensor]]  # of a part, "train" or "test"
    data: Federation
    states: Path | None  # where the optimiser's state is kept; None: in Flower's Context


def _settings(context: Context) -> Settings:
    return Settings(**json.loads(str(context.run_config["settings"])))


def _share(context: Context) -> ClientData:
    """The node's own recordings."""
    data, state = str(context.node_config["data"]), str(context.node_config["state"])
    settings = _settings(context)
    return load_client_data(
        data, seed=settings.seed, cache=f"{state}/cache", front=settings.front_end,
        level=settings.level,
    )  # fmt: skip


def _received(message: Message, context: Context) -> _Received:
    settings, node = _settings(context), context.node_config
    config = message.content["config"]
    if "data" in node:
        share = _share(context)
        own = settings.standardisation == "client"
        data = share.federation(config["classes"], None if own else (config["mean"], config["std"]))
        states = Path(str(node["state"])) / str(config["run"])

        def clips(part: str) -> tuple[Tensor, Tensor]:
            return data.tensors(data.table(part), device=resolve_device(settings))

        return _Received(settings, share.client, clips, data, states)
    data = load_federation(settings)
    client = data.clients[int(node["partition-id"])]
    root = context.run_config.get("state")
    states = Path(str(root)) / client if root else None
    return _Received(
        settings, client, lambda part: client_clips(settings, client, part), data, states
    )


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
    here = _received(message, context)
    config = message.content["config"]
    number = int(config["server-round"])
    state = _recall(here, context, number)
    clips = here.clips("train")
    update = fit(
        here.settings,
        here.client,
        clips,
        _weights(message, here),
        number,
        state,
        proximal_mu=float(config.get("proximal-mu", 0.0)),
    )
    if news := state_after(here.settings, update):
        _remember(here, context, number, news)
    fresh = bool(news) and state is None
    measures = {"num-examples": len(clips[1]), "train-loss": update.loss, "fresh": int(fresh)}
    weights = update.weights
    if PACKED in message.content["arrays"]:
        weights = {PACKED: vgg.pack(weights)}
    return reply_to(message, weights, **measures)


def _weights(message: Message, here: _Received) -> Arrays:
    """The weights in a message, by name."""
    arrays = dict(message.content["arrays"].to_torch_state_dict())
    if PACKED not in arrays:
        return arrays
    model = model_of(here.settings, len(here.data.classes))
    return vgg.unpack(arrays[PACKED], vgg.state_arrays(model))


def _recall(here: _Received, context: Context, number: int) -> Arrays | None:
    """What this client kept of its last round before ``number``, if it is there."""
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


def _remember(here: _Received, context: Context, number: int, state: Arrays) -> None:
    if here.states is None:
        context.state["optimiser"] = as_record(state)
        return
    every = here.settings.checkpoint_every or here.settings.eval_every

    def keep(rounds: list[int]) -> Collection[int]:
        """The newest, and what the server needs if it goes back to one of its checkpoints."""
        ends = [number, number // every * every, (number // every - 1) * every]
        return {max((r for r in rounds if r <= end), default=number) for end in ends}

    parts = {"optimiser": {k: on_host(v) for k, v in state.items()}}
    checkpoints.save(here.states, number, parts, keep=keep)


@client_app.query("statistics")
def batch_statistics(message: Message, context: Context) -> Message:
    """The statistics of the model's batch normalisation over this client's training clips."""
    here = _received(message, context)
    found = statistics(here.settings, here.clips("train"), _weights(message, here))
    return Message(RecordDict({"arrays": as_record(found)}), reply_to=message)


@client_app.evaluate()
def evaluate_client(message: Message, context: Context) -> Message:
    """Confusion counts on this client's test clips: attack/condition -> classes x classes, flat,
    rows of the truth."""
    here = _received(message, context)
    model = model_of(here.settings, len(here.data.classes))
    number = int(message.content["config"]["server-round"])
    weights = _weights(message, here)
    if here.settings.batch_norm == "local":
        weights |= local_arrays(_recall(here, context, number + 1) or {})
    vgg.load_arrays(model, weights).eval()
    x, y = here.clips("test")
    seed = derive(here.settings.seed, "evaluation", number, here.client)
    with worker_pool(x.device.type) as pool:
        rows = decisions(here.settings, model, (x, y), number, seed=seed, pool=pool)
    classes = len(here.data.classes)
    cells = y.cpu().numpy()[rows["index"]] * classes + rows["y_pred"]
    counts = {
        f"{attack}/{condition}": np.bincount(own, minlength=classes**2).tolist()
        for (attack, condition), own in cells.groupby(
            [rows["attack"], rows["condition"]], sort=False
        )
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
