"""Running the control plane's application: uvicorn on a socket that is bound already (`listener.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn

from llama_deploy.control_plane.http.app import build_app
from llama_deploy.control_plane.http.lines import ENDLESS
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
        await super().shutdown(sockets)

    def stop(self) -> None:
        """Take no more connections and end those that there are."""
        self.should_exit = True
        self._stop.set()


@contextlib.asynccontextmanager
async def serving(plane: ControlPlane, listener: socket.socket) -> AsyncIterator[None]:
    """Serve a control plane's application on a bound socket for as long as the block runs."""
    application = build_app(plane)
    config = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="websockets-sansio",
        ws_max_size=FRAME_BYTES_MAX,
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=3,
        timeout_keep_alive=65,
        date_header=False,
    )
    server = _Server(config, application.app.state.closing)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        plane.refuse_new_work()
        server.stop()
        await task
