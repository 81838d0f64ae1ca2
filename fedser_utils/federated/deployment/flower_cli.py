"""Flower's Control API, as the researcher uses it: Flower's own ``flwr`` command, called for him.

``python -m fedser_utils.federated.deployment.flower_cli HOST:PORT KEY.pub ...`` registers clients'
public keys.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedser_utils.core import cli
from fedser_utils.core.errors import InputError, choose
from fedser_utils.federated.deployment.processes import environment

NAME = "fedser"  # of the connection in Flower's own configuration
KNOWN = "already in use"  # Flower's words for a key that is registered
Value = str | bool | int | float


class FlowerError(RuntimeError):
    """``flwr`` failed; the text is what it said."""


class RunStatus(NamedTuple):
    """state: pending, starting, running, finished:completed, finished:failed, finished:stopped.
    details: Flower's words on how it came to it, perhaps none."""

    state: str
    details: str


@dataclass(frozen=True)
class Connection:
    """A SuperLink at ``address`` (host:port): over TLS and verified with ``root_certificates``, or,
    where that is None, in plain text, which is for loopback alone. home: a folder for Flower."""

    address: str
    root_certificates: Path | None
    home: Path

    def submit(
        self,
        app: Path,
        *,
        run_config: Mapping[str, Value] | None = None,
        federation_config: Mapping[str, Value] | None = None,
    ) -> int:
        """Start a run of the Flower app in a folder. Returns the run's id.

        run_config: instead of the app's own values, in the same keys.
        federation_config: of a simulation, such as ``{"num-supernodes": 3}``.
        Raises InputError for an unknown key or no app, FlowerError for what Flower refuses.
        """
        known = _config_keys(app)
        for key in run_config or {}:
            choose("run config key", key, known)
        given = []
        if federation_config:
            given = ["--federation-config", " ".join(_toml(federation_config))]
        with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as file:
            file.write("\n".join(_toml(run_config or {})))
            file.flush()
            said = self._flwr("run", str(app.resolve()), NAME, "--run-config", file.name, *given)
        return int(said["run-id"])

    def status(self, run: int) -> RunStatus:
        """Where a run is. Each look costs about two seconds of a core: ``flwr`` starts slowly."""
        (row,) = self._flwr("list", NAME, "--run-id", str(run))["runs"]
        return RunStatus(row["status"], row["status-details"])

    def wait(self, run: int, *, timeout: float, every: float = 3) -> RunStatus:
        """Return when a run has finished, in whatever way. In seconds. Raises FlowerError."""
        end = time.monotonic() + timeout
        while not (status := self.status(run)).state.startswith("finished"):
            if time.monotonic() > end:
                raise FlowerError(f"run {run} is {status.state} after {timeout} seconds")
            time.sleep(every)
        return status

    def log(self, run: int) -> subprocess.Popen:
        """A process that writes a run's log to its stdout, and ends when the run has."""
        return subprocess.Popen(
            ["flwr", "log", str(run), NAME], cwd=self.home, env=environment(self.home.resolve()),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def stop_run(self, run: int) -> None:
        """Stop a run. Raises FlowerError if it does not run."""
        self._flwr("stop", str(run), NAME)

    def register(self, public_key: Path, name: str) -> int | None:
        """Let the holder of a key in as a SuperNode. Returns the node's id; None if the key was
        registered before."""
        try:
            said = self._flwr("supernode", "register", str(public_key), NAME, "--name", name)
        except FlowerError as error:
            if KNOWN in str(error):
                return None
            raise
        return int(said["node-id"])

    def nodes(self) -> dict[int, str]:
        """Every registered node's state by its id: registered (not seen yet), online, offline."""
        listed = self._flwr("supernode", "list", NAME)["nodes"]
        return {int(node["node-id"]): node["status"] for node in listed}

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """What ``flwr`` answers. Raises FlowerError with its message."""
        home = self.home.resolve()
        home.mkdir(parents=True, exist_ok=True)
        link: dict[str, Value] = {"address": self.address}
        if self.root_certificates is None:
            link["insecure"] = True
        else:
            link["root-certificates"] = str(self.root_certificates.resolve())
        lines = "\n".join(_toml(link))
        (home / "config.toml").write_text(f"[superlink.{NAME}]\n{lines}\n", encoding="utf-8")
        done = subprocess.run(
            ["flwr", *arguments, "--format", "json"],
            cwd=home, env=environment(home), stdin=subprocess.DEVNULL, capture_output=True,
            text=True,
        )  # fmt: skip
        try:
            said = json.loads(done.stdout)
        except ValueError:
            said = {"error-message": done.stderr or done.stdout}
        if not said.get("success"):
            message = str(said.get("error-message")).strip().rpartition("\n\n")[2]
            raise FlowerError(f"flwr {arguments[0]}: {message}")  # what came before is progress
        return said


def _config_keys(app: Path) -> list[str]:
    """The keys of an app's run config. Flower refuses others, and does not say which."""
    path = app / "pyproject.toml"
    if not path.is_file():
        raise InputError(f"{path} is not there; give the folder of a Flower app")
    return list(tomllib.loads(path.read_text())["tool"]["flwr"]["app"].get("config", {}))


def _toml(values: Mapping[str, Value]) -> list[str]:
    """``key=value`` in TOML: JSON's texts and numbers are TOML's, but for two characters."""
    lines = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    return [line.replace("\x7f", "\\u007f") for line in lines]


def register(address: str, keys: Sequence[Path], root_certificates: Path, patience: float) -> None:
    """Register public keys at a SuperLink that may still be starting."""
    if missing := [str(key) for key in keys if not key.is_file()]:
        raise InputError(f"{', '.join(missing)} is not there; deploy/certificates makes keys")
    with tempfile.TemporaryDirectory(prefix="fedser-") as home:
        connection = Connection(address, root_certificates, Path(home))
        _wait(connection, patience)
        for key in keys:
            node = connection.register(key, key.stem)
            print(f"{key.stem}: {'registered before' if node is None else node}", flush=True)


def _wait(connection: Connection, patience: float) -> None:
    """Return when the SuperLink answers. Raises FlowerError after ``patience`` seconds."""
    end = time.monotonic() + patience
    while True:
        try:
            connection.nodes()
            return
        except FlowerError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    parser = cli.Parser(prog="python -m fedser_utils.federated.deployment.flower_cli")
    parser.add_argument("address", metavar="HOST:PORT", help="the SuperLink's")
    parser.add_argument("keys", type=Path, nargs="+", metavar="KEY.pub")
    parser.add_argument("--root-certificates", type=Path, required=True, metavar="CA.crt")
    parser.add_argument("--patience", type=float, default=60, help="seconds until it must answer")
    return cli.run(parser, register, arguments)


if __name__ == "__main__":
    sys.exit(main())
