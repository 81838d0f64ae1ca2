"""What our grids have in common: clients with names, replies that have been looked at.

A grid is Flower's way to the clients. Whatever carries the messages, in ours node i + 1 is the
i-th client, replies come in the order of the clients, and a client without a sound reply has an
error in its place that names it and says why.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from flwr.app import Error, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from fedser_utils.federated.grids.reply_checks import fault_of_count, fault_of_weights

log = logging.getLogger(__name__)

MISSING = 1  # the error code of a client without a sound reply
MEASURES = {"num-examples", "train-loss", "fresh"}


class ClientGrid(Grid):
    """clients: names; examples: training clips of each; missing: name -> why, of the last
    messages; sent, received: bytes of arrays, ever."""

    def __init__(self, clients: Sequence[str], examples: Sequence[int]) -> None:
        self.clients, self.examples = tuple(clients), tuple(examples)
        self.missing: dict[str, str] = {}
        self.sent = self.received = 0
        self.monitor: Callable[[pd.DataFrame], None] | None = None  # of rounds.csv, for a notebook

    def get_node_ids(self) -> list[int]:
        return list(range(1, len(self.clients) + 1))

    def client_of(self, message: Message) -> str:
        return self.clients[message.metadata.dst_node_id - 1]

    def local_arrays(self) -> dict[str, dict[str, Tensor]]:
        """Each client's arrays of its own, by its name; none where the clients are elsewhere."""
        return {}

    def checked_reply(
        self, message: Message, reply: Message, like: Mapping[str, Tensor]
    ) -> Message:
        """A client's reply to a train message, or an error in its place. like: the model sent."""
        if reply.has_error():
            return self.failure(message, reply.error.reason)
        self.received += size(reply)
        try:
            fault = self._fault(message, reply, like)
        except Exception as error:  # whatever a reply may hold, it must not end the round
            fault = f"{type(error).__name__}: {error}"
        if fault:
            return self.failure(message, f"refused: {fault}")
        if reply.content["metrics"].pop("fresh") and message.content["config"]["server-round"] > 1:
            log.info("client %s started with a fresh optimiser", self.client_of(message))
        return Message(reply.content, reply_to=message)

    def _fault(self, message: Message, reply: Message, like: Mapping[str, Tensor]) -> str | None:
        if {*reply.content} != {"arrays", "metrics"}:
            return f"records {', '.join(reply.content)}"
        arrays, measures = reply.content["arrays"], reply.content["metrics"]
        if not isinstance(measures, MetricRecord) or {*measures} != MEASURES:
            return "measures that are not a training's"
        if not math.isfinite(measures["train-loss"]):
            return f"a loss of {measures['train-loss']}"
        expected = self.examples[message.metadata.dst_node_id - 1]
        return fault_of_count(measures["num-examples"], expected) or fault_of_weights(
            arrays.to_torch_state_dict(), like
        )

    def failure(self, message: Message, reason: str) -> Message:
        """The error that stands for a client's missing reply."""
        client = self.client_of(message)
        reason = re.split(r" [-—] The ", reason)[0]  # Flower explains its own at length
        self.missing[client] = reason
        log.warning("client %s: %s", client, reason)
        return Message(Error(MISSING, f"client {client}: {reason}"), reply_to=message)

    # the rest of Flower's interface: our clients answer in send_and_receive
    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id=dst_node_id, message_type=message_type)

    def push_messages(self, messages):
        raise NotImplementedError("the clients answer in send_and_receive")

    def pull_messages(self, message_ids):
        raise NotImplementedError("the clients answer in send_and_receive")

    def set_run(self, run):
        raise NotImplementedError("the run belongs to the grid inside, or to none")

    @property
    def run(self):
        raise NotImplementedError("the run belongs to the grid inside, or to none")


def size(message: Message) -> int:
    """Bytes of a message's arrays."""
    records = message.content.array_records.values()
    return sum(len(array.data) for record in records for array in record.values())
