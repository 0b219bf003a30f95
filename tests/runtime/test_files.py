"""Contents on their way into a file: whole or not at all, whoever writes there beside them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from llama_deploy.runtime.files import write_file


def files(folder: Path) -> list[str]:
    return [one.name for one in folder.iterdir()]


async def test_two_that_write_one_file_at_once_do_not_meet(tmp_path: Path) -> None:
    place = tmp_path / "report"
    begun, done = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"slow "
        begun.set()
        await done.wait()
        yield b"and whole"

    async def quick() -> AsyncIterator[bytes]:
        yield b"quick"

    writing = asyncio.create_task(write_file(place, slow()))
    await begun.wait()
    await write_file(place, quick())
    assert place.read_bytes() == b"quick"
    done.set()
    await writing
    assert place.read_bytes() == b"slow and whole"
    assert files(tmp_path) == ["report"]


async def test_nothing_is_left_of_what_was_cancelled(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"half"
        begun.set()
        await asyncio.Event().wait()

    writing = asyncio.create_task(write_file(tmp_path / "report", endless()))
    await begun.wait()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert files(tmp_path) == []
