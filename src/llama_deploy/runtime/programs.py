"""Programs that other code starts: each leads a process group, and nothing of it is left when it is done with.

`asyncio` has two gaps here. A caller that is cancelled while a program starts gets it killed without what it has
started itself; and to wait for the end of a program is, before Python 3.13, to wait for whoever holds its pipes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any

LAST_WORDS_S = 1.0
"""How long the pipes of a program that has been killed may stay open in what has left its group."""


async def start_program(*command: str, **options: Any) -> asyncio.subprocess.Process:
    """`asyncio.create_subprocess_exec` for a program that leads a group: it is there, or nothing of it is.

    A caller that is cancelled meanwhile goes on once all of the group is killed. Raises `OSError` where there is no
    such program.
    """
    # `start_new_session` makes a group, as `process_group=0` would, which uvloop does not know.
    starting = asyncio.ensure_future(asyncio.create_subprocess_exec(*command, start_new_session=True, **options))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.shield(_end_once_started(starting))  # also where whoever waits for that is cancelled again
        raise


async def _end_once_started(starting: asyncio.Future[asyncio.subprocess.Process]) -> None:
    await asyncio.wait([starting])
    if not starting.cancelled() and starting.exception() is None:
        await end_program(starting.result())


def kill_group(process: asyncio.subprocess.Process) -> None:
    """End a program with all that it has started, now; does nothing where nothing of it is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


async def end_program(process: asyncio.subprocess.Process) -> int:
    """Kill what is left of a program, and wait until it has ended; its exit code, negative for a signal.

    What has left its group may hold its pipes: they are closed here then, so that nobody waits for it.
    """
    kill_group(process)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_WORDS_S):
            return await process.wait()
    process._transport.close()  # type: ignore[attr-defined] # noqa: SLF001 - the only way to its pipes
    return await process.wait()


def signal_name(number: int) -> str:
    """What a signal is called; of those for real time only the first and the last have names."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
