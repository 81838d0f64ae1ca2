"""A whole deployment on this machine: the compose file's services as plain processes.

SuperLink and gate on loopback, a SuperNode per client with its data folder alone, TLS on every
connection, registered keys. ``deploy/local DATA`` runs one, as the tests do.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fedser_utils.core import cli
from fedser_utils.core.errors import InputError
from fedser_utils.core.settings import ROOT, client_name
from fedser_utils.federated.deployment import certificates
from fedser_utils.federated.deployment.flower_cli import Connection
from fedser_utils.federated.deployment.processes import (
    Services,
    check_free,
    free_port,
    gate_command,
    superlink_command,
    supernode_command,
)

HOST = "127.0.0.1"
RESTART_AFTER = 3.0  # seconds until a node that was refused is started again
ACTIVE = "SuperNode ID: "  # in a SuperNode's log once the SuperLink has admitted it


@dataclass
class Deployment:
    """The services of a running deployment. port: the SuperLink's; gate: host:port; outputs: where
    the ServerApp writes. Client i has the folder ``data[i]``, and service, key and state of the
    name ``client_name(i)``."""

    folder: Path
    data: Sequence[Path]
    services: Services
    connection: Connection
    port: int
    gate: str
    outputs: Path
    _log_before: dict[str, int] = field(default_factory=dict)  # length of a log before the start

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    def start_server(self) -> None:
        """Start the SuperLink, on its old database if it ran before."""
        link = superlink_command(
            host=HOST, port=self.port, certificates=self.keys,
            database=self.folder / "state" / "superlink.db",
        )  # fmt: skip
        for path in (self.folder / "state", self.outputs):
            path.mkdir(parents=True, exist_ok=True)
        self.services.start("superlink", link, {"FEDSER_OUTPUTS": str(self.outputs)})

    def start_gate(self) -> None:
        """Start the gate."""
        link, port = f"{HOST}:{self.port}", int(self.gate.rpartition(":")[2])
        gate = gate_command(host=HOST, port=port, superlink=link, certificates=self.keys)
        self.services.start("gate", gate)

    def node_command(self, client: int) -> list[str]:
        """Return the command of a client's SuperNode; its state folder exists afterwards."""
        state = self.folder / "state" / client_name(client)
        state.mkdir(parents=True, exist_ok=True)
        return supernode_command(
            superlink=self.gate, root_certificates=self.keys / "ca.crt",
            key=self.keys / f"{client_name(client)}.key", port=free_port(),
            partition=client, partitions=len(self.data), data=self.data[client], state=state,
        )  # fmt: skip

    def start_node(self, client: int) -> None:
        """Start a client's SuperNode; ``wait_for_node`` waits until it is admitted."""
        service = client_name(client)
        self._log_before[service] = len(self.services.log(service))
        self.services.start(service, self.node_command(client))

    def wait_for_node(self, client: int, *, timeout: float = 120) -> int:
        """Wait until the SuperLink has admitted a client's node; return the node's id.

        For up to a minute after a crash the SuperLink believes the old process online and refuses
        the new one; so a node that ended is started again. Raises RuntimeError after ``timeout``
        seconds.
        """
        service, end = client_name(client), time.monotonic() + timeout
        while time.monotonic() < end:
            log = self.services.log(service)[self._log_before[service] :]
            _, active, after = log.partition(ACTIVE)
            if active and "\n" in after:
                return int(after.split()[0])
            if not self.services.alive(service):
                time.sleep(RESTART_AFTER)
                self.start_node(client)
            time.sleep(0.3)
        raise RuntimeError(f"{service} was not admitted:\n{self.services.log_end(service)}")

    def kill_node(self, client: int) -> None:
        """Kill a client's processes, as a power cut does."""
        self.services.kill(client_name(client))


@contextmanager
def local_deployment(
    folder: Path, data: Sequence[Path], *,
    outputs: Path | None = None,
    start_nodes: bool = True, port: int | None = None, gate_port: int | None = None,
) -> Iterator[Deployment]:  # fmt: skip
    """Run a deployment in ``folder``, with a client for each of the ``data`` folders, until the
    block ends. Keys, database and states remain: a later deployment in the same folder continues.
    outputs: ``folder/outputs`` if None. Ports: free ones if None."""
    folder, data = Path(folder).resolve(), [Path(path).resolve() for path in data]
    keys = certificates.make(folder / "keys", clients=len(data))
    port, gate_port = port or free_port(), gate_port or free_port()
    check_free(port)
    check_free(gate_port)
    connection = Connection(f"{HOST}:{port}", keys / "ca.crt", folder / "home" / "researcher")
    with Services(folder) as services:
        outputs = Path(outputs or folder / "outputs").resolve()
        gate = f"{HOST}:{gate_port}"
        deployment = Deployment(folder, data, services, connection, port, gate, outputs)
        deployment.start_server()
        deployment.start_gate()
        services.wait_for_port("superlink", port)
        services.wait_for_port("gate", gate_port)
        for client in range(len(data)):
            connection.register(keys / f"{client_name(client)}.pub", client_name(client))
        if start_nodes:
            for client in range(len(data)):
                deployment.start_node(client)
            for client in range(len(data)):
                deployment.wait_for_node(client)
        yield deployment


def run(data: Path, folder: Path, port: int, gate_port: int) -> None:
    """Run a deployment until Ctrl-C or SIGTERM. Raises RuntimeError when the server ended."""
    clients = sorted(path for path in data.iterdir() if path.is_dir()) if data.is_dir() else []
    if not clients:
        raise InputError(f"{data} has no folders in it; give one with a folder for each client")
    for number in (signal.SIGINT, signal.SIGTERM):  # in the background, a shell has SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    print(f"starting {len(clients)} clients; logs: {folder / 'logs'}", flush=True)
    with local_deployment(folder, clients, port=port, gate_port=gate_port) as running:
        print(f"SuperLink {running.connection.address} (yours), gate {running.gate} (the clients')")
        print("a run, from the folder notebooks:")
        print("  papermill 02_fl_advtrain.ipynb out.ipynb -p preset deployment \\")
        print(f"    -p superlink {running.connection.address} \\")
        print(f"    -p certificates {running.keys} -p outputs {running.outputs}")
        print("Ctrl-C stops everything", flush=True)
        while all(map(running.services.alive, ("superlink", "gate"))):
            time.sleep(0.5)
        raise RuntimeError(f"the server ended:\n{running.services.log_end('superlink')}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = cli.Parser(prog="deploy/local", description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, metavar="DATA", help="has a folder for each client")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "deployment")
    parser.add_argument("--port", type=int, default=8000, help="of the SuperLink")
    parser.add_argument("--gate-port", type=int, default=9092)
    return cli.run(parser, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
