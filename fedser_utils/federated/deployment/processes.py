"""The commands of a deployment's processes, and services that run on this machine.

SuperLink (server), gate, and one SuperNode per client; the compose file runs the same commands. A
Flower service starts further processes, some in new sessions. They are recognised by their
environment: every service has another ``FLWR_HOME``, which its processes inherit (Linux).
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGKILL
from typing import Self

from fedser_utils.core.errors import InputError

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
NEW_RAY = {"RAY_ADDRESS": "local", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
COLOURS = ("FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE")
GRACE = 8.0  # seconds a service has to end by itself; Flower takes up to 5
LOG_END = 15  # lines shown of a service that did not start


def superlink_command(*, host: str, port: int, certificates: Path, database: Path) -> list[str]:
    """Return the command of Flower's server. certificates: a folder as ``certificates.make`` fills
    it; database: a file from which a restarted SuperLink reads its nodes and runs."""
    command = f"flower-superlink --host {host} --port {port}".split()
    command += ["--ssl-ca-certfile", f"{certificates}/ca.crt"]
    command += ["--ssl-certfile", f"{certificates}/server.crt"]
    command += ["--ssl-keyfile", f"{certificates}/server.key", "--enable-supernode-auth"]
    return [*command, "--disable-runtime-dependency-installation", "--database", str(database)]


def gate_command(*, host: str, port: int, superlink: str, certificates: Path) -> list[str]:
    """Return the command of the gate before the SuperLink at ``superlink`` (host:port)."""
    command = f"python3 -m {__package__}.gate --host {host} --port {port}".split()
    return [*command, "--superlink", superlink, "--certificates", str(certificates)]


def supernode_command(
    *, superlink: str, root_certificates: Path, key: Path, port: int,
    partition: int, partitions: int, data: Path, state: Path,
) -> list[str]:  # fmt: skip
    """Return the command of a client's SuperNode. superlink: host:port of the gate; port: of its
    Runtime API, on loopback; data, state: the client's folders, which its ClientApp reads from its
    node config."""
    for folder in (data, state):
        if set('"\\\n') & set(str(folder)):
            raise InputError(f"folder {str(folder)!r} must not hold quotes or backslashes")
    node = f'partition-id={partition} num-partitions={partitions} data="{data}" state="{state}"'
    command = ["flower-supernode", "--superlink", superlink]
    command += ["--root-certificates", str(root_certificates)]
    command += ["--auth-supernode-private-key", str(key)]
    return [*command, "--host", "127.0.0.1", "--port", str(port), "--node-config", node]


def simulation_command(port: int) -> list[str]:
    """Return the command of a SuperLink that simulates its clients, on loopback."""
    command = f"flower-superlink --insecure --simulation --host 127.0.0.1 --port {port}".split()
    return [*command, "--disable-runtime-dependency-installation"]


def environment(home: Path) -> dict[str, str]:
    """Return the environment of Flower's programs: this interpreter's programs first, ``home`` as
    FLWR_HOME, no telemetry, no colours (a notebook's kernel asks for them, and they would be in
    Flower's JSON). Unless the caller's environment says otherwise, one thread each, and a new Ray
    on loopback: by default Ray joins the cluster last started on the machine, even a dead one."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    always = {"PATH": search, "FLWR_HOME": str(home)} | QUIET
    inherited = {k: v for k, v in os.environ.items() if k not in COLOURS}
    ray = {} if inherited.get("RAY_ADDRESS") else NEW_RAY
    return {"OMP_NUM_THREADS": "1"} | inherited | ray | always


def free_port() -> int:
    """Return a TCP port of loopback that is not in use."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def check_free(port: int) -> None:
    """Raise InputError where this port of loopback is in use."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        raise InputError(f"port {port} is in use; choose another")


class Services:
    """Named processes with logs in ``folder/logs`` and homes in ``folder/home``; a context manager
    that ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).resolve()
        self._started: dict[str, subprocess.Popen] = {}

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None):
        """Run a command as service ``name``; an ended service can be started again."""
        if self.alive(name):
            raise InputError(f"service {name!r} is running already")
        home, log = self._home(name), self._log(name)
        for path in (home, log.parent):
            path.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            self._started[name] = subprocess.Popen(
                command, cwd=home, env=environment(home) | dict(env or {}), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            )  # fmt: skip

    def alive(self, name: str) -> bool:
        """Return whether the service's first process (not only a child of it) runs."""
        return name in self._started and self._started[name].poll() is None

    @property
    def names(self) -> list[str]:
        """The services that were started, in order."""
        return list(self._started)

    def log(self, name: str) -> str:
        """Return the service's log, over all its starts."""
        path = self._log(name)
        return path.read_text(errors="replace") if path.exists() else ""

    def log_end(self, name: str) -> str:
        """Return the last lines of the service's log, for an error message."""
        return "\n".join(self.log(name).strip().splitlines()[-LOG_END:]) or "(its log is empty)"

    def wait_for_port(
        self, name: str, port: int, *, host: str = "127.0.0.1", timeout: float = 60
    ) -> None:
        """Wait until the service listens. Raises RuntimeError if it ends, or after ``timeout``
        seconds."""
        end = time.monotonic() + timeout
        while self.alive(name) and time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
                return
            time.sleep(0.1)
        state = "does not listen" if self.alive(name) else "ended"
        raise RuntimeError(f"{name} {state} on {host}:{port}:\n{self.log_end(name)}")

    def pids(self, name: str) -> list[int]:
        """Return the ids of all processes of the service, descendants included."""
        mark, pids = f"FLWR_HOME={self._home(name)}".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # ended meanwhile, or another user's
                if mark in path.read_bytes().split(b"\0"):
                    pids.append(int(path.parent.name))
        return pids

    def kill(self, name: str, signal: int = SIGKILL) -> None:
        """Send a signal to all processes of the service; SIGKILL repeatedly, until none is left."""
        while pids := self.pids(name):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal)
            if signal != SIGKILL:
                return
            self.alive(name)  # reaps it: Flower's children ask whether their parent's pid exists
            time.sleep(0.05)
        if signal == SIGKILL and name in self._started:
            self._started[name].wait()  # a dying process loses its environment before it ends

    def stop(self) -> None:
        """End all services, the last one first, and all their processes."""
        for process in reversed(self._started.values()):
            if process.poll() is None:
                process.terminate()
        end = time.monotonic() + GRACE
        while time.monotonic() < end and any(map(self.pids, self._started)):
            any(map(self.alive, self._started))
            time.sleep(0.1)
        for name in self._started:
            self.kill(name)

    def _home(self, name: str) -> Path:
        return self.folder / "home" / name

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
