"""Running the control plane's application: uvicorn on a socket that is bound already (`listener.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State

from llama_deploy.control_plane.http.access.guard import Access, App, Guard
from llama_deploy.control_plane.http.access.scopes import ScopeTable
from llama_deploy.control_plane.http.app import build_app
from llama_deploy.control_plane.http.lines import ENDLESS
from llama_deploy.control_plane.http.protocol import CONNECTIONS_PER_ADDRESS_MAX, LimitedProtocol, LimitedWebSocket
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.messages.frames import FRAME_BYTES_MAX


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling and without its ten wake-ups a second: it stops when it is told."""

    def __init__(self, config: uvicorn.Config, closing: asyncio.Event) -> None:
        super().__init__(config)
        self._stop = asyncio.Event()
        self._closing = closing

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        await self.on_tick(0)  # sets up the default headers
        await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer who waits with what there is, and break off what has no end; then as uvicorn does it."""
        self._closing.set()
        for connection in tuple(self.server_state.connections):
            cycle = getattr(connection, "cycle", None)  # the request that it is at, if it is HTTP
            if cycle is not None and ENDLESS in cycle.scope and not cycle.response_complete:
                connection.transport.close()
            if isinstance(connection, WebSocketsSansIOProtocol) and connection.conn.state is not State.OPEN:
                connection.close_sent = True  # the peer closes it just now, and cannot be told to once more
        await super().shutdown(sockets)

    def stop(self) -> None:
        """Take no more connections and end those that there are."""
        self.should_exit = True
        self._stop.set()


@contextlib.asynccontextmanager
async def serving(
    plane: ControlPlane,
    listener: socket.socket,
    *,
    access: Access | None = None,
    tls: ssl.SSLContext | None = None,
    around: Callable[[App], App] | None = None,
) -> AsyncIterator[None]:
    """Serve a control plane's application on a bound socket for as long as the block runs.

    `access` says who may do what; without it, nobody is asked for a token. With `tls` nothing else is spoken. `around`
    is given the application, and makes of it what is served.
    """
    application = build_app(plane)
    async with serving_app(
        application if around is None else around(application),
        listener,
        closing=application.app.state.closing,
        access=access or Access(listens_on=listener.getsockname()[0]),
        tls=tls,
        per_address_max=plane.engine.settings.connections_per_address_max,
    ):
        try:
            yield
        finally:
            plane.refuse_new_work()


@contextlib.asynccontextmanager
async def serving_app(
    application: Any,
    listener: socket.socket,
    *,
    closing: asyncio.Event,
    access: Access,
    tls: ssl.SSLContext | None = None,
    scopes: ScopeTable | None = None,
    per_address_max: int = CONNECTIONS_PER_ADDRESS_MAX,
) -> AsyncIterator[None]:
    """Serve an application on a bound socket for as long as the block runs; `closing` is set when it ends.

    `access` says who may do what, and `scopes` what its routes ask for; by default it has a control plane's.
    `per_address_max` connections are taken from one address, of this machine's own any number.
    """
    config = uvicorn.Config(
        Guard(application, access, scopes, closing),
        http=type("Limited", (LimitedProtocol,), {"per_address_max": per_address_max}),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws=LimitedWebSocket,
        ws_max_size=FRAME_BYTES_MAX,
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=3,
        timeout_keep_alive=65,
        date_header=False,
        server_header=False,
    )
    config.load()
    config.ssl = tls
    server = _Server(config, closing)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.stop()
        await task
        access.audit.flush()
