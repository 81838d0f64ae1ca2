"""Flower's strategies by name, each with the same checks around its aggregation."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp import strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from fedser_utils.core.seeding import derive

# strategies that read no single client's reply: one reply with the weighted mean is enough
PREAGGREGATED = ("FedAvg", "FedProx", "FedAdam", "FedYogi", "FedAvgM")
# (a, b): a f + b replies at least with f malicious clients: Blanchard et al. (2017), Guerraoui and
# Rouault (2018)
MIN_REPLIES = {"Krum": (2, 3), "MultiKrum": (2, 3), "Bulyan": (4, 3)}

Reestimate = Callable[[int, ArrayRecord, Sequence[int]], Mapping[str, Array]]


class RoundError(RuntimeError):
    """A round's result cannot be used; the text names the clients and the reasons."""


class _CheckedStrategy:
    """Mixin before a Flower strategy. It counts rounds on from ``first_round``, samples clients by
    the run's seed, refuses a round with too few replies, and keeps batch-norm statistics out of
    server-side optimisers, which would make variances negative; on request it replaces them by
    those of the aggregated model. The grid has checked the replies and sorted them by client."""

    first_round = 0
    seed = 0
    min_replies = 1.0
    buffers: frozenset[str] = frozenset()
    reestimate: Reestimate | None = None

    def configure_train(self, server_round, arrays, config, grid):
        """Return the round's train messages, to clients sampled by the run's seed."""
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
        self.nodes = [message.metadata.dst_node_id for message in messages]
        self.clients_asked = len(messages)
        return messages

    @property
    def optimises(self) -> bool:
        """Whether this strategy takes optimiser steps on the server."""
        return hasattr(self, "current_arrays")

    def aggregate_train(self, server_round, replies):
        """Return the new weights in float32, and Flower's metrics. Raises RoundError."""
        server_round += self.first_round
        replies = list(replies)
        valid = [reply for reply in replies if not reply.has_error()]
        self.clients_replied = sum(
            int(reply.content["metrics"].pop("num-clients", 1)) for reply in valid
        )
        self._check_count(server_round, [r.error.reason for r in replies if r.has_error()])
        aggregate = self._optimise if self.optimises else super().aggregate_train
        averaged, measures = aggregate(server_round, valid)
        self.train_loss = float(measures["train-loss"])
        weights = ArrayRecord({name: _float32(averaged[name]) for name in self.names})
        if self.reestimate:
            weights.update(self.reestimate(server_round, weights, self.nodes))
        return weights, measures

    def _check_count(self, server_round, reasons):
        """Raise RoundError where Flower would continue with nothing, or with a wrong result."""
        reasons = "; ".join(reasons) or "no reason given"
        if self.clients_replied < self.min_replies * self.clients_asked or not self.clients_replied:
            raise RoundError(
                f"round {server_round}: {self.clients_replied} of {self.clients_asked} clients "
                f"replied, at least {self.min_replies:.0%} must; {reasons}"
            )
        name = type(self).__name__
        per_malicious, more = MIN_REPLIES.get(name, (0, 1))
        malicious = getattr(self, "num_malicious_nodes", 0)
        if self.clients_replied < per_malicious * malicious + more:
            raise RoundError(
                f"round {server_round}: {name} with num_malicious_nodes {malicious} needs "
                f"{per_malicious * malicious + more} replies, {self.clients_replied} came; "
                f"{reasons}"
            )

    def _optimise(self, server_round, replies):
        """Take a step of the server's optimiser on the parameters; average the buffers."""
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
        """Log nothing: the run's config.json has the strategy's settings."""


def _float32(array: Array) -> Array:
    """Return the array in float32; Flower's server optimisers compute in float64."""
    return array if array.dtype == "float32" else Array(array.numpy().astype(np.float32))


def make_strategy(
    name: str, *, first_round: int, seed: int, min_replies: float, buffers: Iterable[str],
    reestimate: Reestimate | None = None, fraction_train: float = 1.0, **options: Any,
) -> strategy.FedAvg:  # fmt: skip
    """Return Flower's strategy ``name`` with the checks of ``_CheckedStrategy``.

    first_round: rounds done before; seed: of the client sampling; min_replies: share of the
    round's clients without whose replies the round fails; buffers: names of the batch-norm
    statistics; reestimate: (round, weights, the round's nodes) -> new batch-norm statistics;
    options: the strategy's settings (``settings.STRATEGIES``).
    """
    checked = type(name, (_CheckedStrategy, getattr(strategy, name)), {})(
        fraction_train=fraction_train, fraction_evaluate=0.0, min_train_nodes=1,
        min_available_nodes=1, **options,
    )  # fmt: skip
    checked.first_round, checked.seed, checked.min_replies = first_round, seed, min_replies
    checked.buffers, checked.reestimate = frozenset(buffers), reestimate
    return checked


def strategy_state(strategy: strategy.FedAvg) -> dict[str, np.ndarray]:
    """Return a strategy's arrays for a checkpoint: FedAdam's ``m_t/classifier.0.bias``, FedAvgM's
    ``momentum_vector[]/00000``."""
    state = {}
    for attribute, arrays in vars(strategy).items():
        if isinstance(arrays, dict):
            state |= {f"{attribute}/{name}": value for name, value in arrays.items()}
        elif isinstance(arrays, list):
            state |= {f"{attribute}[]/{i:05d}": value for i, value in enumerate(arrays)}
    return {key: value for key, value in state.items() if isinstance(value, np.ndarray)}


def restore_strategy(strategy: strategy.FedAvg, state: Mapping[str, np.ndarray]) -> None:
    """Set a strategy's arrays to a ``strategy_state``."""
    for key in sorted(state):
        attribute, name = key.split("/", 1)
        listed = attribute.endswith("[]")
        attribute = attribute.removesuffix("[]")
        if not isinstance(getattr(strategy, attribute), list if listed else dict):
            setattr(strategy, attribute, [] if listed else {})
        if listed:
            getattr(strategy, attribute).append(state[key])
        else:
            getattr(strategy, attribute)[name] = state[key]
