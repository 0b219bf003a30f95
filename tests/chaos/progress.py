"""Waiting for what takes as long as the machine takes: it fails where nothing moves any more, never after a total.

A run is as slow as the machine that it shares with others. What tells a slow run from one that hangs is that something
of it moves: a task ends, a process uses its processor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

LOOK_AGAIN_S = 0.1
PROCESSOR_STEP_S = 0.2
"""A process that waits for something uses a little for its heartbeats; one that works uses more than this."""


class StandstillError(Exception):
    """Nothing has moved for as long as was granted."""


async def while_it_moves(
    done: Callable[[], bool | Awaitable[bool]], figure: Callable[[], object], *, still_s: float
) -> None:
    """Wait until `done()`. Raises `StandstillError` when `figure()` has not changed for `still_s` seconds."""
    last, since = figure(), time.monotonic()
    while True:
        found = done()
        if await found if isinstance(found, Awaitable) else found:
            return
        await asyncio.sleep(LOOK_AGAIN_S)
        if (now := figure()) != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > still_s:
            raise StandstillError(f"nothing has moved for {still_s:g} s; it stands at {last}")


def processor_s(pid: int) -> float:
    """Seconds of processor time that a process has used; 0 when it is gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def processor_steps(pid: int) -> int:
    """A figure that changes while a process works."""
    return int(processor_s(pid) / PROCESSOR_STEP_S)


def memory_most_mb(pid: int) -> float:
    """The most memory that a process has had, in megabytes; 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0
