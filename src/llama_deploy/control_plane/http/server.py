"""Running the control plane's application: uvicorn on a socket that is bound before anything starts."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn

from llama_deploy.control_plane.http.app import build_app
from llama_deploy.control_plane.http.lines import ENDLESS
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.errors import PortInUseError, SettingError, UnsafeListenError
from llama_deploy.messages.frames import FRAME_BYTES_MAX

PORT_MAX = 65_535

KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""After 30 seconds of silence a connection is tested every 10 seconds; after 3 tests without an answer it is dead."""


def bind(host: str, port: int, *, allow_remote: bool = False) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises `PortInUseError`, `SettingError` for an address that is none, and `UnsafeListenError` for one beyond
    loopback unless `allow_remote`: there is no authentication, so whoever reaches the port may use everything.
    """
    if not allow_remote and not _is_loopback(host):
        raise UnsafeListenError(
            f"{host} can be reached from other machines, and there is no authentication",
            fix="listen on 127.0.0.1, or pass --allow-remote where a firewall or proxy protects it",
        )
    if not 0 <= port <= PORT_MAX:  # the system would take the rest of a division, and listen there
        raise SettingError(f"cannot listen on {host}:{port}", why=f"a port is a number from 0 to {PORT_MAX}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SettingError(f"cannot listen on {host}:{port}", why=str(error)) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _notice_dead_peers(listener)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno != errno.EADDRINUSE:
            raise SettingError(f"cannot listen on {host}:{port}", why=str(error)) from error
        raise PortInUseError(
            f"port {port} on {host} cannot be used",
            why=str(error.strerror or error),
            fix=f"stop what listens there, or choose another port: --port {port % PORT_MAX + 1}",
        ) from error
    listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
    return listener


def _notice_dead_peers(listener: socket.socket) -> None:
    """Have the system test silent connections, so that a peer whose machine is gone is not kept for ever.

    Connections inherit it from the listener. Platforms without the finer settings use their own, which are slower.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in KEEPALIVE.items():
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
