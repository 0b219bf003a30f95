"""The connection of a service instance to its control plane: one WebSocket, kept up for ever.

It lives in a thread and on a loop of its own, so that a handler that blocks its loop does not look dead: heartbeats,
acknowledgements and cancellations go on. Whatever the connection loses is repeated by the runner after the next
`Welcome`.
"""

from __future__ import annotations

import asyncio
import random
import signal
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidURI, WebSocketException

from llama_deploy.errors import CannotReachError, ProtocolError, SettingError
from llama_deploy.messages.frames import (
    ControlOp,
    Disowned,
    Heartbeat,
    Refused,
    Welcome,
    decode_control_frame,
    encode_frame,
)
from llama_deploy.runtime.logs import get_logger
from llama_deploy.services.adapters import as_service
from llama_deploy.services.runner import Runner

log = get_logger("llama_deploy.link")

RECONNECT_S = (0.05, 2.0)
"""First and longest pause between attempts to connect; doubled each time, up to half of it taken off at random."""

FRAME_BYTES_MAX = 64 * 1024 * 1024


class Link(threading.Thread):
    """Keeps one runner connected to one control plane."""

    def __init__(self, runner: Runner, url: str) -> None:
        super().__init__(name="llama-deploy-link", daemon=True)
        self._runner = runner
        self._url = instance_url(url)
        self._work_loop = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        self._outgoing: list[Any] = []
        self._connection: ClientConnection | None = None
        self._flushing = False
        self._stopped = asyncio.Event()
        self._random = random.Random()  # noqa: S311 - jitter, not a secret
        self.failure = ""
        runner.send = self._send_from_work_loop

    def run(self) -> None:
        """The thread: connect, and connect again, until `stop`."""
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._keep_connected())
        finally:
            self._loop.close()

    async def stop(self) -> None:
        """Send what is waiting, close the connection, end the thread."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        await asyncio.to_thread(self.join, 5.0)

    async def _keep_connected(self) -> None:
        first, longest = RECONNECT_S
        pause = first
        while not self._stopped.is_set():
            try:
                async with connect(
                    self._url, max_size=FRAME_BYTES_MAX, compression=None, ping_interval=None, open_timeout=5.0
                ) as connection:
                    await self._serve(connection)
                    pause = first
            except (OSError, TimeoutError, WebSocketException) as error:
                if not self.failure:
                    log.warning("cannot reach the control plane, trying again", url=self._url, error=str(error))
                self.failure = str(error) or type(error).__name__
                if isinstance(error, InvalidHandshake | InvalidURI):
                    pause = longest
            self._connection = None
            self._work_loop.call_soon_threadsafe(self._runner.disconnected)
            try:
                async with asyncio.timeout(pause * self._random.uniform(0.5, 1.0)):
                    await self._stopped.wait()
            except TimeoutError:
                pause = min(longest, pause * 2)

    async def _serve(self, connection: ClientConnection) -> None:
        self._outgoing.clear()
        await connection.send(encode_frame([self._runner.hello()]))
        self._connection = connection
        heartbeat: asyncio.Task[None] | None = None
        stop = asyncio.create_task(self._close_when_stopped(connection))
        try:
            async for data in connection:
                if isinstance(data, str):
                    raise ProtocolError("the control plane sent text where frames are expected")
                try:
                    operations = decode_control_frame(data)
                except msgspec.DecodeError as error:
                    raise ProtocolError("the control plane sent what is not a frame", why=str(error)) from error
                if heartbeat is None and isinstance(operations[0], Welcome):
                    if self.failure:
                        log.info("connected to the control plane again", url=self._url)
                    self.failure = ""
                    heartbeat = asyncio.create_task(self._beat(connection, operations[0].heartbeat_s))
                self._pass_on(operations)
        finally:
            stop.cancel()
            if heartbeat is not None:
                heartbeat.cancel()

    def _pass_on(self, operations: Sequence[ControlOp]) -> None:
        wanted = [op for op in operations if not isinstance(op, Disowned) or op.step_ids]
        if wanted:
            self._work_loop.call_soon_threadsafe(self._runner.receive, wanted)
        for operation in operations:
            if isinstance(operation, Refused):
                self._stopped.set()

    async def _close_when_stopped(self, connection: ClientConnection) -> None:
        await self._stopped.wait()
        await self._flush(connection)
        await connection.close()

    async def _beat(self, connection: ClientConnection, interval_s: float) -> None:
        """Say that the instance lives, whatever its handlers are doing."""
        while True:
            await asyncio.sleep(interval_s)
            await connection.send(encode_frame([Heartbeat(self._runner.held())]))

    def _send_from_work_loop(self, operations: list[Any]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._enqueue, operations)

    def _enqueue(self, operations: list[Any]) -> None:
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
        operations, self._outgoing = self._outgoing, []
        if operations:
            await connection.send(encode_frame(operations))


def instance_url(url: str) -> str:
    """The WebSocket address of a control plane's URL (`http`, `https`, `ws` or `wss`). Raises `SettingError`."""
    scheme, separator, rest = url.partition("://")
    schemes = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
    if not separator or scheme not in schemes or not rest:
        raise SettingError(f"{url!r} is not the URL of a control plane", fix="use a URL like http://127.0.0.1:8000")
    return f"{schemes[scheme]}://{rest.rstrip('/')}/v1/connect/instance"


async def serve_services(
    services: Sequence[Any],
    *,
    control_plane_url: str = "http://127.0.0.1:8000",
    instance_id: str | None = None,
    drain_timeout_s: float = 30.0,
    connect_timeout_s: float | None = None,
    stop: asyncio.Event | None = None,
) -> bool:
    """Serve functions, workflows or `Service` objects in this process until SIGTERM, SIGINT or `stop`.

    Connects to the control plane and stays connected: through its restarts too, since registration is repeated with
    every connection. At the end nothing new is taken and what is held is finished within `drain_timeout_s`, else
    handed back; true when all was finished. With `connect_timeout_s`, raises `CannotReachError` when there is no
    control plane by then; without, it keeps trying.
    """
    runner = Runner([as_service(service) for service in services], instance_id=instance_id)
    stopping = stop or asyncio.Event()
    refusal: list[dict[str, Any]] = []

    def refused(problem: dict[str, Any]) -> None:
        refusal.append(problem)
        stopping.set()

    runner.refused = refused
    runner.drain_requested = stopping.set
    await runner.start()
    loop = asyncio.get_running_loop()
    handled = _handle_signals(loop, stopping)
    link = Link(runner, control_plane_url)
    link.start()
    try:
        if connect_timeout_s is not None:
            try:
                async with asyncio.timeout(connect_timeout_s):
                    await runner.ready.wait()
            except TimeoutError as error:
                raise CannotReachError(
                    f"cannot reach the control plane at {control_plane_url}", why=link.failure, fix="llamactl dev"
                ) from error
        await stopping.wait()
        if refusal:
            raise ProtocolError(refusal[0].get("what", "refused"), why=refusal[0].get("why", ""))
        return await runner.drain(drain_timeout_s if runner.ready.is_set() else 0.1)
    finally:
        await link.stop()
        for number in handled:
            loop.remove_signal_handler(number)


def _handle_signals(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event) -> list[signal.Signals]:
    """SIGTERM and SIGINT ask for a clean end; outside of the main thread signals are somebody else's."""
    if threading.current_thread() is not threading.main_thread():
        return []
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return [signal.SIGTERM, signal.SIGINT]
