"""Recorded tasks as lines of JSON, to be kept elsewhere or taken in by another control plane.

A file begins with a line that names its format. Then come sections, one per task: its row, its history and its stream
as they are stored, the contents that it speaks of in base64, and an end that has the hash of the section. Every line
says what it is under its one key. What only a later version writes, this one skips.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from llama_deploy._version import __version__
from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.filters import task_filter
from llama_deploy.control_plane.records import redacted_record
from llama_deploy.control_plane.task_cache import not_found
from llama_deploy.errors import InvalidRequestError
from llama_deploy.state_stores.base import TaskRow
from llama_deploy.types.artifacts import hashes_in
from llama_deploy.types.redaction import NO_REDACTION, Redaction

FORMAT = "llama_deploy.tasks"
FORMAT_VERSION = 1
ENTRIES_AT_ONCE = 200
CHUNKS_AT_ONCE = 100
TASKS_AT_ONCE = 100
PART_BYTES = 262_144
"""Bytes of a content on one line."""

_encode = msgspec.json.Encoder().encode


class Exports:
    """Writes what one engine's store has recorded."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def one(self, task_id: str, *, unredacted: bool = False) -> AsyncIterator[bytes]:
        """The lines of a file with one task, as it is recorded now. Raises `TaskNotFoundError` before the first.

        What people do not get to see is left out unless it is to be `unredacted`.
        """
        await self._engine.cache.get(task_id)
        row = await self._engine.store.load_task(task_id)
        if row is None:  # it was removed meanwhile
            raise not_found(task_id)
        return self._file([row], self._redaction(unredacted=unredacted))

    def _redaction(self, *, unredacted: bool) -> Redaction:
        return NO_REDACTION if unredacted else self._engine.redact

    async def matching(
        self, filter_: str, *, limit: int | None = None, unredacted: bool = False
    ) -> AsyncIterator[bytes]:
        """The lines of a file with the tasks that fit, newest first, at most `limit`.

        Raises `InvalidRequestError` before the first.
        """
        where = task_filter(filter_, now=self._engine.clock.now())
        if not filter_.strip():
            raise InvalidRequestError("an export of many tasks needs a filter", fix="id:* means all")

        redact = self._redaction(unredacted=unredacted)

        async def lines() -> AsyncIterator[bytes]:
            yield _header(self._engine.clock.now(), redact)
            cursor: str | None = None
            left = math.inf if limit is None else limit
            while True:
                at_once = int(min(TASKS_AT_ONCE, left))
                listing = await self._engine.store.list_tasks(where, limit=at_once, cursor=cursor)
                left -= len(listing.rows)
                for row in listing.rows:
                    async for line in self._section(row, redact):
                        yield line
                if (cursor := listing.next) is None or left <= 0:
                    return

        return lines()

    async def _file(self, rows: list[TaskRow], redact: Redaction) -> AsyncIterator[bytes]:
        yield _header(self._engine.clock.now(), redact)
        for row in rows:
            async for line in self._section(row, redact):
                yield line

    async def _section(self, row: TaskRow, redact: Redaction) -> AsyncIterator[bytes]:
        """One task; what is recorded after its row was read is left out."""
        digest = hashlib.sha256()
        store, hashes = self._engine.store, dict[str, None]()
        counts = {"entries": 0, "chunks": 0, "contents": 0}

        def line(key: str, value: Any) -> bytes:
            encoded = _encode({key: value}) + b"\n"
            digest.update(encoded)
            return encoded

        yield line("task", msgspec.structs.asdict(row))
        while counts["entries"] < row.version:
            limit = min(ENTRIES_AT_ONCE, row.version - counts["entries"])
            entries = await self._engine.contents.history(row.task_id, after=counts["entries"], limit=limit)
            if not entries:
                return  # it was deleted meanwhile: a section without its end is not taken in
            for entry in entries:
                hashes.update(dict.fromkeys(hashes_in(entry.data)))
                yield line(
                    "entry", {**msgspec.structs.asdict(entry), "data": msgspec.Raw(redacted_record(entry.data, redact))}
                )
            counts["entries"] += len(entries)
        first = 0
        while chunks := await store.load_chunks(row.task_id, first=first, limit=CHUNKS_AT_ONCE):
            for chunk in chunks:
                hashes.update(dict.fromkeys(hashes_in(chunk.data)))
                yield line("chunk", {**msgspec.structs.asdict(chunk), "data": msgspec.Raw(_events(chunk.data, redact))})
            counts["chunks"] += len(chunks)
            first = chunks[-1].first + chunks[-1].count
        for hash_ in hashes:
            size = await store.blob_bytes(hash_)
            if size is None:
                continue  # it was removed before the export, and is missing here as well
            counts["contents"] += 1
            for start in range(0, max(size, 1), PART_BYTES):
                part = await store.load_blob(hash_, first=start, limit=PART_BYTES) if size else b""
                yield line("content", {"hash": hash_, "size_bytes": size, "data": base64.b64encode(part).decode()})
        yield _encode({"end": {"task_id": row.task_id, **counts, "sha256": digest.hexdigest()}}) + b"\n"


def _events(data: bytes, redact: Redaction) -> bytes:
    return _encode([redact.value(event) for event in msgspec.json.decode(data)]) if redact else data


def _header(now: float, redact: Redaction) -> bytes:
    at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    header = {"format": FORMAT, "version": FORMAT_VERSION, "product": __version__, "exported_at": at}
    return _encode(header | ({"redacted": True} if redact else {})) + b"\n"
