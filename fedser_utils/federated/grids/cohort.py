"""A Flower grid whose clients all run in this process, on its GPU or its CPU cores.

Where the strategy needs only the weighted mean, the grid computes that mean itself and hands over
one reply: passing 68 copies of a large model through records costs more than averaging them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedser_utils.federated.client import local_arrays
from fedser_utils.federated.client_app import as_record, client_app, reply_to
from fedser_utils.federated.grids.base import MISSING, ClientGrid, bytes_of_arrays
from fedser_utils.federated.grids.cohort_trainer import Trainer
from fedser_utils.learning.local_training import Arrays


class CohortGrid(ClientGrid):
    """The trainer's clients, in this process. With ``preaggregate`` the trainer trains them, and a
    round has one reply: their mean weights, weighted by clips, and the sum of their clips. Without
    it the ClientApp trains them, and each replies."""

    def __init__(self, trainer: Trainer, *, preaggregate: bool) -> None:
        super().__init__(trainer.clients, trainer.examples)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.trainer, self.pool, self.preaggregate = trainer, trainer.pool, preaggregate
        run_config, count = {"settings": json.dumps(trainer.settings.values())}, len(self.clients)
        self._contexts = {
            i + 1: Context(
                1, i + 1, {"partition-id": i, "num-partitions": count}, RecordDict(), run_config
            )
            for i in range(count)
        }

    def reestimate_batch_norm(
        self, number: int, weights: ArrayRecord, nodes: Sequence[int], config: Mapping[str, Any]
    ) -> ArrayRecord:
        """Return the batch-norm statistics of these nodes' training clips in a model."""
        return as_record(self.trainer.statistics(nodes, dict(weights.to_torch_state_dict())))

    def local_arrays(self) -> dict[str, Arrays]:
        """Return client -> its local arrays."""
        if self.preaggregate:
            by_node = self.trainer.local_arrays()
        else:
            by_node = {
                node: local_arrays(dict(record.to_torch_state_dict()))
                for node, record in self._saved_states().items()
            }
        return {self.clients[node - 1]: arrays for node, arrays in by_node.items()}

    def client_states(self) -> dict[int, dict[str, np.ndarray]]:
        """Return node -> its client's state (``state_after``), on the host."""
        if self.preaggregate:
            return self.trainer.states()
        return {
            node: {name: array.numpy() for name, array in record.items()}
            for node, record in self._saved_states().items()
        }

    def _saved_states(self) -> dict[int, ArrayRecord]:
        states = {node: c.state.get("optimiser") for node, c in self._contexts.items()}
        return {node: record for node, record in states.items() if record}

    def restore_client_states(self, states: Mapping[int, Mapping[str, np.ndarray]]) -> None:
        if self.preaggregate:
            self.trainer.restore(states)
            return
        for node, arrays in states.items():
            self._contexts[node].state["optimiser"] = as_record(arrays)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Train the messages' clients; return their checked replies, or that of their mean."""
        messages = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        if not messages:
            return []
        self.missing = {}
        self.sent += len(messages) * bytes_of_arrays(messages[0])
        if self.preaggregate:
            return self._train_mean(messages)
        like = messages[0].content["arrays"].to_torch_state_dict()
        replies = self.pool.map(self._run_app, messages)
        return [
            self.checked_update(message, reply, like)
            for message, reply in zip(messages, replies, strict=True)
        ]

    def _run_app(self, message: Message) -> Message:
        try:
            return client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            return Message(Error(MISSING, f"{type(error).__name__}: {error}"), reply_to=message)

    def _train_mean(self, messages: list[Message]) -> list[Message]:
        content = messages[0].content  # every message of a round carries the same model
        by_node = {message.metadata.dst_node_id: message for message in messages}
        config, weights = content["config"], content["arrays"].to_torch_state_dict()
        number, mu = int(config["server-round"]), float(config.get("proximal-mu", 0.0))
        total = self.trainer.round([*by_node], weights, number=number, proximal_mu=mu)
        errors = [self.error_reply(by_node[n], why) for n, why in sorted(total.failures.items())]
        if not total.clients:
            return errors
        reply = reply_to(messages[0], total.mean(), **total.measures())
        self.received += total.clients * bytes_of_arrays(reply)
        return [*errors, reply]
