"""Training of the clients of this process for a round: updates checked, and summed on the device.

The plain engine trains as many clients at a time as there are workers, by ``client.fit``. The fast
engine attacks all clients' clips in common batches (every client received the same model) and
trains the clients in ``gpu_engine``'s lanes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from fedser_utils import attacks
from fedser_utils.core.devices import resolve_device, uses_bf16
from fedser_utils.core.settings import Settings
from fedser_utils.federated.client import (
    client_clips,
    client_generator,
    evaluation_target,
    fit,
    is_adversarial,
    is_fast,
    learning_rate_in,
    local_arrays,
    new_model,
    state_after,
    statistics,
)
from fedser_utils.federated.grids.reply_checks import fault_of_variances, fault_of_weights
from fedser_utils.learning import batch_norm, local_training, vgg
from fedser_utils.learning.gpu_engine import Engine, Job, Recipe
from fedser_utils.learning.local_training import Arrays, Update
from fedser_utils.robustness.evaluation import in_batches

GROUP = 16  # clients whose weights are checked together


class Total:
    """The running sum of a round's updates. like: the model that the clients received; weights,
    loss: sums weighted by clips; clients, examples: counts; failures: node -> reason, of clients
    left out."""

    def __init__(self, like: Arrays) -> None:
        self.like = like
        self.weights = {name: torch.zeros_like(value) for name, value in like.items()}
        self.clients = self.examples = 0
        self.loss = 0.0
        self.failures: dict[int, str] = {}

    def add(self, updates: Sequence[Update], counts: Sequence[int]) -> bool:
        """Add a group's updates, weighted by their numbers of clips. Returns False, and adds
        nothing, if their sum has a fault."""
        if not updates:
            return True
        part = {name: value * counts[0] for name, value in updates[0].weights.items()}
        for update, count in zip(updates[1:], counts[1:], strict=True):
            torch._foreach_add_([*part.values()], [*update.weights.values()], alpha=count)
        if fault_of_weights(part, self.like, times=sum(counts)):
            return False
        torch._foreach_add_([*self.weights.values()], [*part.values()])
        self.clients, self.examples = self.clients + len(updates), self.examples + sum(counts)
        self.loss += sum(u.loss * count for u, count in zip(updates, counts, strict=True))
        return True

    def mean(self) -> Arrays:
        """Return the mean of the clients' weights, weighted by their clips."""
        return {name: value / self.examples for name, value in self.weights.items()}

    def measures(self) -> dict[str, float]:
        """Return the metrics of a reply that carries this mean."""
        facts = {"num-examples": self.examples, "num-clients": self.clients}
        return facts | {"train-loss": self.loss / self.examples}


class Trainer:
    """Trains clients round by round, and holds their states in between. clients: names; examples:
    training clips of each; node i + 1 is the i-th client."""

    def __init__(
        self, settings: Settings, clients: Sequence[str], examples: Sequence[int], *,
        pool: ThreadPoolExecutor,
    ) -> None:  # fmt: skip
        self.settings, self.pool = settings, pool
        self.clients, self.examples = clients, examples
        self.device = resolve_device(settings)
        self._client_states: dict[int, Arrays] = {}  # by node
        self._engine: Engine | None = None

    def round(
        self, nodes: Sequence[int], weights: Arrays, *, number: int, proximal_mu: float
    ) -> Total:
        """Train ``weights`` on each node's clips; return the updates' sum. A client that raises, or
        whose update has a fault, is among the failures, and its state remains as it was."""
        weights = {name: value.to(self.device) for name, value in weights.items()}
        total, group = Total(like=weights), []
        train = self._train_fast if is_fast(self.settings) else self._train_plain
        for node, update in train(nodes, weights, number, proximal_mu):
            fault = update if isinstance(update, str) else _fault_in_one(update)
            if fault:
                total.failures[node] = fault
                continue
            group.append((node, update))
            if len(group) == GROUP:
                self._add(total, group)
                group = []
        self._add(total, group)
        return total

    def _add(self, total: Total, group: list[tuple[int, Update]]) -> None:
        """Add a group of updates to the total; if their sum has a fault, without those that have
        one."""

        def add() -> bool:
            counts = [self.examples[node - 1] for node, _ in group]
            return total.add([update for _, update in group], counts)

        if not add():
            faults = {node: fault_of_weights(update.weights, total.like) for node, update in group}
            total.failures |= {n: f"refused: {fault}" for n, fault in faults.items() if fault}
            group = [(node, update) for node, update in group if not faults[node]]
            add()
        for node, update in group:
            if state := state_after(self.settings, update):
                self._client_states[node] = state

    def _train_plain(
        self, nodes: Sequence[int], weights: Arrays, number: int, proximal_mu: float
    ) -> Iterator[tuple[int, Update | str]]:
        def run(node: int) -> Update | str:
            client = self.clients[node - 1]
            try:
                clips = client_clips(self.settings, client, "train")
                return fit(
                    self.settings, client, clips, weights, number, self._client_states.get(node),
                    proximal_mu=proximal_mu,
                )  # fmt: skip
            except Exception as error:
                return f"{type(error).__name__}: {error}"

        yield from zip(nodes, self.pool.map(run, nodes), strict=True)

    def _train_fast(
        self, nodes: Sequence[int], weights: Arrays, number: int, proximal_mu: float
    ) -> Iterator[tuple[int, Update | str]]:
        jobs: dict[int, Job] = {}
        for node in nodes:
            try:
                jobs[node] = self._job(node, number)
            except Exception as error:
                yield node, f"{type(error).__name__}: {error}"
        if not jobs:
            return
        engine = self._engine_for(weights, proximal_mu)
        if is_adversarial(self.settings, number):
            vgg.load_arrays(engine.anchor, weights)
            jobs = self._attack_jobs(jobs, evaluation_target(self.settings, engine.anchor))
        rate = learning_rate_in(self.settings, number)
        updates = engine.fit([*jobs.values()], weights, learning_rate=rate)
        yield from zip(jobs, updates, strict=True)

    def _job(self, node: int, number: int) -> Job:
        settings, client = self.settings, self.clients[node - 1]
        x, y = client_clips(settings, client, "train")
        schedule = local_training.make_schedule(
            len(y), epochs=settings.local_epochs, batch_size=settings.batch_size,
            attack=is_adversarial(settings, number),
            generator=client_generator(settings, client, number),
        )  # fmt: skip
        return Job(x, y, schedule, self._client_states.get(node))

    def _attack_jobs(self, jobs: Mapping[int, Job], target: torch.nn.Module) -> dict[int, Job]:
        """Return the jobs with x_adv in place of the clips to be attacked, made in batches across
        all clients."""
        rows = {n: job.schedule.attacked.to(job.x.device) for n, job in jobs.items()}
        x = torch.cat([job.x[rows[node]] for node, job in jobs.items()])
        y = torch.cat([job.y[rows[node]] for node, job in jobs.items()])
        attack = partial(attacks.make_attack(self.settings, self.settings.attack), target)
        x_adv = in_batches(attack, x, y, pool=self.pool) if len(x) else x
        parts = x_adv.split([len(indices) for indices in rows.values()])
        return {
            node: job._replace(x=job.x.index_copy(0, rows[node], part))
            for (node, job), part in zip(jobs.items(), parts, strict=True)
        }

    def _engine_for(self, weights: Arrays, proximal_mu: float) -> Engine:
        """Return the engine; it is built in the first round, and its captures serve all rounds."""
        if self._engine is None:
            settings, bf16 = self.settings, uses_bf16(self.settings, self.device)
            model = new_model(settings, len(weights["classifier.2.bias"])).to(self.device)
            recipe = Recipe(settings.alpha, proximal_mu, bf16)
            self._engine = Engine(model, recipe, clients=len(self.clients))
        return self._engine

    def statistics(self, nodes: Sequence[int], weights: Arrays) -> Arrays:
        """Return the batch-norm statistics of all these nodes' training clips in a model."""
        weights = {name: value.to(self.device) for name, value in weights.items()}

        def of_one(node: int) -> tuple[Arrays, int]:
            clips = client_clips(self.settings, self.clients[node - 1], "train")
            return statistics(self.settings, clips, weights), len(clips[1])

        parts = map(of_one, nodes) if self.device != "cpu" else self.pool.map(of_one, nodes)
        return batch_norm.pooled_statistics(parts)

    def states(self) -> dict[int, dict[str, np.ndarray]]:
        """Return node -> its client's state, on the host, for a checkpoint."""
        return {
            node: {name: value.cpu().numpy() for name, value in state.items()}
            for node, state in self._client_states.items()
        }

    def local_arrays(self) -> dict[int, Arrays]:
        """Return node -> its client's local arrays, of clients that have some."""
        by_node = {node: local_arrays(state) for node, state in self._client_states.items()}
        return {node: arrays for node, arrays in by_node.items() if arrays}

    def restore(self, states: Mapping[int, Mapping[str, np.ndarray]]) -> None:
        """Set the states to those of ``states``."""
        for node, arrays in states.items():
            self._client_states[node] = {k: torch.from_numpy(v) for k, v in arrays.items()}


def _fault_in_one(update: Update) -> str | None:
    """Return the fault of one update that a sum over clients may hide."""
    fault = fault_of_variances(update.weights)
    return f"refused: {fault}" if fault else None
