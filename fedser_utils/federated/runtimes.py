"""``train`` in a run's runtime: in this process, in a simulation, or in a deployment.

For the last two this module starts Flower's processes (or connects to those that run), submits the
run, and follows the run's folder while it fills. ServerApp and ClientApp are the same everywhere.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fedser_utils.core import runs
from fedser_utils.core.devices import resolve_device
from fedser_utils.core.errors import InputError
from fedser_utils.core.runs import Run
from fedser_utils.core.settings import ROOT, Settings
from fedser_utils.data.client_data import write_client_folders
from fedser_utils.data.federation import corpus_of, load_federation
from fedser_utils.federated import server_app
from fedser_utils.federated.deployment.flower_cli import Connection, FlowerError
from fedser_utils.federated.deployment.local import local_deployment
from fedser_utils.federated.deployment.processes import (
    Services,
    free_port,
    simulation_command,
)
from fedser_utils.federated.server_app import Monitor
from fedser_utils.federated.strategies import RoundError

APP = ROOT / "deploy" / "app"
FOLDER_INTERVAL = 1.0  # seconds between checks of a run's folder
STATUS_INTERVAL = 20.0  # seconds between calls of flwr for a run's status
CLIENTS_PER_GPU = 4  # of a simulation, side by side


def train(settings: Settings, *, monitor: Monitor | None = None, wait: bool = False) -> Run:
    """Train and evaluate one model in the settings' runtime, or resume it; return the complete
    run. For the cohort this is ``server_app.train``.

    monitor: called with the rows of rounds.csv after each evaluation. wait: if another process on
    this machine trains this run, follow it until it ends, and continue from there. Raises
    RoundError, with the server's message, when the run fails, and InputError for what cannot be
    started or what Flower refuses.
    """
    cohort, deployed = (settings.runtime == name for name in ("cohort", "deployment"))
    fingerprint = runs.DEPLOYED if deployed else load_federation(settings).corpus.fingerprint
    folder = Path(settings.outputs) / runs.run_name(settings, fingerprint)
    while cohort:
        try:
            return server_app.train(settings, monitor=monitor)
        except runs.RunBusyError as busy:
            if not wait:
                raise
            print(f"{busy}: showing it", flush=True)
            _watch(folder, monitor)
    if not (folder / "model.safetensors").exists():
        with (_deployment if deployed else _simulation)(settings, folder) as (connection, options):
            try:
                _submit_and_follow(connection, settings, options, folder, monitor)
            except FlowerError as error:
                message = " ".join(str(error).split())
                raise InputError(f"superlink {connection.address!r}: {message}") from error
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
    """Start a simulating SuperLink on loopback; yield its connection, and options for the run. Ray
    starts with the run, or is joined at RAY_ADDRESS."""
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
    """Yield the connection to the deployment at ``settings.superlink``, or to one of all speakers
    that is started here; and options for the run (none)."""
    if settings.superlink:
        authority = Path(settings.certificates) / "ca.crt"
        if not authority.exists():
            raise InputError(f"certificates {settings.certificates!r} holds no ca.crt")
        yield Connection(settings.superlink, authority, folder.parent / ".flwr"), {}
        return
    place = folder / "services"
    data = write_client_folders(corpus_of(settings), place / "data")
    with local_deployment(place, data, outputs=Path(settings.outputs)) as deployment:
        yield deployment.connection, {}


def _submit_and_follow(
    connection: Connection, settings: Settings, options: dict[str, Any], folder: Path,
    monitor: Monitor | None,
) -> None:  # fmt: skip
    """Submit a run; show its log and its rounds until it ends. Raises RoundError if it failed.

    The end of the log comes up to a minute late, and a call of flwr takes two seconds of a core:
    the folder is checked often, the status seldom.
    """
    federation = options.pop("federation_config", None)
    run_config = {"settings": json.dumps(settings.values())} | options
    number = connection.submit(APP, run_config=run_config, federation_config=federation)
    log = connection.log(number)
    threading.Thread(target=_print_lines, args=[log.stdout], daemon=True).start()
    show_news, checked = _news(folder, monitor), time.monotonic()
    try:
        while log.poll() is None and not (folder / "model.safetensors").exists():
            time.sleep(FOLDER_INTERVAL)
            if time.monotonic() - checked > STATUS_INTERVAL:
                if connection.status(number).state.startswith("finished"):
                    break
                checked = time.monotonic()
            show_news()
        state, details = connection.wait(number, timeout=60, every=1)
    except BaseException:
        with contextlib.suppress(FlowerError):
            connection.stop_run(number)
        raise
    finally:
        log.terminate()
    if state != "finished:completed":
        message = details.removeprefix("ServerApp failed with exception: ").strip()
        raise RoundError(message or f"run {number} of Flower is {state}")


def _watch(folder: Path, monitor: Monitor | None) -> None:
    """Show the rounds of a run that another process writes, until that process stops."""
    show_news = _news(folder, monitor)
    while runs.lock_holder(folder):
        show_news()
        time.sleep(FOLDER_INTERVAL)


def _news(folder: Path, monitor: Monitor | None) -> Callable[[], None]:
    """Return a function that calls the monitor if rounds.csv is newer than at its last call."""
    path, shown = folder / "rounds.csv", 0.0

    def show_news() -> None:
        nonlocal shown
        changed = path.stat().st_mtime if path.exists() else 0.0
        if monitor and changed > shown:
            shown = changed
            monitor(runs.read_run(folder).table("rounds"))

    return show_news


def _print_lines(lines: IO[str]) -> None:
    for line in lines:
        print(line, end="", flush=True)
