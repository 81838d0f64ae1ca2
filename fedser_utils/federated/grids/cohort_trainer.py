"""A round of the clients that are in this process: trained, looked at, summed up on the device.

The plain engine trains as many clients at a time as there are workers, each as ``client.fit``
does. The fast one attacks all clients' clips in common batches (every client has received the
same model) and trains them in ``gpu_engine``'s lanes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from fedser_utils import attacks
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
    resolve_device,
    state_after,
    statistics,
    uses_bf16,
)
from fedser_utils.federated.grids.reply_checks import (
    fault_of_variances,
    fault_of_weights,
)
from fedser_utils.learning import local_training, vgg
from fedser_utils.learning.gpu_engine import Engine, Job, Recipe
from fedser_utils.learning.local_training import Arrays, Update
from fedser_utils.robustness.evaluation import in_batches

GROUP = 16  # clients whose weights are looked at together


class Total:
    """A round's clients, summed as they come. like: the model they were sent; failures: who is
    not among them, and why."""

    def __init__(self, like: Arrays) -> None:
        self.like = like
        self.weights = {name: torch.zeros_like(value) for name, value in like.items()}
        self.clients = self.examples = 0
        self.loss = 0.0
        self.failures: dict[int, str] = {}

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
        torch._foreach_add_([*self.weights.values()], [*part.values()])
        self.clients, self.examples = self.clients + len(updates), self.examples + sum(counts)
        self.loss += sum(u.loss * count for u, count in zip(updates, counts, strict=True))
        return True

    def mean(self) -> Arrays:
        """The clients' weights, weighted by their clips."""
        return {name: value / self.examples for name, value in self.weights.items()}

    def measures(self) -> dict[str, float]:
        facts = {"num-examples": self.examples, "num-clients": self.clients}
        return facts | {"train-loss": self.loss / self.examples}


class Trainer:
    """clients: names; examples: clips of each; node i + 1 is the i-th."""

    def __init__(
        self,
        settings: Settings,
        clients: Sequence[str],
        examples: Sequence[int],
        *,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.settings, self.pool = settings, pool
        self.clients, self.examples = clients, examples
        self.device = resolve_device(settings)
        self._client_states: dict[int, Arrays] = {}  # per node
        self._engine: Engine | None = None

    def round(
        self, nodes: Sequence[int], weights: Arrays, *, number: int, proximal_mu: float
    ) -> Total:
        """Train ``weights`` on each node's clips. A client that raises, or whose weights are not
        sound, is among the failures; what it has kept stays what it was."""
        weights = {name: value.to(self.device) for name, value in weights.items()}
        total, waiting = Total(like=weights), []
        way = self._fast if is_fast(self.settings) else self._plain
        for node, update in way(nodes, weights, number, proximal_mu):
            if isinstance(update, str):
                total.failures[node] = update
                continue
            waiting.append((node, update))
            if len(waiting) == GROUP:
                self._add(total, waiting)
                waiting = []
        self._add(total, waiting)
        return total

    def _add(self, total: Total, group: list[tuple[int, Update]]) -> None:
        """Take a group of updates into the total, once they have been looked at: their sum, and
        each of them only if something is wrong with that."""
        counts = [self.examples[node - 1] for node, _ in group]
        if not total.add([update for _, update in group], counts):
            sound = []
            for node, update in group:
                if fault := fault_of_weights(update.weights, total.like):
                    total.failures[node] = f"refused: {fault}"
                else:
                    sound.append((node, update))
            group = sound
            counts = [self.examples[node - 1] for node, _ in group]
            total.add([update for _, update in group], counts)
        news = {node: state_after(self.settings, update) for node, update in group}
        self._client_states |= {node: state for node, state in news.items() if state}

    def _plain(
        self, nodes: Sequence[int], weights: Arrays, number: int, proximal_mu: float
    ) -> Iterator[tuple[int, Update | str]]:
        def run(node: int) -> Update | str:
            client = self.clients[node - 1]
            try:
                clips = client_clips(self.settings, client, "train")
                update = fit(
                    self.settings, client, clips, weights, number, self._client_states.get(node),
                    proximal_mu=proximal_mu,
                )  # fmt: skip
            except Exception as error:
                return f"{type(error).__name__}: {error}"
            return _check_update(update)

        yield from zip(nodes, self.pool.map(run, nodes), strict=True)

    def _fast(
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
            jobs = self._attacked(jobs, evaluation_target(self.settings, engine.anchor))
        rate = learning_rate_in(self.settings, number)
        updates = engine.fit([*jobs.values()], weights, learning_rate=rate)
        for node, update in zip(jobs, updates, strict=True):
            yield node, _check_update(update)

    def _job(self, node: int, number: int) -> Job:
        settings, client = self.settings, self.clients[node - 1]
        x, y = client_clips(settings, client, "train")
        plan = local_training.make_schedule(
            len(y), epochs=settings.local_epochs, batch_size=settings.batch_size,
            attack=is_adversarial(settings, number),
            generator=client_generator(settings, client, number),
        )  # fmt: skip
        return Job(x, y, plan, self._client_states.get(node))

    def _attacked(self, jobs: Mapping[int, Job], aim: torch.nn.Module) -> dict[int, Job]:
        """The jobs with their attacked clips in place, from batches across all clients."""
        chosen = [job.plan.attacked.to(job.x.device) for job in jobs.values()]
        parts = [
            (job.x[rows], job.y[rows]) for job, rows in zip(jobs.values(), chosen, strict=True)
        ]
        x, y = (torch.cat(column) for column in zip(*parts, strict=True))
        attack = partial(attacks.make_attack(self.settings, self.settings.attack), aim)
        moved = in_batches(attack, x, y, pool=self.pool) if len(x) else x
        done = {}
        each = moved.split([len(rows) for rows in chosen])
        for (node, job), rows, clips in zip(jobs.items(), chosen, each, strict=True):
            done[node] = job._replace(x=job.x.index_copy(0, rows, clips))
        return done

    def _engine_for(self, weights: Arrays, proximal_mu: float) -> Engine:
        """The engine, made at the first round: what it captures is used in all rounds."""
        if self._engine is None:
            settings, bf16 = self.settings, uses_bf16(self.settings, self.device)
            model = new_model(settings, len(weights["classifier.2.bias"])).to(self.device)
            recipe = Recipe(settings.alpha, proximal_mu, bf16)
            self._engine = Engine(model, recipe, clients=len(self.clients))
        return self._engine

    def statistics(self, nodes: Sequence[int], weights: Arrays) -> Arrays:
        """The running statistics of batch normalisation over all these nodes' clips."""
        weights = {name: value.to(self.device) for name, value in weights.items()}

        def look(node: int) -> tuple[Arrays, int]:
            clips = client_clips(self.settings, self.clients[node - 1], "train")
            return statistics(self.settings, clips, weights), len(clips[1])

        found = map(look, nodes) if self.device != "cpu" else self.pool.map(look, nodes)
        return vgg.pooled_statistics(found)

    def states(self) -> dict[int, dict[str, np.ndarray]]:
        """What each node keeps, on the host, for a checkpoint."""
        return {
            node: {name: value.cpu().numpy() for name, value in own.items()}
            for node, own in self._client_states.items()
        }

    def local_arrays(self) -> dict[int, Arrays]:
        """Each node's arrays of its own."""
        found = {node: local_arrays(state) for node, state in self._client_states.items()}
        return {node: arrays for node, arrays in found.items() if arrays}

    def restore(self, states: Mapping[int, Mapping[str, np.ndarray]]) -> None:
        """Put ``states`` back."""
        for node, arrays in states.items():
            self._client_states[node] = {k: torch.from_numpy(v) for k, v in arrays.items()}


def _check_update(update: Update) -> Update | str:
    """What a sum over clients may hide is looked at in each."""
    fault = fault_of_variances(update.weights)
    return f"refused: {fault}" if fault else update
