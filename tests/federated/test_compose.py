"""The compose file: what the generator writes, the services' commands, and what is locked."""

import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml

from fedser_utils.core.settings import ROOT
from fedser_utils.federated.deployment import compose, processes

CLIENTS = [f"client-{client:02d}" for client in range(compose.CLIENTS)]
TEXT = {"type": "string", "minLength": 1}
NAMES = {"type": "array", "items": TEXT, "minItems": 1, "uniqueItems": True}
EMPTY = {"type": "object", "additionalProperties": False}


def strict(required=(), **properties):
    """An object with these keys and no others."""
    return {
        "type": "object", "properties": properties, "required": list(required),
        "additionalProperties": False,
    }  # fmt: skip


MOUNT = {
    "oneOf": [
        strict(
            ["type", "source", "target", "bind"],
            type={"const": "bind"}, source={"pattern": r"^(\.|\$)"}, target={"pattern": "^/"},
            read_only={"const": True}, bind=strict(create_host_path={"const": False}),
        ),
        strict(
            ["type", "source", "target"],
            type={"const": "volume"}, source={"enum": ["superlink", *CLIENTS]},
            target={"const": "/state"},
        ),
    ]
}  # fmt: skip
CONDITION = strict(
    ["condition"], condition={"enum": ["service_started", "service_completed_successfully"]}
)
SERVICE = strict(
    ["image", "command", "user", "read_only", "cap_drop", "security_opt", "networks", "volumes"],
    image=TEXT, build=strict(["context", "dockerfile"], context=TEXT, dockerfile=TEXT),
    command=TEXT, user={"const": "${OWNER:-1000:1000}"}, read_only={"const": True},
    tmpfs={"const": ["/tmp"]}, cap_drop={"const": ["ALL"]}, init={"const": True},
    security_opt={"const": ["no-new-privileges:true"]},
    restart={"enum": ["unless-stopped", "on-failure"]}, environment={"type": "object"},
    networks=NAMES, ports=NAMES, volumes={"type": "array", "items": MOUNT, "minItems": 1},
    depends_on={"oneOf": [NAMES, {"type": "object", "additionalProperties": CONDITION}]},
)  # fmt: skip
SCHEMA = strict(
    ["name", "services", "networks", "volumes"],
    **{"x-service": {"type": "object"}}, name={"const": "fedser"},
    services=strict(
        ["superlink", "gate", "register", *CLIENTS],
        **dict.fromkeys(["superlink", "gate", "register", *CLIENTS], SERVICE),
    ),
    networks=strict(["inner", "outer"], inner=EMPTY, outer=strict(internal=TEXT)),
    volumes=strict(["superlink", *CLIENTS], **dict.fromkeys(["superlink", *CLIENTS], EMPTY)),
)  # fmt: skip


@pytest.fixture(scope="module")
def file():
    return yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())


def words(file, name):
    """A service's command as compose splits it, every ${VARIABLE:-default} at its default."""
    return shlex.split(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", file["services"][name]["command"]))


def test_the_file_is_what_the_generator_writes(capsys):
    assert compose.main([]) == 0
    assert capsys.readouterr().out == (ROOT / "deploy" / "compose.yaml").read_text()
    assert compose.main(["--clients", "0"]) == 1


@pytest.mark.parametrize("clients", [1, 68, 101])
def test_any_number_of_clients(clients):
    found = yaml.safe_load(compose.compose(clients))
    assert len(found["services"]) == clients + 3
    assert len(found["volumes"]) == clients + 1


def test_it_has_the_form_that_we_know(file):
    jsonschema.validate(file, SCHEMA)


def test_the_commands_are_the_services(file):
    keys, state = Path("/keys"), Path("/state")
    assert words(file, "superlink") == processes.superlink_command(
        host="0.0.0.0", port=8000, certificates=keys, database=state / "superlink.db"
    )
    assert words(file, "gate") == processes.gate_command(
        host="0.0.0.0", port=9092, superlink="superlink:8000", certificates=keys
    )
    for client, name in enumerate(CLIENTS):
        assert words(file, name) == processes.supernode_command(
            superlink="gate:9092", root_certificates=keys / "ca.crt", key=keys / "client.key",
            port=9094, partition=client, partitions=len(CLIENTS), data=Path("/data"), state=state,
        )  # fmt: skip


def test_what_is_published(file):
    published = {name: service.get("ports") for name, service in file["services"].items()}
    assert published == {"superlink": ["127.0.0.1:8000:8000"], "gate": ["9092:9092"]} | (
        dict.fromkeys(["register", *CLIENTS])
    )


def test_clients_reach_the_gate_alone(file):
    networks = {name: service["networks"] for name, service in file["services"].items()}
    inside = {"superlink": ["inner"], "register": ["inner"], "gate": ["inner", "outer"]}
    assert networks == inside | {name: ["outer"] for name in CLIENTS}
    assert file["networks"]["outer"] == {"internal": "${CLOSED:-true}"}


def test_each_client_sees_its_own_data_key_and_state_alone(file):
    for name in CLIENTS:
        assert {
            (mount["source"], mount["target"], mount.get("read_only", False))
            for mount in file["services"][name]["volumes"]
        } == {
            ("./keys/ca.crt", "/keys/ca.crt", True),
            (f"./keys/{name}.key", "/keys/client.key", True),
            (f"${{DATA:-./data}}/{name}", "/data", True),
            (name, "/state", False),
        }


def test_the_server_sees_no_data_and_no_clients_key(file):
    for name in ("superlink", "gate", "register"):
        sources = {mount["source"] for mount in file["services"][name]["volumes"]}
        assert not any("DATA" in source or source.endswith("ca.key") for source in sources)
        assert not sources & {f"./keys/{client}.key" for client in CLIENTS}
    writable = {
        mount["target"]
        for mount in file["services"]["superlink"]["volumes"]
        if not mount.get("read_only")
    }
    assert writable == {"/state", "/outputs"}


def test_the_images_sources_are_there_and_it_is_not_root():
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"]
    wanted = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().split()
    for line in lines:
        if line.startswith("COPY"):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in wanted
