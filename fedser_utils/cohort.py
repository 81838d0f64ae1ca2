"""A Flower grid whose clients all run in this process, on its GPU or its CPU cores.

Where the strategy needs only the weighted mean, the grid forms that mean itself and hands over
one reply: moving 68 copies of a large model through records costs more than averaging them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedser_utils.answers import as_record, client_app, on_host, reply_to
from fedser_utils.clients import client_clips, device_of, fit
from fedser_utils.config import Settings
from fedser_utils.grids import ClientGrid, size
from fedser_utils.scrutiny import fault_of_variances, fault_of_weights
from fedser_utils.training import Arrays, Update

GROUP = 16  # clients whose weights are held at a time


class CohortGrid(ClientGrid):
    """Every client in this process. With ``preaggregate`` the replies of a round are one: the
    mean of the clients' weights, weighted by their clips, and the sum of those clips."""

    def __init__(
        self,
        settings: Settings,
        clients: Sequence[str],
        examples: Sequence[int],
        *,
        pool: ThreadPoolExecutor,
        preaggregate: bool,
    ) -> None:
        super().__init__(clients, examples)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.settings, self.pool, self.preaggregate = settings, pool, preaggregate
        self.optimisers: dict[int, Arrays] = {}  # per node, on the device
        self._contexts = {node: self._context(node) for node in self.get_node_ids()}

    def _context(self, node: int) -> Context:
        node_config = {"partition-id": node - 1, "num-partitions": len(self.clients)}
        run_config = {"settings": json.dumps(self.settings.values())}
        return Context(1, node, node_config, RecordDict(), run_config)

    def client_states(self) -> dict[int, dict[str, np.ndarray]]:
        """Each node's optimiser state, on the host, for a checkpoint."""
        if self.preaggregate:
            return {n: {k: on_host(v) for k, v in s.items()} for n, s in self.optimisers.items()}
        kept = {node: context.state.get("optimiser") for node, context in self._contexts.items()}
        return {n: {k: a.numpy() for k, a in r.items()} for n, r in kept.items() if r}

    def restore_client_states(self, states: Mapping[int, Mapping[str, np.ndarray]]) -> None:
        for node, arrays in states.items():
            if self.preaggregate:
                self.optimisers[node] = {k: torch.from_numpy(v) for k, v in arrays.items()}
            else:
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
            else self.answer(message, reply, like)
            for message, reply in zip(messages, replies, strict=True)
        ]

    def _run_app(self, message: Message) -> Message | str:
        try:
            return client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def _run_mean(self, messages: list[Message]) -> list[Message]:
        device = device_of(self.settings)
        content = messages[0].content  # every message of a round carries the same model
        weights = {k: v.to(device) for k, v in content["arrays"].to_torch_state_dict().items()}
        number = int(content["config"]["server-round"])
        proximal_mu = float(content["config"].get("proximal-mu", 0.0))

        def run(message: Message) -> Update | str:
            node, client = message.metadata.dst_node_id, self.client_of(message)
            try:
                clips = client_clips(self.settings, client, "train")
                optimiser = self.optimisers.get(node)
                update = fit(
                    self.settings, client, clips, weights, number, optimiser,
                    proximal_mu=proximal_mu,
                )  # fmt: skip
            except Exception as error:
                return f"{type(error).__name__}: {error}"
            fault = fault_of_variances(update.weights)
            return f"refused: {fault}" if fault else update

        failures, mean = [], _Mean(like=weights)
        waiting: list[tuple[Message, Update]] = []
        for message, update in zip(messages, self.pool.map(run, messages), strict=True):
            if isinstance(update, str):
                failures.append(self.failure(message, update))
            else:
                waiting.append((message, update))
            if len(waiting) == GROUP or message is messages[-1]:
                failures += self._add(mean, waiting)
                waiting = []
        if not mean.clients:
            return failures
        reply = reply_to(messages[0], mean.weights(), **mean.measures())
        self.received += mean.clients * size(reply)
        return [*failures, reply]

    def _add(self, mean: _Mean, group: list[tuple[Message, Update]]) -> list[Message]:
        """Take a group of updates into the mean, once they have been looked at: their sum, and
        each of them only if something is wrong with that. Returns errors for the refused."""
        counts = [self.examples[message.metadata.dst_node_id - 1] for message, _ in group]
        failures = []
        if not mean.add([update for _, update in group], counts):
            sound = []
            for (message, update), count in zip(group, counts, strict=True):
                if fault := fault_of_weights(update.weights, mean.like):
                    failures.append(self.failure(message, f"refused: {fault}"))
                else:
                    sound.append((message, update, count))
            group = [(message, update) for message, update, _ in sound]
            mean.add([update for _, update in group], [count for *_, count in sound])
        if self.settings.client_state == "keep":
            for message, update in group:
                self.optimisers[message.metadata.dst_node_id] = update.optimiser
        return failures


class _Mean:
    """The clients' mean, as it comes together. like: the model they were sent."""

    def __init__(self, like: Arrays) -> None:
        self.like = like
        self.total = {name: torch.zeros_like(value) for name, value in like.items()}
        self.clients = self.examples = 0
        self.loss = 0.0

    def add(self, updates: Sequence[Update], counts: Sequence[int]) -> bool:
        """Add a group's weights times its counts; False, and nothing added, if their sum shows
        that something is wrong."""
        if not updates:
            return True
        part = {name: value * counts[0] for name, value in updates[0].weights.items()}
        for update, count in zip(updates[1:], counts[1:], strict=True):
            torch._foreach_add_([*part.values()], [*update.weights.values()], alpha=count)
        if fault_of_weights(part, self.like, times=sum(counts)):
            return False
        torch._foreach_add_([*self.total.values()], [*part.values()])
        self.clients, self.examples = self.clients + len(updates), self.examples + sum(counts)
        self.loss += sum(u.loss * count for u, count in zip(updates, counts, strict=True))
        return True

    def weights(self) -> Arrays:
        return {name: value.div_(self.examples) for name, value in self.total.items()}

    def measures(self) -> dict[str, float]:
        facts = {"num-examples": self.examples, "num-clients": self.clients}
        return facts | {"train-loss": self.loss / self.examples}
