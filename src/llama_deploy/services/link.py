"""The connection of a service instance to its control plane: one WebSocket, kept up for ever.

It lives in a thread and on a loop of its own, so that a handler that blocks its loop does not look dead: heartbeats,
acknowledgements and cancellations go on. A control plane that does not answer heartbeats is taken for gone, like one
that closes. Whatever the connection loses is repeated by the runner after the next `Welcome`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI, WebSocketException

from llama_deploy.errors import CannotReachError, LlamaDeployError, ProtocolError, SettingError
from llama_deploy.messages.frames import (
    FRAME_BYTES_MAX,
    ControlOp,
    Disowned,
    Heartbeat,
    Refused,
    Welcome,
    decode_control_frame,
    encode_frame,
    frames_of,
)
from llama_deploy.runtime import failpoint
from llama_deploy.runtime.logs import get_logger
from llama_deploy.services.adapters import as_service
from llama_deploy.services.runner import Runner
from llama_deploy.services.steps import RunningStep

log = get_logger("llama_deploy.link")

RECONNECT_S = (0.05, 0.5)
"""First and longest pause between attempts to connect; doubled each time, up to half of it taken off at random. A
control plane that starts again waits twice the longest for its instances (`recovery_grace_s`)."""

CONNECT_TIMEOUT_S = 5.0
"""How long one attempt to connect may take."""

WELCOME_TIMEOUT_S = 30.0
"""How long the control plane may take to answer the first operation of a connection."""

CLOSE_TIMEOUT_S = 2.0
"""How long the closing handshake may take before the socket is dropped."""


class Link(threading.Thread):
    """Keeps one runner connected to one control plane."""

    def __init__(self, runner: Runner, url: str, *, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(name="llama-deploy-link", daemon=True)
        self._runner = runner
        self._url = instance_url(url)
        self._work_loop = asyncio.get_running_loop()
        self._loop = loop or asyncio.new_event_loop()
        self._outgoing: list[Any] = []
        self._connection: ClientConnection | None = None
        self._flushing = False
        self._stopped = asyncio.Event()
        self._heard_at = 0.0
        self._pause_s = RECONNECT_S[0]
        self.failure = ""
        """Why there is no connection; empty while there is one."""
        runner.send = self._send_from_work_loop
        runner.stopping.watch = self._watch_from_work_loop

    def run(self) -> None:
        """The thread: connect, and connect again, until `stop`."""
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._keep_connected())
        except Exception as error:  # the edge of the thread: an instance that is cut off must not look alive
            log.exception("the connection to the control plane failed for good")
            problem = LlamaDeployError("the connection to the control plane failed for good", why=repr(error))
            self._work_loop.call_soon_threadsafe(self._runner.refused, problem.to_problem())
        finally:
            self._loop.close()

    async def stop(self) -> None:
        """Send what is waiting, close the connection, end the thread."""
        with contextlib.suppress(RuntimeError):  # the thread has ended by itself: the instance was refused
            self._loop.call_soon_threadsafe(self._stopped.set)
        await asyncio.to_thread(self.join, 5.0)

    async def _keep_connected(self) -> None:
        while not self._stopped.is_set():
            try:
                connection = await self._connect()
                if connection is not None:
                    async with connection:
                        await self._serve(connection)
            except (OSError, TimeoutError, WebSocketException, ProtocolError) as error:
                if not self.failure:
                    log.warning("cannot reach the control plane, trying again", url=self._url, error=str(error))
                self.failure = str(error) or type(error).__name__
                if isinstance(error, InvalidHandshake | InvalidURI | ProtocolError):
                    self._pause_s = RECONNECT_S[1]
            self._connection = None
            self._work_loop.call_soon_threadsafe(self._runner.disconnected)
            try:
                async with asyncio.timeout(self._pause_s * random.uniform(0.5, 1.0)):  # noqa: S311 - jitter, no secret
                    await self._stopped.wait()
            except TimeoutError:
                self._pause_s = min(RECONNECT_S[1], self._pause_s * 2)

    async def _open(self) -> ClientConnection:
        """Open a connection; a simulation has its own."""
        return await connect(
            self._url,
            max_size=FRAME_BYTES_MAX,
            compression=None,
            ping_interval=None,
            open_timeout=CONNECT_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
        )

    async def _connect(self) -> ClientConnection | None:
        """A new connection, `None` when it is stopped meanwhile: one that hangs must not hold up the end."""
        connecting, stopped = asyncio.create_task(self._open()), asyncio.create_task(self._stopped.wait())
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
                        log.info("connected to the control plane again", url=self._url)
                    self.failure = ""
                    self._pause_s = RECONNECT_S[0]
                    welcomed.cancel()
                    heartbeat = asyncio.create_task(self._beat(connection, welcome))
                self._pass_on(operations)
        finally:
            stop.cancel()
            welcomed.cancel()
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

    async def _expect_welcome(self, connection: ClientConnection) -> None:
        """Give up a connection on which the control plane never answers: nothing else would notice it."""
        await asyncio.sleep(WELCOME_TIMEOUT_S)
        log.warning("the control plane does not answer, connecting again", url=self._url)
        connection.transport.abort()

    async def _beat(self, connection: ClientConnection, welcome: Welcome) -> None:
        """Say that the instance lives, whatever its handlers are doing, and hear whether the control plane does.

        Every heartbeat is answered. After a lease of silence the connection leads nowhere: a network was cut, and
        the sockets have not noticed.
        """
        while True:
            await asyncio.sleep(welcome.heartbeat_s)
            silent_s = self._loop.time() - self._heard_at
            if silent_s > welcome.lease_s + welcome.heartbeat_s:
                log.warning("the control plane is silent, connecting again", url=self._url, silent_s=round(silent_s, 1))
                connection.transport.abort()
                return
            await connection.send(encode_frame([Heartbeat(self._runner.held())]))

    def _watch_from_work_loop(self, step: RunningStep) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._watch, step)

    def _watch(self, step: RunningStep) -> None:
        """Look after a step that has to show signs of life, also while its handler blocks the loop that it runs on."""
        quiet_s = step.quiet_for_s()
        if quiet_s is None:
            return
        if quiet_s > 0:
            self._loop.call_later(quiet_s, self._watch, step)
        elif (answer := self._runner.stopping.silent(step)) is not None:
            self._enqueue([answer])

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
        failpoint("link.before_send")
        operations, self._outgoing = self._outgoing, []
        for frame in frames_of(operations):
            await connection.send(frame)
        failpoint("link.after_send")


def _decoded(data: str | bytes) -> list[ControlOp]:
    if isinstance(data, str):
        raise ProtocolError("the control plane sent text where frames are expected")
    try:
        return decode_control_frame(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("the control plane sent what is not a frame", why=str(error)) from error


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
    on_ready: Callable[[], None] | None = None,
    stop: asyncio.Event | None = None,
) -> bool:
    """Serve functions, workflows or `Service` objects in this process until SIGTERM, SIGINT or `stop`.

    Connects to the control plane and stays connected: through its restarts too, since registration is repeated with
    every connection. At the end nothing new is taken and what is held is finished within `drain_timeout_s`, else
    handed back; true when all was finished. An operator may have it leave in the same way
    (`llamactl services drain`), and says how long that may take. `on_ready` is called once, when the control plane
    has registered the services for the first time. With `connect_timeout_s`, raises `CannotReachError` when there is
    no control plane by then; without, it keeps trying.
    """
    runner = Runner([as_service(service) for service in services], instance_id=instance_id)
    stopping = stop or asyncio.Event()
    refusal: list[dict[str, Any]] = []

    def refused(problem: dict[str, Any]) -> None:
        refusal.append(problem)
        stopping.set()

    runner.refused = refused
    loop = asyncio.get_running_loop()
    leaving: asyncio.Future[float | None] = loop.create_future()

    def drain_requested(timeout_s: float | None) -> None:
        if not leaving.done():
            leaving.set_result(timeout_s)

    runner.drain_requested = drain_requested
    await runner.start()
    handled = _handle_signals(loop, stopping)
    link = Link(runner, control_plane_url)
    link.start()
    telling = asyncio.create_task(_tell_ready(runner, on_ready)) if on_ready is not None else None
    try:
        if connect_timeout_s is not None:
            try:
                async with asyncio.timeout(connect_timeout_s):
                    await runner.ready.wait()
            except TimeoutError as error:
                raise CannotReachError(
                    f"cannot reach the control plane at {control_plane_url}", why=link.failure, fix="llamactl dev"
                ) from error
        await _either(stopping, leaving)
        if refusal:
            problem = refusal[0]
            raise ProtocolError(problem.get("what", "refused"), why=problem.get("why", ""), fix=problem.get("fix", ""))
        if not stopping.is_set():
            asked_s = leaving.result()
            draining = asyncio.ensure_future(runner.drain(drain_timeout_s if asked_s is None else asked_s))
            await _either(stopping, draining)
            if draining.done():
                return draining.result()
            draining.cancel()  # it was in no hurry; now it is
            await asyncio.gather(draining, return_exceptions=True)
        return await runner.drain(drain_timeout_s if runner.ready.is_set() else 0.1)
    finally:
        if telling is not None:
            telling.cancel()
        await link.stop()
        for number in handled:
            loop.remove_signal_handler(number)


async def _either(stopping: asyncio.Event, other: asyncio.Future[Any]) -> None:
    """Wait until `stopping` is set or `other` is done; neither is touched."""
    stopped = asyncio.ensure_future(stopping.wait())
    await asyncio.wait((stopped, other), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    await asyncio.gather(stopped, return_exceptions=True)


async def _tell_ready(runner: Runner, on_ready: Callable[[], None]) -> None:
    await runner.ready.wait()
    on_ready()


def _handle_signals(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event) -> list[signal.Signals]:
    """SIGTERM and SIGINT ask for a clean end; outside of the main thread signals are somebody else's."""
    if threading.current_thread() is not threading.main_thread():
        return []
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return [signal.SIGTERM, signal.SIGINT]
