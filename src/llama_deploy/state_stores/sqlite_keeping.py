"""The part of the SQLite store that is not about tasks on their way: documents, dead letters, contents, removal.

What it writes are rare writes: they go with the next commit of the flow of tasks, in small pieces, because the
statements of a commit run on the event loop's thread. Statements are in `sql/sqlite/statements.sql`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from llama_deploy.errors import StoreUnavailableError
from llama_deploy.runtime.logs import get_logger
from llama_deploy.state_stores.backups import write_file
from llama_deploy.state_stores.base import (
    DeadLetterRow,
    DeadListing,
    HistoryRow,
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
from llama_deploy.state_stores.sqlite_reads import SQLiteReads

T = TypeVar("T")

log = get_logger("llama_deploy.store")

PARTS_AT_ONCE = 16
"""Parts of a content that one commit removes: removing reads every page of them."""

YOUNG_MAX = 200
"""So many tasks in the order of submission that came after a time end the search for those before it: one may have
been dated by a clock that was wrong."""

FREE_PAGES_KEPT = 2_000
FREE_SHARE_KEPT = 0.2
"""Unused pages that stay in the file for later rows: so many, or this share of the file."""
PAGES_AT_ONCE = 200
"""Pages that one commit gives back."""

_DEAD_COLUMNS = ", ".join(DeadLetterRow.__struct_fields__)


class SQLiteKeeping(SQLiteReads):
    """Everything of the store's contract that writes outside of transitions."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._copying: set[sqlite3.Connection] = set()
        self._interrupting = threading.Lock()
        """Held while a backup's connection is closed by its thread, or interrupted by another."""
        self._copies: set[asyncio.Future[None]] = set()
        self._erased = True
        """Whether the file may hold copies of what was erased; of an earlier process nobody knows."""

    @abstractmethod
    async def _write_now(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """A rare write: it goes with the next commit, and what `work` returns is told after it."""

    @abstractmethod
    async def _between_commits(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Work on the writing connection outside of any transaction, on the writer's thread; commits wait for it."""

    async def _run(self, name: str, *parameters: Any) -> int:
        """One statement as a rare write; returns how many rows it changed."""
        return await self._write_now(lambda c: c.execute(self._sql[name], parameters).rowcount)

    # --- deliveries, sessions, services -----------------------------------------------------------------------------

    async def make_due(self, now: float) -> int:
        await self._run("make_due", now)
        count: int = (await self._rows("count_deliveries", ()))[0][0]
        return count

    async def delete_session(self, session_id: str, *, if_unused: bool = False) -> bool:
        def work(connection: sqlite3.Connection) -> int:
            if if_unused and connection.execute(self._sql["count_session_tasks"], (session_id,)).fetchone()[0]:
                return 0
            connection.execute(self._sql["delete_shared"], (session_id,))
            return connection.execute(self._sql["delete_session"], (session_id,)).rowcount

        deleted = await self._write_now(work) > 0
        self._erased |= deleted
        return deleted

    async def put_service(self, name: str, definition: bytes) -> None:
        await self._run("put_service", name, definition)

    async def delete_service(self, name: str) -> bool:
        return await self._run("delete_service", name) > 0

    # --- documents --------------------------------------------------------------------------------------------------

    async def put_document(self, kind: str, name: str, data: bytes) -> None:
        check_text(kind=kind, name=name)
        await self._run("put_document", kind, name, data)

    async def delete_document(self, kind: str, name: str) -> bool:
        return await self._run("delete_document", kind, name) > 0

    async def load_documents(self, kind: str) -> dict[str, bytes]:
        return dict(await self._rows("load_documents", (kind,)))

    # --- dead letters -----------------------------------------------------------------------------------------------

    async def list_dead(
        self, *, service: str | None = None, task_id: str | None = None, limit: int, cursor: str | None = None
    ) -> DeadListing:
        terms: dict[str, Any] = {"service = ?": service, "task_id = ?": task_id, "number < ?": row_number(cursor)}
        given = {term: value for term, value in terms.items() if value is not None}
        where = f"WHERE {' AND '.join(given)} " if given else ""
        sql = f"SELECT number, {_DEAD_COLUMNS} FROM dead_letters {where}ORDER BY number DESC LIMIT ?"  # noqa: S608 - no user text
        rows = await self._read(lambda c: c.execute(sql, (*given.values(), limit + 1)).fetchall())
        shown = rows[:limit]
        return DeadListing([DeadLetterRow(*row[1:]) for row in shown], str(shown[-1][0]) if len(rows) > limit else None)

    async def load_dead(self, step_id: str) -> DeadLetterRow | None:
        rows = await self._rows("load_dead", (step_id,))
        return DeadLetterRow(*rows[0]) if rows else None

    async def count_dead(self) -> dict[str, int]:
        return dict(await self._rows("count_dead", ()))

    async def mark_redriven(self, step_id: str, task_id: str) -> bool:
        return await self._run("mark_redriven", task_id, step_id) > 0

    async def delete_dead(self, step_ids: Sequence[str]) -> int:
        rows = [(step_id,) for step_id in step_ids]
        return await self._write_now(lambda c: max(0, c.executemany(self._sql["delete_dead"], rows).rowcount))

    async def dead_before(self, when: float, *, limit: int) -> list[str]:
        return [row[0] for row in await self._rows("dead_before", (when, limit))]

    # --- large contents ---------------------------------------------------------------------------------------------

    async def put_blob_part(self, hash: str, position: int, data: bytes, *, at: float) -> None:  # noqa: A002
        check_part(hash, position, data, self.blob_part_bytes)

        def work(connection: sqlite3.Connection) -> None:
            if self._blob_size(connection, hash) is None:
                connection.execute(self._sql["begin_blob"], (hash, at))
                connection.execute(self._sql["put_blob_part"], (hash, position, data))

        await self._write_now(work)

    async def finish_blob(self, hash: str, bytes_: int, created_at: float) -> None:  # noqa: A002
        check_text(hash=hash)

        def work(connection: sqlite3.Connection) -> int:
            there = self._blob_size(connection, hash)
            if there is None:
                parts = -(-bytes_ // self.blob_part_bytes)
                connection.execute(self._sql["delete_parts_from"], (hash, parts))  # of an earlier, false upload
                there = connection.execute(self._sql["parts_size"], (hash,)).fetchone()[0]
                if there == bytes_:
                    connection.execute(self._sql["begin_blob"], (hash, created_at))  # an empty one has no part
            if there == bytes_:
                connection.execute(self._sql["finish_blob"], (bytes_, created_at, hash))
            return there

        check_size(hash, bytes_, await self._write_now(work))

    def put_blob(self, connection: sqlite3.Connection, hash_: str, data: bytes, at: float) -> None:
        """Write a whole content at once, within an open transaction; one that is there stays."""
        if self._blob_size(connection, hash_) is not None:
            return
        connection.execute(self._sql["begin_blob"], (hash_, at))
        connection.execute(self._sql["delete_parts_from"], (hash_, 0))
        for position, first in enumerate(range(0, len(data), self.blob_part_bytes)):
            part = data[first : first + self.blob_part_bytes]
            connection.execute(self._sql["put_blob_part"], (hash_, position, part))
        connection.execute(self._sql["finish_blob"], (len(data), at, hash_))

    def _blob_size(self, connection: sqlite3.Connection, hash_: str) -> int | None:
        found = connection.execute(self._sql["blob_size"], (hash_,)).fetchone()
        return None if found is None else found[0]

    async def blob_bytes(self, hash: str) -> int | None:  # noqa: A002
        return await self._read(lambda connection: self._blob_size(connection, hash))

    async def load_blob(self, hash: str, *, first: int = 0, limit: int | None = None) -> bytes:  # noqa: A002
        def query(connection: sqlite3.Connection) -> bytes | None:
            connection.execute("BEGIN")  # the size and the parts of one moment
            try:
                size = self._blob_size(connection, hash)
                if size is None:
                    return None
                end = size if limit is None else min(size, first + limit)
                lowest, highest = first // self.blob_part_bytes, (end - 1) // self.blob_part_bytes
                rows = connection.execute(self._sql["load_parts"], (hash, lowest, highest))
                skipped = lowest * self.blob_part_bytes
                return b"".join(row[0] for row in rows)[first - skipped : max(0, end - skipped)]
            finally:
                connection.execute("COMMIT")

        found = await self._read(query)
        if found is None:
            raise missing_content(hash)
        return found

    async def use_blob(self, hash: str, task_id: str) -> None:  # noqa: A002
        def work(connection: sqlite3.Connection) -> None:
            known = connection.execute(self._sql["is_ended"], (task_id,)).fetchone()
            if known is None or connection.execute(self._sql["insert_blob_use"], (hash, task_id)).rowcount == 0:
                raise unusable_content(hash, task_id)

        await self._write_now(work)

    async def delete_unused_blobs(self, before: float, limit: int) -> int:
        removed = 0
        for (hash_,) in await self._rows("unused_blobs", (before, limit)):
            if await self._run("discard_blob", hash_, before):
                await self._remove_parts(hash_)
                removed += 1
        return removed

    async def _remove_parts(self, hash_: str) -> None:
        """Remove a content that is discarded, in small pieces; an upload that brings it anew is left alone."""

        def work(connection: sqlite3.Connection) -> bool:
            if self._blob_size(connection, hash_) is not None:
                return False
            removed = connection.execute(self._sql["delete_some_parts"], (hash_, PARTS_AT_ONCE)).rowcount
            if removed == PARTS_AT_ONCE:
                return True
            connection.execute(self._sql["delete_blob"], (hash_,))
            return False

        while await self._write_now(work):
            pass

    # --- keeping and removing ---------------------------------------------------------------------------------------

    async def ended_before(self, when: float, *, limit: int) -> list[str]:
        def query(connection: sqlite3.Connection) -> list[str]:
            found: list[str] = []
            young = 0
            rows = connection.execute(self._sql["ended_tasks"])
            for task_id, created_at, ended_at in rows:
                if ended_at < when:
                    found.append(task_id)
                young += created_at >= when
                if len(found) == limit or young == YOUNG_MAX:
                    break
            rows.close()
            return found

        return await self._read(query)

    async def delete_tasks(self, task_ids: Sequence[str], *, erase: bool = False) -> int:
        def work(connection: sqlite3.Connection) -> tuple[int, list[str]]:
            return self._delete_tasks(connection, task_ids, erase=erase)

        removed, left = await self._write_now(work)
        self._erased |= erase
        for hash_ in left:
            await self._remove_parts(hash_)
        return removed

    def _delete_tasks(
        self, connection: sqlite3.Connection, task_ids: Sequence[str], *, erase: bool
    ) -> tuple[int, list[str]]:
        """Remove the tasks within the open transaction; returns how many, and the contents that have no user left."""
        ended = self._sql["is_ended"]
        found = {task_id: connection.execute(ended, (task_id,)).fetchone() for task_id in task_ids}
        doomed = [(task_id,) for task_id, row in found.items() if row is not None and (erase or row[0])]
        left = [(task_id,) for task_id in found] if erase else doomed
        if not left:
            return 0, []
        used = self._sql["task_blobs"]
        hashes = {hash_ for task in left for (hash_,) in connection.execute(used, task)} if erase else set()
        highest = connection.execute(self._sql["highest_task"]).fetchone()[0]
        for name in (
            "delete_history",
            "delete_stream",
            "delete_deliveries",
            "delete_idempotency",
            "delete_task_dead",
            "delete_task_uses",
            "delete_task",
        ):
            connection.executemany(self._sql[name], left)
        lowered = highest - connection.execute(self._sql["highest_task"]).fetchone()[0]
        connection.execute(self._sql["widen_gap"], (len(doomed) - lowered,))
        discard = self._sql["discard_blob"]
        unused = [hash_ for hash_ in hashes if connection.execute(discard, (hash_, float("inf"))).rowcount]
        return len(doomed), unused

    async def scrub(self) -> bool:
        """Write the file anew where something was erased since it was last written so, and empty the log.

        Overwriting what is removed (`secure_delete`) is not enough: whenever SQLite moves rows to another page it may
        leave a copy behind, in space that no statement reaches. Commits wait meanwhile, some seconds per gigabyte.
        """
        if self._erased:
            self._erased = False
            try:
                await self._between_commits(lambda connection: connection.execute("VACUUM"))
            except StoreUnavailableError as error:
                self._erased = True
                log.warning("the file could not be written anew after erasing", error=error.why)
                return False
        busy = await self._between_commits(lambda c: c.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
        return not busy

    async def shrink(self) -> bool:
        def work(connection: sqlite3.Connection) -> bool:
            free = connection.execute("PRAGMA freelist_count").fetchone()[0]
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            if free < max(FREE_PAGES_KEPT, pages * FREE_SHARE_KEPT):
                return False
            _give_back(connection)
            return True

        return await self._write_now(work)

    async def import_task(self, row: TaskRow, history: Sequence[HistoryRow], chunks: Sequence[StreamChunk]) -> None:
        task = (
            (row.task_id, row.session_id, row.service, row.state, row.version, row.steps)
            + (row.created_at, row.updated_at, row.ended_at, row.origin, row.paused, row.error)
        )  # fmt: skip
        entries = [(entry.task_id, entry.seq, entry.at, entry.kind, entry.data) for entry in history]
        stream = [(c.task_id, c.first, c.count, c.step_id, c.attempt, c.attempt_first, c.at, c.data) for c in chunks]

        def work(connection: sqlite3.Connection) -> None:
            if connection.execute(self._sql["insert_task"], task).rowcount == 0:
                raise existing_task(row.task_id)
            connection.executemany(self._sql["insert_history"], entries)
            connection.executemany(self._sql["insert_chunk"], stream)

        await self._write_now(work)

    async def backup(self, path: Path) -> None:
        """From one snapshot, by a thread of its own, with the unused space left out."""
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        # A connection of its own: the readers' may not write, not even to another file.
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self._copying.add(connection)

        def copy(unfinished: Path) -> None:
            connection.execute("PRAGMA busy_timeout = 5000")
            connection.execute("VACUUM INTO ?", (str(unfinished),))

        def work() -> None:
            try:
                write_file(path, copy)
            finally:
                with self._interrupting:
                    self._copying.discard(connection)
                    connection.close()

        copied = self._loop.run_in_executor(None, work)
        self._copies.add(copied)
        copied.add_done_callback(self._copies.discard)
        try:
            await asyncio.shield(copied)
        except asyncio.CancelledError:
            self._interrupt(connection)
            raise

    def _interrupt(self, connection: sqlite3.Connection) -> None:
        with self._interrupting:
            if connection in self._copying:
                connection.interrupt()

    async def _stop_copies(self) -> None:
        """End the backups that are being written; whoever asked for one is told."""
        for connection in tuple(self._copying):
            self._interrupt(connection)
        await asyncio.gather(*self._copies, return_exceptions=True)


def _give_back(connection: sqlite3.Connection) -> None:
    """Give back a piece of unused space. The pragma does one page per step, and `execute` is one step."""
    for _ in range(PAGES_AT_ONCE):
        connection.execute("PRAGMA incremental_vacuum")
