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
