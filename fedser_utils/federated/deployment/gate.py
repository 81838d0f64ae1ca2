"""The gate: a reverse proxy that passes SuperNodes' calls to the SuperLink, and no others.

Flower's SuperLink serves three APIs on one port, of which the Control API (register a key, run any
code on all clients) and the Runtime API authenticate nobody. So the SuperLink stays on an inner
network behind this proxy, which ends the TLS connection and forwards the Fleet calls in ``CALLS``
over TLS, verified with our CA. The SuperLink then authenticates a node by its signature.

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
PREFIXES = ("flwr-", "x-flwr-")  # Flower's headers: keys, signatures, versions
MAX_BODY = 1 << 30  # bytes of a request's body; Flower cuts arrays into pieces of some 20 MB
TIMEOUT = httpx.Timeout(60, connect=5)  # seconds; Flower's clients wait 30

log = logging.getLogger("fedser.gate")


class Gate:
    """The proxy as an ASGI application. superlink: an HTTP client with the SuperLink's base URL."""

    def __init__(self, superlink: httpx.AsyncClient) -> None:
        self.superlink = superlink

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            response = await self.forward(Request(scope, receive))
            await response(scope, receive, send)

    async def forward(self, request: Request) -> Response:
        """Return the SuperLink's response, or a refusal. The path is compared byte by byte, not
        decoded or normalised, since the SuperLink might read it in another way."""
        path = PATHS.get(request.scope["raw_path"])
        if path is None or request.method != "POST" or request.scope["query_string"]:
            return _refuse(request, 404, "not found")
        length = request.headers.get("content-length", "")
        if not length.isdecimal() or "transfer-encoding" in request.headers:
            return _refuse(request, 411, "length required")
        if int(length) > MAX_BODY:
            return _refuse(request, 413, "too large")
        call = self.superlink.build_request(
            "POST", path, headers=_allowed(request.headers), content=request.stream()
        )
        try:
            response = await self.superlink.send(call, stream=True)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody will read it
        except httpx.TimeoutException:
            return _refuse(request, 504, "the SuperLink does not respond")
        except httpx.TransportError as error:  # SuperNodes try again after 502, 503, 504
            return _refuse(request, 502, f"the SuperLink cannot be reached: {error}")
        return StreamingResponse(_body(response), response.status_code, _allowed(response.headers))


def _allowed(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers to pass on: the body's, and Flower's."""
    return {
        name: value
        for name, value in headers.items()
        if name.lower() in HEADERS or name.lower().startswith(PREFIXES)
    }


async def _body(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in response.aiter_raw():
            yield piece
    finally:
        await response.aclose()


def _refuse(request: Request, status: int, reason: str) -> Response:
    host = request.client.host if request.client else "?"
    path = request.scope["raw_path"][:100]
    log.warning("%d %s: %s %r from %s", status, reason, request.method, path, host)
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
        timeout=TIMEOUT,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        trust_env=False,  # no proxy between the gate and its SuperLink
    )
    uvicorn.run(
        Gate(inner), host=host, port=port, ssl_certfile=certificate, ssl_keyfile=key,
        lifespan="off", ws="none", access_log=False, server_header=False, proxy_headers=False,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
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
