"""The gate, before a SuperLink that only says what reached it."""

import asyncio
import hashlib
import http.client
import threading
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from fedser_utils.federated.deployment import gate
from fedser_utils.federated.deployment.processes import free_port

MEGABYTE = 1 << 20


async def echo(request):
    """What reached the SuperLink."""
    body, length = hashlib.sha256(), 0
    async for piece in request.stream():
        body.update(piece)
        length += len(piece)
    answer = {"path": request.url.path, "length": length, "sha256": body.hexdigest()}
    answer["headers"] = dict(request.headers)
    status = int(request.headers.get("flwr-test-status", 200))
    return JSONResponse(answer, status, {"flwr-answer": "kept", "x-inner": "dropped"})


@contextmanager
def served(app):
    """An ASGI application on a port of its own. Yields the port."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, lifespan="off", log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        asyncio.run(asyncio.sleep(0.02))
    yield port
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def port():
    superlink = Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST", "PUT"])])
    with (
        served(superlink) as inner,
        served(gate.Gate(httpx.AsyncClient(base_url=f"http://127.0.0.1:{inner}"))) as outer,
    ):
        yield outer


def call(port, path, *, method="POST", body=b"", headers=None):
    """(status, headers, JSON or text): exactly this path is sent, nothing normalised."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest(method, path, skip_accept_encoding=True)
    for name, value in ({"content-length": str(len(body))} | (headers or {})).items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    with connection.getresponse() as answer:
        said = answer.read()
        return answer.status, dict(answer.getheaders()), said


def test_the_calls_are_flowers_but_for_registration():
    from flwr.superlink.routers.fleet.router import router

    theirs = {route.path for route in router.routes}
    refused = {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    assert set(gate.PATHS.values()) == theirs - refused
    assert refused < theirs


@pytest.mark.parametrize("path", gate.PATHS.values())
def test_a_nodes_call_goes_through(port, path):
    status, headers, said = call(port, path, body=b"abc", headers={"flwr-signature": "s"})
    assert status == 200
    assert f'"path":"{path}"'.encode() in said
    assert b'"length":3' in said
    assert headers["flwr-answer"] == "kept"
    assert "x-inner" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/", "", "*", "/health", "/docs", "/openapi.json", "/v1/fleet", "/v1/fleet/",
        "/v1/control/start-run", "/v1/control/register-node", "/v1/control/list-nodes",
        "/v1/runtime/acquire-task", "/v1/fleet/register-node", "/v1/fleet/unregister-node",
        "/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/%2E%2E%2fcontrol%2fstart-run", "/v1/fleet/..%5ccontrol/start-run",
        "//v1/fleet/get-run", "/v1//fleet/get-run", "/v1/fleet//get-run", "/v1/fleet/get-run/",
        "/v1/fleet/./get-run", "/v1/fleet/get%2drun", "/v1/fleet/get-run;x", "/v1/fleet/get-run?x",
        "/V1/fleet/get-run", "/v1/fleet/get-run%00", "/v1/fleet/get-run/../../control/start-run",
        "http://elsewhere/v1/control/start-run",
    ],
)  # fmt: skip
def test_every_other_path_is_refused(port, path):
    status, _, said = call(port, path)
    assert status in (400, 404)  # 400: no HTTP at all
    assert b"sha256" not in said


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT"])
def test_every_other_method_is_refused(port, method):
    assert call(port, "/v1/fleet/get-run", method=method)[0] in (400, 404)


def test_headers_that_go_through_and_that_do_not(port):
    headers = {
        "content-type": "application/x-protobuf", "flwr-public-key": "k", "flwr-timestamp": "t",
        "x-flwr-client": "c", "x-forwarded-for": "10.0.0.1", "cookie": "a=b", "te": "trailers",
        "authorization": "Bearer x", "connection": "keep-alive", "upgrade": "websocket",
    }  # fmt: skip
    said = httpx.Response(200, content=call(port, "/v1/fleet/get-run", headers=headers)[2]).json()
    for name in ("content-type", "flwr-public-key", "flwr-timestamp", "x-flwr-client"):
        assert said["headers"][name] == headers[name]
    for name in ("x-forwarded-for", "cookie", "te", "authorization", "upgrade"):
        assert name not in said["headers"]


def test_large_bodies_stream_through_whole(port):
    body = bytes(range(256)) * (4096 * 200)  # 200 MB
    status, _, said = call(port, "/v1/fleet/push-object", body=body)
    assert status == 200
    assert hashlib.sha256(body).hexdigest().encode() in said


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-length": None}, 411),
        ({"content-length": None, "transfer-encoding": "chunked"}, 411),
        ({"content-length": str(gate.MAX_BODY + 1)}, 413),
    ],
)
def test_bodies_of_no_or_too_great_length_are_refused(port, headers, status):
    assert call(port, "/v1/fleet/push-object", headers=headers)[0] == status


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_the_superlinks_refusals_come_through(port, status):
    headers = {"flwr-test-status": str(status)}
    assert call(port, "/v1/fleet/get-run", headers=headers)[0] == status


@pytest.mark.parametrize(("error", "status"), [(httpx.ConnectError, 502), (httpx.ReadTimeout, 504)])
def test_without_a_superlink_a_node_is_told_to_try_again(error, status):
    def gone(request):
        raise error("gone")

    async def ask():
        inner = httpx.AsyncClient(base_url="http://inner", transport=httpx.MockTransport(gone))
        outer = httpx.ASGITransport(gate.Gate(inner))
        async with httpx.AsyncClient(base_url="http://gate", transport=outer) as node:
            return await node.post("/v1/fleet/get-run", content=b"")

    assert asyncio.run(ask()).status_code == status


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    common = ["--superlink", "127.0.0.1:1", "--certificates", str(tmp_path)]
    assert gate.main(common) == 1
    assert "ca.crt is not there" in capsys.readouterr().err
    assert gate.main([]) == 1
    assert capsys.readouterr().err.count("\n") == 1
