"""A Flower grid whose clients all run in this process, on its GPU or its CPU cores.

Where the strategy needs only the weighted mean, the grid forms that mean itself and hands over
one reply: moving 68 copies of a large model through records costs more than averaging them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedser_utils.core.settings import Settings
from fedser_utils.federated.client import local_arrays
from fedser_utils.federated.client_app import as_record, client_app, reply_to
from fedser_utils.federated.grids.base import ClientGrid, size
from fedser_utils.federated.grids.cohort_trainer import Trainer
from fedser_utils.federated.grids.multi_gpu import Shards
from fedser_utils.learning.local_training import Arrays


class CohortGrid(ClientGrid):
    """Every client in this process. With ``preaggregate`` the replies of a round are one: the
    mean of the clients' weights, weighted by their clips, and the sum of those clips. trainer: what
    trains them for that; None: this process alone."""

    def __init__(
        self,
        settings: Settings,
        clients: Sequence[str],
        examples: Sequence[int],
        *,
        pool: ThreadPoolExecutor,
        preaggregate: bool,
        trainer: Trainer | Shards | None = None,
    ) -> None:
        super().__init__(clients, examples)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.settings, self.pool, self.preaggregate = settings, pool, preaggregate
        self.trainer = trainer or Trainer(settings, self.clients, self.examples, pool=pool)
        self._contexts = {node: self._context(node) for node in self.get_node_ids()}

    def _context(self, node: int) -> Context:
        node_config = {"partition-id": node - 1, "num-partitions": len(self.clients)}
        run_config = {"settings": json.dumps(self.settings.values())}
        return Context(1, node, node_config, RecordDict(), run_config)

    def reestimated(
        self, number: int, weights: ArrayRecord, nodes: Sequence[int], config: ConfigRecord
    ) -> ArrayRecord:
        """The running statistics of batch normalisation over these nodes' clips, in the model of
        these weights."""
        return as_record(self.trainer.statistics(nodes, dict(weights.to_torch_state_dict())))

    def local_arrays(self) -> dict[str, Arrays]:
        """Each client's arrays of its own, by its name."""
        if self.preaggregate:
            found = self.trainer.local_arrays()
        else:
            states = {n: c.state.get("optimiser") for n, c in self._contexts.items()}
            found = {n: local_arrays(dict(r.to_torch_state_dict())) for n, r in states.items() if r}
        return {self.clients[node - 1]: arrays for node, arrays in found.items()}

    def client_states(self) -> dict[int, dict[str, np.ndarray]]:
        """Each node's optimiser state, on the host, for a checkpoint."""
        if self.preaggregate:
            return self.trainer.states()
        kept = {node: context.state.get("optimiser") for node, context in self._contexts.items()}
        return {n: {k: a.numpy() for k, a in r.items()} for n, r in kept.items() if r}

    def restore_client_states(self, states: Mapping[int, Mapping[str, np.ndarray]]) -> None:
        if self.preaggregate:
            self.trainer.restore(states)
            return
        for node, arrays in states.items():
            self._contexts[node].state["optimiser"] = as_record(arrays)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Run the messages' clients. A client that raises gives an error reply, by its name."""
        messages = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        if not messages:
            return []
        self.missing = {}
        self.sent += len(messages) * size(messages[0])
        if self.preaggregate:
            return self._run_mean(messages)
        like = messages[0].content["arrays"].to_torch_state_dict()
        replies = self.pool.map(self._run_app, messages)
        return [
            self.failure(message, reply)
            if isinstance(reply, str)
            else self.checked_reply(message, reply, like)
            for message, reply in zip(messages, replies, strict=True)
        ]

    def _run_app(self, message: Message) -> Message | str:
        try:
            return client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def _run_mean(self, messages: list[Message]) -> list[Message]:
        content = messages[0].content  # every message of a round carries the same model
        total = self.trainer.round(
            [message.metadata.dst_node_id for message in messages],
            content["arrays"].to_torch_state_dict(),
            number=int(content["config"]["server-round"]),
            proximal_mu=float(content["config"].get("proximal-mu", 0.0)),
        )
        sent = {message.metadata.dst_node_id: message for message in messages}
        failures = [self.failure(sent[node], why) for node, why in sorted(total.failures.items())]
        if not total.clients:
            return failures
        reply = reply_to(messages[0], total.mean(), **total.measures())
        self.received += total.clients * size(reply)
        return [*failures, reply]
