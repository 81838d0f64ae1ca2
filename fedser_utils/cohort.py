"""A Flower grid whose clients all run in this process, on its GPU or its CPU cores.

Where the strategy needs only the weighted mean, the grid forms that mean itself and hands over
one reply: moving 68 copies of a large model through records costs more than averaging them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedser_utils.clients import as_record, client_app, device_of, fit, on_host, reply_to
from fedser_utils.config import Settings
from fedser_utils.training import Arrays, Update

log = logging.getLogger(__name__)

FAILED = 1  # the error code of a client whose round raised


@contextmanager
def worker_pool(device: str) -> Iterator[ThreadPoolExecutor]:
    """On CPU a thread for each core, each with one torch thread: small convolutions gain more
    from two clients side by side than from two cores each, and the result no longer depends on
    the number of cores. On a GPU, one worker."""
    count = torch.get_num_threads() if device == "cpu" else 1
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        if device == "cpu":
            torch.set_num_threads(count)


class CohortGrid(Grid):
    """Flower's grid with every client in this process.

    Node i + 1 is the i-th client. With ``preaggregate`` the replies of a round are one: the mean
    of the clients' weights, weighted by their clips, and the sum of those clips.
    """

    def __init__(
        self,
        settings: Settings,
        clients: Sequence[str],
        *,
        pool: ThreadPoolExecutor,
        preaggregate: bool,
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.settings, self.clients, self.pool = settings, tuple(clients), pool
        self.preaggregate = preaggregate
        self.optimisers: dict[int, Arrays] = {}  # per node, on the device
        self._contexts = {node: self._context(node) for node in self.get_node_ids()}

    def _context(self, node: int) -> Context:
        node_config = {"partition-id": node - 1, "num-partitions": len(self.clients)}
        run_config = {"settings": json.dumps(self.settings.values())}
        return Context(1, node, node_config, RecordDict(), run_config)

    def get_node_ids(self) -> list[int]:
        return list(range(1, len(self.clients) + 1))

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
        if not self.preaggregate:
            return list(self.pool.map(self._run_app, messages))
        return self._run_mean(messages)

    def _run_app(self, message: Message) -> Message:
        try:
            return client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            return self._failure(message, error)

    def _run_mean(self, messages: list[Message]) -> list[Message]:
        device = device_of(self.settings)
        content = messages[0].content  # every message of a round carries the same model
        weights = {k: v.to(device) for k, v in content["arrays"].to_torch_state_dict().items()}
        round_number = int(content["config"]["server-round"])

        def run(message: Message) -> tuple[Update, int] | Exception:
            node = message.metadata.dst_node_id
            client = self.clients[node - 1]
            try:
                return fit(self.settings, client, weights, round_number, self.optimisers.get(node))
            except Exception as error:
                return error

        replies, done, examples, loss = [], 0, 0, 0.0
        total: Arrays = {}
        for message, outcome in zip(messages, self.pool.map(run, messages), strict=True):
            if isinstance(outcome, Exception):
                replies.append(self._failure(message, outcome))
                continue
            update, count = outcome
            if self.settings.client_state == "keep":
                self.optimisers[message.metadata.dst_node_id] = update.optimiser
            done, examples, loss = done + 1, examples + count, loss + update.loss * count
            for name, value in update.weights.items():
                total[name] = (
                    total[name].add_(value, alpha=count) if name in total else value * count
                )
        if done:
            mean = {name: value / examples for name, value in total.items()}
            facts = {"examples": examples, "clients": done, "loss": loss / examples}
            replies.append(reply_to(messages[0], mean, **facts))
        return replies

    def _failure(self, message: Message, error: Exception) -> Message:
        client = self.clients[message.metadata.dst_node_id - 1]
        log.warning("client %s failed: %s: %s", client, type(error).__name__, error)
        reason = f"client {client}: {type(error).__name__}: {error}"
        return Message(Error(code=FAILED, reason=reason), reply_to=message)

    # the rest of Flower's interface: a cohort answers at once, so nothing is pushed or pulled
    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id=dst_node_id, message_type=message_type)

    def push_messages(self, messages):
        raise NotImplementedError("a cohort answers in send_and_receive")

    def pull_messages(self, message_ids):
        raise NotImplementedError("a cohort answers in send_and_receive")

    def set_run(self, run):
        raise NotImplementedError("a cohort belongs to no SuperLink")

    @property
    def run(self):
        raise NotImplementedError("a cohort belongs to no SuperLink")
