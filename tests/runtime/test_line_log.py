"""A log of lines: the newest in memory, followed without a gap, told by other threads, perhaps in a file."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from tests.support import DEADLINE_S, eventually

from llama_deploy.runtime import line_log
from llama_deploy.runtime.line_log import LineLog


def texts(log: LineLog, count: int = 100) -> list[str]:
    return [line.text.partition(" ")[2] for line in log.last(count)]


async def test_the_newest_lines_are_there_with_their_time() -> None:
    log = LineLog()
    for number in range(3):
        log.write(f"line {number}\n")
    assert texts(log) == ["line 0", "line 1", "line 2"]
    assert texts(log, 1) == ["line 2"]
    assert log.last(1)[0].text.partition(" ")[0].endswith("Z")
    assert log.last(0) == []


async def test_a_follower_misses_none() -> None:
    log = LineLog()
    log.write("before")
    heard: list[str] = []

    async def follow() -> None:
        async for line in log.follow(0):
            heard.append(line.text.partition(" ")[2])  # noqa: PERF401 - each as it comes

    following = asyncio.create_task(follow())
    await eventually(lambda: heard == ["before"])
    log.write("one")
    log.write("two")
    await eventually(lambda: heard == ["before", "one", "two"])
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_what_is_logged_in_other_threads_is_heard_within_the_block_alone() -> None:
    log, logger = LineLog(), logging.getLogger("llama_deploy.test_line_log")
    with log.hearing():
        await asyncio.to_thread(logger.warning, "from %s", "a thread")
        await eventually(lambda: texts(log) == ["WARNING llama_deploy.test_line_log: from a thread"])
    logger.warning("afterwards")
    await asyncio.sleep(0)
    assert len(log.last(10)) == 1


async def test_a_file_has_the_lines_for_the_next_one_and_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log" / "a.log"
    log = LineLog(path)
    log.write("kept")
    log.close()
    assert texts(LineLog(path)) == ["kept"]
    monkeypatch.setattr(line_log, "FILE_BYTES_MAX", 10)
    log.write("more than that")
    assert path.with_name("a.log.1").read_text().count("\n") == 2
    assert not path.exists()
    log.close()


async def test_whoever_follows_is_done_when_there_will_be_no_more() -> None:
    log = LineLog()
    log.write("one")
    heard: list[str] = []

    async def follow() -> None:
        async for line in log.follow(0):
            heard.append(line.text.partition(" ")[2])  # noqa: PERF401 - each as it comes

    following = asyncio.create_task(follow())
    await eventually(lambda: heard == ["one"])
    log.write("two")
    log.end()
    await asyncio.wait_for(following, DEADLINE_S)
    await asyncio.wait_for(follow(), DEADLINE_S)
    assert heard == ["one", "two", "one", "two"]
