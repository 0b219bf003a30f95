"""The transport to a control plane in the same process and on the same event loop: no sockets, no encoding.

Operations go straight to the control plane's gateway, rare requests straight to its HTTP application. There is no
connection that could break: it ends when the control plane does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol, TypeAlias

from llama_deploy.client.in_process_download import download
from llama_deploy.connections.http_requests import HttpRequests
from llama_deploy.connections.transport import Lost, Receive
from llama_deploy.messages.frames import ClientOp, ReplyOp


class ClientPort(Protocol):
    """One client's place at the control plane's gateway."""

    def receive(self, ops: list[ClientOp]) -> None:
        """Take operations in order. Replies may come during the call or later."""
        ...

    def close(self) -> None:
        """The client is gone; nothing more is sent to it. Repeating it is harmless."""
        ...


Attach: TypeAlias = Callable[[Callable[[list[ReplyOp]], None]], ClientPort]
"""What the gateway offers: takes the function that replies are given to, returns the client's port."""


class InProcessTransport:
    """Fulfils `Transport` for the control plane behind `attach`, whose HTTP application is `app`."""

    reconnects = False
    address = "this process"

    def __init__(self, attach: Attach, app: Any) -> None:
        self._attach = attach
        self._app = app
        self._port: ClientPort | None = None
        self._http = HttpRequests("http://in-process", app=app, trust_environment=False)

    async def connect(self, receive: Receive, lost: Lost) -> None:  # noqa: ARG002 - nothing here can be lost
        self._drop()
        self._port = self._attach(receive)

    def send(self, ops: list[ClientOp]) -> None:
        if self._port is not None:
            self._port.receive(ops)

    def _drop(self) -> None:
        if self._port is not None:
            port, self._port = self._port, None
            port.close()

    async def request(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, json: Any = None
    ) -> tuple[int, Any]:
        return await self._http.request(method, path, params=params, json=json)

    async def download(self, path: str) -> AsyncIterator[bytes]:
        async for piece in download(self._app, path):
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
        self._drop()
        await self._http.close()
