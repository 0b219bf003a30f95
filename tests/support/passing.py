"""Time that passes for the running event loop, without waiting for it: deadlines of hours are met in microseconds.

It is for what measures time by the loop itself, as the code of services does. What takes its time from a `Clock` is
given a `ManualClock`.
"""

from __future__ import annotations

import asyncio


async def time_passes(seconds: float) -> None:
    """Let the running loop's clock go forward, and what falls due within that time run.

    Nothing may wait with a deadline meanwhile that is not to be met: `eventually`, `asyncio.timeout`.
    """
    loop = asyncio.get_running_loop()
    before = loop.time
    loop.time = lambda: before() + seconds  # type: ignore[method-assign]
    for _ in range(3):  # a timer that is due may set another one that is
        await asyncio.sleep(0)
