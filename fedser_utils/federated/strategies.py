"""Flower's strategies by name, none re-written, each made careful in the same way."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp import strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from fedser_utils.core.seeding import derive

# those that never look at a single client's reply: one reply with the mean will do
PREAGGREGATED = ("FedAvg", "FedProx", "FedAdam", "FedYogi", "FedAvgM")
# the fewest replies with f malicious clients: Blanchard et al. (2017), Guerraoui and Rouault (2018)
FEWEST = {"Krum": (2, 3), "MultiKrum": (2, 3), "Bulyan": (4, 3)}


Reestimate = Callable[[int, ArrayRecord, Sequence[int]], Mapping[str, Array]]


class RoundError(RuntimeError):
    """A round cannot be used; the text names the clients."""


class _Careful:
    """Before any Flower strategy: rounds counted on from ``first_round``, clients sampled by the
    run's own seed, replies counted, batch-norm statistics kept from server-side optimisers, which
    would make variances negative, and, on request, taken anew of the aggregated model. The replies
    are sound, and in the order of the clients: the grid sees to that."""

    first_round = 0
    seed = 0
    min_replies = 1.0
    buffers: frozenset[str] = frozenset()
    reestimate: Reestimate | None = None

    def configure_train(self, server_round, arrays, config, grid):
        server_round += self.first_round
        self.names = [*arrays]
        state = random.getstate()  # Flower samples with Python's global generator
        random.seed(derive(self.seed, "sample", server_round))
        try:
            messages = list(super().configure_train(server_round, arrays, config, grid))
        finally:
            random.setstate(state)
        if self.optimises:
            self.current_arrays = type(self.current_arrays)(
                {k: v for k, v in self.current_arrays.items() if k not in self.buffers}
            )
        self.asked, self.nodes = len(messages), [m.metadata.dst_node_id for m in messages]
        return messages

    @property
    def optimises(self) -> bool:
        """Whether this strategy takes optimiser steps on the server."""
        return hasattr(self, "current_arrays")

    def aggregate_train(self, server_round, replies):
        server_round += self.first_round
        replies = list(replies)
        sound = [reply for reply in replies if not reply.has_error()]
        self.replied = sum(int(r.content["metrics"].pop("num-clients", 1)) for r in sound)
        self._refuse_too_few(server_round, [r.error.reason for r in replies if r.has_error()])
        if self.optimises:
            averaged, measures = self._optimise(server_round, sound)
        else:
            averaged, measures = super().aggregate_train(server_round, sound)
        self.loss = float(measures["train-loss"])
        whole = ArrayRecord({name: _single(averaged[name]) for name in self.names})
        if self.reestimate:
            whole.update(self.reestimate(server_round, whole, self.nodes))
        return whole, measures

    def _refuse_too_few(self, server_round, reasons):
        """Raise RoundError where Flower would go on with nothing, or with a wrong result."""
        why = "; ".join(reasons) or "no reason given"
        if self.replied < self.min_replies * self.asked or not self.replied:
            raise RoundError(
                f"round {server_round}: {self.replied} of {self.asked} clients replied, "
                f"at least {self.min_replies:.0%} must; {why}"
            )
        name = type(self).__name__
        per_malicious, more = FEWEST.get(name, (0, 1))
        malicious = getattr(self, "num_malicious_nodes", 0)
        if self.replied < per_malicious * malicious + more:
            raise RoundError(
                f"round {server_round}: {name} with num_malicious_nodes {malicious} needs "
                f"{per_malicious * malicious + more} replies, {self.replied} came; {why}"
            )

    def _optimise(self, server_round, replies):
        """A step of the server's optimiser on the parameters; the plain mean of the buffers."""
        statistics = []
        for reply in replies:
            record, arrays = RecordDict(dict(reply.content.items())), reply.content["arrays"]
            buffers = {k: v for k, v in arrays.items() if k in self.buffers}
            record["arrays"] = ArrayRecord(buffers)
            statistics.append(record)
            reply.content["arrays"] = ArrayRecord(
                {k: v for k, v in arrays.items() if k not in buffers}
            )
        averaged = aggregate_arrayrecords(statistics, self.weighted_by_key) if self.buffers else {}
        stepped, measures = super().aggregate_train(server_round, replies)
        return {**stepped, **averaged}, measures

    def summary(self) -> None:
        """Nothing: the run's config.json says it."""


def _single(array: Array) -> Array:
    """In single precision: Flower's server optimisers compute in double."""
    return array if array.dtype == "float32" else Array(array.numpy().astype(np.float32))


def make_strategy(
    name: str,
    *,
    first_round: int,
    seed: int,
    min_replies: float,
    buffers: Iterable[str],
    reestimate: Reestimate | None = None,
    fraction_train: float = 1.0,
    **options: Any,
) -> strategy.FedAvg:
    """Flower's strategy ``name``, made careful (see ``_Careful``).

    first_round: rounds done already; seed: of the sampling; min_replies: share of the clients
    asked without whose replies a round fails; buffers: names of the batch-norm statistics;
    reestimate: round, weights and the round's nodes -> these statistics anew;
    options: the strategy's own settings (``settings.STRATEGIES``).
    """
    kind = type(name, (_Careful, getattr(strategy, name)), {})
    made = kind(
        fraction_train=fraction_train,
        fraction_evaluate=0.0,
        min_train_nodes=1,
        min_available_nodes=1,
        **options,
    )
    made.first_round, made.seed, made.min_replies = first_round, seed, min_replies
    made.buffers, made.reestimate = frozenset(buffers), reestimate
    return made


def strategy_state(made: strategy.FedAvg) -> dict[str, np.ndarray]:
    """The arrays a strategy keeps between rounds: FedAdam's ``m_t/classifier.0.bias``, FedAvgM's
    ``momentum_vector[]/00000``."""
    found = {}
    for attribute, arrays in vars(made).items():
        if isinstance(arrays, dict):
            found |= {f"{attribute}/{name}": value for name, value in arrays.items()}
        elif isinstance(arrays, list):
            found |= {f"{attribute}[]/{i:05d}": value for i, value in enumerate(arrays)}
    return {key: value for key, value in found.items() if isinstance(value, np.ndarray)}


def restore_strategy(made: strategy.FedAvg, state: Mapping[str, np.ndarray]) -> None:
    """Put ``strategy_state`` back."""
    for key in sorted(state):
        attribute, name = key.split("/", 1)
        listed = attribute.endswith("[]")
        attribute = attribute.removesuffix("[]")
        if not isinstance(getattr(made, attribute), list if listed else dict):
            setattr(made, attribute, [] if listed else {})
        if listed:
            getattr(made, attribute).append(state[key])
        else:
            getattr(made, attribute)[name] = state[key]
