"""A store around another one, which seals all content with the user's keys before it is written.

Sealed are: history entries, stream events, shared values, large contents, documents and the messages of dead letters.
In clear stay ids, names of services, sessions and keys of state, states, times, sizes, hashes of contents and the
definitions of services: what is needed to find rows. Every value is bound to its place, so that whoever can write to
the file can neither change a value nor move one elsewhere without its being noticed.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from llama_deploy.errors import StoreKeyError
from llama_deploy.state_stores.base import (
    BLOB_PART_BYTES,
    DeadLetterRow,
    DeadListing,
    DeliveryRow,
    HistoryRow,
    MemberRow,
    SessionListing,
    SessionRow,
    ShardRow,
    SharedValue,
    SharedWrite,
    StateStore,
    StreamChunk,
    TaskFilter,
    TaskListing,
    TaskRow,
    Transition,
)
from llama_deploy.state_stores.checks import check_part
from llama_deploy.state_stores.keys import OVERHEAD, Keys

MARKER = "encryption"
"""The kind of the documents that say which keys a store is sealed with, one for each."""
_CHECK = b"this store is encrypted"


class EncryptedStore(StateStore):
    """A store whose content nobody reads without the keys. The first key seals, the others open what they sealed."""

    def __init__(self, inner: StateStore, keys: Sequence[bytes]) -> None:
        self._inner = inner
        self._keys = Keys(keys)
        inner.blob_part_bytes = BLOB_PART_BYTES + OVERHEAD
        inner.expects_encryption = True
        self.statistics = inner.statistics
        self.location = inner.location

    async def open(self) -> None:
        """Beyond the contract: raises `StoreKeyError` for a store that these keys do not open, or not all of it."""
        await self._inner.open()
        try:
            await self._check_keys()
        except BaseException:
            await self._inner.close()
            raise

    async def _check_keys(self) -> None:
        markers = await self._inner.load_documents(MARKER)
        if not markers and (await self._inner.count_matching(TaskFilter()) or await self._has_sessions()):
            raise StoreKeyError(
                f"{self.location} is not encrypted, and has content already",
                fix="begin a new store, or leave the key out",
            )
        for key_id, sealed in markers.items():
            if key_id not in self._keys.ids:
                raise StoreKeyError(
                    f"{self.location} is encrypted with another key ({key_id})",
                    why=f"the keys that were given have the ids {', '.join(self._keys.ids)}",
                    fix="give the key that it was made with, and earlier ones after the newest",
                )
            self._keys.open(sealed, MARKER, key_id)
        newest = self._keys.ids[0]
        if newest not in markers:
            await self._inner.put_document(MARKER, newest, self._keys.seal(_CHECK, MARKER, newest))

    async def _has_sessions(self) -> bool:
        return bool((await self._inner.list_sessions(limit=1)).rows)

    async def close(self) -> None:
        await self._inner.close()

    # --- transitions ------------------------------------------------------------------------------------------------

    def record(self, transition: Transition) -> None:
        seal = self._keys.seal
        entry = transition.entry
        self._inner.record(
            replace(
                transition,
                entry=None if entry is None else replace(entry, data=seal(entry.data, *_history(entry))),
                chunks=[replace(chunk, data=seal(chunk.data, *_stream(chunk))) for chunk in transition.chunks],
                shared=[self._sealed_write(write) for write in transition.shared],
                dead=[self._sealed_letter(letter) for letter in transition.dead],
                blobs={hash_: self._sealed_content(hash_, data) for hash_, data in transition.blobs.items()},
            )
        )

    def _sealed_write(self, write: SharedWrite) -> SharedWrite:
        if write.value is None:
            return write
        place = ("shared", write.session_id, write.key, write.expected_version + 1)
        return replace(write, value=self._keys.seal(write.value, *place))

    def _sealed_letter(self, letter: DeadLetterRow) -> DeadLetterRow:
        sealed = self._keys.seal(letter.message.encode("utf-8", "surrogatepass"), "dead", letter.step_id)
        return replace(letter, message=base64.b64encode(sealed).decode("ascii"))

    def _sealed_content(self, hash_: str, data: bytes) -> bytes:
        """All parts, each sealed; the store inside cuts them apart at the same places."""
        parts = range(0, len(data), BLOB_PART_BYTES)
        return b"".join(
            self._keys.seal(data[first : first + BLOB_PART_BYTES], "blob", hash_, position)
            for position, first in enumerate(parts)
        )

    @property
    def last_error(self) -> str:
        """Why the store inside could not be written, where it says so."""
        return str(getattr(self._inner, "last_error", ""))

    @property
    def healthy(self) -> bool:
        return self._inner.healthy

    @property
    def backlog(self) -> int:
        return self._inner.backlog

    # --- what is sealed ---------------------------------------------------------------------------------------------

    async def load_history(self, task_id: str, *, after: int = 0, limit: int | None = None) -> list[HistoryRow]:
        rows = await self._inner.load_history(task_id, after=after, limit=limit)
        return [replace(row, data=self._keys.open(row.data, *_history(row))) for row in rows]

    async def load_chunks(self, task_id: str, *, first: int = 0, limit: int = 100) -> list[StreamChunk]:
        chunks = await self._inner.load_chunks(task_id, first=first, limit=limit)
        return [replace(chunk, data=self._keys.open(chunk.data, *_stream(chunk))) for chunk in chunks]

    async def load_shared(self, session_id: str) -> list[SharedValue]:
        return [
            value
            if value.value is None
            else replace(value, value=self._keys.open(value.value, "shared", session_id, value.key, value.version))
            for value in await self._inner.load_shared(session_id)
        ]

    async def put_document(self, kind: str, name: str, data: bytes) -> None:
        await self._inner.put_document(kind, name, self._keys.seal(data, "document", kind, name))

    async def load_documents(self, kind: str) -> dict[str, bytes]:
        found = await self._inner.load_documents(kind)
        return {name: self._keys.open(data, "document", kind, name) for name, data in found.items()}

    async def list_dead(
        self, *, service: str | None = None, task_id: str | None = None, limit: int, cursor: str | None = None
    ) -> DeadListing:
        page = await self._inner.list_dead(service=service, task_id=task_id, limit=limit, cursor=cursor)
        return DeadListing([self._opened_letter(row) for row in page.rows], page.next)

    async def load_dead(self, step_id: str) -> DeadLetterRow | None:
        row = await self._inner.load_dead(step_id)
        return None if row is None else self._opened_letter(row)

    def _opened_letter(self, row: DeadLetterRow) -> DeadLetterRow:
        try:
            sealed = base64.b64decode(row.message, validate=True)
        except (ValueError, binascii.Error):
            sealed = b""
        message = self._keys.open(sealed, "dead", row.step_id).decode("utf-8", "surrogatepass")
        return replace(row, message=message)

    async def put_blob_part(self, hash: str, position: int, data: bytes, *, at: float) -> None:  # noqa: A002
        check_part(hash, position, data)
        await self._inner.put_blob_part(hash, position, self._keys.seal(data, "blob", hash, position), at=at)

    async def finish_blob(self, hash: str, bytes_: int, created_at: float) -> None:  # noqa: A002
        await self._inner.finish_blob(hash, bytes_ + OVERHEAD * -(-bytes_ // BLOB_PART_BYTES), created_at)

    async def blob_bytes(self, hash: str) -> int | None:  # noqa: A002
        size = await self._inner.blob_bytes(hash)
        return None if size is None else size - OVERHEAD * -(-size // (BLOB_PART_BYTES + OVERHEAD))

    async def load_blob(self, hash: str, *, first: int = 0, limit: int | None = None) -> bytes:  # noqa: A002
        sealed_part = BLOB_PART_BYTES + OVERHEAD
        lowest = first // BLOB_PART_BYTES
        count = None if limit is None else (first + max(limit, 1) - 1) // BLOB_PART_BYTES - lowest + 1
        sealed = await self._inner.load_blob(
            hash, first=lowest * sealed_part, limit=None if count is None else count * sealed_part
        )
        data = b"".join(
            self._keys.open(sealed[start : start + sealed_part], "blob", hash, lowest + number)
            for number, start in enumerate(range(0, len(sealed), sealed_part))
        )
        skipped = first - lowest * BLOB_PART_BYTES
        return data[skipped : None if limit is None else skipped + limit]

    async def import_task(self, row: TaskRow, history: Sequence[HistoryRow], chunks: Sequence[StreamChunk]) -> None:
        seal = self._keys.seal
        await self._inner.import_task(
            row,
            [replace(entry, data=seal(entry.data, *_history(entry))) for entry in history],
            [replace(chunk, data=seal(chunk.data, *_stream(chunk))) for chunk in chunks],
        )

    # --- shards -----------------------------------------------------------------------------------------------------

    @property
    def shards_count(self) -> int:  # type: ignore[override]  # of the store inside, known once that is open
        """Into how many shards the sessions are divided."""
        return self._inner.shards_count

    @property
    def owner(self) -> str:  # type: ignore[override]
        """The name under which the store inside claims shards."""
        return self._inner.owner

    @property
    def held(self) -> Mapping[int, int]:
        return self._inner.held

    async def shards(self) -> list[ShardRow]:
        return await self._inner.shards()

    async def claim_shards(self, shards: Sequence[int] | None = None, *, lease_s: float = 10.0) -> dict[int, int]:
        return await self._inner.claim_shards(shards, lease_s=lease_s)

    async def renew_shards(self, *, lease_s: float = 10.0) -> dict[int, int]:
        return await self._inner.renew_shards(lease_s=lease_s)

    async def release_shards(self, shards: Sequence[int] | None = None) -> None:
        await self._inner.release_shards(shards)

    @property
    def on_lost(self) -> Callable[[Sequence[int]], None]:
        """Called when shards were taken over."""
        return self._inner.on_lost

    @on_lost.setter
    def on_lost(self, lost: Callable[[Sequence[int]], None]) -> None:
        self._inner.on_lost = lost

    async def join(self, *, name: str, url: str) -> int:
        return await self._inner.join(name=name, url=url)

    async def resign(self) -> None:
        await self._inner.resign()

    async def members(self, *, lease_s: float = 10.0) -> list[MemberRow]:
        return await self._inner.members(lease_s=lease_s)

    async def take_up(self, shards: Sequence[int], when: float) -> int:
        return await self._inner.take_up(shards, when)

    def announce(self, word: str) -> None:
        self._inner.announce(word)

    def listen(self, heard: Callable[[str], None]) -> None:
        self._inner.listen(heard)

    # --- what is in clear -------------------------------------------------------------------------------------------

    async def load_task(self, task_id: str) -> TaskRow | None:
        return await self._inner.load_task(task_id)

    async def load_deliveries(self, task_id: str) -> list[DeliveryRow]:
        return await self._inner.load_deliveries(task_id)

    async def load_stream_end(self, task_id: str) -> tuple[int, dict[str, tuple[int, int]]]:
        return await self._inner.load_stream_end(task_id)

    async def list_tasks(self, where: TaskFilter, *, limit: int, cursor: str | None = None) -> TaskListing:
        return await self._inner.list_tasks(where, limit=limit, cursor=cursor)

    async def count_tasks(self) -> dict[str, int]:
        """As the store inside counts them."""
        return await self._inner.count_tasks()

    async def count_matching(self, where: TaskFilter) -> int:
        return await self._inner.count_matching(where)

    async def count_ended(self) -> int:
        return await self._inner.count_ended()

    async def count_session_tasks(self, session_id: str) -> tuple[int, int]:
        return await self._inner.count_session_tasks(session_id)

    async def due_deliveries(self, now: float, *, limit: int) -> list[DeliveryRow]:
        return await self._inner.due_deliveries(now, limit=limit)

    async def next_due(self) -> float | None:
        return await self._inner.next_due()

    async def make_due(self, now: float) -> int:
        return await self._inner.make_due(now)

    async def load_session(self, session_id: str) -> SessionRow | None:
        return await self._inner.load_session(session_id)

    async def list_sessions(self, *, limit: int, cursor: str | None = None) -> SessionListing:
        return await self._inner.list_sessions(limit=limit, cursor=cursor)

    async def delete_session(self, session_id: str, *, if_unused: bool = False) -> bool:
        return await self._inner.delete_session(session_id, if_unused=if_unused)

    async def unused_sessions(self, before: float, *, limit: int) -> list[str]:
        return await self._inner.unused_sessions(before, limit=limit)

    async def find_idempotent(self, key: str) -> tuple[str, str] | None:
        return await self._inner.find_idempotent(key)

    async def put_service(self, name: str, definition: bytes) -> None:
        await self._inner.put_service(name, definition)

    async def delete_service(self, name: str) -> bool:
        return await self._inner.delete_service(name)

    async def load_services(self) -> dict[str, bytes]:
        return await self._inner.load_services()

    async def delete_document(self, kind: str, name: str) -> bool:
        return await self._inner.delete_document(kind, name)

    async def count_dead(self) -> dict[str, int]:
        return await self._inner.count_dead()

    async def mark_redriven(self, step_id: str, task_id: str) -> bool:
        return await self._inner.mark_redriven(step_id, task_id)

    async def delete_dead(self, step_ids: Sequence[str]) -> int:
        return await self._inner.delete_dead(step_ids)

    async def dead_before(self, when: float, *, limit: int) -> list[str]:
        return await self._inner.dead_before(when, limit=limit)

    async def use_blob(self, hash: str, task_id: str) -> None:  # noqa: A002
        await self._inner.use_blob(hash, task_id)

    async def delete_unused_blobs(self, before: float, limit: int) -> int:
        return await self._inner.delete_unused_blobs(before, limit)

    async def ended_before(self, when: float, *, limit: int) -> list[str]:
        return await self._inner.ended_before(when, limit=limit)

    async def delete_tasks(self, task_ids: Sequence[str], *, erase: bool = False) -> int:
        return await self._inner.delete_tasks(task_ids, erase=erase)

    async def scrub(self) -> bool:
        return await self._inner.scrub()

    async def shrink(self) -> bool:
        return await self._inner.shrink()

    async def backup(self, path: Path) -> None:
        await self._inner.backup(path)


def _history(row: HistoryRow) -> tuple[str | int, ...]:
    return "history", row.task_id, row.seq, row.kind


def _stream(chunk: StreamChunk) -> tuple[str | int, ...]:
    return "stream", chunk.task_id, chunk.first, chunk.step_id, chunk.attempt, chunk.attempt_first
