"""The part of the store in memory that is not about tasks on their way: documents, dead letters, contents, removal.

`MemoryStore` records transitions on top of it. What is promised is in `base`.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import astuple

from llama_deploy.state_stores.base import (
    DeadLetterRow,
    DeadListing,
    HistoryRow,
    SessionRow,
    SharedValue,
    StateStore,
    StreamChunk,
    TaskRow,
)
from llama_deploy.state_stores.checks import (
    check_part,
    check_size,
    check_text,
    existing_task,
    missing_content,
    row_number,
    unusable_content,
)
from llama_deploy.state_stores.conditions import ENDED_STATES
from llama_deploy.state_stores.memory_parts import Blobs, Deliveries, Stream, Tasks


class MemoryKeeping(StateStore):
    """The rows of the store in memory, and everything of the contract that is neither a transition nor about tasks."""

    def __init__(self) -> None:
        self._tasks = Tasks()
        self._history: dict[str, list[HistoryRow]] = {}
        self._deliveries = Deliveries()
        self._streams: dict[str, Stream] = {}
        self._sessions: dict[str, tuple[int, SessionRow]] = {}
        self._sessions_inserted = 0
        self._shared: dict[str, dict[str, SharedValue]] = {}
        self._idempotent: dict[str, tuple[str, str]] = {}
        self._keys: dict[str, list[str]] = {}
        """The idempotency keys of each task that has some."""
        self._services: dict[str, bytes] = {}
        self._documents: dict[tuple[str, str], bytes] = {}
        self._dead: dict[str, tuple[int, DeadLetterRow]] = {}
        """In the order in which they came, the oldest first."""
        self._dead_inserted = 0
        self._blobs = Blobs()

    @abstractmethod
    def _commit(self) -> None:
        """Record what was handed over so far."""

    # --- documents ------------------------------------------------------------------------------------------------

    async def put_document(self, kind: str, name: str, data: bytes) -> None:
        check_text(kind=kind, name=name)
        self._documents[kind, name] = data

    async def delete_document(self, kind: str, name: str) -> bool:
        return self._documents.pop((kind, name), None) is not None

    async def load_documents(self, kind: str) -> dict[str, bytes]:
        return {name: data for (other, name), data in self._documents.items() if other == kind}

    # --- dead letters ---------------------------------------------------------------------------------------------

    async def list_dead(
        self, *, service: str | None = None, task_id: str | None = None, limit: int, cursor: str | None = None
    ) -> DeadListing:
        last = row_number(cursor)
        found: list[tuple[int, DeadLetterRow]] = []
        for number, row in reversed(self._dead.values()):
            fits = service in (None, row.service) and task_id in (None, row.task_id)
            if fits and (last is None or number < last):
                found.append((number, row))
                if len(found) > limit:
                    break
        rows = [row for _, row in found[:limit]]
        return DeadListing(rows, str(found[limit - 1][0]) if len(found) > limit else None)

    def given_up(self) -> Callable[[str], bool]:
        """Whether a task has a dead letter that was not sent again, as of now."""
        tasks = {row.task_id for _, row in self._dead.values() if not row.redriven}
        return tasks.__contains__

    async def load_dead(self, step_id: str) -> DeadLetterRow | None:
        found = self._dead.get(step_id)
        return None if found is None else found[1]

    async def count_dead(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for _, row in self._dead.values():
            if not row.redriven:
                counts[row.service] = counts.get(row.service, 0) + 1
        return counts

    async def mark_redriven(self, step_id: str, task_id: str) -> bool:
        self._commit()
        found = self._dead.get(step_id)
        if found is None or found[1].redriven:
            return False
        self._dead[step_id] = (found[0], msgspec.structs.replace(found[1], redriven=task_id))
        return True

    async def delete_dead(self, step_ids: Sequence[str]) -> int:
        self._commit()
        return sum(self._dead.pop(step_id, None) is not None for step_id in step_ids)

    async def dead_before(self, when: float, *, limit: int) -> list[str]:
        return [row.step_id for _, row in self._dead.values() if row.at < when][:limit]

    # --- large contents -------------------------------------------------------------------------------------------

    async def put_blob_part(self, hash: str, position: int, data: bytes, *, at: float) -> None:  # noqa: A002
        check_part(hash, position, data, self.blob_part_bytes)
        self._blobs.put_part(hash, position, data, at)

    async def finish_blob(self, hash: str, bytes_: int, created_at: float) -> None:  # noqa: A002
        check_size(hash, bytes_, self._blobs.finish(hash, bytes_, created_at, self.blob_part_bytes))

    async def blob_bytes(self, hash: str) -> int | None:  # noqa: A002
        return self._blobs.size(hash)

    async def load_blob(self, hash: str, *, first: int = 0, limit: int | None = None) -> bytes:  # noqa: A002
        if self._blobs.size(hash) is None:
            raise missing_content(hash)
        return self._blobs.load(hash)[first : None if limit is None else first + limit]

    async def use_blob(self, hash: str, task_id: str) -> None:  # noqa: A002
        self._commit()
        if self._blobs.size(hash) is None or task_id not in self._tasks.rows:
            raise unusable_content(hash, task_id)
        self._blobs.use(hash, task_id)

    async def delete_unused_blobs(self, before: float, limit: int) -> int:
        self._commit()
        unused = self._blobs.unused(before)[:limit]
        for hash_ in unused:
            self._blobs.remove(hash_)
        return len(unused)

    # --- keeping and removing -------------------------------------------------------------------------------------

    async def count_ended(self) -> int:
        return sum(self._tasks.states[state] for state in ENDED_STATES)

    async def ended_before(self, when: float, *, limit: int) -> list[str]:
        held = {row.task_id for _, row in self._dead.values() if not row.redriven}
        found: list[str] = []
        for _, row in self._tasks.in_order():
            if len(found) == limit:
                break
            if row.ended_at is None or row.ended_at >= when:
                continue
            caller = (
                self._tasks.rows.get(row.origin.removeprefix("child:")) if row.origin.startswith("child:") else None
            )
            if caller is not None and caller.ended_at is None:
                continue
            if row.task_id not in held and not self._deliveries.of_task(row.task_id):
                found.append(row.task_id)
        return found

    def _is_awaited(self, row: TaskRow) -> bool:
        """Whether a caller goes on that may ask for what this task has come to."""
        caller = self._tasks.rows.get(row.origin[len("child:") :]) if row.origin.startswith("child:") else None
        return caller is not None and caller.ended_at is None

    async def delete_tasks(self, task_ids: Sequence[str], *, erase: bool = False) -> int:
        self._commit()
        removed = 0
        for task_id in dict.fromkeys(task_ids):
            row = self._tasks.rows.get(task_id)
            if not erase and (row is None or row.ended_at is None):
                continue
            if row is not None:
                self._tasks.remove(task_id)
                removed += 1
            self._history.pop(task_id, None)
            self._streams.pop(task_id, None)
            self._deliveries.remove_task(task_id)
            for key in self._keys.pop(task_id, ()):
                del self._idempotent[key]
            for step_id in [letter.step_id for _, letter in self._dead.values() if letter.task_id == task_id]:
                del self._dead[step_id]
            for hash_ in self._blobs.leave(task_id):
                if erase:
                    self._blobs.remove(hash_)
        return removed

    async def scrub(self) -> bool:
        return True

    async def shrink(self) -> bool:
        return False

    async def import_task(self, row: TaskRow, history: Sequence[HistoryRow], chunks: Sequence[StreamChunk]) -> None:
        self._commit()
        if row.task_id in self._tasks.rows:
            raise existing_task(row.task_id)
        self._tasks.put(row)
        self._history[row.task_id] = list(history)
        for chunk in chunks:
            self._streams.setdefault(row.task_id, Stream()).append(chunk)

    async def backup(self, path: Path) -> None:
        """From the rows as they are now, by a thread of its own."""
        from llama_deploy.state_stores.backups import write_rows  # who keeps everything in memory needs no database

        await asyncio.to_thread(write_rows, path, self._rows())

    def _rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row, by the name of the statement that inserts it."""
        chunks = [chunk for stream in self._streams.values() for chunk in stream.chunks]
        deliveries = [row for task_id in self._tasks.rows for row in self._deliveries.of_task(task_id)]
        return {
            "insert_task": [astuple(row) for _, row in self._tasks.in_order()],
            "insert_history": [astuple(entry) for entries in self._history.values() for entry in entries],
            "insert_delivery": [astuple(row) for row in deliveries],
            "insert_chunk": [astuple(chunk) for chunk in chunks],
            "insert_session": [astuple(row) for _, row in self._sessions.values()],
            "copy_shared": [
                (session_id, value.key, value.version, value.value)
                for session_id, values in self._shared.items()
                for value in values.values()
            ],
            "insert_idempotency": [(key, *found) for key, found in self._idempotent.items()],
            "put_service": list(self._services.items()),
            "put_document": [(*place, data) for place, data in self._documents.items()],
            "insert_dead": [astuple(row) for _, row in self._dead.values()],
            **self._blobs.table_rows(self.blob_part_bytes),
        }
