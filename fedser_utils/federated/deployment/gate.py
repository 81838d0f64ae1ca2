"""The only door that SuperNodes reach: what a registered client needs, and nothing else.

Flower's SuperLink serves its three APIs on one port, and of these the Control API (register a key,
run any code on all clients) and the Runtime API ask nobody who he is. So the SuperLink stays on an
inner network, and this reverse proxy stands before it: it ends the TLS connection, lets the Fleet
calls of ``CALLS`` through to the SuperLink (over TLS, verified with our CA), and knows no other
path. Who a node is, the SuperLink then checks by its signature.

``python -m fedser_utils.federated.deployment.gate --host 0.0.0.0 --port 9092 --superlink HOST:PORT
--certificates DIR``
"""

from __future__ import annotations

import logging
import ssl
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import httpx
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from fedser_utils.core import cli
from fedser_utils.core.errors import InputError

CALLS = (
    "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages",
    "get-run", "get-fab", "push-object", "pull-object", "confirm-message-received",
)  # fmt: skip
PATHS = {f"/v1/fleet/{call}".encode(): f"/v1/fleet/{call}" for call in CALLS}
HEADERS = ("accept", "accept-encoding", "content-encoding", "content-length", "content-type")
PREFIXES = ("flwr-", "x-flwr-")  # Flower's own headers: keys, signatures, versions
LARGEST = 1 << 30  # bytes of a request's body; Flower cuts arrays into pieces of some 20 MB
PATIENCE = httpx.Timeout(60, connect=5)  # seconds; Flower's own clients wait 30

log = logging.getLogger("fedser.gate")


class Gate:
    """The reverse proxy as an ASGI application. superlink: a client whose base is the SuperLink."""

    def __init__(self, superlink: httpx.AsyncClient) -> None:
        self.superlink = superlink

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            response = await self.answer(Request(scope, receive))
            await response(scope, receive, send)

    async def answer(self, request: Request) -> Response:
        """The SuperLink's answer, or a refusal. The path is compared as it came, byte by byte:
        nothing is decoded or normalised that the SuperLink might read in another way."""
        path = PATHS.get(request.scope["raw_path"])
        if path is None or request.method != "POST" or request.scope["query_string"]:
            return _refuse(request, 404, "not found")
        length = request.headers.get("content-length", "")
        if not length.isdecimal() or "transfer-encoding" in request.headers:
            return _refuse(request, 411, "length required")
        if int(length) > LARGEST:
            return _refuse(request, 413, "too large")
        call = self.superlink.build_request(
            "POST", path, headers=_passed(request.headers), content=request.stream()
        )
        try:
            answer = await self.superlink.send(call, stream=True)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody will read it
        except httpx.TimeoutException:
            return _refuse(request, 504, "the SuperLink does not answer")
        except httpx.TransportError as error:  # SuperNodes try again after 502, 503, 504
            return _refuse(request, 502, f"the SuperLink cannot be reached: {error}")
        return StreamingResponse(_body(answer), answer.status_code, _passed(answer.headers))


def _passed(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that go through: the body's, and Flower's own."""
    return {
        name: value
        for name, value in headers.items()
        if name.lower() in HEADERS or name.lower().startswith(PREFIXES)
    }


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()


def _refuse(request: Request, status: int, reason: str) -> Response:
    who = request.client.host if request.client else "?"
    path = request.scope["raw_path"][:100]
    log.warning("%d %s: %s %r from %s", status, reason, request.method, path, who)
    return PlainTextResponse(reason.partition(":")[0], status)


def serve(*, host: str, port: int, superlink: str, certificates: Path) -> None:
    """Run the gate until it is stopped. superlink: its host:port; certificates: a folder with
    ``ca.crt``, ``server.crt``, ``server.key``. Raises InputError where one is missing."""
    ca, certificate, key = (certificates / n for n in ("ca.crt", "server.crt", "server.key"))
    for path in (ca, certificate, key):
        if not path.is_file():
            raise InputError(f"{path} is not there; deploy/certificates makes it")
    inner = httpx.AsyncClient(
        base_url=f"https://{superlink}",
        verify=ssl.create_default_context(cafile=str(ca)),
        timeout=PATIENCE,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        trust_env=False,  # no proxy between the gate and its SuperLink
    )
    uvicorn.run(
        Gate(inner), host=host, port=port, ssl_certfile=certificate, ssl_keyfile=key,
        lifespan="off", ws="none", access_log=False, server_header=False, proxy_headers=False,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    parser = cli.Parser(
        prog="python -m fedser_utils.federated.deployment.gate", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9092)
    parser.add_argument("--superlink", required=True, metavar="HOST:PORT")
    parser.add_argument("--certificates", type=Path, required=True, metavar="FOLDER")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    return cli.run(parser, serve, arguments)


if __name__ == "__main__":
    sys.exit(main())
