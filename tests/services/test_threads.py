"""Threads for plain functions: bounded, reused, and not lost to calls that nobody waits for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest
from tests.support import DEADLINE_S, PROCESS_S, eventually

from llama_deploy.services.threads import WorkerThreads


async def test_a_thread_is_used_again() -> None:
    threads = WorkerThreads(name="t", count=4)
    names = {await threads.call(lambda: threading.current_thread().name) for _ in range(20)}
    threads.stop()
    assert len(names) <= 2


async def test_what_is_raised_is_raised_here() -> None:
    threads = WorkerThreads(name="t", count=1)

    def fail() -> None:
        raise KeyError("x")

    def stop() -> None:
        raise StopIteration

    with pytest.raises(KeyError):
        await threads.call(fail)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.call(stop)
    with pytest.raises(SystemExit):
        await threads.call(lambda: sys.exit(3))
    assert await threads.call(lambda: 1) == 1
    threads.stop()


async def test_a_call_that_was_cancelled_before_it_began_never_begins() -> None:
    threads = WorkerThreads(name="t", count=1)
    release, begun = threading.Event(), []
    first = asyncio.create_task(threads.call(lambda: release.wait(DEADLINE_S)))
    second = asyncio.create_task(threads.call(lambda: begun.append(2)))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    release.set()
    assert await first is True
    await threads.call(lambda: None)
    threads.stop()
    assert begun == []


async def test_a_thread_that_never_returns_takes_no_place_away() -> None:
    threads = WorkerThreads(name="t", count=1)
    release, begun = threading.Event(), threading.Semaphore(0)

    def get_stuck() -> None:
        begun.release()
        release.wait(DEADLINE_S)

    for stuck in range(1, 4):
        call = asyncio.create_task(threads.call(get_stuck))
        waiting = asyncio.create_task(threads.call(lambda: "next"))
        await eventually(lambda: begun.acquire(blocking=False))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await waiting == "next"
        assert threads.given_up == stuck
    release.set()
    await eventually(lambda: threads.given_up == 0)
    await eventually(lambda: _count("t-") <= 1)
    threads.stop()
    await eventually(lambda: _count("t-") == 0)


async def test_stopped_threads_refuse_work() -> None:
    threads = WorkerThreads(name="t", count=1)
    await threads.call(lambda: None)
    threads.stop()
    with pytest.raises(RuntimeError, match="stopped"):
        await threads.call(lambda: None)


def test_a_stuck_thread_does_not_keep_the_process() -> None:
    program = """
import asyncio, threading
from llama_deploy.services.threads import WorkerThreads
async def main():
    threads = WorkerThreads(name="t", count=1)
    begun = threading.Event()
    call = asyncio.create_task(threads.call(lambda: (begun.set(), threading.Event().wait(3600))))
    while not begun.is_set():
        await asyncio.sleep(0)
    call.cancel()
asyncio.run(main())
print("over")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PROCESS_S, check=True
    )
    assert ended.stdout == "over\n"


def _count(prefix: str) -> int:
    return sum(thread.name.startswith(prefix) for thread in threading.enumerate())
