"""A clock that stands still until a test moves it: leases, backoffs and deadlines of days pass in microseconds.

It moves time and nothing else. Waiting for events (an answer, a commit) is the event loop's business as ever.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

from llama_deploy.runtime import Timer


class ManualClock:
    """A `Clock` whose time is `start_s` (seconds since the epoch) until `advance` moves it."""

    def __init__(self, start_s: float = 1_700_000_000.0) -> None:
        self._now = start_s
        self._timers: list[tuple[float, int, _ManualTimer]] = []
        self._timers_set = 0

    @property
    def timers_waiting(self) -> int:
        """How many timers are set and neither due nor canceled."""
        return sum(timer.callback is not None for _, _, timer in self._timers)

    @property
    def next_at(self) -> float | None:
        """When the next timer falls due; `None` where none is set."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def now(self) -> float:
        return self._now

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` within the `advance` that reaches `when`; on the running loop, soon, when that is past."""
        if when <= self._now:
            return asyncio.get_running_loop().call_soon(callback)
        timer = _ManualTimer(callback)
        self._timers_set += 1
        heapq.heappush(self._timers, (when, self._timers_set, timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Move time forward and run every timer that falls due on the way, in order of time, then of setting.

        Each callback sees its own `when` as the time, so that a timer which it sets is still met on the way. An
        exception of a callback ends the advance there and reaches the caller.
        """
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds}")
        target = self._now + seconds
        while self._timers and self._timers[0][0] <= target:
            when, _, timer = heapq.heappop(self._timers)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                self._now = when
                callback()
        self._now = target

    def stand_still(self, seconds: float) -> None:
        """Let time pass while nothing runs, then run what has fallen due: as in a process that was stopped so long.

        Each callback sees the time of the end. An exception of one reaches the caller, and the rest runs later.
        """
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds}")
        self._now += seconds
        while self._timers and self._timers[0][0] <= self._now:
            callback, self._timers[0][2].callback = self._timers[0][2].callback, None
            heapq.heappop(self._timers)
            if callback is not None:
                callback()


class _ManualTimer:
    """A timer of `ManualClock`; without a callback once it has run or was canceled."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None
