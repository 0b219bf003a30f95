"""Keeps child processes running: one for one, permanent, with backoff and a bounded restart intensity (OTP's words).

A child that ends is started again, whatever its exit code, until it has ended too often in too short a time without
having been of use, or says with its exit code that another start cannot help; it has then *failed*, and its siblings
go on. What a child does is not known here. When this process dies, even by SIGKILL, so do the children
(`lifeline.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum

from llama_deploy.apiserver.child import ChildProcess, ChildSpec
from llama_deploy.runtime import Clock, SystemClock, Timer
from llama_deploy.runtime.lifeline import Guard

__all__ = ["ChildSpec", "ChildState", "ChildStatus", "RestartPolicy", "Supervisor", "write_to_stderr"]


class ChildState(str, Enum):
    """Where a child is in its life."""

    RUNNING = "running"
    BACKOFF = "backoff"
    """It has ended and will be started again when its pause is over."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    """Ended on request, or not started yet."""
    FAILED = "failed"
    """It ended too often, or for good; only `restart` starts it again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartPolicy:
    """How hard a child is kept alive. Times are seconds."""

    restarts_max: int = 8
    """The restart intensity: restarts within `period_s`; one more fails a child that has never been ready."""
    period_s: float = 60.0
    """Over how long restarts are counted."""
    initial_s: float = 0.25
    """Pause before the first restart; each further one within the period is `multiplier` times longer."""
    multiplier: float = 2.0
    cap_s: float = 10.0
    """The longest pause before a restart."""
    final_exit_codes: frozenset[int] = frozenset({2})
    """Exit codes that mean that a restart cannot help: 2 is an invalid file, setting or import path."""

    def pause_s(self, restarts: int) -> float:
        """Seconds to wait before a restart that follows `restarts` others within the period."""
        return min(self.cap_s, self.initial_s * self.multiplier**restarts)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChildStatus:
    """How a child stands, as `on_event` and `statuses` tell it."""

    name: str
    service: str
    state: ChildState
    pid: int | None = None
    ready: bool = False
    """Whether its process has said that it is ready; one that is to say so (`ChildSpec.tells_ready`) is not before."""
    restarts: int = 0
    """Restarts since the supervisor started it, or since it was last restarted on request."""
    ended: str = ""
    """How its last process ended, in words: `exit code 1`, `killed by SIGKILL`, or why it could not start."""
    last_lines: tuple[str, ...] = ()
    """What that process printed last."""
    pause_s: float = 0.0
    """Seconds until the next start, in the state `backoff`."""


class Supervisor:
    """Runs and restarts children. Its methods are for the thread of one event loop.

    `on_event` gets a child's status at each change of its state; `write` gets the children's output, line by line,
    each with the child's name in front (standard error by default). A `guard` that several share is stopped by whoever
    made it.
    """

    def __init__(
        self,
        specs: Iterable[ChildSpec],
        *,
        on_event: Callable[[ChildStatus], None] | None = None,
        policy: RestartPolicy | None = None,
        stop_timeout_s: float = 30.0,
        write: Callable[[str], None] | None = None,
        clock: Clock | None = None,
        guard: Guard | None = None,
    ) -> None:
        self._on_event = on_event or (lambda _status: None)
        self._house = _House(
            tell=self._tell,
            write=write or write_to_stderr,
            policy=policy or RestartPolicy(),
            stop_timeout_s=stop_timeout_s,
            clock=clock or SystemClock(),
            guard=guard or Guard(),
        )
        self._own_guard = guard is None
        self._changed = asyncio.Event()
        self._children: dict[str, _Child] = {}
        for spec in specs:
            self._add(spec)

    @property
    def statuses(self) -> tuple[ChildStatus, ...]:
        """How every child stands now."""
        return tuple(child.status for child in self._children.values())

    @property
    def specs(self) -> tuple[ChildSpec, ...]:
        """What every child runs."""
        return tuple(child.spec for child in self._children.values())

    async def start(self) -> None:
        """Start every child. Returns once the processes exist; whether they are ready is not known here."""
        self._house.closed = False
        self._house.guard.start()
        for child in list(self._children.values()):
            await child.start()

    async def stop(self) -> None:
        """Stop every child: SIGTERM, and SIGKILL after `stop_timeout_s`. Afterwards no process of theirs is left.

        Canceling it, or calling `kill` meanwhile, shortens the wait. Repeating it does nothing.
        """
        self._house.closed = True
        try:
            await asyncio.gather(*(child.stop() for child in list(self._children.values())))
        finally:
            if self._own_guard:
                self._house.guard.stop()

    def kill(self) -> None:
        """Kill every child now; `stop` then returns at once."""
        self._house.closed = True
        for child in self._children.values():
            child.kill()

    def proved(self, service: str) -> None:
        """The children of a service have been of use: when they end, they are started again however often they do.

        What makes them end may be one input, which a control plane gives up in the end; it has to find them for that.
        """
        self._house.proved.add(service)

    async def add(self, spec: ChildSpec) -> None:
        """Supervise one more child, and start it. Raises `ValueError` for a name that another one has."""
        self._house.guard.start()
        await self._add(spec).start()

    async def remove(self, name: str) -> None:
        """Stop a child and forget it; does nothing where there is none of that name, or none any more."""
        child = self._children.get(name)
        if child is not None:
            await child.stop()
            self._children.pop(name, None)

    async def retire(self, name: str, timeout_s: float) -> None:
        """Have a child finish all that it holds, and forget it when it has ended, which it has after `timeout_s`.

        It is not started again, however it ends. Canceling it leaves the child as it is, for `remove` or `stop`. Does
        nothing where there is none of that name any more.
        """
        child = self._children.get(name)
        if child is not None:
            await child.retire(timeout_s)
            self._children.pop(name, None)

    async def restart(self, name: str) -> None:
        """Stop a child and start it again, with a new restart budget; also one that has failed or was stopped.

        Raises `KeyError` for a name that no child has. Does nothing once the supervisor is stopping.
        """
        child = self._children[name]
        await child.stop()
        await child.start()

    async def replace(self, specs: Iterable[ChildSpec]) -> None:
        """Supervise these from now on: children that are gone are stopped, changed ones restarted, new ones started.

        A child whose spec is the same is not touched.
        """
        wanted = {spec.name: spec for spec in specs}
        changed = [name for name, child in self._children.items() if wanted.get(name) != child.spec]
        await asyncio.gather(*(self._children[name].stop() for name in changed))
        for name in changed:
            del self._children[name]
        for spec in wanted.values():
            if spec.name not in self._children:
                await self._add(spec).start()

    async def wait(self) -> None:
        """Wait until no child runs or will run again by itself: all have stopped or failed."""
        while True:
            self._changed.clear()
            if all(child.state in {ChildState.STOPPED, ChildState.FAILED} for child in self._children.values()):
                return
            await self._changed.wait()

    def _add(self, spec: ChildSpec) -> _Child:
        if spec.name in self._children:
            raise ValueError(f"two children are called {spec.name}")
        child = _Child(spec, self._house)
        self._children[spec.name] = child
        return child

    def _tell(self, status: ChildStatus) -> None:
        self._changed.set()
        self._on_event(status)


@dataclass(kw_only=True, slots=True)
class _House:
    """What the children of one supervisor share."""

    tell: Callable[[ChildStatus], None]
    write: Callable[[str], None]
    policy: RestartPolicy
    stop_timeout_s: float
    clock: Clock
    guard: Guard
    closed: bool = False
    """The supervisor is stopping: nothing is started any more."""
    proved: set[str] = field(default_factory=set)
    """Services whose children are started again without a limit."""


class _Child:
    """One place under the supervisor, and the processes that follow one another in it."""

    def __init__(self, spec: ChildSpec, house: _House) -> None:
        self.spec = spec
        self.state = ChildState.STOPPED
        self._house = house
        self._process: ChildProcess | None = None
        self._timer: Timer | None = None
        self._turn = asyncio.Lock()
        self._restarted_at: deque[float] = deque()
        self._restarts = 0
        self._pause_s = 0.0
        self._ended = ""
        self._ready = False

    @property
    def status(self) -> ChildStatus:
        running = self.state in {ChildState.RUNNING, ChildState.STOPPING}
        return ChildStatus(
            name=self.spec.name,
            service=self.spec.service,
            state=self.state,
            pid=self._process.pid if self._process is not None and running else None,
            ready=self._ready and self.state is ChildState.RUNNING,
            restarts=self._restarts,
            ended=self._ended,
            last_lines=self._process.last_lines if self._process is not None else (),
            pause_s=self._pause_s if self.state is ChildState.BACKOFF else 0.0,
        )

    async def start(self) -> None:
        async with self._turn:
            if self.state in {ChildState.STOPPED, ChildState.FAILED} and not self._house.closed:
                self._restarted_at.clear()
                self._restarts = 0
                self._run()

    async def stop(self) -> None:
        async with self._turn:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self.state in {ChildState.BACKOFF, ChildState.FAILED}:
                self._become(ChildState.STOPPED)
            elif self.state in {ChildState.RUNNING, ChildState.STOPPING}:
                await self._end()

    async def retire(self, timeout_s: float) -> None:
        told = self.spec.tells_ready and self._ready  # whoever says that it is ready knows how to retire
        if self.state is not ChildState.RUNNING or self._process is None or not told:
            await self.stop()  # it holds nothing
            return
        process, clock = self._process, self._house.clock
        self._become(ChildState.STOPPING)
        process.retire()
        deadline = clock.call_at(clock.now() + timeout_s, process.terminate)
        killing = clock.call_at(clock.now() + timeout_s + self._house.stop_timeout_s, process.kill)
        try:
            await process.ended()
        finally:
            deadline.cancel()
            killing.cancel()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    async def _end(self) -> None:
        """Ask the process to end, and see to it that it does, also when the wait is canceled."""
        assert self._process is not None, "a running child has a process"
        process, clock = self._process, self._house.clock
        self._become(ChildState.STOPPING)
        process.terminate()
        deadline = clock.call_at(clock.now() + self._house.stop_timeout_s, process.kill)
        try:
            await process.ended()
        except asyncio.CancelledError:
            process.kill()
            raise
        finally:
            deadline.cancel()

    def _run(self) -> None:
        self._timer = None
        house = self._house
        if house.closed:
            self._become(ChildState.STOPPED)
            return
        self._ready = not self.spec.tells_ready
        try:
            self._process = ChildProcess.start(
                self.spec, guard=house.guard, write=house.write, on_exit=self._exited, on_ready=self._is_ready
            )
        except OSError as error:
            self._ended = f"cannot start: {error}"
            self._again()
            return
        self._become(ChildState.RUNNING)

    def _is_ready(self) -> None:
        self._ready = True
        self._house.tell(self.status)

    def _exited(self, exit_code: int) -> None:
        self._ended = _in_words(exit_code)
        if self.state is ChildState.STOPPING or self._house.closed:
            self._become(ChildState.STOPPED)
        elif exit_code in self._house.policy.final_exit_codes:
            self._become(ChildState.FAILED)
        else:
            self._again()

    def _again(self) -> None:
        """Start the process again after a pause, unless that was done too often."""
        policy, clock = self._house.policy, self._house.clock
        now = clock.now()
        while self._restarted_at and self._restarted_at[0] <= now - policy.period_s:
            self._restarted_at.popleft()
        if len(self._restarted_at) >= policy.restarts_max and self.spec.service not in self._house.proved:
            self._become(ChildState.FAILED)
            return
        self._pause_s = policy.pause_s(len(self._restarted_at))
        self._restarted_at.append(now)
        self._restarts += 1
        self._timer = clock.call_at(now + self._pause_s, self._run)
        self._become(ChildState.BACKOFF)

    def _become(self, state: ChildState) -> None:
        self.state = state
        self._house.tell(self.status)


def _in_words(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"


def write_to_stderr(line: str) -> None:
    """Write a line of a child where this process writes its own; nobody minds where it cannot be written."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(line)
        sys.stderr.flush()
