"""The WebSockets: of service instances, of clients, of other control planes. Frames in, frames out, nothing decided."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from llama_deploy.control_plane.http.access.guard import CALLER
from llama_deploy.control_plane.http.access.operations import Permitted
from llama_deploy.control_plane.http.access.tokens import ANYBODY
from llama_deploy.control_plane.http.problems import problem
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.errors import LlamaDeployError, ProtocolError, QueueFullError
from llama_deploy.messages.counting import decode_telling_frame
from llama_deploy.messages.frames import (
    PROTOCOL_VERSION,
    Refused,
    decode_client_frame,
    decode_instance_frame,
    frames_of,
)
from llama_deploy.runtime import failpoint
from llama_deploy.runtime.logs import get_logger
from llama_deploy.types.access import Scope

log = get_logger("llama_deploy.http")

router = APIRouter()

UNSENT_BYTES_MAX = 8 * 1024 * 1024
"""What waits for a slow peer before its streams pause."""
UNREAD_BYTES_MAX = 256 * 1024 * 1024
"""What waits for a peer that does not read at all before its connection is given up; it asks again if it comes back."""
CLOSING_S = 30.0
"""How long a peer may take to read what is left when its connection is closed."""


class _Sender:
    """Sends frames in order from one task per connection, so that whoever posts never waits."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._frames: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._closing = False
        self.patience = asyncio.timeout(None)
        """Within it the connection is served: it ends there when the peer does not take what it is sent."""
        self.task = asyncio.create_task(self._run())

    def send(self, operations: list[Any]) -> None:
        """Queue operations; they leave with the next frames."""
        if self._closing:
            return
        for frame in frames_of(operations):
            self._frames.append(frame)
            self._unsent_bytes += len(frame)
        if self._unsent_bytes > UNREAD_BYTES_MAX:
            log.warning("a peer does not read, its connection is given up", unsent_bytes=self._unsent_bytes)
            self._frames.clear()
            self._end(within_s=0.0)
        elif self._unsent_bytes > UNSENT_BYTES_MAX:
            self._room.clear()
        self._wake.set()

    def close(self) -> None:
        """Send what is queued, then close the connection."""
        self._end(within_s=CLOSING_S)

    def _end(self, *, within_s: float) -> None:
        if not self._closing:
            self._closing = True
            self._wake.set()
            self.patience.reschedule(asyncio.get_running_loop().time() + within_s)

    def ended(self) -> None:
        """The connection has ended: send nothing more. Repeating it does nothing."""
        self._closing = True
        self.task.cancel()

    async def room(self) -> None:
        """Wait until the peer has taken enough of what was sent."""
        await self._room.wait()

    async def _run(self) -> None:
        try:
            while True:
                while self._frames:
                    frame = self._frames.popleft()
                    await self._socket.send_bytes(frame)
                    failpoint("sockets.after_send")
                    self._unsent_bytes -= len(frame)
                    if self._unsent_bytes <= UNSENT_BYTES_MAX:
                        self._room.set()
                if self._closing:
                    await self._socket.close()
                    return
                await self._wake.wait()
                self._wake.clear()
        except (WebSocketDisconnect, RuntimeError, OSError):
            self._room.set()  # the peer is gone; the receiving side ends the connection


@router.websocket("/v1/connect/instance")
async def connect_instance(socket: WebSocket) -> None:
    """A service instance's connection."""
    plane: ControlPlane = socket.app.state.plane
    if not await _admitted(socket):
        return
    await socket.accept()
    sender = _Sender(socket)
    unserved = socket.scope.get(CALLER, ANYBODY).unserved
    async with _served(sender):
        port = plane.gateway.attach(sender.send, close=sender.close, unserved=unserved)
        try:
            await _receive(socket, sender, lambda data: port.receive(decode_instance_frame(data)))
        finally:
            port.closed()


@router.websocket("/v1/connect/client")
async def connect_client(socket: WebSocket) -> None:
    """A client's connection."""
    plane: ControlPlane = socket.app.state.plane
    most = plane.engine.settings.clients_max
    if len(plane.clients.ports) >= most:
        full = QueueFullError(
            f"{most} clients are connected",
            why=f"clients_max is {most}",
            fix="close clients that are done, let one client make many calls, or raise clients_max",
            setting="clients_max",
            limit=most,
        )
        await socket.send_denial_response(problem(full))
        return
    if not await _admitted(socket):
        return
    passed_on = socket.query_params.get("hops") is not None
    if passed_on and (refusal := socket.scope.get(CALLER, ANYBODY).refusal(Scope.ADMIN)) is not None:
        await socket.send_denial_response(problem(refusal))  # it bears what clients with any scope ask
        return
    await socket.accept()
    sender = _Sender(socket)
    async with _served(sender):
        port = plane.clients.attach(sender.send, room=sender.room, passed_on=passed_on)
        permitted = Permitted(socket.scope, port.refuse)
        try:
            await _receive(socket, sender, lambda data: port.receive(permitted(decode_client_frame(data))))
        finally:
            port.close()


@router.websocket("/v1/connect/control-plane")
async def connect_control_plane(socket: WebSocket) -> None:
    """The connection of another control plane of the store, for whose gates this one counts."""
    plane: ControlPlane = socket.app.state.plane
    if not await _admitted(socket):
        return
    if plane.counting is None:
        await socket.send_denial_response(
            problem(ProtocolError("this control plane has its store to itself", fix="start it with `shared: true`"))
        )
        return
    await socket.accept()
    sender = _Sender(socket)
    async with _served(sender):
        port = plane.counting.attach(sender.send)
        try:
            await _receive(socket, sender, lambda data: port.receive(decode_telling_frame(data)))
        finally:
            port.close()


async def _admitted(socket: WebSocket) -> bool:
    """Whether the connection is taken; where not, it is answered with the reason.

    Whoever names a protocol in the address names ours; instances name theirs in `Hello`.
    """
    protocol = socket.query_params.get("protocol", str(PROTOCOL_VERSION))
    if protocol != str(PROTOCOL_VERSION):
        error = ProtocolError(
            f"the client speaks protocol {protocol}, this control plane {PROTOCOL_VERSION}",
            fix="use the same version of llama_deploy on both sides",
        )
        await socket.send_denial_response(problem(error))
        return False
    return True


@asynccontextmanager
async def _served(sender: _Sender) -> AsyncIterator[None]:
    """Serve a connection within the block, which ends early where the peer does not take what it is sent."""
    try:
        async with sender.patience:
            try:
                yield
            finally:
                sender.ended()
    except TimeoutError:
        if not sender.patience.expired():
            raise


async def _receive(socket: WebSocket, sender: _Sender, take: Callable[[bytes], None]) -> None:
    """Take frames until the connection ends; what is no frame is answered with the reason and ends it."""
    while True:
        message = await socket.receive()
        if message["type"] != "websocket.receive":
            return
        data = message.get("bytes")
        try:
            if data is None:
                raise ProtocolError("text was sent where frames are expected", fix="use a client of llama_deploy")
            take(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            _refuse(sender, ProtocolError("what was sent is not a frame", why=str(error)))
            await sender.task
            return
        except LlamaDeployError as error:
            _refuse(sender, error)
            await sender.task
            return


def _refuse(sender: _Sender, error: LlamaDeployError) -> None:
    sender.send([Refused(0, msgspec.json.encode(error.to_problem()))])
    sender.close()
