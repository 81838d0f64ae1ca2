"""A whole deployment on this machine: the compose file's services as plain processes.

SuperLink and gate on loopback, a SuperNode per client with nothing but its own data folder, TLS on
every connection, keys registered. ``deploy/local DATA`` runs one; the tests run the same.
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
AGAIN = 3.0  # seconds after which a node that was refused is started again
ACTIVE = "SuperNode ID: "  # what a SuperNode says when the SuperLink has let it in


@dataclass
class Deployment:
    """What runs, and where. gate, port: host:port of the gate, port of the SuperLink; outputs: the
    server app's; client i has the folder ``data[i]``, the service, key and state called
    ``settings.client_name(i)``."""

    folder: Path
    data: Sequence[Path]
    services: Services
    connection: Connection
    port: int
    gate: str
    outputs: Path
    _said: dict[str, int] = field(default_factory=dict)  # length of the log before a start

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    def start_server(self) -> None:
        """The SuperLink, on its old database if it ran before."""
        link = superlink_command(
            host=HOST, port=self.port, certificates=self.keys,
            database=self.folder / "state" / "superlink.db",
        )  # fmt: skip
        for path in (self.folder / "state", self.outputs):
            path.mkdir(parents=True, exist_ok=True)
        self.services.start("superlink", link, {"FEDSER_OUTPUTS": str(self.outputs)})

    def start_gate(self) -> None:
        """The gate before it."""
        link, port = f"{HOST}:{self.port}", int(self.gate.rpartition(":")[2])
        gate = gate_command(host=HOST, port=port, superlink=link, certificates=self.keys)
        self.services.start("gate", gate)

    def node_command(self, client: int) -> list[str]:
        """A client's SuperNode."""
        state = self.folder / "state" / client_name(client)
        state.mkdir(parents=True, exist_ok=True)
        return supernode_command(
            superlink=self.gate, root_certificates=self.keys / "ca.crt",
            key=self.keys / f"{client_name(client)}.key", port=free_port(),
            partition=client, partitions=len(self.data), data=self.data[client], state=state,
        )  # fmt: skip

    def start_node(self, client: int) -> None:
        """Start a client's SuperNode; ``wait_for_node`` waits until it is let in."""
        self._said[client_name(client)] = len(self.services.log(client_name(client)))
        self.services.start(client_name(client), self.node_command(client))

    def wait_for_node(self, client: int, *, timeout: float = 120) -> int:
        """The id of a client's node, as soon as the SuperLink has let it in. timeout: in seconds.

        After a crash the SuperLink takes the old process to be online, and refuses the new one, for
        up to a minute; so a node that ended is started again. Raises RuntimeError.
        """
        service, end = client_name(client), time.monotonic() + timeout
        while time.monotonic() < end:
            _, found, after = self.services.log(service)[self._said[service] :].partition(ACTIVE)
            if found and "\n" in after:
                return int(after.split()[0])
            if not self.services.alive(service):
                time.sleep(AGAIN)
                self.start_node(client)
            time.sleep(0.3)
        raise RuntimeError(f"{service} was not let in:\n{self.services.log_end(service)}")

    def kill_node(self, client: int) -> None:
        """What a power cut does to a client."""
        self.services.kill(client_name(client))


@contextmanager
def local(
    folder: Path, data: Sequence[Path], *,
    outputs: Path | None = None,
    start_nodes: bool = True, port: int | None = None, gate_port: int | None = None,
) -> Iterator[Deployment]:  # fmt: skip
    """A deployment in ``folder`` with a client for each of the ``data`` folders, until the block
    ends. Keys, database and states stay: the same folder goes on. outputs: ``folder/outputs`` if
    None. Ports: free ones if None."""
    folder, data = Path(folder).resolve(), [Path(path).resolve() for path in data]
    keys = certificates.make(folder / "keys", clients=len(data))
    port, gate_port = port or free_port(), gate_port or free_port()
    for wanted in (port, gate_port):
        check_free(wanted)
    connection = Connection(f"{HOST}:{port}", keys / "ca.crt", folder / "home" / "researcher")
    with Services(folder) as services:
        outputs = Path(outputs or folder / "outputs").resolve()
        gate = f"{HOST}:{gate_port}"
        made = Deployment(folder, data, services, connection, port, gate, outputs)
        made.start_server()
        made.start_gate()
        services.wait_for_port("superlink", port)
        services.wait_for_port("gate", gate_port)
        for client in range(len(data)):
            connection.register(keys / f"{client_name(client)}.pub", client_name(client))
        if start_nodes:
            for client in range(len(data)):
                made.start_node(client)
            for client in range(len(data)):
                made.wait_for_node(client)
        yield made


def run(data: Path, folder: Path, port: int, gate_port: int) -> None:
    """Run a deployment until Ctrl-C or SIGTERM. Raises RuntimeError when the server ended."""
    clients = sorted(path for path in data.iterdir() if path.is_dir()) if data.is_dir() else []
    if not clients:
        raise InputError(f"{data} has no folders in it; give one with a folder for each client")
    for number in (signal.SIGINT, signal.SIGTERM):  # in the background, a shell has SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    print(f"starting {len(clients)} clients; logs: {folder / 'logs'}", flush=True)
    with local(folder, clients, port=port, gate_port=gate_port) as running:
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
    """The command. Returns its exit code."""
    parser = cli.Parser(prog="deploy/local", description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, metavar="DATA", help="has a folder for each client")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "deployment")
    parser.add_argument("--port", type=int, default=8000, help="of the SuperLink")
    parser.add_argument("--gate-port", type=int, default=9092)
    return cli.run(parser, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
