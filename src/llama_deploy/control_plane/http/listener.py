"""The socket on which a control plane listens: where it may be bound, and how it is told apart from a dead one's.

It is bound before anything starts, so whoever connects meanwhile waits instead of failing. Serving it is `server.py`'s
affair, which takes much longer to import.
"""

from __future__ import annotations

import errno
import socket

from llama_deploy.control_plane.http.access.places import is_loopback
from llama_deploy.errors import PortInUseError, SettingError, UnsafeListenError

PORT_MAX = 65_535

KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""After 30 seconds of silence a connection is tested every 10 seconds; after 3 tests without an answer it is dead."""


def bind(host: str, port: int, *, allow_remote: bool = False) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises `PortInUseError`, `SettingError` for an address that is none, and `UnsafeListenError` for one beyond
    loopback unless `allow_remote`: without tokens whoever reaches the port may use everything.
    """
    if not allow_remote and not is_loopback(host):
        raise UnsafeListenError(
            f"{host} can be reached from other machines, and there is no authentication",
            why="no token is configured",
            fix="llamactl tokens create     ask for tokens, which go under `access` of the deployment file\n"
            "listen on 127.0.0.1, or pass --allow-remote where a firewall or proxy protects it",
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
