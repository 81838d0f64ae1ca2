"""Writes the compose file, in which every client is a service.

``python -m fedser_utils.federated.deployment.compose --clients 3 > deploy/compose.yaml``. The
commands are those of ``processes``, with paths in a container.
"""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from fedser_utils.core import cli
from fedser_utils.core.errors import number
from fedser_utils.core.settings import client_name
from fedser_utils.federated.deployment.processes import (
    gate_command,
    superlink_command,
    supernode_command,
)

CLIENTS = 3
KEYS = Path("/keys")

HEAD = """\
# A server and {clients} clients, each with one client's data only. Made by
#   python -m fedser_utils.federated.deployment.compose --clients {clients} > deploy/compose.yaml
#
#   deploy/certificates --clients {clients} --host superlink --host gate   (and --host MY.SERVER)
#   DATA=/my/clients docker compose -f deploy/compose.yaml up --build
#
# DATA     a folder with {first} ... {last} in it (default: deploy/data)
# OUTPUTS  where the server writes (default: outputs)
# OWNER    uid:gid that may read the keys and the data and write the outputs (default: 1000:1000)
#
# A client on another machine needs ca.crt, its key and its data there, and
#   GATE=MY.SERVER:9092 CLOSED=false docker compose -f deploy/compose.yaml up --no-deps {first}

name: fedser

x-service: &service
  image: fedser
  build: {{context: .., dockerfile: deploy/Dockerfile}}
  user: "${{OWNER:-1000:1000}}"
  read_only: true
  tmpfs: [/tmp]
  cap_drop: [ALL]
  security_opt: ["no-new-privileges:true"]
  init: true
  restart: unless-stopped

services:
"""
SERVER = """\
  superlink:
    <<: *service
    command: >-
{superlink}
    environment: {{FEDSER_OUTPUTS: /outputs}}
    networks: [inner]
    ports: ["127.0.0.1:8000:8000"]  # the researcher's; whoever reaches it runs code on all clients
    volumes:
{server_keys}
      - {{type: volume, source: superlink, target: /state}}
{outputs}

  gate:
    <<: *service
    command: >-
{gate}
    networks: [inner, outer]
    ports: ["9092:9092"]
    volumes:
{server_keys}

  register:
    <<: *service
    command: >-
{register}
    restart: on-failure
    depends_on: [superlink]
    networks: [inner]
    volumes:
{public_keys}
"""
CLIENT = """
  {name}:
    <<: *service
    command: >-
{command}
    depends_on:
      gate: {{condition: service_started}}
      register: {{condition: service_completed_successfully}}
    networks: [outer]
    volumes:
{mounts}
      - {{type: volume, source: {name}, target: /state}}
"""
TAIL = """
networks:
  inner: {{}}  # not internal: Docker publishes no port of a container on internal networks alone
  outer: {{internal: "${{CLOSED:-true}}"}}  # a client's only way out is the gate

volumes:
{volumes}
"""


def compose(clients: int = CLIENTS) -> str:
    """Return the compose file for a number of clients."""
    number("clients", clients)
    names = [client_name(client) for client in range(clients)]
    volumes = "\n".join(f"  {volume}: {{}}" for volume in ("superlink", *names))
    head = HEAD.format(clients=clients, first=names[0], last=names[-1])
    services = [_client(client, clients) for client in range(clients)]
    return "".join([head, _server(names), *services, TAIL.format(volumes=volumes)])


def _server(names: Sequence[str]) -> str:
    keys, publics = ("ca.crt", "server.crt", "server.key"), [f"{client}.pub" for client in names]
    database = Path("/state/superlink.db")
    link = superlink_command(host="0.0.0.0", port=8000, certificates=KEYS, database=database)
    gate = gate_command(host="0.0.0.0", port=9092, superlink="superlink:8000", certificates=KEYS)
    register = ["python3", "-m", "fedser_utils.federated.deployment.flower_cli", "superlink:8000"]
    register += ["--root-certificates", f"{KEYS}/ca.crt", *(f"{KEYS}/{key}" for key in publics)]
    return SERVER.format(
        superlink=_fold(link),
        gate=_fold(gate),
        register=_fold(register),
        server_keys="\n".join(_bind(f"./keys/{key}", KEYS / key) for key in keys),
        public_keys="\n".join(_bind(f"./keys/{key}", KEYS / key) for key in ("ca.crt", *publics)),
        outputs=_bind("${OUTPUTS:-../outputs}", Path("/outputs"), read_only=False),
    )


def _client(client: int, clients: int) -> str:
    name = client_name(client)
    words = supernode_command(
        superlink="${GATE:-gate:9092}", root_certificates=KEYS / "ca.crt", key=KEYS / "client.key",
        port=9094, partition=client, partitions=clients, data=Path("/data"), state=Path("/state"),
    )  # fmt: skip
    mounts = [
        _bind("./keys/ca.crt", KEYS / "ca.crt"),
        _bind(f"./keys/{name}.key", KEYS / "client.key"),
        _bind(f"${{DATA:-./data}}/{name}", Path("/data")),
    ]
    return CLIENT.format(name=name, command=_fold(words), mounts="\n".join(mounts))


def _bind(source: str, target: Path, *, read_only: bool = True) -> str:
    """Return the mount of a file or folder of the host, which must exist."""
    mode = "read_only: true, " if read_only else ""
    options = f"target: {target}, {mode}bind: {{create_host_path: false}}"
    return f'      - {{type: bind, source: "{source}", {options}}}'


def _fold(words: Sequence[str]) -> str:
    """Return a command as the lines of a folded YAML text, which compose splits as a shell does."""
    indent = " " * 6
    return textwrap.fill(
        " ".join(word if word.startswith("$") else shlex.quote(word) for word in words),
        width=98, initial_indent=indent, subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = cli.Parser(prog="python -m fedser_utils.federated.deployment.compose")
    parser.add_argument("--clients", type=int, default=CLIENTS, metavar="N")
    return cli.run(parser, lambda clients: print(compose(clients), end=""), arguments)


if __name__ == "__main__":
    sys.exit(main())
