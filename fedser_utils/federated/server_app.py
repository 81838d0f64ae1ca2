"""Flower's ServerApp: rounds of a strategy, evaluated, checkpointed, resumable.

It is the same over three grids: the cohort's in this process (``train``), and Flower's in a
simulation or a deployment (``runtimes``).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import numpy as np
import pandas as pd
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from tqdm.auto import tqdm

from fedser_utils.analysis import metrics
from fedser_utils.core import checkpoints, runs
from fedser_utils.core.devices import device_name, resolve_device, uses_bf16, worker_pool
from fedser_utils.core.errors import choose
from fedser_utils.core.runs import Run
from fedser_utils.core.settings import Settings
from fedser_utils.data.federation import load_federation
from fedser_utils.federated.client import client_clips, new_model
from fedser_utils.federated.client_app import on_host
from fedser_utils.federated.grids.base import ClientGrid
from fedser_utils.federated.grids.cohort import CohortGrid
from fedser_utils.federated.grids.multi_gpu import make_trainer
from fedser_utils.federated.grids.remote import RemoteGrid
from fedser_utils.federated.server_evaluation import (
    ServerEvaluation,
    with_recordings,
    without_recordings,
)
from fedser_utils.federated.strategies import (
    PREAGGREGATED,
    make_strategy,
    restore_strategy,
    strategy_state,
)
from fedser_utils.learning import vgg

log = logging.getLogger(__name__)

Monitor = Callable[[pd.DataFrame], None]


def train(
    settings: Settings, *, monitor: Monitor | None = None, preaggregate: bool | None = None
) -> Run:
    """Train and evaluate one model in this process, or resume it; return the complete run.

    monitor: called with the rows of rounds.csv after each evaluation. preaggregate: whether the
    grid forms the clients' mean itself; None: where the strategy needs no more. Raises RoundError
    when too few clients reply, runs.RunBusyError when another process writes the run.
    """
    data = load_federation(settings)
    if preaggregate is None:
        preaggregate = settings.strategy in PREAGGREGATED
    examples = [len(data.table("train", client)) for client in data.clients]
    with (
        worker_pool(resolve_device(settings)) as pool,
        make_trainer(settings, data.clients, examples, pool=pool) as trainer,
    ):
        grid = CohortGrid(trainer, preaggregate=preaggregate)
        grid.monitor = monitor
        run_config = {"settings": json.dumps(settings.values())}
        try:
            server_app(grid, Context(1, 1, {}, RecordDict(), run_config))
        finally:
            client_clips.cache_clear()  # the next run may have others
    run = runs.open_run(settings, data.corpus.fingerprint)
    if monitor:
        monitor(run.table("rounds"))
    return run


server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Train one run over a grid. context.run_config: settings, as JSON. FEDSER_OUTPUTS in the
    environment (a server's folder for results) replaces the settings' outputs."""
    logging.getLogger("fedser_utils").setLevel(logging.INFO)
    settings = Settings(**json.loads(str(context.run_config["settings"])))
    settings = replace(settings, outputs=os.environ.get("FEDSER_OUTPUTS", settings.outputs))
    if not isinstance(grid, ClientGrid):
        choose("runtime", settings.runtime, ("simulation", "deployment"))
        grid = RemoteGrid(grid, timeout=settings.timeout, bands=settings.bands)
    device = resolve_device(settings)
    facts = {"device": device_name(device), "bf16": uses_bf16(settings, device)}
    data = None if settings.runtime == "deployment" else load_federation(settings)
    run = runs.open_run(settings, data.corpus.fingerprint if data else runs.DEPLOYED, **facts)
    pool_of = nullcontext(grid.pool) if isinstance(grid, CohortGrid) else worker_pool(device)
    with pool_of as pool, runs.locked(run.folder):
        if run.complete:
            return
        if data:
            evaluation = with_recordings(grid, settings, run, data, pool)
        else:
            evaluation = without_recordings(grid, settings, run)
        run_rounds(grid, settings, run, evaluation)


def run_rounds(
    grid: ClientGrid, settings: Settings, run: Run, evaluation: ServerEvaluation
) -> None:
    """Train from the newest checkpoint, or from the start, to the last round; save the model."""
    model = new_model(settings, len(evaluation.classes))
    arrays = {name: on_host(value) for name, value in vgg.state_arrays(model).items()}
    trainable = {name for name, _ in model.named_parameters()}
    checkpoint = checkpoints.load(run.folder / "checkpoint")
    first, parts = checkpoint or (0, {})
    reestimate = partial(grid.reestimate_batch_norm, config=evaluation.config)
    strategy = make_strategy(
        settings.strategy, first_round=first, seed=settings.seed,
        min_replies=settings.min_replies, buffers=arrays.keys() - trainable,
        reestimate=reestimate if settings.batch_norm == "reestimate" else None,
        fraction_train=settings.fraction_train, **settings.strategy_options,
    )  # fmt: skip
    if checkpoint:
        log.info("run %s: going on after round %d", run.id, first)
        arrays = {name: parts["weights"][name] for name in arrays}  # in the model's order
        restore_strategy(strategy, parts.get("server", {}))
        states = {key: part for key, part in parts.items() if key.startswith("client-")}
        grid.restore_client_states({int(k.removeprefix("client-")): v for k, v in states.items()})
    record = ArrayRecord({name: Array(value) for name, value in arrays.items()})
    recorder = _Recorder(run, settings, first, grid, strategy, evaluation)
    with recorder.progress:
        if first < settings.rounds:
            record = strategy.start(
                grid, record, settings.rounds - first, timeout=settings.timeout,
                train_config=ConfigRecord(evaluation.config), evaluate_fn=recorder.after_round,
            ).arrays  # fmt: skip
    _save_model(run, settings, grid, evaluation, _numpy(record))


def _save_model(
    run: Run, settings: Settings, grid: ClientGrid, evaluation: ServerEvaluation,
    arrays: dict[str, np.ndarray],
) -> None:  # fmt: skip
    """Write model.safetensors, and before it the clients' local arrays where there are any."""
    local = {
        f"{client}/{name}": on_host(value)
        for client, arrays in grid.local_arrays().items()
        for name, value in arrays.items()
    }
    if local:
        runs.save_arrays(run.folder / vgg.LOCAL_ARRAYS_FILE, local)
    arrays |= {"standardisation.mean": evaluation.mean, "standardisation.std": evaluation.std}
    classes = json.dumps(evaluation.classes)
    runs.save_model(run, arrays, classes=classes, width=str(settings.width))


def _numpy(record: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in record.items()}


class _Recorder:
    """Evaluates after rounds, and writes the run's tables and checkpoints. first: rounds done
    before."""

    def __init__(
        self, run: Run, settings: Settings, first: int, grid: ClientGrid, strategy: FedAvg,
        evaluation: ServerEvaluation,
    ) -> None:  # fmt: skip
        self.run, self.settings, self.first, self.grid = run, settings, first, grid
        self.strategy, self.evaluation = strategy, evaluation
        self.progress = tqdm(
            total=settings.rounds, initial=first, desc=settings.model, unit="round"
        )
        # both cut to the checkpoint's round: a kill may fall between writing the one and the other
        self.predictions, self.rounds = (
            table[table["round"] <= first] if len(table) else table
            for table in (run.table("predictions"), run.table("rounds"))
        )
        self._missing: list[str] = []
        self._bytes = (0, 0)  # sent and received until the last evaluation

    def after_round(self, server_round: int, record: ArrayRecord) -> None:
        """Flower's evaluate_fn, called with the weights after each round, and once before (0)."""
        if not server_round:
            return
        settings, number = self.settings, server_round + self.first
        self._note_missing(f"{number}")
        last = number == settings.rounds
        if last or number % settings.eval_every == 0:
            rows = self.evaluation.evaluate(number, record)
            self._note_missing(f"{number}, evaluation")
            self.add(number, rows)
            if self.grid.monitor:
                self.grid.monitor(self.rounds)
        if last or number % (settings.checkpoint_every or settings.eval_every) == 0:
            parts = {"weights": _numpy(record), "server": strategy_state(self.strategy)}
            parts |= {f"client-{node}": s for node, s in self.grid.client_states().items()}
            checkpoints.save(self.run.folder / "checkpoint", number, parts)
        self.progress.update()

    def _note_missing(self, when: str) -> None:
        """Note the clients missing since the last call, for the next evaluation's rows."""
        missing, self.grid.missing = self.grid.missing, {}
        self._missing += [f"{when}: {client} ({why})" for client, why in missing.items()]

    def add(self, number: int, rows: pd.DataFrame) -> None:
        """Add a round's predictions and their scores to the two tables, and write both."""
        facts = {"run": self.run.id, "model": self.settings.model, "round": number}
        rows = rows.assign(**facts)[runs.PREDICTIONS]
        sent, received = self.grid.sent, self.grid.received
        scored = metrics.scores(rows).assign(
            train_loss=self.strategy.train_loss,
            clients_asked=self.strategy.clients_asked,
            clients_replied=self.strategy.clients_replied,
            missing="; ".join(self._missing),
            bytes_sent=sent - self._bytes[0],
            bytes_received=received - self._bytes[1],
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self._missing, self._bytes = [], (sent, received)
        self.predictions = pd.concat([self.predictions, rows], ignore_index=True)
        self.rounds = pd.concat([self.rounds, scored], ignore_index=True)
        self.run.write("predictions.parquet", self.predictions)
        self.run.write("rounds.csv", self.rounds)
