"""Programs in groups of their own: nothing of one is left, whenever whoever started it is cancelled."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support import eventually

from llama_deploy.runtime.programs import end_program, start_program

PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session={away})
open({file!r} + ".new", "w").write(f"{{os.getpid()}} {{child.pid}}")
os.rename({file!r} + ".new", {file!r})
time.sleep(600)
"""


def lives(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def parent(file: Path, *, away: bool = False) -> tuple[str, ...]:
    """A program that starts another one, in its own group or away from it, and says who they are."""
    return sys.executable, "-c", PARENT.format(file=str(file), away=away)


PIPES = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}


async def test_who_is_cancelled_while_it_starts_leaves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, begun, connected = asyncio.create_subprocess_exec, asyncio.Event(), asyncio.Event()

    async def slow(*command: str, **options: Any) -> asyncio.subprocess.Process:
        process = await create(*command, **options)
        begun.set()
        await connected.wait()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slow)
    starting = asyncio.create_task(start_program(*parent(tmp_path / "pids"), **PIPES))
    await begun.wait()
    await eventually((tmp_path / "pids").exists)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert all(lives(pid) for pid in pids)
    starting.cancel()
    connected.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await eventually(lambda: not any(lives(pid) for pid in pids))


async def test_what_has_left_the_group_and_holds_the_pipes_keeps_nobody_waiting(tmp_path: Path) -> None:
    process = await start_program(*parent(tmp_path / "pids", away=True), **PIPES)
    await eventually((tmp_path / "pids").exists)
    own, away = (int(pid) for pid in (tmp_path / "pids").read_text().split())
    assert own == process.pid
    try:
        assert await end_program(process) == -signal.SIGKILL
        assert lives(away)
        assert await end_program(process) == -signal.SIGKILL, "doing it again does nothing"
    finally:
        os.kill(away, signal.SIGKILL)


async def test_a_program_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        await start_program("/no/such/program")


async def test_who_is_cancelled_twice_while_it_starts_leaves_nothing_of_it_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, begun, connected = asyncio.create_subprocess_exec, asyncio.Event(), asyncio.Event()
    before = asyncio.all_tasks()

    async def slow(*command: str, **options: Any) -> asyncio.subprocess.Process:
        process = await create(*command, **options)
        begun.set()
        await connected.wait()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slow)
    starting = asyncio.create_task(start_program(*parent(tmp_path / "pids"), **PIPES))
    await begun.wait()
    await eventually((tmp_path / "pids").exists)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    for _ in range(2):
        starting.cancel()
        await asyncio.sleep(0)
    connected.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await eventually(lambda: asyncio.all_tasks() <= before)  # what ends it has seen its end
    assert not any(lives(pid) for pid in pids)
