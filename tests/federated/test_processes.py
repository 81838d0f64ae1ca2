"""Real Flower processes: one SuperLink, its gate, a client who is let in and many who are not.

The processes start once for the module, and the tests go on in order: refusals, a run, a crash.
"""

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from signal import SIGTERM

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from fedser_utils.core.errors import InputError
from fedser_utils.core.settings import ROOT
from fedser_utils.federated.deployment import certificates, flower_cli, local, processes
from fedser_utils.federated.deployment.flower_cli import Connection, FlowerError
from fedser_utils.federated.deployment.processes import (
    Services,
    free_port,
    gate_command,
    supernode_command,
)


def runtimes(test):
    """A test with Flower's processes."""
    return pytest.mark.runtimes(pytest.mark.long(test))


APP = """
[project]
name = "tiny-app"
version = "1.0.0"
[tool.flwr.app]
publisher = "fedser"
[tool.flwr.app.components]
serverapp = "tiny_apps:server_app"
clientapp = "tiny_apps:client_app"
[tool.flwr.app.config]
settings = "{}"
"""
MODULE = """
import os
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server_app = ServerApp()
client_app = ClientApp()

@server_app.main()
def main(grid, context):
    content = RecordDict({"config": ConfigRecord({"settings": context.run_config["settings"]})})
    asked = [Message(content, node, "query") for node in grid.get_node_ids()]
    (reply,) = grid.send_and_receive(asked)
    outputs = Path(os.environ["FEDSER_OUTPUTS"])
    for name, text in reply.content["config"].items():
        (outputs / name).write_text(str(text))

@client_app.query()
def query(message, context):
    config = {**message.content["config"], **context.node_config}
    config["files"] = " ".join(sorted(os.listdir(context.node_config["data"])))
    return Message(RecordDict({"config": ConfigRecord(config)}), reply_to=message)
"""


# the commands, without Flower


def test_node_config_is_one_word_that_flower_reads(tmp_path):
    from flwr.common.config import parse_config_args

    words = supernode_command(
        superlink="gate:9092", root_certificates=tmp_path, key=tmp_path, port=1,
        partition=1, partitions=3, data=tmp_path / "my clips = é", state=tmp_path,
    )  # fmt: skip
    assert words[-2] == "--node-config"
    assert parse_config_args([words[-1]]) == {
        "partition-id": 1, "num-partitions": 3,
        "data": str(tmp_path / "my clips = é"), "state": str(tmp_path),
    }  # fmt: skip
    with pytest.raises(InputError, match="must not hold quotes"):
        supernode_command(
            superlink="gate:9092", root_certificates=tmp_path, key=tmp_path, port=1,
            partition=1, partitions=3, data=tmp_path / 'a"b', state=tmp_path,
        )  # fmt: skip


def test_simulation_listens_on_loopback_alone():
    words = processes.simulation_command(8100)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert "--disable-runtime-dependency-installation" in words


def test_ray_joins_no_cluster_that_it_is_not_told_to(tmp_path, monkeypatch):
    """A file that a dead cluster left behind is enough for Ray to look for it, and to fail."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert processes.environment(tmp_path)["RAY_ADDRESS"] == "local"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    told = processes.environment(tmp_path)
    assert told["RAY_ADDRESS"] == "head:6379"
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in told


# processes, without Flower

CHILD = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; "
CHILD += "time.sleep(600)'], start_new_session=True); print('up', flush=True); time.sleep(600)"


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_services_children_end_with_it_whatever_their_session(tmp_path, monkeypatch, end):
    monkeypatch.setattr(processes, "GRACE", 0.5)
    with Services(tmp_path) as running:
        running.start("one", [sys.executable, "-c", CHILD])
        while "up" not in running.log("one"):
            time.sleep(0.02)
        pids = running.pids("one")
        assert len(pids) == 2
        with pytest.raises(InputError, match="'one' is running already"):
            running.start("one", ["true"])
        if end == "kill":
            running.kill("one")
            assert not running.alive("one")
            assert running.pids("one") == []
    assert running.pids("one") == []


def test_a_killed_service_can_be_started_again_at_once(tmp_path, monkeypatch):
    """On a busy machine a process ends some time after its environment cannot be read any more."""
    with Services(tmp_path) as services:
        services.start("a", ["sleep", "60"])
        pids, kill = iter([services.pids("a")]), os.kill
        with monkeypatch.context() as patch:
            patch.setattr(services, "pids", lambda name: next(pids, []))
            patch.setattr(os, "kill", lambda *args: threading.Timer(0.3, kill, args).start())
            services.kill("a")
        services.start("a", ["sleep", "60"])


def test_a_service_that_does_not_start_says_why(tmp_path):
    with Services(tmp_path) as running:
        running.start("one", [sys.executable, "-c", "raise SystemExit('no such thing')"])
        with pytest.raises(RuntimeError, match=r"one ended on .*\nno such thing"):
            running.wait_for_port("one", free_port())


def test_unknown_run_config_keys_are_named(tmp_path):
    (tmp_path / "pyproject.toml").write_text(APP)
    nowhere = Connection("127.0.0.1:1", None, tmp_path / "home")
    with pytest.raises(InputError, match="run config key 'epochs' is unknown; choose from setti"):
        nowhere.submit(tmp_path, run_config={"epochs": 3})
    with pytest.raises(InputError, match=r"pyproject\.toml is not there"):
        nowhere.submit(tmp_path / "none")


def test_nothing_that_others_planted_in_the_temporary_folder_is_followed(tmp_path, monkeypatch):
    shared, theirs = tmp_path / "tmp", tmp_path / "theirs"
    for folder in (shared, theirs):
        folder.mkdir()
    (shared / "flwr").symlink_to(theirs)
    monkeypatch.setattr("tempfile.tempdir", str(shared))
    seen = []

    def flwr(self, *arguments):
        seen.append((self.home.parent, self.home.stat().st_mode & 0o777))
        (self.home / "config.toml").write_text("")
        return {"nodes": [], "node-id": 1}

    monkeypatch.setattr(Connection, "_flwr", flwr)
    key = tmp_path / "client-00.pub"
    key.write_text("")
    flower_cli.register("127.0.0.1:1", [key], tmp_path / "ca.crt", patience=0)
    assert seen == [(shared, 0o700)] * 2
    assert not any(theirs.iterdir())
    assert sorted(path.name for path in shared.iterdir()) == ["flwr"]


def test_a_deployment_without_clients_is_refused(tmp_path, capsys):
    assert local.main([str(tmp_path)]) == 1
    assert "has no folders in it" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["certificates", "local", "share"])
def test_a_script_without_arguments_says_what_it_needs(script):
    command = [sys.executable, str(ROOT / "deploy" / script)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("the following arguments are required: ")


# with Flower


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A SuperLink, a gate, two registered clients of which client 0 is online."""
    folder = tmp_path_factory.mktemp("deployment")
    for client in ("anna", "bruno"):
        (folder / "data" / client).mkdir(parents=True)
        (folder / "data" / client / f"{client}.wav").touch()
    (folder / "tiny_apps.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.2")
        patch.setenv("PYTHONPATH", str(folder))  # the apps' module is there, not in the FAB
        data = sorted((folder / "data").iterdir())
        with local.local_deployment(folder, data, start_nodes=False) as running:
            running.start_node(0)
            running.first = running.wait_for_node(0)
            yield running
    assert {name for name in running.services.names if running.services.pids(name)} == set()


@pytest.fixture(scope="module")
def strangers(running, tmp_path_factory):
    """Started together: SuperNodes that must not get in, by what is wrong with them. All but the
    stranger hold client 1's registered key."""
    other = certificates.make(tmp_path_factory.mktemp("other"), clients=1)
    run, good, port = running.services, running.node_command(1), free_port()
    run.start("impostor", gate_command(
        host="127.0.0.1", port=port, superlink=f"127.0.0.1:{running.port}", certificates=other
    ))  # fmt: skip
    key, ca = str(running.keys / "client-01.key"), str(running.keys / "ca.crt")

    def node():
        return [*good[: good.index("--port") + 1], str(free_port()), *good[-2:]]

    def swapped(old, new):
        return [new if word == old else word for word in node()]

    def without(*options):
        words = node()
        for option in options:
            place = words.index(option)
            del words[place : place + 2]
        return words

    run.wait_for_port("impostor", port)
    run.start("stranger", swapped(key, str(other / "client-00.key")))
    run.start("nobody", without("--auth-supernode-private-key"))
    run.start("other-ca", swapped(ca, str(other / "ca.crt")))
    run.start("misled", swapped(running.gate, f"127.0.0.1:{port}"))
    plain = without("--auth-supernode-private-key", "--root-certificates")
    run.start("plain", [*plain, "--insecure"])
    yield run
    for name in ("impostor", "stranger", "nobody", "other-ca", "misled", "plain"):
        run.kill(name)


@runtimes
@pytest.mark.parametrize(
    ("name", "ends", "words"),
    [
        ("stranger", True, "Failed to activate SuperNode"),  # its key is not registered
        ("nobody", True, "404"),  # it has no key, and would register one itself
        ("other-ca", True, "CERTIFICATE_VERIFY_FAILED"),
        ("misled", True, "CERTIFICATE_VERIFY_FAILED"),  # the server's is another CA's
        ("plain", False, "Connection attempt failed"),  # it goes on trying
    ],
)
def test_who_is_not_let_in(strangers, name, ends, words):
    end = time.monotonic() + 60
    while words not in strangers.log(name) and time.monotonic() < end:
        time.sleep(0.2)
    while ends and strangers.alive(name) and time.monotonic() < end:
        time.sleep(0.2)
    assert words in strangers.log(name)
    assert strangers.alive(name) is not ends
    assert "SuperNode ID" not in strangers.log(name)


@runtimes
def test_only_the_registered_client_is_online(running, strangers):
    states = running.connection.nodes()
    assert states.pop(running.first) == "online"
    assert list(states.values()) == ["registered"]  # client 1's, whom nobody could impersonate


@runtimes
def test_a_registered_node_cannot_speak_for_another(running):
    from flwr.proto.fleet_pb2 import PullMessagesRequest
    from flwr.proto.node_pb2 import Node
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    def pull(client):
        key = load_ssh_private_key((running.keys / f"client-{client}.key").read_bytes(), None)
        trust = (running.keys / "ca.crt").read_bytes()
        signed = [NodeAuthHttpInterceptor(key, key.public_key())]
        with FleetHttpClient.from_server_address(running.gate, False, trust, signed) as node:
            node.PullMessages(PullMessagesRequest(node=Node(node_id=running.first)))

    pull("00")
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        pull("01")


@runtimes
def test_the_control_api_is_not_behind_the_gate(running):
    trust = ssl.create_default_context(cafile=running.keys / "ca.crt")
    with httpx.Client(base_url=f"https://{running.gate}", verify=trust) as anyone:
        for path in ("control/start-run", "control/register-node", "runtime/acquire-task"):
            assert anyone.post(f"/v1/{path}").status_code == 404
    assert "404 not found: POST b'/v1/control/start-run'" in running.services.log("gate")


@runtimes
def test_the_superlink_speaks_tls_alone_and_listens_on_loopback_alone(running):
    with pytest.raises(httpx.TransportError):
        httpx.post(f"http://127.0.0.1:{running.port}/v1/control/list-nodes")
    with socket.socket() as other, pytest.raises(OSError, match="refused"):
        other.connect(("127.0.0.2", running.port))


@runtimes
def test_a_run_reaches_the_client_with_its_settings_whole_and_its_own_data(running):
    app = running.folder / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text(APP)
    settings = json.dumps({"text": "\"quotes' `$` = é 😀\n", "rate": 2.5e-05}, indent=1)
    run = running.connection.submit(app, run_config={"settings": settings})
    assert running.connection.wait(run, timeout=90, every=1) == ("finished:completed", "N/A")
    said = {path.name: path.read_text() for path in (running.folder / "outputs").iterdir()}
    assert said["settings"] == settings
    assert said["files"] == "anna.wav"
    assert said["partition-id"] == "0"
    assert said["state"] == str(running.folder / "state" / "client-00")
    with pytest.raises(FlowerError, match=r"^flwr stop: \[code: 18\] Run is already finished"):
        running.connection.stop_run(run)


@runtimes
def test_after_a_crash_the_superlink_knows_its_nodes(running):
    before = running.connection.nodes()
    running.services.kill("superlink")
    assert running.services.pids("superlink") == []
    assert running.services.alive("client-00")
    running.start_server()
    running.services.wait_for_port("superlink", running.port)
    assert running.connection.nodes() == before
    running.services.kill("client-00", SIGTERM)
    while running.services.alive("client-00"):
        time.sleep(0.1)
    assert running.connection.nodes()[running.first] == "offline"  # it took its leave
