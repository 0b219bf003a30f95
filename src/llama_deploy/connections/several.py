"""The transport to control planes that share one store, where any of them answers anything: one at a time.

It begins with one of them by chance, so that clients spread, and goes on with another one when that is gone. What was
under way then is repeated by whoever asked, as after any loss.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, TypeVar

from llama_deploy.connections.http_requests import REQUEST_TIMEOUT_S
from llama_deploy.connections.problems import TRANSIENT, cannot_reach
from llama_deploy.connections.transport import Lost, Receive, Transport
from llama_deploy.connections.websocket import WebSocketTransport
from llama_deploy.errors import CannotReachError, ConnectionLostError, LlamaDeployError, SettingError, ShuttingDownError
from llama_deploy.messages.frames import ClientOp
from llama_deploy.messages.problems import from_problem
from llama_deploy.runtime.credentials import Credentials

T = TypeVar("T")


def transport_to(
    url: str | Sequence[str], *, credentials: Credentials | None = None, request_timeout_s: float = REQUEST_TIMEOUT_S
) -> Transport:
    """The transport to the control plane at `url`; to several of one store, as a list or with commas between them.

    Raises `SettingError` for what is no URL of a control plane.
    """
    given = [url] if isinstance(url, str) else list(url)
    urls = [one.strip() for several in given for one in several.split(",") if one.strip()]
    if not urls:
        raise SettingError(f"{url!r} is not the URL of a control plane", fix="for example http://127.0.0.1:8000")
    transports = [
        WebSocketTransport(one, credentials=credentials, request_timeout_s=request_timeout_s)
        for one in dict.fromkeys(one.rstrip("/") for one in urls)
    ]
    return transports[0] if len(transports) == 1 else SeveralAddresses(transports)


class SeveralAddresses:
    """Fulfils `Transport` for the control planes behind `transports`, in an order that chance has made."""

    reconnects = True

    def __init__(self, transports: Sequence[WebSocketTransport]) -> None:
        self.address = ", ".join(transport.address for transport in transports)
        self._transports = list(transports)
        random.shuffle(self._transports)
        self._connected: WebSocketTransport | None = None

    async def connect(self, receive: Receive, lost: Lost) -> None:
        before, self._connected = self._connected, None
        if before is not None:  # it is gone, or has sent us away
            self._move_on_from(before)
            await before.disconnect()

        async def connect(transport: WebSocketTransport) -> None:
            await transport.connect(receive, lost)
            self._connected = transport

        await self._one_after_the_other(connect)

    def send(self, ops: list[ClientOp]) -> None:
        if self._connected is not None:
            self._connected.send(ops)

    def _move_on_from(self, transport: WebSocketTransport) -> None:
        """The next one's turn, unless it has come already."""
        if self._transports[0] is transport:
            self._transports.append(self._transports.pop(0))

    async def _one_after_the_other(
        self, work: Callable[[WebSocketTransport], Awaitable[T]], *, repeatable: bool = False
    ) -> T:
        """What the first control plane says that can be asked now.

        A refusal to be asked changes nothing; one that was asked and did not answer is only followed by another where
        asking twice does no harm. Raises what the last one says, or that nobody can be reached.
        """
        failure: LlamaDeployError | None = None
        for transport in tuple(self._transports):
            try:
                return await work(transport)
            except LlamaDeployError as error:
                self._move_on_from(transport)
                if error.category not in TRANSIENT or (isinstance(error, ConnectionLostError) and not repeatable):
                    raise
                failure = error
        assert failure is not None, "there is at least one"
        if isinstance(failure, CannotReachError):
            raise cannot_reach(self.address, failure.why) from failure
        raise failure

    async def request(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, json: Any = None
    ) -> tuple[int, Any]:
        async def ask(transport: WebSocketTransport) -> tuple[int, Any]:
            status, answer = await transport.request(method, path, params=params, json=json)
            if _is_leaving(status, answer):
                raise from_problem(answer)
            return status, answer

        try:
            return await self._one_after_the_other(ask, repeatable=method == "GET")
        except ShuttingDownError as error:  # all of them are stopping
            return HTTPStatus.SERVICE_UNAVAILABLE, error.to_problem()

    async def download(self, path: str) -> AsyncIterator[bytes]:
        async def begin(transport: WebSocketTransport) -> tuple[AsyncGenerator[bytes, None], bytes | None]:
            pieces = transport.download(path)
            return pieces, await anext(pieces, None)

        pieces, piece = await self._one_after_the_other(begin, repeatable=True)
        async with aclosing(pieces):
            while piece is not None:
                yield piece
                piece = await anext(pieces, None)

    async def exchange(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: AsyncIterator[bytes] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        async def ask(transport: WebSocketTransport) -> tuple[int, Mapping[str, str], bytes]:
            answer = await transport.exchange(method, path, params=params, headers=headers, content=content)
            if answer[0] == HTTPStatus.SERVICE_UNAVAILABLE:  # what was sent cannot be sent again from here
                self._move_on_from(transport)
            return answer

        return await self._one_after_the_other(ask, repeatable=method == "GET")

    async def close(self) -> None:
        for transport in self._transports:
            await transport.close()


def _is_leaving(status: int, problem: object) -> bool:
    """Whether a control plane refuses because it stops: nothing was changed, and another one may take it."""
    if status != HTTPStatus.SERVICE_UNAVAILABLE or not isinstance(problem, Mapping):
        return False
    return problem.get("code") == ShuttingDownError.code
