"""Threads for services whose code is not async: a bounded number of daemon threads per service.

Unlike `ThreadPoolExecutor`, a call that was given up (cancelled, past its deadline) does not take a place away from
the calls that follow, and a thread that never returns does not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any


class _Call:
    """One call of a function. `state` (waiting, running, done, given_up) is read and written under the pool's lock."""

    __slots__ = ("context", "ended", "function", "future", "loop", "state")

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.loop = asyncio.get_running_loop()
        self.context = contextvars.copy_context()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.state = "waiting"
        self.ended: asyncio.Future[None] | None = None
        """Where a cancelled caller waits for the end of the function."""


_here = threading.local()
"""`pool`: the pool that the present thread is of."""


def standing_by() -> contextlib.AbstractContextManager[None]:
    """While the present thread only waits; does nothing in a thread that is of no pool."""
    pool: WorkerThreads | None = getattr(_here, "pool", None)
    return pool.standing_by() if pool is not None else contextlib.nullcontext()


_Inbox = queue.SimpleQueue[_Call | None]
"""Where one idle thread waits for its next call; None ends the thread."""


class WorkerThreads:
    """At most `count` calls at the same time, each in a thread; a call beyond that waits for a free one.

    Threads are started when they are needed and end with `stop`.
    """

    def __init__(self, *, name: str, count: int) -> None:
        self._name = name
        self._count = count
        self._lock = threading.Lock()
        self._waiting: deque[_Call] = deque()
        self._idle: list[_Inbox] = []
        self._alive = 0
        self._given_up = 0
        self._standing_by = 0
        """Threads whose call waits for something else; they do not count meanwhile."""
        self._stopped = False
        self.returned: Callable[[], None] = lambda: None
        """Called in a thread whose call nobody waited for any more, once that has returned."""

    @property
    def given_up(self) -> int:
        """How many threads still run a call that nobody waits for."""
        return self._given_up

    async def call(self, function: Callable[[], Any], *, canceled: Callable[[], None] | None = None) -> Any:
        """Run `function` in a thread, with a copy of the caller's context variables; returns or raises what it does.

        When the caller is cancelled, a call that has not started never will, and one that runs is left to itself:
        its outcome is dropped. With `canceled`, that is called, and the function is waited for; only a second
        cancellation leaves it to itself.
        """
        call = _Call(function)
        with self._lock:
            if self._stopped:
                raise RuntimeError(f"the threads of {self._name} are stopped")
            self._place(call)
        try:
            return await call.future
        except asyncio.CancelledError:
            with self._lock:
                if canceled is None or call.state != "running":
                    self._give_up(call)
                    raise
                call.ended = call.loop.create_future()
            await self._wait_for_end(call, canceled)
            raise

    async def _wait_for_end(self, call: _Call, canceled: Callable[[], None]) -> None:
        """Until the function has ended, or the caller is cancelled once more."""
        assert call.ended is not None
        canceled()
        try:
            await call.ended
        except asyncio.CancelledError:
            with self._lock:
                self._give_up(call)
            raise

    def stop(self) -> None:
        """Let every thread end after its present call. Does not wait."""
        with self._lock:
            self._stopped = True
            while self._idle:
                self._idle.pop().put(None)

    @contextlib.contextmanager
    def standing_by(self) -> Iterator[None]:
        """The calling thread of this pool waits: another one may work in its place."""
        with self._lock:
            self._standing_by += 1
            if self._waiting:
                self._place(self._waiting.popleft())
        try:
            yield
        finally:
            with self._lock:
                self._standing_by -= 1

    def _counted(self) -> int:
        """Threads that count towards the limit."""
        return self._alive - self._given_up - self._standing_by

    def _place(self, call: _Call) -> None:
        """Give the call to an idle thread, or to a new one where the limit allows it. Called under the lock."""
        if self._idle:
            call.state = "running"
            self._idle.pop().put(call)
        elif self._counted() < self._count:
            call.state = "running"
            self._alive += 1
            threading.Thread(target=self._work, args=(call,), name=f"{self._name}-{self._alive}", daemon=True).start()
        else:
            self._waiting.append(call)

    def _give_up(self, call: _Call) -> None:
        """Called under the lock."""
        if call.state == "waiting":
            self._waiting.remove(call)
        elif call.state == "running":
            self._given_up += 1  # its thread does not count any more until it comes back
            if self._waiting:
                self._place(self._waiting.popleft())
        call.state = "given_up"

    def _work(self, first: _Call) -> None:
        _here.pool = self
        inbox: _Inbox = queue.SimpleQueue()
        call: _Call | None = first
        del first
        while call is not None:
            self._run(call)
            with self._lock:
                call = self._next_call(inbox)
            if call is None:
                call = inbox.get()

    def _next_call(self, inbox: _Inbox) -> _Call | None:
        """What this thread does next; where it is None, its inbox says so. Called under the lock."""
        if self._waiting and self._counted() <= self._count:
            call = self._waiting.popleft()
            call.state = "running"
            return call
        if self._stopped or self._counted() > self._count:
            self._alive -= 1
            inbox.put(None)
        else:
            self._idle.append(inbox)
        return None

    def _run(self, call: _Call) -> None:
        try:
            outcome, error = call.context.run(call.function), None
        except BaseException as raised:  # noqa: BLE001 - the caller gets whatever it is
            outcome, error = None, raised
        with self._lock:
            given_up, ended = call.state == "given_up", call.ended
            if given_up:
                self._given_up -= 1
            call.state = "done"
        if given_up:
            self.returned()
            return
        try:
            if ended is not None:
                call.loop.call_soon_threadsafe(_settle, ended, None, None)
            else:
                call.loop.call_soon_threadsafe(_settle, call.future, outcome, error)
        except RuntimeError:
            return  # the loop was closed: nobody waits any more


def _settle(future: asyncio.Future[Any], outcome: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(outcome)
    elif isinstance(error, StopIteration):  # a future refuses it
        future.set_exception(RuntimeError("the service raised StopIteration"))
    else:
        future.set_exception(error)
