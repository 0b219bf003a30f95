"""Contents on their way: from bytes, files and iterators to parts of a known hash, and back into a file.

Whatever the size, a few parts are in memory at a time. Reading and writing happen in threads; nothing here knows what
a content is for, or where it goes.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from pathlib import Path
from typing import IO, Any, TypeAlias

Source: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str] | AsyncIterable[bytes] | Iterable[bytes]
"""Bytes; the path of a file; a file that is open for reading bytes; an iterator of bytes, async or not."""

PART_BYTES = 262_144
"""Contents travel and are stored in parts of this size; only the last one is shorter."""
_READ_BYTES = 1024 * 1024
_partials = itertools.count(1)


class Content:
    """A content whose hash is known, read part by part as often as needed. Close it when it is not needed any more."""

    def __init__(self, data: memoryview | IO[bytes], hash_: str, size_bytes: int, name: str | None) -> None:
        self._data = data
        self.hash = hash_
        self.size_bytes = size_bytes
        self.name = name

    @property
    def parts(self) -> int:
        """How many parts it has; an empty content has none."""
        return -(-self.size_bytes // PART_BYTES)

    async def part(self, position: int) -> bytes:
        """One part, counted from 0."""
        first = position * PART_BYTES
        if isinstance(self._data, memoryview):
            return bytes(self._data[first : first + PART_BYTES])
        return await asyncio.to_thread(os.pread, self._data.fileno(), PART_BYTES, first)

    async def all_parts(self) -> AsyncIterator[bytes]:
        """Every part in order."""
        for position in range(self.parts):
            yield await self.part(position)

    def close(self) -> None:
        """Let go of the file behind it. Repeating it does nothing."""
        if not isinstance(self._data, memoryview):
            self._data.close()


async def prepare(source: Source) -> Content:
    """Take a content in: its hash is worked out, and what can be read only once goes into a temporary file.

    Raises `OSError` for a file that cannot be read, and `TypeError` for what is no content.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        data = memoryview(source).cast("B")
        if not data.readonly:
            data = memoryview(bytes(data))
        digest = await asyncio.to_thread(hashlib.sha256, data) if len(data) > PART_BYTES else hashlib.sha256(data)
        return Content(data, digest.hexdigest(), len(data), None)
    if isinstance(source, str | os.PathLike):
        return await asyncio.to_thread(_open, Path(source))
    if isinstance(source, AsyncIterable):
        return await _spool(source)
    if hasattr(source, "read"):
        return await asyncio.to_thread(_copy, iter(lambda: source.read(_READ_BYTES), b""))
    if isinstance(source, Iterable):
        return await asyncio.to_thread(_copy, source)
    raise TypeError(f"a {type(source).__name__} is no content: give bytes, a path, a file, or an iterator of bytes")


def _open(path: Path) -> Content:
    file = path.open("rb")
    try:
        digest = hashlib.sha256()
        size = 0
        while data := file.read(_READ_BYTES):
            digest.update(data)
            size += len(data)
    except BaseException:
        file.close()
        raise
    return Content(file, digest.hexdigest(), size, path.name)


class _Spool:
    """A temporary file that is being written, and its hash."""

    def __init__(self) -> None:
        import tempfile

        self.file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - the content that it becomes closes it
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, data: Any) -> None:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"the iterator gave a {type(data).__name__}, where bytes are wanted")
        self._digest.update(data)
        self._size += self.file.write(data)

    def content(self) -> Content:
        self.file.flush()
        return Content(self.file, self._digest.hexdigest(), self._size, None)


def _copy(source: Iterable[bytes]) -> Content:
    spool = _Spool()
    try:
        for data in source:
            spool.write(data)
    except BaseException:
        spool.file.close()
        raise
    return spool.content()


async def _spool(source: AsyncIterable[bytes]) -> Content:
    spool = await asyncio.to_thread(_Spool)
    try:
        async for data in source:
            await asyncio.to_thread(spool.write, data)
    except BaseException:
        spool.file.close()
        raise
    return spool.content()


async def write_file(path: Path, chunks: AsyncIterator[bytes]) -> None:
    """Write a file that is there whole, or not at all: the pieces go into one beside it, which then takes its place.

    Where several write it at once, each has one of its own beside it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{next(_partials)}.part")
    file = await asyncio.to_thread(partial.open, "wb")
    try:
        try:
            async for chunk in chunks:
                await asyncio.to_thread(file.write, chunk)
        finally:
            file.close()
        await asyncio.to_thread(partial.replace, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def target_of(path: str | os.PathLike[str], name: str | None, default: str) -> Path:
    """Where a content is written: the path itself, or under its own plain name in a folder that exists."""
    place = Path(path)
    if not place.is_dir():
        return place
    plain = Path((name or "").replace("\\", "/")).name.replace("\0", "")
    return place / (plain if plain not in ("", ".", "..") else default)
