"""The base of our Flower grids: clients with names, and replies that are checked.

A grid is Flower's interface for sending messages to clients. In ours node i + 1 is the i-th
client, replies come in the order of the clients, and in place of a missing or refused reply stands
an error that names the client and the reason.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import pandas as pd
from flwr.app import Error, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from fedser_utils.federated.grids.reply_checks import fault_of_count, fault_of_weights

log = logging.getLogger(__name__)

MISSING = 1  # error code in place of a reply
MEASURES = {"num-examples", "train-loss", "fresh"}


class ClientGrid(Grid):
    """clients: names; examples: training clips of each; missing: name -> reason, since it was last
    cleared; sent, received: bytes of arrays in total; monitor: called with rounds.csv."""

    def __init__(self, clients: Sequence[str], examples: Sequence[int]) -> None:
        self.clients, self.examples = tuple(clients), tuple(examples)
        self.missing: dict[str, str] = {}
        self.sent = self.received = 0
        self.monitor: Callable[[pd.DataFrame], None] | None = None

    def get_node_ids(self) -> list[int]:
        """Return the nodes, a client each: 1, 2, ..."""
        return list(range(1, len(self.clients) + 1))

    def client_of(self, message: Message) -> str:
        """Return the name of the client that a message goes to."""
        return self.clients[message.metadata.dst_node_id - 1]

    def examples_of(self, message: Message) -> int:
        """Return the number of training clips of the client that a message goes to."""
        return self.examples[message.metadata.dst_node_id - 1]

    def local_arrays(self) -> dict[str, dict[str, Tensor]]:
        """Return client -> its local arrays; {} where the clients are in other processes."""
        return {}

    def client_states(self) -> dict[int, dict]:
        """Return node -> its client's state, for a checkpoint; {} where the clients save them."""
        return {}

    def restore_client_states(self, states: Mapping[int, Mapping]) -> None:
        """Set the clients' states to a ``client_states``; nothing where the clients save them."""

    def checked_reply(
        self, message: Message, reply: Message, fault_of: Callable[[Message, Message], str | None]
    ) -> Message:
        """Return the reply, or an error in its place if it is one, or ``fault_of(message, reply)``
        names a fault or raises."""
        if reply.has_error():
            return self.error_reply(message, reply.error.reason)
        try:
            fault = fault_of(message, reply)
        except Exception as error:  # no content of a reply may end the round
            fault = f"{type(error).__name__}: {error}"
        return self.error_reply(message, f"refused: {fault}") if fault else reply

    def checked_update(
        self, message: Message, reply: Message, like: Mapping[str, Tensor]
    ) -> Message:
        """Return the checked reply to a train message. like: the model that was sent."""
        if not reply.has_error():
            self.received += bytes_of_arrays(reply)
        reply = self.checked_reply(message, reply, partial(self._update_fault, like=like))
        if reply.has_error():
            return reply
        if reply.content["metrics"].pop("fresh") and message.content["config"]["server-round"] > 1:
            log.info("client %s started with a fresh optimiser", self.client_of(message))
        return Message(reply.content, reply_to=message)

    def _update_fault(
        self, message: Message, reply: Message, like: Mapping[str, Tensor]
    ) -> str | None:
        if {*reply.content} != {"arrays", "metrics"}:
            return f"records {', '.join(reply.content)}"
        arrays, measures = reply.content["arrays"], reply.content["metrics"]
        if not isinstance(measures, MetricRecord) or {*measures} != MEASURES:
            return "measures that are not a training's"
        if not math.isfinite(measures["train-loss"]):
            return f"a loss of {measures['train-loss']}"
        expected = self.examples_of(message)
        return fault_of_count(measures["num-examples"], expected) or fault_of_weights(
            arrays.to_torch_state_dict(), like
        )

    def error_reply(self, message: Message, reason: str) -> Message:
        """Return the error in place of a client's reply; log it, and add it to ``missing``."""
        client = self.client_of(message)
        reason = re.split(r" [-—] The ", reason)[0]  # Flower explains its own at length
        self.missing[client] = reason
        log.warning("client %s: %s", client, reason)
        return Message(Error(MISSING, f"client {client}: {reason}"), reply_to=message)

    def _unused(self, *arguments: Any, **options: Any) -> NoReturn:
        raise NotImplementedError("strategies use send_and_receive alone")

    # the rest of Flower's interface
    create_message = push_messages = pull_messages = set_run = _unused
    run = property(_unused)


def bytes_of_arrays(message: Message) -> int:
    """Return the size of a message's arrays in bytes."""
    records = message.content.array_records.values()
    return sum(len(array.data) for record in records for array in record.values())
