"""An event loop whose time is simulated, and the processes that live on it.

Nothing here sleeps: when nothing is ready, time jumps to the next timer. A `Process` is a context: every callback and
task that starts in it belongs to it, so a process that is killed never runs another instruction, and one that is
frozen runs none until it is thawed. Callbacks of one process run in order, as on any loop; those of different
processes are interleaved by the seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import random
import traceback
import zlib
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

_current: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)

START_S = 1_700_000_000.0
"""The time of day at which a run begins."""
TICK_S = 1e-6
"""Simulated seconds that a round of callbacks takes, so that time never stands still."""


class Killed(BaseException):
    """Unwinds what a process was doing when it was killed in the middle of it; nothing may come of it."""


class Stuck(Exception):  # noqa: N818 - it says what the run is
    """A run that does not end: nothing is left to do, or there is no end to what is done."""


class Process:
    """Something that can die, freeze and have its own idea of the time of day: a control plane, an instance, a client.

    `kill` may be called from within, by a failpoint: the caller then raises `Killed`.
    """

    def __init__(self, loop: SimulatedLoop, name: str) -> None:
        self.loop = loop
        self.name = name
        self.dead = False
        self.frozen = False
        self.clock_offset_s = 0.0
        """What was added to this process's time of day by jumps of its clock."""
        self.at_death: list[Callable[[], None]] = []
        """Called once when it is killed: its connections break, what it has not written is lost."""
        self.held: list[asyncio.Handle] = []
        """What would have run while it was frozen."""
        self.context = contextvars.copy_context()
        self.context.run(_current.set, self)

    def spawn(self, work: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        """Run a coroutine function in this process, soon."""
        self.loop.call_soon(self._start, work, args, context=self.context)

    def _start(self, work: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...]) -> None:
        self.loop.create_task(work(*args))

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        """Run a callback in this process, soon."""
        self.loop.call_soon(callback, *args, context=self.context)

    def kill(self) -> None:
        """End it at once. Repeating it does nothing."""
        if not self.dead:
            self.dead = True
            self.loop.bury(self.held)
            self.held = []
            self.loop.note("killed", self.name)
            for callback in self.at_death:
                callback()

    def freeze(self) -> None:
        """Stop it where it stands (SIGSTOP); what falls due waits."""
        self.frozen = True
        self.loop.note("frozen", self.name)

    def thaw(self) -> None:
        """Let it go on (SIGCONT): everything that fell due meanwhile runs now."""
        if self.frozen and not self.dead:
            self.frozen = False
            self.loop.note("thawed", self.name)
            held, self.held = self.held, []
            self.loop.put_back(held)


class SimulatedLoop(asyncio.BaseEventLoop):
    """A loop with simulated time, driven by a seed; see the module."""

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, seed: int, *, steps_max: int = 300_000, shuffle: bool = True) -> None:
        super().__init__()
        self.set_debug(False)
        self._now = 0.0
        self._chance = random.Random(seed)
        self._shuffle = shuffle
        self._steps_max = steps_max
        self.steps = 0
        """Callbacks that were run."""
        self.process: Process | None = None
        """The process that runs now."""
        self.trace = 0
        """A checksum of everything that was noted: two runs with the same one have gone the same way."""
        self.notes: list[str] | None = None
        """What was noted, as text, where that is kept."""
        self.errors: list[str] = []
        """What living processes have left unhandled."""
        self._processes: dict[str, Process] = {}
        self._graves: list[asyncio.Handle] = []
        """What dead processes would have run, kept so that nothing is taken apart in the middle of a run."""

    def new_process(self, name: str) -> Process:
        """A process; a further one of the same name is the next incarnation."""
        number = sum(known.partition("#")[0] == name for known in self._processes)
        process = Process(self, f"{name}#{number + 1}" if number else name)
        self._processes[process.name] = process
        return process

    def note(self, *words: object) -> None:
        """Add to the trace."""
        text = f"{self._now:.6f} {' '.join(map(str, words))}"
        self.trace = zlib.crc32(text.encode(), self.trace)
        if self.notes is not None:
            self.notes.append(text)

    # --- what asyncio asks of a loop --------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def create_task(self, coro: Any, **options: Any) -> Any:
        task = super().create_task(coro, **options)
        process = _current.get()
        if process is not None:
            task.set_name(process.name)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """Run it in this thread, a little later: what a thread would do in its own time."""
        del executor
        future: asyncio.Future[Any] = self.create_future()

        def work() -> None:
            if future.cancelled():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:  # noqa: BLE001 - whoever waits gets it
                future.set_exception(error)

        self.call_later(self._chance.uniform(0.0, 0.002), work)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What nobody handled is an error of the run, unless a dead process left it behind."""
        task = context.get("task") or context.get("future")
        owner = self.process
        if isinstance(task, asyncio.Task):
            owner = self._processes.get(task.get_name())
        error = context.get("exception")
        if isinstance(error, Killed) or owner is None or owner.dead:
            return
        self.errors.append(f"{owner.name}: {context.get('message')}: {in_words(error)}")

    def _write_to_self(self) -> None:
        """Nothing waits outside of this thread."""

    def _process_events(self, _: Any) -> None:
        """There are no sockets."""

    # --- the heart --------------------------------------------------------------------------------------------------

    def put_back(self, handles: list[asyncio.Handle]) -> None:
        """Have these run before what is ready."""
        self._ready.extendleft(reversed(handles))

    def bury(self, handles: list[asyncio.Handle]) -> None:
        """These will never run."""
        self._graves += handles

    def _run_once(self) -> None:
        self._pass_time()
        handles = list(self._ready)
        self._ready.clear()
        self.steps += len(handles)
        if self.steps > self._steps_max:
            raise Stuck(f"no end after {self.steps} callbacks, at {self._now:.3f} s")
        for handle in self._interleaved(handles) if self._shuffle and len(handles) > 1 else handles:
            if handle.cancelled():
                continue
            process = _process_of(handle)
            if process is None:
                handle._run()
            elif process.frozen:
                process.held.append(handle)
            elif process.dead:
                self._graves.append(handle)
            else:
                self.process = process
                handle._run()
                self.process = None

    def _pass_time(self) -> None:
        """Go on to the next moment at which something happens; what is due then is ready."""
        scheduled, ready = self._scheduled, self._ready
        if ready:
            self._now += TICK_S
        else:
            while scheduled and scheduled[0].cancelled():
                heapq.heappop(scheduled)
            if not scheduled:
                raise Stuck("nothing will ever happen again")
            self._now = max(self._now, scheduled[0].when())
        while scheduled and scheduled[0].when() <= self._now:
            timer = heapq.heappop(scheduled)
            if not timer.cancelled():
                ready.append(timer)

    def _interleaved(self, handles: list[asyncio.Handle]) -> list[asyncio.Handle]:
        """The handles in an order that keeps that of each process."""
        queues: dict[Process | None, deque[asyncio.Handle]] = {}
        for handle in handles:
            queues.setdefault(_process_of(handle), deque()).append(handle)
        if len(queues) == 1:
            return handles
        order: list[asyncio.Handle] = []
        waiting = list(queues.values())
        while waiting:
            chosen = waiting[int(self._chance.random() * len(waiting))]
            order.append(chosen.popleft())
            if not chosen:
                waiting.remove(chosen)
        return order

    def discard(self) -> None:
        """Forget everything that is still pending, and close."""
        for process in self._processes.values():
            process.dead = True
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine: Any = task.get_coro()
            with contextlib.suppress(Exception, Killed):  # the clean-up of what is abandoned has nowhere to go
                coroutine.close()
        self._ready.clear()
        self._scheduled.clear()
        self._graves.clear()
        self.close()


def in_words(error: BaseException | None) -> str:
    """An exception, and the last places that it came through."""
    if error is None:
        return ""
    places = traceback.extract_tb(error.__traceback__)[-4:]
    return f"{error!r} at " + ", ".join(f"{Path(p.filename).name}:{p.lineno} {p.name}" for p in reversed(places))


def _process_of(handle: asyncio.Handle) -> Process | None:
    context: contextvars.Context = handle._context  # type: ignore[attr-defined]
    return context.get(_current)


class ProcessClock:
    """The time of day of one process: a `Clock`, as the machine's, which may jump."""

    def __init__(self, process: Process, start_s: float = START_S) -> None:
        self._process = process
        self._start_s = start_s

    def now(self) -> float:
        process = self._process
        return self._start_s + process.loop.time() + process.clock_offset_s

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Run `callback` when the time has passed that is missing now; a later jump does not move it."""
        return self._process.loop.call_later(max(0.0, when - self.now()), callback)
