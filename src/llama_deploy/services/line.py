"""One connection of a service instance to one control plane: a WebSocket, kept up for ever.

A control plane that does not answer heartbeats is taken for gone, like one that closes. Whatever the connection loses
is repeated by the runner after the next `Welcome`. The thread and the loop that it lives on are the link's.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI, WebSocketException

from llama_deploy.errors import ProtocolError, SettingError
from llama_deploy.messages.frames import (
    ControlOp,
    Disowned,
    Heartbeat,
    Refused,
    Welcome,
    decode_control_frame,
    encode_frame,
    frames_of,
)
from llama_deploy.messages.mesh import Planes
from llama_deploy.runtime import LATE_S, PUT_OFF_MAX, failpoint
from llama_deploy.runtime.logs import get_logger
from llama_deploy.services.runner import Runner
from llama_deploy.services.upstream import Upstream

log = get_logger("llama_deploy.link")

RECONNECT_S = (0.05, 0.5)
"""First and longest pause between attempts to connect; doubled each time, up to half of it taken off at random. A
control plane that starts again waits twice the longest for its instances (`recovery_grace_s`)."""

REFUSED_PAUSE_S = 5.0
"""Pause before an instance whose token was taken once, and is not any more, tries again."""

CONNECT_TIMEOUT_S = 5.0
"""How long one attempt to connect may take."""

WELCOME_TIMEOUT_S = 30.0
"""How long the control plane may take to answer the first operation of a connection."""

CLOSE_TIMEOUT_S = 2.0
"""How long the closing handshake may take before the socket is dropped."""


class Line:
    """Keeps one runner connected to one control plane, on the loop of its link."""

    def __init__(
        self,
        runner: Runner,
        url: str,
        *,
        work_loop: asyncio.AbstractEventLoop,
        loop: asyncio.AbstractEventLoop,
        open_: Callable[[str], Awaitable[Any]],
        changed: Callable[[Line], None],
    ) -> None:
        self._runner = runner
        self.url = url
        self.plane = ""
        """The URL that the control plane gives for itself; empty where it has not said one."""
        self.planes: list[str] | None = None
        """The URLs of all control planes on its store, as it said last; `None` while it has said none."""
        self.connected = False
        """Whether the instance is registered there."""
        self.refusal: Refused | None = None
        """Why the control plane does not want the instance."""
        self.failure = ""
        """Why there is no connection; empty while there is one."""
        self._changed = changed
        self._open = open_
        self._work_loop = work_loop
        self._loop = loop
        self._outgoing: list[Any] = []
        self._connection: ClientConnection | None = None
        self._flushing = False
        self._stopped = asyncio.Event()
        self._heard_at = 0.0
        self._pause_s = RECONNECT_S[0]
        self._welcomed = False
        self.upstream = Upstream(self._send_from_work_loop)
        work_loop.call_soon_threadsafe(runner.upstreams.attach, self.upstream)

    def stop(self) -> None:
        """Send what is waiting, close the connection, and do not connect again."""
        self._stopped.set()

    async def keep_connected(self) -> None:
        """Connect, and connect again, until `stop`."""
        while not self._stopped.is_set():
            try:
                connection = await self._connect()
                if connection is not None:
                    async with connection:
                        await self._serve(connection)
            except (OSError, TimeoutError, WebSocketException, ProtocolError, SettingError) as error:
                if not self.failure:
                    log.warning("cannot reach the control plane, trying again", url=self.url, error=str(error))
                self.failure = str(error) or type(error).__name__
                if isinstance(error, InvalidHandshake | InvalidURI | ProtocolError):
                    self._pause_s = RECONNECT_S[1]
                if isinstance(error, InvalidStatus):
                    self._not_let_in(error)
            self._connection = None
            self._work_loop.call_soon_threadsafe(self._runner.disconnected, self.upstream)
            if self.connected:
                self.connected = False
                self._changed(self)
            try:
                async with asyncio.timeout(self._pause_s * random.uniform(0.5, 1.0)):  # noqa: S311 - jitter, no secret
                    await self._stopped.wait()
            except TimeoutError:
                self._pause_s = min(RECONNECT_S[1], self._pause_s * 2)

    def _not_let_in(self, error: InvalidStatus) -> None:
        """Where the control plane refuses the token, the instance ends, unless it was let in before.

        Then the token may be changing on both sides, one after the other.
        """
        problem = bytes(error.response.body or b"")
        if error.response.status_code not in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return
        try:
            self.failure = str(msgspec.json.decode(problem)["what"])
        except (msgspec.DecodeError, TypeError, KeyError):
            return  # not a control plane's word
        if self._welcomed:
            self._pause_s = REFUSED_PAUSE_S
        else:
            self.refusal = Refused(0, problem)
            self._stopped.set()

    async def _opened(self) -> ClientConnection:
        connection: ClientConnection = await self._open(self.url)
        return connection

    async def _connect(self) -> ClientConnection | None:
        """A new connection, `None` when it is stopped meanwhile: one that hangs must not hold up the end."""
        connecting, stopped = asyncio.create_task(self._opened()), asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait((connecting, stopped), return_when=asyncio.FIRST_COMPLETED)
            return await connecting if connecting.done() else None
        finally:
            connecting.cancel()
            stopped.cancel()
            await asyncio.gather(connecting, stopped, return_exceptions=True)

    async def _serve(self, connection: ClientConnection) -> None:
        self._outgoing.clear()
        failpoint("link.connected")
        with contextlib.suppress(ConnectionClosed):  # what was said before is still to be read
            await connection.send(encode_frame([self._runner.hello()]))
        failpoint("link.greeted")
        self._connection = connection
        self._heard_at = self._loop.time()
        heartbeat: asyncio.Task[None] | None = None
        welcomed = asyncio.create_task(self._expect_welcome(connection))
        stop = asyncio.create_task(self._close_when_stopped(connection))
        try:
            async for data in connection:
                self._heard_at = self._loop.time()
                operations = _decoded(data)
                welcome = next((op for op in operations if isinstance(op, Welcome)), None)
                if heartbeat is None and welcome is not None:
                    if self.failure:
                        log.info("connected to the control plane again", url=self.url)
                    self.failure = ""
                    self._pause_s = RECONNECT_S[0]
                    self._welcomed = True
                    welcomed.cancel()
                    heartbeat = asyncio.create_task(self._beat(connection, welcome))
                self._pass_on(operations)
                self._hear_of_planes(operations)
        finally:
            stop.cancel()
            welcomed.cancel()
            if heartbeat is not None:
                heartbeat.cancel()

    def _hear_of_planes(self, operations: Sequence[ControlOp]) -> None:
        for operation in operations:
            if isinstance(operation, Welcome):
                self.plane, self.planes, self.connected = operation.plane, operation.planes, True
                self._changed(self)
            elif isinstance(operation, Planes):
                self.planes = operation.urls
                self._changed(self)

    def _pass_on(self, operations: Sequence[ControlOp]) -> None:
        for operation in operations:
            if isinstance(operation, Refused):
                self.refusal = operation
                self._stopped.set()
        wanted = [op for op in operations if not isinstance(op, Refused | Disowned) or _disowns(op)]
        if wanted:
            self._work_loop.call_soon_threadsafe(self._runner.receive, wanted, self.upstream)

    async def _close_when_stopped(self, connection: ClientConnection) -> None:
        await self._stopped.wait()
        await self._flush(connection)
        await connection.close()

    async def _expect_welcome(self, connection: ClientConnection) -> None:
        """Give up a connection on which the control plane never answers: nothing else would notice it."""
        for _ in range(1 + PUT_OFF_MAX):
            if await self._slept(WELCOME_TIMEOUT_S):
                break
        log.warning("the control plane does not answer, connecting again", url=self.url)
        connection.transport.abort()

    async def _slept(self, seconds: float) -> bool:
        """Let time pass; false where this process stood still, and what was said meanwhile is unread."""
        due_at = self._loop.time() + seconds
        await asyncio.sleep(seconds)
        return self._loop.time() - due_at <= LATE_S

    async def _beat(self, connection: ClientConnection, welcome: Welcome) -> None:
        """Say that the instance lives, whatever its handlers are doing, and hear whether the control plane does.

        Every heartbeat is answered. After a lease of silence the connection leads nowhere: a network was cut, and
        the sockets have not noticed.
        """
        while True:
            ran = await self._slept(welcome.heartbeat_s)
            silent_s = self._loop.time() - self._heard_at
            patience_s = (welcome.lease_s + welcome.heartbeat_s) * (1 if ran else 1 + PUT_OFF_MAX)
            if silent_s > patience_s:
                log.warning("the control plane is silent, connecting again", url=self.url, silent_s=round(silent_s, 1))
                connection.transport.abort()
                return
            await connection.send(encode_frame([Heartbeat(self._runner.held(self.upstream))]))

    def _send_from_work_loop(self, operations: list[Any]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.enqueue, operations)

    def enqueue(self, operations: list[Any]) -> None:
        """Send these; called on the link's loop."""
        self._outgoing.extend(operations)
        if not self._flushing and self._connection is not None:
            self._flushing = True
            self._loop.create_task(self._flush_all())

    async def _flush_all(self) -> None:
        try:
            while self._outgoing and self._connection is not None:
                await self._flush(self._connection)
        except WebSocketException:
            pass  # the receiving side sees the same and connects again; the runner repeats what was lost
        finally:
            self._flushing = False

    async def _flush(self, connection: ClientConnection) -> None:
        failpoint("link.before_send")
        operations, self._outgoing = self._outgoing, []
        for frame in frames_of(operations):
            await connection.send(frame)
        failpoint("link.after_send")


def _disowns(operation: ControlOp) -> bool:
    return isinstance(operation, Disowned) and bool(operation.step_ids)


def _decoded(data: str | bytes) -> list[ControlOp]:
    if isinstance(data, str):
        raise ProtocolError("the control plane sent text where frames are expected")
    try:
        return decode_control_frame(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("the control plane sent what is not a frame", why=str(error)) from error
