"""Passes requests and WebSockets on to a server on this machine, and what it answers back, as it comes.

Nothing is kept, nothing is repeated, and nothing is read that is on its way. Who may pass and where to is decided by
whoever calls.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import httpx2
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.protocol import State

from llama_deploy.control_plane.http.access.tokens import FOR
from llama_deploy.control_plane.http.lines import ENDLESS
from llama_deploy.errors import DeploymentUnavailableError
from llama_deploy.messages.frames import FRAME_BYTES_MAX
from llama_deploy.runtime.http_client import http_client

HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding"}
    | {"upgrade"}
)
"""Headers that speak of one connection, and not of what it carries (RFC 9110, 7.6.1)."""
NOT_TOLD = frozenset({"origin", "authorization", FOR.decode()})
"""What this server has judged itself. A token is not for the code of a deployment, which runs behind it."""
_OF_A_HANDSHAKE = NOT_TOLD | {"host", "content-length"}
CONNECT_TIMEOUT_S = 10.0
GOING_AWAY = 1001
TRY_AGAIN = 1013


class Proxy:
    """Connections to the servers behind this one. Close it at the end."""

    def __init__(self) -> None:
        self._client = http_client(
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
            follow_redirects=False,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def request(self, request: Request, url: str, *, headers: dict[str, str] | None = None) -> StreamingResponse:
        """Pass a request on to `url`, which has its path and query; the answer is passed back piece by piece.

        `headers` take the place of those of the same name. From which page it comes, and whose token it had, is not
        told.

        Raises `DeploymentUnavailableError` where nobody answers there.
        """
        own = headers or {}
        left_out = HOP_BY_HOP | NOT_TOLD | {"host", *own}
        passed = [(name, value) for name, value in request.headers.items() if name not in left_out]
        if "accept-encoding" not in request.headers:  # the client here would ask for what nobody asked for
            passed.append(("accept-encoding", "identity"))
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        outgoing = self._client.build_request(
            request.method,
            url,
            headers=[*passed, *own.items()],
            content=request.stream() if has_body else None,
        )
        try:
            answer = await self._client.send(outgoing, stream=True)
        except httpx2.HTTPError as error:
            raise DeploymentUnavailableError(
                "what runs there does not answer",
                why=str(error) or type(error).__name__,
                fix="ask again; llamactl deployments list says how it stands",
            ) from error
        request.scope[ENDLESS] = True  # only the other side knows when it ends
        passed_back = [(name, value) for name, value in answer.headers.multi_items() if name not in HOP_BY_HOP]
        response = _Passed(answer)
        response.raw_headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in passed_back
        ]
        return response

    async def websocket(self, socket: WebSocket, url: str, *, headers: dict[str, str] | None = None) -> None:
        """Pass a WebSocket on to `url` until either side closes it."""
        protocols = socket.headers.get("sec-websocket-protocol")
        own = headers or {}
        passed = {
            name: value
            for name, value in socket.headers.items()
            if name not in HOP_BY_HOP | _OF_A_HANDSHAKE | own.keys() and not name.startswith("sec-websocket-")
        }
        try:
            upstream = await connect(
                url,
                subprotocols=[word.strip() for word in protocols.split(",")] if protocols else None,  # type: ignore[misc]
                additional_headers={**passed, **own},
                user_agent_header=None,
                compression=None,
                proxy=None,
                open_timeout=CONNECT_TIMEOUT_S,
                ping_interval=None,
                max_size=FRAME_BYTES_MAX,
            )
        except InvalidStatus as error:
            await _refuse(socket, error)
            return
        except (OSError, TimeoutError, EOFError, WebSocketException):
            await socket.close(TRY_AGAIN, "what runs there does not answer")
            return
        async with upstream:
            await socket.accept(upstream.subprotocol)
            await _both_ways(socket, upstream)


class _Passed(StreamingResponse):
    """An answer of the other side, which is let go of also where nobody is there any more to begin reading it."""

    def __init__(self, answer: httpx2.Response) -> None:
        super().__init__(answer.aiter_raw(), answer.status_code)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._answer.aclose()


async def _refuse(socket: WebSocket, error: InvalidStatus) -> None:
    """Refuse a handshake as the other side did, with its reasons."""
    from starlette.responses import Response

    answer = error.response
    media = answer.headers.get("content-type", "text/plain")
    await socket.send_denial_response(Response(answer.body or b"", answer.status_code, media_type=media))


async def _both_ways(socket: WebSocket, upstream: ClientConnection) -> None:
    up = asyncio.create_task(_upwards(socket, upstream))
    down = asyncio.create_task(_downwards(socket, upstream))
    try:
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        if up.done() and upstream.state is not State.OPEN:  # what it said before that is on its way still, and its end
            await asyncio.wait({down})
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)


async def _upwards(socket: WebSocket, upstream: ClientConnection) -> None:
    """From whoever connected to the server behind."""
    with contextlib.suppress(WebSocketDisconnect, ConnectionClosed):
        while True:
            message: dict[str, Any] = dict(await socket.receive())
            if message["type"] == "websocket.disconnect":
                return
            data = message.get("bytes")
            await upstream.send(data if data is not None else message["text"])


async def _downwards(socket: WebSocket, upstream: ClientConnection) -> None:
    """From the server behind to whoever connected; its end is passed on."""
    try:
        async for data in upstream:
            if isinstance(data, str):
                await socket.send_text(data)
            else:
                await socket.send_bytes(data)
    except (ConnectionClosed, WebSocketDisconnect):
        pass
    code = upstream.close_code
    sendable = code is not None and (code in {1000, 1001, 1011, 1012, 1013} or 3000 <= code <= 4999)  # noqa: PLR2004
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it is closed already
        await socket.close(code if sendable and code is not None else GOING_AWAY, upstream.close_reason or "")
