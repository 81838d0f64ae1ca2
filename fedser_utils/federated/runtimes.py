"""Where a run's clients are: in this process, in a simulation, or in a deployment.

The ServerApp and the ClientApp are the same. For the last two this module starts what Flower needs
(or finds it up), submits the run, and shows the run's folder while it fills.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedser_utils.core import runs
from fedser_utils.core.devices import resolve_device
from fedser_utils.core.errors import InputError
from fedser_utils.core.runs import Run
from fedser_utils.core.settings import ROOT, Settings
from fedser_utils.data.federation import corpus_of, load_federation, write_client_folders
from fedser_utils.federated import server_app
from fedser_utils.federated.deployment.flower_cli import Connection, FlowerError
from fedser_utils.federated.deployment.local import local
from fedser_utils.federated.deployment.processes import (
    Services,
    free_port,
    simulation_command,
)
from fedser_utils.federated.server_app import Monitor
from fedser_utils.federated.strategies import RoundError

APP = ROOT / "deploy" / "app"
LOOK = 1.0  # seconds between two looks at a run's folder
ASK = 20.0  # seconds between two questions whether it is still running
CLIENTS_PER_GPU = 4  # of a simulation, side by side


def train(settings: Settings, *, monitor: Monitor | None = None, wait: bool = False) -> Run:
    """Train and evaluate one model in the settings' runtime; start it, go on with it, or find it
    complete. As ``server_app.train``, which it is for the cohort. wait: if another process trains
    this very run here, show how it goes until it ends, and then go on from there.

    Raises RoundError, with the server's words, when the run has failed, InputError for what cannot
    be started, or what Flower refuses.
    """
    if settings.runtime == "cohort":
        while True:
            try:
                return server_app.train(settings, monitor=monitor)
            except runs.RunBusyError as busy:
                if not wait:
                    raise
                print(f"{busy}: showing it", flush=True)
                fingerprint = load_federation(settings).corpus.fingerprint
                _watch(Path(settings.outputs) / runs.run_name(settings, fingerprint), monitor)
    simulated = settings.runtime == "simulation"
    fingerprint = load_federation(settings).corpus.fingerprint if simulated else runs.DEPLOYED
    folder = Path(settings.outputs) / runs.run_name(settings, fingerprint)
    if not (folder / "model.safetensors").exists():
        with (_simulation if simulated else _deployment)(settings, folder) as (connection, options):
            try:
                _follow(connection, _submit(connection, settings, options), folder, monitor)
            except FlowerError as error:
                said = " ".join(str(error).split())
                raise InputError(f"superlink {connection.address!r}: {said}") from error
    if not (folder / "config.json").exists():
        raise InputError(
            f"run {folder.name} is complete, and its folder is at the server: copy it to "
            f"{settings.outputs!r}, or mount the server's outputs there"
        )
    run = runs.read_run(folder)
    if monitor:
        monitor(run.table("rounds"))
    return run


@contextmanager
def _simulation(settings: Settings, folder: Path) -> Iterator[tuple[Connection, dict[str, Any]]]:
    """A SuperLink that simulates, on loopback; Ray starts with the run, or is joined at
    RAY_ADDRESS."""
    clients = load_federation(settings).clients
    resources = {"num-supernodes": len(clients), "client-resources-num-cpus": 1}
    if resolve_device(settings).startswith("cuda"):
        resources["client-resources-num-gpus"] = 1 / CLIENTS_PER_GPU
    private = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
    with private as sockets, Services(folder / "services") as services:
        port = free_port()
        # a short path, since sockets lie below it, and not the one that all of Ray's users share
        services.start("superlink", simulation_command(port), {"RAY_TMPDIR": sockets})
        services.wait_for_port("superlink", port)
        connection = Connection(f"127.0.0.1:{port}", None, folder / "services" / "home")
        states = str(folder.resolve() / "clients")
        yield connection, {"state": states, "federation_config": resources}


@contextmanager
def _deployment(settings: Settings, folder: Path) -> Iterator[tuple[Connection, dict[str, Any]]]:
    """The deployment that is up at ``settings.superlink``, or one of all speakers, started here."""
    if settings.superlink:
        authority = Path(settings.certificates) / "ca.crt"
        if not authority.exists():
            raise InputError(f"certificates {settings.certificates!r} holds no ca.crt")
        yield Connection(settings.superlink, authority, folder.parent / ".flwr"), {}
        return
    place = folder / "services"
    shares = write_client_folders(corpus_of(settings), place / "data")
    with local(place, shares, outputs=Path(settings.outputs)) as up:
        yield up.connection, {}


def _submit(connection: Connection, settings: Settings, options: dict[str, Any]) -> int:
    federation = options.pop("federation_config", None)
    told = {"settings": json.dumps(settings.values())} | options
    return connection.submit(APP, run_config=told, federation_config=federation)


def _follow(connection: Connection, number: int, folder: Path, monitor: Monitor | None) -> None:
    """Show the run's log and its rounds until it ends. Raises RoundError if it failed.

    The end of its log comes up to a minute late, and asking costs two seconds of a core: whether
    the model is there is looked at often, the rest seldom.
    """
    path, seen, asked = folder / "rounds.csv", 0.0, time.monotonic()
    log = connection.log(number)
    threading.Thread(target=_show, args=[log.stdout], daemon=True).start()
    try:
        while log.poll() is None and not (folder / "model.safetensors").exists():
            time.sleep(LOOK)
            if time.monotonic() - asked > ASK:
                if connection.status(number).state.startswith("finished"):
                    break
                asked = time.monotonic()
            changed = path.stat().st_mtime if path.exists() else 0.0
            if monitor and changed > seen:
                seen = changed
                monitor(runs.read_run(folder).table("rounds"))
        state, details = connection.wait(number, timeout=60, every=1)
    except BaseException:
        with contextlib.suppress(FlowerError):
            connection.stop_run(number)
        raise
    finally:
        log.terminate()
    if state != "finished:completed":
        said = details.removeprefix("ServerApp failed with exception: ").strip()
        raise RoundError(said or f"run {number} of Flower is {state}")


def _watch(folder: Path, monitor: Monitor | None) -> None:
    """Show the rounds of a run that another process writes, until it does so no more."""
    path, seen = folder / "rounds.csv", 0.0
    while runs.lock_holder(folder):
        changed = path.stat().st_mtime if path.exists() else 0.0
        if monitor and changed > seen:
            seen = changed
            monitor(runs.read_run(folder).table("rounds"))
        time.sleep(LOOK)


def _show(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, end="", flush=True)
