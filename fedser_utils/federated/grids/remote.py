"""A Flower grid whose clients are elsewhere: in Ray's actors, or in SuperNodes over the network.

It carries messages over Flower's own grid. A node may come late, go, and come back: it is known by
the partition-id it joined with, and whoever has not replied at the deadline is missing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedser_utils.core.front_end import SPEECH
from fedser_utils.core.settings import client_name
from fedser_utils.data.log_mel import Sums
from fedser_utils.federated.client_app import JOIN, PACKED, STATISTICS, as_record
from fedser_utils.federated.grids.base import ClientGrid, size
from fedser_utils.federated.grids.reply_checks import (
    fault_of_confusion,
    fault_of_count,
    fault_of_sums,
    fault_of_weights,
)
from fedser_utils.federated.strategies import RoundError
from fedser_utils.learning import vgg

log = logging.getLogger(__name__)

POLL = 0.3  # seconds between two looks for replies
LATE = 60.0  # seconds that Flower keeps a message beyond the deadline
PATIENCE = 60.0  # seconds that a run which goes on waits for the last of its clients


class Joined(NamedTuple):
    """What a client said when it joined. counts: emotion -> [training clips, test clips]; sums and
    counts only of clients with recordings of their own."""

    node: int
    place: int
    places: int
    counts: Mapping[str, list[int]] | None
    sums: Sums | None

    @property
    def examples(self) -> int:
        return sum(train for train, _ in self.counts.values())


class RemoteGrid(ClientGrid):
    """grid: Flower's. The clients are known once they have joined (``wait``). bands: of the log-Mel
    whose sums they send."""

    def __init__(self, grid: Grid, *, timeout: float, bands: int = SPEECH.bands) -> None:
        super().__init__((), ())
        self.grid, self.timeout, self.bands = grid, timeout, bands
        self.joined: dict[int, Joined] = {}  # by place
        self._refused: set[int] = set()  # nodes

    def wait(self, *, examples: Mapping[str, int] | None, enough: float = 1.0) -> None:
        """Wait for the clients to join.

        examples: client -> training clips, as known already; None to learn it from the clients,
        all of which must come then. enough: share of the clients to start with, when some do not
        come within ``PATIENCE`` seconds. Raises RoundError at the timeout, naming who is missing.
        """
        begin = time.monotonic()
        if examples is not None:
            self.clients, self.examples = tuple(examples), tuple(examples.values())
        while True:
            self.admit_new_nodes()
            expected = len(self.clients) or next((j.places for j in self.joined.values()), None)
            waited = time.monotonic() - begin
            if expected and len(self.joined) == expected:
                break
            if examples and waited > PATIENCE and len(self.joined) >= max(1, enough * expected):
                break
            if waited > self.timeout:
                here = ", ".join(client_name(place) for place in sorted(self.joined)) or "none"
                raise RoundError(
                    f"{len(self.joined)} of {expected or 'unknown'} clients joined in "
                    f"{waited:.0f} s (here: {here})"
                )
            time.sleep(1)
        if examples is None:
            places = [self.joined[place] for place in sorted(self.joined)]
            self.clients = tuple(client_name(joined.place) for joined in places)
            self.examples = tuple(joined.examples for joined in places)

    def admit_new_nodes(self) -> None:
        """Let nodes that are new join."""
        online = set(self.grid.get_node_ids())
        nodes = {joined.node for joined in self.joined.values()}
        if not nodes <= online:
            self._refused.clear()  # one that was refused may be a successor
        self._refused &= online  # and one that went away may come back mended
        known = nodes | self._refused
        content = RecordDict({"config": ConfigRecord()})
        messages = {node: Message(content, node, JOIN) for node in online - known}
        for node, reply in self._exchange(messages, min(self.timeout, 600)).items():
            try:
                if reply.has_error():
                    raise ValueError(reply.error.reason)
                self._admit(read_join(node, reply, bands=self.bands), online)
            except Exception as error:  # whatever it says, the others go on
                self._refused.add(node)
                log.warning("node %d may not join: %s", node, error)

    def _admit(self, new: Joined, online: set[int]) -> None:
        """Take a node in. Raises ValueError where it contradicts what is known."""
        places = len(self.clients) or next((j.places for j in self.joined.values()), new.places)
        if new.places != places or not 0 <= new.place < places:
            raise ValueError(f"partition {new.place} of {new.places}, where there are {places}")
        old = self.joined.get(new.place)
        if old and old.node in online:
            raise ValueError(f"{client_name(new.place)} is here already")
        if self.examples and new.counts is not None:
            fault = fault_of_count(new.examples, self.examples[new.place])
            if fault:
                raise ValueError(f"{client_name(new.place)} has {fault}")
        self.joined[new.place] = new
        log.info("%s joined", client_name(new.place))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """The clients' replies to train messages, looked at, errors in place of missing ones."""
        messages = [*messages]
        like = messages[0].content["arrays"].to_torch_state_dict() if messages else {}
        return self.ask(messages, lambda message, reply: self.checked_reply(message, reply, like))

    def _fault(self, message: Message, reply: Message, like: Mapping[str, Tensor]) -> str | None:
        """As every grid's, after the weights have got their names back."""
        arrays = reply.content.get("arrays", {})
        if PACKED in arrays:
            vector = arrays.pop(PACKED)
            named = vgg.unpack(torch.from_numpy(vector.numpy()), like)
            arrays.update(as_record(named))
        return super()._fault(message, reply, like)

    def ask(
        self, messages: list[Message], answer: Callable[[Message, Message], Message]
    ) -> list[Message]:
        """Send messages (to nodes 1, 2, ..., with one content); ``answer`` makes of each and its
        reply what is returned, in the order of the clients."""
        if not messages:
            return []
        self.missing = {}
        messages = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        self.admit_new_nodes()
        online = set(self.grid.get_node_ids())
        outgoing, content = {}, _packed(messages[0].content)  # the same for all
        for message in messages:
            here = self.joined.get(message.metadata.dst_node_id - 1)
            if here and here.node in online:
                kind = message.metadata.message_type
                own = Message(content, here.node, kind, ttl=self.timeout + LATE)
                outgoing[message.metadata.dst_node_id] = own
        self.sent += sum(size(message) for message in messages[:1]) * len(outgoing)
        replies = self._exchange(outgoing, self.timeout)
        found = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node not in outgoing:
                found.append(self.failure(message, "not connected"))
            elif node not in replies:
                found.append(self.failure(message, f"no reply within {self.timeout:g} s"))
            else:
                found.append(answer(message, replies[node]))
        return found

    def confusions(
        self, content: RecordDict, expected: pd.DataFrame, keys: Collection[str]
    ) -> dict[str, dict[str, list[int]]]:
        """Ask every client to evaluate: client -> "attack/condition" -> confusion counts, flat.

        content: arrays and config of the message; expected: (clients, classes) test clips; keys:
        every "attack/condition" that belongs to an evaluation.
        Clients that do not reply, or whose counts cannot be, are left out and named.
        """
        found = {}

        def answer(message: Message, reply: Message) -> Message:
            client = self.client_of(message)
            if reply.has_error():
                return self.failure(message, reply.error.reason)
            try:
                tables = {key: [*flat] for key, flat in reply.content["metrics"].items()}
                faults = [fault_of_confusion(t, expected.loc[client]) for t in tables.values()]
                whole = {*tables} == {*keys}
                fault = next((f for f in faults if f), None if whole else "other conditions")
            except Exception as error:
                fault = f"unreadable, {type(error).__name__}: {error}"
            if fault:
                return self.failure(message, f"refused: {fault}")
            found[client] = tables
            return reply

        self.ask([Message(content, node, "evaluate") for node in self.get_node_ids()], answer)
        if not found:
            reasons = "; ".join(f"{client}: {why}" for client, why in self.missing.items())
            raise RoundError(f"no client has evaluated; {reasons}")
        return found

    def reestimated(
        self, number: int, weights: ArrayRecord, nodes: Sequence[int], config: ConfigRecord
    ) -> ArrayRecord:
        """The running statistics of batch normalisation over these nodes' clips, in the model of
        these weights. Clients without a sound reply are left out and named; raises RoundError if
        none is left."""
        like = dict(weights.to_torch_state_dict())
        like = {name: value for name, value in like.items() if ".running_" in name}
        found = []

        def answer(message: Message, reply: Message) -> Message:
            if reply.has_error():
                return self.failure(message, reply.error.reason)
            try:
                arrays = dict(reply.content["arrays"].to_torch_state_dict())
                fault = fault_of_weights(arrays, like)
            except Exception as error:
                fault = f"unreadable, {type(error).__name__}: {error}"
            if fault:
                return self.failure(message, f"refused: {fault}")
            found.append((arrays, self.examples[message.metadata.dst_node_id - 1]))
            return reply

        config = ConfigRecord(dict(config) | {"server-round": number})
        content = RecordDict({"arrays": weights, "config": config})
        missing, self.missing = self.missing, {}  # of the round itself
        self.ask([Message(content, node, STATISTICS) for node in nodes], answer)
        self.missing = missing | self.missing
        if not found:
            raise RoundError(f"round {number}: no client has looked at its batch norm")
        return as_record(vgg.pooled_statistics(found))

    def _exchange(self, messages: Mapping[int, Message], timeout: float) -> dict[int, Message]:
        """Send each message; the replies that came in time, by the same keys."""
        ids = dict(zip(self.grid.push_messages([*messages.values()]), messages))
        ids.pop(None, None)  # a node that went away meanwhile
        replies, deadline = {}, time.monotonic() + timeout
        while ids and time.monotonic() < deadline:
            for reply in self.grid.pull_messages([*ids]):
                key = ids.pop(reply.metadata.reply_to_message_id, None)
                if key is not None:
                    replies[key] = reply
            if ids:
                time.sleep(POLL)
        return replies

    def client_states(self) -> dict[int, dict]:
        """None here: these clients keep their optimisers' states themselves."""
        return {}

    def restore_client_states(self, states: Mapping[int, Mapping]) -> None:
        """Nothing to do: see ``client_states``."""


def _packed(content: RecordDict) -> RecordDict:
    """A message's content with its weights in one array."""
    vector = vgg.pack(dict(content["arrays"].to_torch_state_dict()))
    return RecordDict({"arrays": as_record({PACKED: vector}), "config": content["config"]})


def read_join(node: int, reply: Message, *, bands: int = SPEECH.bands) -> Joined:
    """What a node says when it joins. Raises ValueError for what cannot be."""
    measures, counts = reply.content["metrics"], reply.content.get("counts")
    place, places = int(measures["partition-id"]), int(measures["num-partitions"])
    if counts is None:
        return Joined(node, place, places, None, None)
    if {*reply.content} != {"metrics", "counts", "sums"} or not isinstance(counts, MetricRecord):
        raise ValueError(f"records {', '.join(reply.content)}")
    flat = [count for pair in counts.values() for count in pair]
    if any(not isinstance(c, int) or c < 0 for c in flat) or len(flat) != 2 * len(counts):
        raise ValueError("counts that are none")
    first, second = (reply.content["sums"][name].numpy() for name in ("first", "second"))
    sums = Sums(int(measures["frames"]), first, second)
    joined = Joined(node, place, places, {k: [*v] for k, v in counts.items()}, sums)
    fault = fault_of_count(joined.examples, None) or fault_of_sums(*sums, (bands,))
    if fault:
        raise ValueError(f"{client_name(place)} has {fault}")
    return joined
