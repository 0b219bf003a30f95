"""The transport to a control plane at a URL: one WebSocket for the hot path, HTTP for the rest.

It encodes and decodes frames and tells apart what a failed connection means. It repeats nothing and keeps nothing
that was sent.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

import msgspec

from llama_deploy.connections.http_requests import REQUEST_TIMEOUT_S, HttpRequests
from llama_deploy.connections.problems import cannot_reach, error_from_problem, unexpected, unreachable
from llama_deploy.connections.transport import Lost, Receive
from llama_deploy.errors import LlamaDeployError, SettingError
from llama_deploy.messages.frames import FRAME_BYTES_MAX, PROTOCOL_VERSION, ClientOp, decode_reply_frame, frames_of
from llama_deploy.runtime.credentials import Credentials

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

CONNECT_PATH = "/v1/connect/client"
CONNECT_TIMEOUT_S = 10.0
"""How long one attempt to connect may take."""
CLOSE_TIMEOUT_S = 2.0
"""How long the closing handshake may take before the socket is dropped."""
PING_INTERVAL_S = 20.0
"""How often a silent connection is tested, and how long the answer may take."""


class WebSocketTransport:
    """Fulfils `Transport` for a control plane at `url` (`http://` or `https://`).

    `request_timeout_s` is how long a request may go without an answer, and an attempt to connect at most. With
    `passing_on` another control plane asks for its clients: no proxy is on the way, and what the one that is asked does
    not lead is refused there, not passed on once more. `connect_path` and `decode` are for other operations than those
    of clients.
    """

    reconnects = True

    def __init__(
        self,
        url: str,
        *,
        credentials: Credentials | None = None,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        passing_on: bool = False,
        connect_path: str = CONNECT_PATH,
        decode: Callable[[bytes], list[Any]] = decode_reply_frame,
    ) -> None:
        parts = _checked(url)
        self._decode = decode
        self.address = url.rstrip("/")
        secure = parts.scheme == "https"
        self._socket_url = f"{'wss' if secure else 'ws'}://{self.address.split('://', 1)[1]}{connect_path}"
        self._socket_url += f"?protocol={PROTOCOL_VERSION}" + ("&hops=1" if passing_on else "")
        self._through_proxy = not passing_on and not _is_loopback(parts.hostname or "")
        self._credentials = credentials or Credentials()
        self._timeout_s = request_timeout_s
        self._tls = self._credentials.ssl_context() if secure else None
        self._http = HttpRequests(
            self.address,
            trust_environment=self._through_proxy,
            credentials=self._credentials,
            timeout_s=request_timeout_s,
            tls=self._tls,
        )
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None

    async def connect(self, receive: Receive, lost: Lost) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        await self.disconnect()
        try:
            socket = await connect(
                self._socket_url,
                additional_headers=self._credentials.headers(),
                ssl=self._tls,
                compression=None,
                proxy=True if self._through_proxy else None,
                open_timeout=min(CONNECT_TIMEOUT_S, self._timeout_s),
                ping_interval=PING_INTERVAL_S,
                ping_timeout=PING_INTERVAL_S,
                close_timeout=CLOSE_TIMEOUT_S,
                max_size=FRAME_BYTES_MAX,
            )
        except (OSError, TimeoutError, EOFError, WebSocketException) as error:
            raise self._refusal(error) from error
        self._socket = socket
        self._reader = asyncio.get_running_loop().create_task(self._read(socket, receive, lost))

    def _refusal(self, error: Exception) -> LlamaDeployError:
        from websockets.exceptions import InvalidHandshake, InvalidStatus

        if isinstance(error, InvalidStatus):
            try:
                problem = msgspec.json.decode(error.response.body or b"null")
            except msgspec.DecodeError:
                problem = None
            status = error.response.status_code
            if problem is None and status == HTTPStatus.INTERNAL_SERVER_ERROR:
                # So ends a handshake that has begun when its server is told to stop.
                return cannot_reach(self.address, f"It broke the handshake off with HTTP {status}.")
            return error_from_problem(problem, status=status, address=self.address)
        if isinstance(error, InvalidHandshake) and not isinstance(error.__cause__, EOFError):
            return unexpected(f"no WebSocket handshake ({error})", self.address)
        return unreachable(self.address, error)

    async def _read(self, socket: ClientConnection, receive: Receive, lost: Lost) -> None:
        """Hand on what arrives until the connection ends, then tell it."""
        from websockets.exceptions import ConnectionClosed

        cause: Exception | None = None
        try:
            async for data in socket:
                if isinstance(data, str):
                    cause = unexpected("text in the place of a frame", self.address)
                    break
                ops = self._decode(data)
                if self._socket is not socket:
                    break
                receive(ops)
        except ConnectionClosed as error:
            cause = error
        except msgspec.DecodeError as error:
            cause = unexpected(f"not a frame ({error})", self.address)
        except Exception as error:  # noqa: BLE001 - the edge of this task: without it every waiter would wait for ever
            cause = LlamaDeployError("the client failed on a reply", why=repr(error))
        if self._socket is socket:
            self._socket = None
            lost(cause)
        await socket.close()

    def send(self, ops: list[ClientOp]) -> None:
        from websockets.asyncio.server import broadcast  # the library's way to send without waiting

        if self._socket is not None:
            for frame in frames_of(ops):
                broadcast((self._socket,), frame)

    async def disconnect(self) -> None:
        """Drop the connection, and no request; `lost` is not called. Repeating it is harmless."""
        socket, self._socket = self._socket, None
        reader, self._reader = self._reader, None
        if socket is not None:
            await socket.close()
        if reader is not None:
            await asyncio.wait((reader,))  # it may have been canceled, as everything is when a loop ends

    async def request(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, json: Any = None
    ) -> tuple[int, Any]:
        return await self._http.request(method, path, params=params, json=json)

    async def download(self, path: str) -> AsyncGenerator[bytes, None]:
        async for piece in self._http.download(path):
            yield piece

    async def exchange(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: AsyncIterator[bytes] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        return await self._http.exchange(method, path, params=params, headers=headers, content=content)

    async def close(self) -> None:
        await self.disconnect()
        await self._http.close()


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and not parts.query and not parts.fragment
        _ = parts.port  # raises for a port that is no number
    except ValueError:
        valid = False
    if not valid:
        raise SettingError(
            f"{url!r} is not the URL of a control plane",
            why="It starts with http:// or https:// and names a host, and a port where it is not the scheme's own.",
            fix=f"did you mean http://{url} ?" if _is_address(url) else "for example http://127.0.0.1:8000",
            setting="url",
        )
    return urlsplit(url)


def _is_address(text: str) -> bool:
    """Whether it is a URL that lacks nothing but its scheme."""
    try:
        parts = urlsplit(f"http://{text}")
        return "://" not in text and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
