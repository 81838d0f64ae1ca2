"""The federated loop: Flower's ServerApp and strategies, evaluated, checkpointed, resumable.

The same ServerApp runs over three grids: the cohort's in this process (``train``), and Flower's
own in a simulation or a deployment (``runtimes``).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import pandas as pd
from flwr.app import Array, ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp, strategy
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
from fedser_utils.federated.grids.multi_gpu import trainer_of
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
    """Train and evaluate one model in this process; start it, go on with it, or find it complete.

    monitor: called with the rows of rounds.csv after each evaluation. preaggregate: whether the
    grid forms the mean itself; None: where the strategy needs no more. Returns the run. Raises
    RoundError when too few clients reply, runs.RunBusyError when the run is being written.
    """
    data = load_federation(settings)
    if preaggregate is None:
        preaggregate = settings.strategy in PREAGGREGATED
    examples = [len(data.table("train", client)) for client in data.clients]
    who = settings, data.clients, examples
    with worker_pool(resolve_device(settings)) as pool, trainer_of(*who, pool=pool) as trainer:
        grid = CohortGrid(*who, pool=pool, preaggregate=preaggregate, trainer=trainer)
        grid.monitor = monitor
        told = {"settings": json.dumps(settings.values())}
        try:
            server_app(grid, Context(1, 1, {}, RecordDict(), told))
        finally:
            client_clips.cache_clear()  # the next run's may be others
    run = runs.open_run(settings, data.corpus.fingerprint)
    if monitor:
        monitor(run.table("rounds"))
    return run


server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """One run, wherever its clients are. context.run_config: settings, as JSON. The environment's
    FEDSER_OUTPUTS, where a server has its own place for results, goes before the settings'."""
    logging.getLogger("fedser_utils").setLevel(logging.INFO)
    settings = Settings(**json.loads(str(context.run_config["settings"])))
    settings = replace(settings, outputs=os.environ.get("FEDSER_OUTPUTS", settings.outputs))
    if not isinstance(grid, ClientGrid):
        choose("runtime", settings.runtime, ("simulation", "deployment"))
        grid = RemoteGrid(grid, timeout=settings.timeout, bands=settings.bands)
    device = resolve_device(settings)
    facts = {"device": device_name(device), "bf16": uses_bf16(settings, device)}
    with _pool_of(grid, device) as pool:
        if settings.runtime == "deployment":
            run = runs.open_run(settings, runs.DEPLOYED, **facts)
            with runs.locked(run.folder):
                if not run.complete:
                    serve(grid, settings, run, without_recordings(grid, settings, run))
            return
        data = load_federation(settings)
        run = runs.open_run(settings, data.corpus.fingerprint, **facts)
        with runs.locked(run.folder):
            if not run.complete:
                serve(grid, settings, run, with_recordings(grid, settings, run, data, pool))


@contextmanager
def _pool_of(grid: Grid, device: str):
    if isinstance(grid, CohortGrid):
        yield grid.pool
    else:
        with worker_pool(device) as pool:
            yield pool


def serve(grid: ClientGrid, settings: Settings, run: Run, known: ServerEvaluation) -> None:
    """From the newest checkpoint, or the beginning, to the last round."""
    model = new_model(settings, len(known.classes))
    arrays = {k: on_host(v) for k, v in vgg.state_arrays(model).items()}
    trainable = {name for name, _ in model.named_parameters()}
    found = checkpoints.load(run.folder / "checkpoint")
    first, parts = found if found else (0, {})
    anew = settings.batch_norm == "reestimate"
    made = make_strategy(
        settings.strategy,
        first_round=first,
        seed=settings.seed,
        min_replies=settings.min_replies,
        buffers=arrays.keys() - trainable,
        reestimate=partial(grid.reestimated, config=known.config(run)) if anew else None,
        fraction_train=settings.fraction_train,
        **settings.strategy_options,
    )
    if found:
        log.info("run %s: going on after round %d", run.id, first)
        arrays = {name: parts["weights"][name] for name in arrays}  # in the model's order
        restore_strategy(made, parts.get("server", {}))
        states = {k: v for k, v in parts.items() if k.startswith("client-")}
        grid.restore_client_states({int(k.removeprefix("client-")): v for k, v in states.items()})
    log_book = _Log(run, settings, first, grid)
    progress = tqdm(total=settings.rounds, initial=first, desc=settings.model, unit="round")

    def after_round(server_round: int, record: ArrayRecord) -> MetricRecord | None:
        number = server_round + first
        if not server_round:  # the model the run starts from, or went on from
            return None
        log_book.note(f"{number}")
        last = number == settings.rounds
        if last or number % settings.eval_every == 0:
            decided = known.evaluate(number, record)
            log_book.note(f"{number}, evaluation")
            log_book.evaluate(number, decided, made)
            if grid.monitor:
                grid.monitor(log_book.rounds)
        if last or number % (settings.checkpoint_every or settings.eval_every) == 0:
            _save_checkpoint(run, number, record, made, grid)
        progress.update()
        return None

    last_arrays = ArrayRecord({k: Array(v) for k, v in arrays.items()})
    with progress:
        if first < settings.rounds:
            result = made.start(
                grid,
                last_arrays,
                settings.rounds - first,
                timeout=settings.timeout,
                train_config=known.config(run),
                evaluate_fn=after_round,
            )
            last_arrays = result.arrays
    own = {f"{c}/{k}": on_host(v) for c, a in grid.local_arrays().items() for k, v in a.items()}
    if own:
        runs.save_arrays(run.folder / vgg.LOCAL_ARRAYS_FILE, own)
    statistics = {"standardisation.mean": known.mean, "standardisation.std": known.std}
    facts = {"classes": json.dumps(known.classes), "width": str(settings.width)}
    runs.save_model(run, {k: v.numpy() for k, v in last_arrays.items()} | statistics, **facts)


def _save_checkpoint(
    run: Run, number: int, weights: ArrayRecord, made: strategy.FedAvg, grid: ClientGrid
) -> None:
    parts = {"weights": {k: v.numpy() for k, v in weights.items()}, "server": strategy_state(made)}
    parts |= {f"client-{node}": state for node, state in grid.client_states().items()}
    checkpoints.save(run.folder / "checkpoint", number, parts)


class _Log:
    """A run's predictions and rounds, up to ``first`` those already on disk."""

    def __init__(self, run: Run, settings: Settings, first: int, grid: ClientGrid) -> None:
        self.run, self.settings, self.grid = run, settings, grid
        # each by itself: a kill may fall between the writing of the one and of the other
        self.predictions, self.rounds = (
            table[table["round"] <= first] if len(table) else table
            for table in (run.table("predictions"), run.table("rounds"))
        )
        self._missing: list[str] = []
        self._moved = (0, 0)

    def note(self, when: str) -> None:
        """Who was missing; it stands in the row of the next evaluation."""
        missing, self.grid.missing = self.grid.missing, {}
        self._missing += [f"{when}: {client} ({why})" for client, why in missing.items()]

    def evaluate(self, number: int, rows: pd.DataFrame, made: strategy.FedAvg) -> None:
        """Take in the decisions on the test clips under every condition, and write both tables."""
        facts = {"run": self.run.id, "model": self.settings.model, "round": number}
        rows = rows.assign(**facts)[runs.PREDICTIONS]
        sent, received = self.grid.sent, self.grid.received
        scored = metrics.scores(rows).assign(
            train_loss=made.loss,
            clients_asked=made.asked,
            clients_replied=made.replied,
            missing="; ".join(self._missing),
            bytes_sent=sent - self._moved[0],
            bytes_received=received - self._moved[1],
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self._missing, self._moved = [], (sent, received)
        self.predictions = pd.concat([self.predictions, rows], ignore_index=True)
        self.rounds = pd.concat([self.rounds, scored], ignore_index=True)
        self.run.write("predictions.parquet", self.predictions)
        self.run.write("rounds.csv", self.rounds)
