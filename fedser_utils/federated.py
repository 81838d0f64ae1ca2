"""The federated loop: Flower's ServerApp and strategies, evaluated, checkpointed, resumable."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import torch
from flwr.app import Array, ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import ServerApp, strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from tqdm.auto import tqdm

from fedser_utils import attacks, checkpoints, evaluation, metrics, models, runs
from fedser_utils.clients import attack_of, device_of, new_model, on_host, uses_bf16
from fedser_utils.cohort import CohortGrid, worker_pool
from fedser_utils.config import Settings
from fedser_utils.partition import Federation, load_federation
from fedser_utils.randomisation import Randomise
from fedser_utils.runs import Run
from fedser_utils.seeding import derive

log = logging.getLogger(__name__)

Monitor = Callable[[pd.DataFrame], None]
MEAN_IS_ENOUGH = ("FedAvg", "FedAdam")  # strategies that never look at a single client's reply


class RoundError(RuntimeError):
    """A round cannot be used; the text names the clients."""


class _Careful:
    """Before any Flower strategy: rounds counted on from ``first_round``, clients sampled by the
    run's own seed, replies counted and sorted, and batch-norm statistics kept from server-side
    optimisers (a step of Adam makes a variance negative)."""

    first_round = 0
    seed = 0
    min_replies = 1.0
    buffers: frozenset[str] = frozenset()

    def configure_train(self, server_round, arrays, config, grid):
        server_round += self.first_round
        state = random.getstate()  # Flower samples with Python's global generator
        random.seed(derive(self.seed, "sample", server_round))
        try:
            messages = list(super().configure_train(server_round, arrays, config, grid))
        finally:
            random.setstate(state)
        if self.optimises:
            self.current_arrays = {
                k: v for k, v in self.current_arrays.items() if k not in self.buffers
            }
        self.asked = len(messages)
        return messages

    @property
    def optimises(self) -> bool:
        """Whether this strategy takes optimiser steps on the server."""
        return hasattr(self, "current_arrays")

    def aggregate_train(self, server_round, replies):
        server_round += self.first_round
        replies = sorted(replies, key=lambda reply: reply.metadata.src_node_id)
        sound = [reply for reply in replies if not reply.has_error()]
        self.replied = sum(int(r.content["metrics"].pop("num-clients")) for r in sound)
        if self.replied < self.min_replies * self.asked or not sound:
            reasons = "; ".join(r.error.reason for r in replies if r.has_error())
            raise RoundError(
                f"round {server_round}: {self.replied} of {self.asked} clients replied, "
                f"at least {self.min_replies:.0%} must; {reasons or 'no reason given'}"
            )
        if self.optimises:
            averaged, measures = self._optimise(server_round, sound)
        else:
            averaged, measures = super().aggregate_train(server_round, replies)
        self.loss = float(measures["train-loss"])
        return averaged, measures

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
        averaged = aggregate_arrayrecords(statistics, self.weighted_by_key)
        stepped, measures = super().aggregate_train(server_round, replies)
        stepped = {k: Array(v.numpy().astype(np.float32)) for k, v in stepped.items()}
        return ArrayRecord({**stepped, **averaged}), measures

    def summary(self) -> None:
        """Nothing: the run's config.json says it."""


def careful_strategy(
    name: str, *, first_round: int, seed: int, min_replies: float, buffers: Iterable[str]
) -> strategy.FedAvg:
    """Flower's strategy ``name``, made careful (see ``_Careful``)."""
    kind = type(name, (_Careful, getattr(strategy, name)), {})
    made = kind(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    made.first_round, made.seed, made.min_replies = first_round, seed, min_replies
    made.buffers = frozenset(buffers)
    return made


def strategy_state(made: strategy.FedAvg) -> dict[str, np.ndarray]:
    """The arrays a strategy keeps between rounds, e.g. FedAdam's ``m_t/classifier.0.bias``."""
    return {
        f"{attribute}/{name}": value
        for attribute, arrays in vars(made).items()
        if isinstance(arrays, dict)
        for name, value in arrays.items()
        if isinstance(value, np.ndarray)
    }


def restore_strategy(made: strategy.FedAvg, state: Mapping[str, np.ndarray]) -> None:
    """Put ``strategy_state`` back."""
    for key, value in state.items():
        attribute, name = key.split("/", 1)
        if not isinstance(getattr(made, attribute), dict):
            setattr(made, attribute, {})
        getattr(made, attribute)[name] = value


def train(settings: Settings, *, monitor: Monitor | None = None) -> Run:
    """Train and evaluate one model; start it, go on with it, or find it complete.

    monitor: called with the rows of rounds.csv after each evaluation. Returns the run. Raises
    RoundError when too few clients reply, runs.RunBusyError when the run is being written.
    """
    data = load_federation(settings)
    device = device_of(settings)
    facts = {"device": device_name(device), "bf16": uses_bf16(settings, device)}
    run = runs.open_run(settings, data.corpus.fingerprint, **facts)
    with runs.locked(run.folder), worker_pool(device) as pool:
        if not run.complete:
            preaggregate = settings.strategy in MEAN_IS_ENOUGH
            grid = CohortGrid(settings, data.clients, pool=pool, preaggregate=preaggregate)
            app = ServerApp()
            app.main()(lambda grid, context: serve(grid, settings, data, run, pool, monitor))
            app(grid, Context(1, 1, {}, RecordDict(), {}))
    if monitor:
        monitor(run.table("rounds"))
    return run


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


def serve(
    grid: CohortGrid,
    settings: Settings,
    data: Federation,
    run: Run,
    pool: ThreadPoolExecutor,
    monitor: Monitor | None = None,
) -> None:
    """The ServerApp's main: from the newest checkpoint, or the beginning, to the last round."""
    device = device_of(settings)
    model = new_model(settings, len(data.classes)).to(device)
    arrays = {k: on_host(v) for k, v in models.state_arrays(model).items()}
    trainable = {name for name, _ in model.named_parameters()}
    found = checkpoints.load(run.folder / "checkpoint")
    first, parts = found if found else (0, {})
    made = careful_strategy(
        settings.strategy,
        first_round=first,
        seed=settings.seed,
        min_replies=settings.min_replies,
        buffers=arrays.keys() - trainable,
    )
    if found:
        log.info("run %s: going on after round %d", run.id, first)
        arrays = parts["weights"]
        restore_strategy(made, parts.get("server", {}))
        states = {k: v for k, v in parts.items() if k.startswith("client-")}
        grid.restore_client_states({int(k.removeprefix("client-")): v for k, v in states.items()})
    else:
        run.write("clips.parquet", data.clips.drop(columns=["path", "digest"]))
        run.write("rejected.csv", data.corpus.rejected)
    log_book = _Log(run, settings, data, model, first)
    progress = tqdm(total=settings.rounds, initial=first, desc=settings.model, unit="round")

    def after_round(server_round: int, record: ArrayRecord) -> MetricRecord | None:
        number = server_round + first
        if not server_round:  # the model the run starts from, or went on from
            return None
        last = number == settings.rounds
        if last or number % settings.eval_every == 0:
            models.load_arrays(model, record.to_torch_state_dict())
            log_book.evaluate(number, made, pool)
            if monitor:
                monitor(log_book.rounds)
        if last or number % (settings.checkpoint_every or settings.eval_every) == 0:
            _save_checkpoint(run, number, record, made, grid)
        progress.update()
        return None

    last_arrays = ArrayRecord({k: Array(v) for k, v in arrays.items()})
    with progress:
        if first < settings.rounds:
            result = made.start(
                grid, last_arrays, settings.rounds - first, evaluate_fn=after_round, timeout=86_400
            )
            last_arrays = result.arrays
    statistics = {"standardisation.mean": data.mean, "standardisation.std": data.std}
    facts = {"classes": json.dumps(data.classes), "width": str(settings.width)}
    runs.save_model(run, {k: v.numpy() for k, v in last_arrays.items()} | statistics, **facts)


def _save_checkpoint(
    run: Run, number: int, weights: ArrayRecord, made: strategy.FedAvg, grid: CohortGrid
) -> None:
    parts = {"weights": {k: v.numpy() for k, v in weights.items()}, "server": strategy_state(made)}
    parts |= {f"client-{node}": state for node, state in grid.client_states().items()}
    checkpoints.save(run.folder / "checkpoint", number, parts)


class _Log:
    """A run's predictions and rounds, up to ``first`` those already on disk."""

    def __init__(
        self, run: Run, settings: Settings, data: Federation, model: models.VGG15, first: int
    ) -> None:
        self.run, self.settings, self.model = run, settings, model
        self.test = data.table("test")
        self.x, self.y = data.tensors(self.test, device=device_of(settings))
        self.classes = data.classes
        self.predictions, self.rounds = run.table("predictions"), run.table("rounds")
        if len(self.rounds):
            self.predictions = self.predictions[self.predictions["round"] <= first]
            self.rounds = self.rounds[self.rounds["round"] <= first]

    def evaluate(self, number: int, made: strategy.FedAvg, pool: ThreadPoolExecutor) -> None:
        """Decide on the test clips under every condition, and write both tables."""
        settings = self.settings
        names = sorted(attacks.ATTACKS) if settings.attack == "none" else [settings.attack]
        rows = evaluation.evaluate(
            self.model,
            self.x,
            self.y,
            attacks={name: attack_of(settings, name) for name in names},
            randomise=Randomise(mode=settings.resize),
            seed=derive(settings.seed, "evaluation", number),
            bf16=uses_bf16(settings, device_of(settings)),
            pool=pool,
        )
        facts = {"run": self.run.id, "model": settings.model, "round": number}
        rows = evaluation.labelled(rows, self.test, self.classes, **facts)[runs.PREDICTIONS]
        scored = metrics.scores(rows).assign(
            train_loss=made.loss, clients_asked=made.asked, clients_replied=made.replied
        )
        self.predictions = pd.concat([self.predictions, rows], ignore_index=True)
        self.rounds = pd.concat([self.rounds, scored], ignore_index=True)
        self.run.write("predictions.parquet", self.predictions)
        self.run.write("rounds.csv", self.rounds)
