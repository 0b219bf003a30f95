"""The connections of a service instance: one to every control plane on the store, each kept up for ever.

They live in a thread and on a loop of their own, so that a handler that blocks its loop does not look dead: heartbeats,
acknowledgements and cancellations go on. Where control planes share a store, each tells which others there are; the
instance connects to all of them, and lets go of those that are listed by none and do not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from llama_deploy.errors import CannotReachError, Category, LlamaDeployError, ProtocolError, SettingError
from llama_deploy.messages.frames import FRAME_BYTES_MAX
from llama_deploy.messages.problems import from_problem
from llama_deploy.runtime.credentials import Credentials, known_by
from llama_deploy.runtime.logs import get_logger
from llama_deploy.services.adapters import as_service
from llama_deploy.services.line import CLOSE_TIMEOUT_S, CONNECT_TIMEOUT_S, Line
from llama_deploy.services.runner import Runner
from llama_deploy.services.steps import RunningStep

__all__ = ["CONNECT_TIMEOUT_S", "Link", "instance_url", "serve_services"]

log = get_logger("llama_deploy.link")


class Link(threading.Thread):
    """Keeps one runner connected to the control plane at `url`, and to all others that share its store.

    Of several URLs, separated by commas, any may be down: the first that answers tells of the others.
    """

    def __init__(
        self,
        runner: Runner,
        url: str,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        super().__init__(name="llama-deploy-link", daemon=True)
        self._runner = runner
        self._seeds = {_plain(one): one for one in map(str.strip, url.split(","))}
        for one in self._seeds.values():
            instance_url(one)  # raises before there is anything to be closed
        self._credentials = credentials or Credentials()
        self._tls: ssl.SSLContext | None = None
        self._work_loop = asyncio.get_running_loop()
        self._loop = loop or asyncio.new_event_loop()
        self._lines: dict[Line, asyncio.Task[None]] = {}
        self._stopped = asyncio.Event()
        self._failed: BaseException | None = None
        runner.stopping.watch = self._watch_from_work_loop
        self._first = [self._line(one) for one in self._seeds.values()]

    def _line(self, url: str) -> Line:
        return Line(
            self._runner,
            instance_url(url),
            work_loop=self._work_loop,
            loop=self._loop,
            open_=self._open,
            changed=self._changed,
        )

    @property
    def failure(self) -> str:
        """Why there is no connection; empty while there is one."""
        lines = list(self._lines)
        return "" if any(line.connected for line in lines) else next((line.failure for line in lines), "")

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
        """Send what is waiting, close the connections, end the thread."""
        with contextlib.suppress(RuntimeError):  # the thread has ended by itself: the instance was refused
            self._loop.call_soon_threadsafe(self._stopped.set)
        await asyncio.to_thread(self.join, 5.0)

    async def _keep_connected(self) -> None:
        first, self._first = self._first, []
        for line in first:
            self._begin(line)
        await self._stopped.wait()
        for line in self._lines:
            line.stop()
        await asyncio.gather(*self._lines.values(), return_exceptions=True)
        if self._failed is not None:
            raise self._failed

    async def _open(self, url: str) -> ClientConnection:
        """Open a connection; a simulation has its own."""
        return await connect(
            url,
            additional_headers=self._credentials.headers(),
            ssl=self._context() if url.startswith("wss:") else None,
            max_size=FRAME_BYTES_MAX,
            compression=None,
            ping_interval=None,
            open_timeout=CONNECT_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
        )

    def _context(self) -> ssl.SSLContext:
        """What TLS is spoken with, made when it is first needed."""
        self._tls = self._tls or self._credentials.ssl_context()
        return self._tls

    # --- which control planes there are -----------------------------------------------------------------------------

    def _begin(self, line: Line) -> None:
        task = self._lines[line] = asyncio.get_running_loop().create_task(line.keep_connected())
        task.add_done_callback(partial(self._ended, line))

    def _ended(self, line: Line, task: asyncio.Task[None]) -> None:
        """A line has ended: it was stopped, or refused. With the last one, or a defect, all of it ends."""
        del self._lines[line]
        if not task.cancelled() and task.exception() is not None:
            self._failed = task.exception()
        if line.refusal is not None and not any(one.connected for one in self._lines):
            self._work_loop.call_soon_threadsafe(self._runner.receive, [line.refusal], line.upstream)
            self._stopped.set()
        elif not self._lines or self._failed is not None:
            self._stopped.set()
        elif line.refusal is not None:
            log.warning("a control plane does not take this instance; others do", url=line.url, error=line.failure)
            self._work_loop.call_soon_threadsafe(self._runner.upstreams.detach, line.upstream)
        elif not self._work_loop.is_closed():
            self._work_loop.call_soon_threadsafe(self._runner.upstreams.detach, line.upstream)

    def _changed(self, line: Line) -> None:
        """A control plane is there, is gone, or has told who the others are: have a line to each of them, and no other.

        Nothing is let go while nobody is connected.
        """
        if self._stopped.is_set():
            return
        connected = [one for one in self._lines if one.connected]
        if line.connected and line.plane:  # the same control plane under another URL: one line is enough
            for other in connected:
                if other is not line and other.plane == line.plane:
                    line.stop()
                    return
        listed = {_plain(url) for one in connected for url in one.planes or ()}
        known = {_plain(url) for one in self._lines for url in (one.url, one.plane) if url}
        for url in listed - known:
            self._begin(self._line(url))
        if connected:
            for one in list(self._lines):
                reached = any(other.plane and _plain(other.plane) == _plain(one.url) for other in connected)
                if not one.connected and (reached or not {_plain(one.url), _plain(one.plane)} & listed):
                    one.stop()
        else:
            for url in self._seeds.keys() - known:
                self._begin(self._line(url))

    # --- signs of life ----------------------------------------------------------------------------------------------

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
            for line in self._lines:
                if line.upstream is step.upstream:
                    line.enqueue([answer])


def _plain(url: str) -> str:
    """A control plane's URL as it is compared with others."""
    rest = url.partition("://")[2].removesuffix("/v1/connect/instance").rstrip("/")
    secure = url.startswith(("https:", "wss:"))
    return f"{'https' if secure else 'http'}://{rest}" if rest else ""


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
    release: str = "",
    drain_timeout_s: float = 30.0,
    connect_timeout_s: float | None = None,
    token: str | None = None,
    credentials: Credentials | None = None,
    on_ready: Callable[[], None] | None = None,
    stop: asyncio.Event | None = None,
    leave: asyncio.Future[float | None] | None = None,
    handle_signals: bool = True,
) -> bool:
    """Serve functions, workflows or `Service` objects in this process until SIGTERM, SIGINT or `stop`.

    Connects to the control plane (`control_plane_url`, of several on one store separated by commas the first that is
    there, and then all of them) and stays connected: through its restarts too, since registration is repeated with
    every connection. At the end nothing new is taken and what is held is finished within `drain_timeout_s`, else
    handed back; true when all was finished. An operator (`llamactl services drain`) or the result of `leave` may have
    it leave so within another time. `on_ready` is called once, when they are registered. `handle_signals=False` leaves
    signals to the program. With `connect_timeout_s`, raises `CannotReachError` when there is no control plane by then.
    `release` names the release that this code is of (`Client.use_release`). `token` and `credentials` are those of
    `Client`; the token needs the scope `serve`, else `UnauthenticatedError` or `ForbiddenError` is raised.
    """
    credentials = known_by(token, credentials).checked()
    runner = Runner([as_service(service) for service in services], instance_id=instance_id)
    runner.release, stopping = release, stop or asyncio.Event()
    refusal: list[dict[str, Any]] = []

    def refused(problem: dict[str, Any]) -> None:
        refusal.append(problem)
        stopping.set()

    runner.refused = refused
    loop = asyncio.get_running_loop()
    leaving = leave or loop.create_future()

    def drain_requested(timeout_s: float | None) -> None:
        if not leaving.done():
            leaving.set_result(timeout_s)

    runner.drain_requested = drain_requested
    await runner.start()
    handled: list[signal.Signals] = []
    link: Link | None = None
    telling: asyncio.Task[None] | None = None
    try:
        handled = _handle_signals(loop, stopping) if handle_signals else []
        link = Link(runner, control_plane_url, credentials=credentials)
        link.start()
        telling = asyncio.create_task(_tell_ready(runner, on_ready)) if on_ready is not None else None
        if connect_timeout_s is not None:
            await _reached(runner, link, stopping, control_plane_url, connect_timeout_s)
        await _either(stopping, leaving)
        return await _left(runner, stopping, leaving, refusal, drain_timeout_s)
    except BaseException:  # it was cancelled, or cannot serve: nothing of it goes on
        await runner.drain(0.0)
        raise
    finally:
        if telling is not None:
            telling.cancel()
        if link is not None:
            await link.stop()
        for number in handled:
            loop.remove_signal_handler(number)


async def _left(
    runner: Runner,
    stopping: asyncio.Event,
    leaving: asyncio.Future[float | None],
    refusal: list[dict[str, Any]],
    drain_timeout_s: float,
) -> bool:
    """Finish what is held, and leave; true when all was finished. Raises what the control plane refuses with."""
    if refusal:
        raise _refused_with(refusal[0])
    if not stopping.is_set():
        asked_s = leaving.result()
        draining = asyncio.ensure_future(runner.drain(drain_timeout_s if asked_s is None else asked_s))
        try:
            await _either(stopping, draining)
            if draining.done():
                return draining.result()
        finally:
            draining.cancel()  # it was in no hurry; now it is
            await asyncio.gather(draining, return_exceptions=True)
    return await runner.drain(drain_timeout_s if runner.ready.is_set() else 0.1)


async def _reached(runner: Runner, link: Link, stopping: asyncio.Event, url: str, timeout_s: float) -> None:
    """Wait until the services are registered, or the instance is to end. Raises `CannotReachError`."""
    ready = asyncio.ensure_future(runner.ready.wait())
    try:
        async with asyncio.timeout(timeout_s):
            await _either(stopping, ready)
    except TimeoutError as error:
        raise CannotReachError(
            f"cannot reach the control plane at {url}", why=link.failure, fix="llamactl dev"
        ) from error
    finally:
        ready.cancel()


def _refused_with(problem: dict[str, Any]) -> LlamaDeployError:
    """What an instance ends with that the control plane does not take."""
    refusal = from_problem(problem)
    if refusal.category in (Category.UNAUTHORISED, Category.FORBIDDEN):
        return refusal
    return ProtocolError(refusal.what or "refused", why=refusal.why, fix=refusal.fix)


async def _either(stopping: asyncio.Event, other: asyncio.Future[Any]) -> None:
    """Wait until `stopping` is set or `other` is done; neither is touched."""
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait((stopped, other), return_when=asyncio.FIRST_COMPLETED)
    finally:
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
