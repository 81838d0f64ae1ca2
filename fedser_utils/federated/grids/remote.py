"""A Flower grid whose clients are in other processes: Ray's actors, or SuperNodes over the network.

It sends messages through Flower's own grid. A node may come late, leave, and come back: it is
identified by the partition-id it joins with. A client that has not replied at the deadline is
missing in that round.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedser_utils.core.front_end import SPEECH
from fedser_utils.core.settings import client_name
from fedser_utils.federated.client_app import JOIN, PACKED, STATISTICS, as_record
from fedser_utils.federated.grids.base import ClientGrid, bytes_of_arrays
from fedser_utils.federated.grids.join_reply import Joined, read_join
from fedser_utils.federated.grids.reply_checks import (
    fault_of_confusion,
    fault_of_count,
    fault_of_weights,
)
from fedser_utils.federated.strategies import RoundError
from fedser_utils.learning import batch_norm, vgg

log = logging.getLogger(__name__)

POLL = 0.3  # seconds between requests for replies
LATE = 60.0  # seconds that Flower keeps a message beyond the deadline
PATIENCE = 60.0  # seconds that a resumed run waits for the last of its clients
JOIN_TIMEOUT = 600.0  # seconds for a reply to a join message, at most: log-Mels are computed


class RemoteGrid(ClientGrid):
    """grid: Flower's; timeout: seconds for a reply; bands: of the log-Mel, for the clients' sums.
    The clients are known after ``wait``."""

    def __init__(self, grid: Grid, *, timeout: float, bands: int = SPEECH.bands) -> None:
        super().__init__((), ())
        self.grid, self.timeout, self.bands = grid, timeout, bands
        self.joined: dict[int, Joined] = {}  # by place
        self._refused: set[int] = set()  # nodes

    def wait(self, examples: Mapping[str, int] | None, *, enough: float = 1.0) -> None:
        """Wait for the clients to join.

        examples: client -> training clips; None: all clients must come, and their counts are
        taken. enough: share of the clients to start with where some do not come within
        ``PATIENCE`` seconds. Raises RoundError at the timeout, naming the clients that are here.
        """
        start = time.monotonic()
        if examples is not None:
            self.clients, self.examples = tuple(examples), tuple(examples.values())
        while True:
            self.admit_new_nodes()
            expected = len(self.clients) or next((j.places for j in self.joined.values()), None)
            waited = time.monotonic() - start
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
            self.clients = tuple(client_name(place) for place in sorted(self.joined))
            self.examples = tuple(self.joined[place].examples for place in sorted(self.joined))

    def admit_new_nodes(self) -> None:
        """Send the join message to nodes that are new, and admit those with a valid reply."""
        online = set(self.grid.get_node_ids())
        nodes = {joined.node for joined in self.joined.values()}
        if not nodes <= online:
            self._refused.clear()  # a refused node may be the successor of one that left
        self._refused &= online  # and one that left may come back repaired
        content = RecordDict({"config": ConfigRecord()})
        new = online - nodes - self._refused
        messages = {node: Message(content, node, JOIN) for node in new}
        for node, reply in self._exchange(messages, min(self.timeout, JOIN_TIMEOUT)).items():
            try:
                if reply.has_error():
                    raise ValueError(reply.error.reason)
                self._admit(read_join(node, reply, bands=self.bands), online)
            except Exception as error:  # no content of a reply may stop the others
                self._refused.add(node)
                log.warning("node %d may not join: %s", node, error)

    def _admit(self, new: Joined, online: set[int]) -> None:
        """Add a client. Raises ValueError where it contradicts what is known."""
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
        """Return the checked replies to train messages, errors in place of missing ones."""
        messages = [*messages]
        like = messages[0].content["arrays"].to_torch_state_dict() if messages else {}
        return self._collect(messages, partial(self.checked_update, like=like))

    def _update_fault(
        self, message: Message, reply: Message, like: Mapping[str, Tensor]
    ) -> str | None:
        """As in every grid, after the weights are unpacked."""
        arrays = reply.content.get("arrays", {})
        if PACKED in arrays:
            vector = torch.from_numpy(arrays.pop(PACKED).numpy())
            arrays.update(as_record(vgg.unpack(vector, like)))
        return super()._update_fault(message, reply, like)

    def _collect(
        self, messages: list[Message], checked: Callable[[Message, Message], Message]
    ) -> list[Message]:
        """Send messages of one content to nodes (1, 2, ...); return ``checked(message, reply)`` of
        each, or an error, in the order of the clients."""
        if not messages:
            return []
        self.missing = {}
        messages = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        self.admit_new_nodes()
        online = set(self.grid.get_node_ids())
        content = messages[0].content
        vector = vgg.pack(dict(content["arrays"].to_torch_state_dict()))
        packed = RecordDict({"arrays": as_record({PACKED: vector}), "config": content["config"]})
        outgoing = {}
        for message in messages:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            client = self.joined.get(node - 1)
            if client and client.node in online:
                outgoing[node] = Message(packed, client.node, kind, ttl=self.timeout + LATE)
        self.sent += bytes_of_arrays(messages[0]) * len(outgoing)
        replies = self._exchange(outgoing, self.timeout)
        results = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node in replies:
                results.append(checked(message, replies[node]))
            else:
                late = f"no reply within {self.timeout:g} s"
                reason = late if node in outgoing else "not connected"
                results.append(self.error_reply(message, reason))
        return results

    def confusions(
        self, content: RecordDict, expected: pd.DataFrame, keys: set[str]
    ) -> dict[str, dict[str, list[int]]]:
        """Let every client evaluate; return client -> "attack/condition" -> confusion counts, flat.

        content: arrays and config of the message; expected: (clients, classes) test clips; keys:
        every "attack/condition" of this evaluation. Clients without a valid reply are left out,
        and are ``missing``; raises RoundError if none is left.
        """
        tables = {}

        def fault_of(message: Message, reply: Message) -> str | None:
            client = self.client_of(message)
            counts = {key: [*flat] for key, flat in reply.content["metrics"].items()}
            for flat in counts.values():
                if fault := fault_of_confusion(flat, expected.loc[client]):
                    return fault
            if {*counts} != keys:
                return "other conditions"
            tables[client] = counts
            return None

        messages = [Message(content, node, "evaluate") for node in self.get_node_ids()]
        self._collect(messages, partial(self.checked_reply, fault_of=fault_of))
        if not tables:
            reasons = "; ".join(f"{client}: {why}" for client, why in self.missing.items())
            raise RoundError(f"no client has evaluated; {reasons}")
        return tables

    def reestimate_batch_norm(
        self, number: int, weights: ArrayRecord, nodes: Sequence[int], config: Mapping[str, Any]
    ) -> ArrayRecord:
        """Return the batch-norm statistics of these nodes' training clips in a model, pooled.
        Clients without a valid reply are left out, and are ``missing``; raises RoundError if none
        is left."""
        model = weights.to_torch_state_dict()
        like = {name: value for name, value in model.items() if ".running_" in name}
        parts = []

        def fault_of(message: Message, reply: Message) -> str | None:
            arrays = dict(reply.content["arrays"].to_torch_state_dict())
            if fault := fault_of_weights(arrays, like):
                return fault
            parts.append((arrays, self.examples_of(message)))
            return None

        config = ConfigRecord({**config, "server-round": number})
        content = RecordDict({"arrays": weights, "config": config})
        missing = self.missing  # of the round itself
        messages = [Message(content, node, STATISTICS) for node in nodes]
        self._collect(messages, partial(self.checked_reply, fault_of=fault_of))
        self.missing = missing | self.missing
        if not parts:
            raise RoundError(f"round {number}: no client has sent batch-norm statistics")
        return as_record(batch_norm.pooled_statistics(parts))

    def _exchange(self, messages: Mapping[int, Message], timeout: float) -> dict[int, Message]:
        """Send the messages; return the replies that come in time, by the same keys."""
        ids = dict(zip(self.grid.push_messages([*messages.values()]), messages))
        ids.pop(None, None)  # a node that left meanwhile
        replies, deadline = {}, time.monotonic() + timeout
        while ids and time.monotonic() < deadline:
            for reply in self.grid.pull_messages([*ids]):
                key = ids.pop(reply.metadata.reply_to_message_id, None)
                if key is not None:
                    replies[key] = reply
            if ids:
                time.sleep(POLL)
        return replies
