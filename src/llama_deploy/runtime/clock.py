"""Time, as the rest of the system takes it: the time of day, and one kind of timer.

Everything that waits for time to pass (retry backoff, leases, deadlines) goes through a `Clock`, so that a test can
move time by hand and days pass in milliseconds. Waiting for *events* never goes through here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A callback that will run once unless it is canceled first."""

    def cancel(self) -> None:
        """Forget the callback; nothing happens when it has run already."""


LATE_S = 0.1
"""A timer that runs later than this shows that its process stood still: it was stopped, moved, or starved."""
PUT_OFF_MAX = 3
"""How often in a row something is put off because it came late, so that who is always late comes to it as well."""


def put_off_s(late_s: float, most_s: float) -> float:
    """How long to read what others have said before their silence counts, where a timer ran so late; 0 if not."""
    return min(most_s, 2 * late_s) if late_s > LATE_S else 0.0


class Clock(Protocol):
    """Where time comes from. All times are seconds since the epoch, UTC."""

    def now(self) -> float:
        """The time of day in seconds since the epoch."""
        ...

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` on the running event loop once `now() >= when`; at once when that is past."""
        ...


class SystemClock:
    """The machine's clock and the running event loop's timers."""

    def now(self) -> float:
        return time.time()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(max(0.0, when - time.time()), callback)


class SilenceTimer:
    """A timer whose callback takes the silence of others for their loss.

    Where it runs late, this process stood still, and what the others said meanwhile is there and unread: it is put off
    by at most `again_s` seconds then, in which that is read.
    """

    __slots__ = ("_again_s", "_callback", "_clock", "_due_at", "_put_off", "_timer")

    def __init__(self, clock: Clock, when: float, callback: Callable[[], None], *, again_s: float) -> None:
        self._clock = clock
        self._callback = callback
        self._again_s = again_s
        self._put_off = 0
        self._due_at = max(when, clock.now())
        self._timer = clock.call_at(self._due_at, self._fire)

    def _fire(self) -> None:
        now = self._clock.now()
        more_s = put_off_s(now - self._due_at, self._again_s) if self._put_off < PUT_OFF_MAX else 0.0
        if more_s:
            self._put_off += 1
            self._due_at = now + more_s
            self._timer = self._clock.call_at(self._due_at, self._fire)
        else:
            self._callback()

    def cancel(self) -> None:
        """Forget the callback."""
        self._timer.cancel()
