"""Calls of Flower's ``flwr`` command: runs, their status and logs, and registered nodes.

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

NAME = "fedser"  # of the connection in Flower's configuration
ALREADY_REGISTERED = "already in use"  # in Flower's message
Value = str | bool | int | float


class FlowerError(RuntimeError):
    """``flwr`` failed; the text is its message."""


class RunStatus(NamedTuple):
    """state: pending, starting, running, finished:completed, finished:failed, finished:stopped.
    details: Flower's explanation, possibly empty."""

    state: str
    details: str


@dataclass(frozen=True)
class Connection:
    """A connection to the SuperLink at ``address`` (host:port): over TLS, verified with
    ``root_certificates``, or, where that is None, in plain text (loopback only). home: a folder for
    Flower's configuration."""

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
        """Start a run of the Flower app in a folder; return the run's id.

        run_config: replaces the app's values of the same keys.
        federation_config: of a simulation, such as ``{"num-supernodes": 3}``.
        Raises InputError for an unknown key or no app, FlowerError for what Flower refuses.
        """
        keys = _config_keys(app)
        for key in run_config or {}:
            choose("run config key", key, keys)
        options = []
        if federation_config:
            options = ["--federation-config", " ".join(_toml(federation_config))]
        with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as file:
            file.write("\n".join(_toml(run_config or {})))
            file.flush()
            result = self._flwr(
                "run", str(app.resolve()), NAME, "--run-config", file.name, *options
            )
        return int(result["run-id"])

    def status(self, run: int) -> RunStatus:
        """Return a run's status. Takes about two seconds of a core: ``flwr`` starts slowly."""
        (row,) = self._flwr("list", NAME, "--run-id", str(run))["runs"]
        return RunStatus(row["status"], row["status-details"])

    def wait(self, run: int, *, timeout: float, every: float = 3) -> RunStatus:
        """Wait until a run has finished, in whatever way; return its status. Raises FlowerError
        after ``timeout`` seconds."""
        end = time.monotonic() + timeout
        while not (status := self.status(run)).state.startswith("finished"):
            if time.monotonic() > end:
                raise FlowerError(f"run {run} is {status.state} after {timeout} seconds")
            time.sleep(every)
        return status

    def log(self, run: int) -> subprocess.Popen:
        """Return a process that writes a run's log to its stdout until the run ends."""
        return subprocess.Popen(
            ["flwr", "log", str(run), NAME], cwd=self.home, env=environment(self.home.resolve()),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def stop_run(self, run: int) -> None:
        """Stop a run. Raises FlowerError if it is not running."""
        self._flwr("stop", str(run), NAME)

    def register(self, public_key: Path, name: str) -> int | None:
        """Register a SuperNode's public key; return the node's id, or None if the key was
        registered before."""
        try:
            result = self._flwr("supernode", "register", str(public_key), NAME, "--name", name)
        except FlowerError as error:
            if ALREADY_REGISTERED in str(error):
                return None
            raise
        return int(result["node-id"])

    def nodes(self) -> dict[int, str]:
        """Return node id -> state: registered (never connected), online, offline."""
        nodes = self._flwr("supernode", "list", NAME)["nodes"]
        return {int(node["node-id"]): node["status"] for node in nodes}

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """Return the JSON that ``flwr`` prints. Raises FlowerError with its message."""
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
            result = json.loads(done.stdout)
        except ValueError:
            result = {"error-message": done.stderr or done.stdout}
        if not result.get("success"):  # what comes before the last paragraph is progress
            message = str(result.get("error-message")).strip().rpartition("\n\n")[2]
            raise FlowerError(f"flwr {arguments[0]}: {message}")
        return result


def _config_keys(app: Path) -> list[str]:
    """Return the keys of an app's run config. Flower refuses others without naming them."""
    path = app / "pyproject.toml"
    if not path.is_file():
        raise InputError(f"{path} is not there; give the folder of a Flower app")
    return list(tomllib.loads(path.read_text())["tool"]["flwr"]["app"].get("config", {}))


def _toml(values: Mapping[str, Value]) -> list[str]:
    """Return lines ``key=value``. JSON's strings and numbers are TOML's, but for one character."""
    lines = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    return [line.replace("\x7f", "\\u007f") for line in lines]


def register(address: str, keys: Sequence[Path], root_certificates: Path, patience: float) -> None:
    """Register public keys at a SuperLink, which has ``patience`` seconds to start."""
    if missing := [str(key) for key in keys if not key.is_file()]:
        raise InputError(f"{', '.join(missing)} is not there; deploy/certificates makes keys")
    with tempfile.TemporaryDirectory(prefix="fedser-") as home:
        connection = Connection(address, root_certificates, Path(home))
        end = time.monotonic() + patience
        while True:
            try:
                connection.nodes()
                break
            except FlowerError:
                if time.monotonic() > end:
                    raise
                time.sleep(1)
        for key in keys:
            node = connection.register(key, key.stem)
            print(f"{key.stem}: {'registered before' if node is None else node}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = cli.Parser(prog="python -m fedser_utils.federated.deployment.flower_cli")
    parser.add_argument("address", metavar="HOST:PORT", help="the SuperLink's")
    parser.add_argument("keys", type=Path, nargs="+", metavar="KEY.pub")
    parser.add_argument("--root-certificates", type=Path, required=True, metavar="CA.crt")
    parser.add_argument("--patience", type=float, default=60, help="seconds that it has to start")
    return cli.run(parser, register, arguments)


if __name__ == "__main__":
    sys.exit(main())
