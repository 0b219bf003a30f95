"""The part of the PostgreSQL store that is not about tasks on their way: documents, dead letters, contents, removal.

These writes go over the pool, each in a commit of its own, and are made again when a connection is lost: each is
harmless to repeat. History that filled its partition fast is not removed row by row: the partition is dropped when
nothing in it is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_deploy.errors import CommitConflictError
from llama_deploy.state_stores.base import DeadLetterRow, DeadListing, HistoryRow, StreamChunk, TaskRow
from llama_deploy.state_stores.checks import (
    check_part,
    check_size,
    check_text,
    existing_task,
    missing_content,
    row_number,
    unusable_content,
)
from llama_deploy.state_stores.postgres_connection import PostgresAddress, sqlstate
from llama_deploy.state_stores.postgres_reads import PostgresReads
from llama_deploy.state_stores.postgres_schema import WHOLE_PARTITION_S, PostgresSchema

if TYPE_CHECKING:
    import asyncpg

PARTS_AT_ONCE = 16
"""Parts of a content that one commit removes."""
YOUNG_MAX = 200
"""So many tasks in the order of submission that came after a time end the search for those before it."""
SWEPT_BELOW = 0.1
"""A partition of which less than this share is left is swept: what was removed from it gives its space back."""
NUMBERS_AT_ONCE = 5_000
"""Numbers of tasks that one commit sweeps."""
_SHRINK_AGAIN_S = 600.0
_SCRUBBED = (
    *("tasks", "history", "stream_chunks", "deliveries", "session_state", "dead_letters"),
    *("blobs", "blob_parts", "documents", "idempotency"),
)


class PostgresKeeping(PostgresReads):
    """Everything of the store's contract that writes outside of transitions."""

    def __init__(self, address: PostgresAddress) -> None:
        super().__init__(address)
        self._tables = PostgresSchema(address, self._sql)

    async def _run(self, name: str, *parameters: Any) -> int:
        """One statement; returns how many rows it changed."""
        status = await self._with_connection(lambda connection: connection.execute(self._sql[name], *parameters))
        return int(status.rpartition(" ")[2])

    # --- deliveries, sessions, services -----------------------------------------------------------------------------

    async def make_due(self, now: float) -> int:
        await self._run("make_due", now, self._shards_read)
        count: int = (await self._rows("count_deliveries", self._shards_read))[0][0]
        return count

    async def delete_session(self, session_id: str, *, if_unused: bool = False) -> bool:
        async def work(connection: asyncpg.Connection[Any]) -> bool:
            if if_unused:
                total = await connection.fetchval(self._sql["count_session_tasks"], session_id)
                if total:
                    return False
            await connection.execute(self._sql["delete_shared"], session_id)
            return bool(await connection.execute(self._sql["delete_session"], session_id) != "DELETE 0")

        return await self._with_connection(work, transaction=True)

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

    # --- dead letters -----------------------------------------------------------------------------------------------

    async def list_dead(
        self, *, service: str | None = None, task_id: str | None = None, limit: int, cursor: str | None = None
    ) -> DeadListing:
        rows = await self._rows("list_dead", service, task_id, row_number(cursor), limit + 1)
        shown = rows[:limit]
        letters = [_letter(tuple(row)[1:]) for row in shown]
        return DeadListing(letters, str(shown[-1][0]) if len(rows) > limit else None)

    async def load_dead(self, step_id: str) -> DeadLetterRow | None:
        rows = await self._rows("load_dead", step_id)
        return _letter(tuple(rows[0])) if rows else None

    async def count_dead(self) -> dict[str, int]:
        return {row[0]: row[1] for row in await self._rows("count_dead")}

    async def mark_redriven(self, step_id: str, task_id: str) -> bool:
        asked_before = False

        async def work(connection: asyncpg.Connection[Any]) -> bool:
            nonlocal asked_before
            again, asked_before = asked_before, True
            if await connection.execute(self._sql["mark_redriven"], task_id, step_id) != "UPDATE 0":
                return True
            # The first attempt may have been recorded, and its answer lost.
            return again and bool(await connection.fetch(self._sql["is_redriven_in"], task_id, step_id))

        return await self._with_connection(work)

    async def delete_dead(self, step_ids: Sequence[str]) -> int:
        return await self._run("delete_dead", list(step_ids))

    async def dead_before(self, when: float, *, limit: int) -> list[str]:
        return [row[0] for row in await self._rows("dead_before", when, limit)]

    # --- large contents ---------------------------------------------------------------------------------------------

    async def put_blob_part(self, hash: str, position: int, data: bytes, *, at: float) -> None:  # noqa: A002
        check_part(hash, position, data, self.blob_part_bytes)

        async def work(connection: asyncpg.Connection[Any]) -> None:
            await connection.execute(self._sql["begin_blob"], hash, at)
            if await connection.fetchval(self._sql["lock_blob"], hash) is None:
                await connection.execute(self._sql["put_blob_part"], hash, position, data)

        await self._with_connection(work, transaction=True)

    async def finish_blob(self, hash: str, bytes_: int, created_at: float) -> None:  # noqa: A002
        check_text(hash=hash)

        async def work(connection: asyncpg.Connection[Any]) -> int:
            there: int | None = await connection.fetchval(self._sql["lock_blob"], hash)
            if there is None:
                parts = -(-bytes_ // self.blob_part_bytes)
                await connection.execute(self._sql["delete_parts_from"], hash, parts)  # of an earlier, false upload
                there = int(await connection.fetchval(self._sql["parts_size"], hash))
                if there == bytes_:
                    await connection.execute(self._sql["begin_blob"], hash, created_at)  # an empty one has no part
            if there == bytes_:
                await connection.execute(self._sql["finish_blob"], bytes_, created_at, hash)
            return there

        check_size(hash, bytes_, await self._with_connection(work, transaction=True))

    async def blob_bytes(self, hash: str) -> int | None:  # noqa: A002
        rows = await self._rows("blob_size", hash)
        return rows[0][0] if rows else None

    async def load_blob(self, hash: str, *, first: int = 0, limit: int | None = None) -> bytes:  # noqa: A002
        lowest = first // self.blob_part_bytes
        highest = 2**31 - 1 if limit is None else (first + max(limit, 1) - 1) // self.blob_part_bytes
        rows = await self._rows("load_parts", hash, lowest, highest)
        if not rows:
            raise missing_content(hash)
        skipped = lowest * self.blob_part_bytes
        data = b"".join(row[1] for row in rows if row[1] is not None)
        return data[first - skipped : None if limit is None else first - skipped + limit]

    async def use_blob(self, hash: str, task_id: str) -> None:  # noqa: A002
        async def work(connection: asyncpg.Connection[Any]) -> bool:
            there = await connection.fetchval(self._sql["lock_blob"], hash)
            known = await connection.fetch(self._sql["lock_ended_or_not"], task_id)
            if there is None or not known:
                return False
            await connection.execute(self._sql["insert_blob_use"], hash, task_id)
            return True

        if not await self._with_connection(work, transaction=True):
            raise unusable_content(hash, task_id)

    async def delete_unused_blobs(self, before: float, limit: int) -> int:
        removed = 0
        for (hash_,) in await self._rows("unused_blobs", before, limit):
            if await self._discard(hash_, before):
                await self._remove_parts(hash_)
                removed += 1
        return removed

    async def _discard(self, hash_: str, before: float) -> bool:
        """Say that a content is not there any more, unless somebody takes it into use at the same time."""

        async def work(connection: asyncpg.Connection[Any]) -> bool:
            await connection.execute(self._sql["lock_blob"], hash_)
            return bool(await connection.execute(self._sql["discard_blob"], hash_, before) != "UPDATE 0")

        return await self._with_connection(work, transaction=True)

    async def _remove_parts(self, hash_: str) -> None:
        """Remove a content that is discarded, in small pieces; an upload that brings it anew is left alone."""

        async def work(connection: asyncpg.Connection[Any]) -> bool:
            if await connection.fetchval(self._sql["lock_blob"], hash_) is not None:
                return False
            status = await connection.execute(self._sql["delete_some_parts"], hash_, PARTS_AT_ONCE)
            if status == f"DELETE {PARTS_AT_ONCE}":
                return True
            await connection.execute(self._sql["delete_blob"], hash_)
            return False

        while await self._with_connection(work, transaction=True):
            pass

    # --- keeping and removing ---------------------------------------------------------------------------------------

    async def ended_before(self, when: float, *, limit: int) -> list[str]:
        return [row[0] for row in await self._rows("ended_before", when, limit, YOUNG_MAX - 1)]

    async def delete_tasks(self, task_ids: Sequence[str], *, erase: bool = False) -> int:
        async def work(connection: asyncpg.Connection[Any]) -> tuple[int, list[str]]:
            return await self._delete_tasks(connection, list(task_ids), erase=erase)

        removed, left = await self._with_connection(work, transaction=True)
        for hash_ in left:
            if await self._discard(hash_, float("inf")):
                await self._remove_parts(hash_)
        return removed

    async def _delete_tasks(
        self, connection: asyncpg.Connection[Any], task_ids: list[str], *, erase: bool
    ) -> tuple[int, list[str]]:
        """Remove the tasks within the open transaction; returns how many, and the contents that they used, if erased.

        The deliveries go before the rest is looked at, so that a commit that answers one of them either came before
        this, or is refused.
        """
        doomed = await connection.fetch(self._sql["lock_doomed"], task_ids, erase)
        names = task_ids if erase else [row[0] for row in doomed]
        if not names:
            return 0, []
        numbers = [row[1] for row in doomed]
        written = numbers
        if erase:
            written = numbers + [row[0] for row in await connection.fetch(self._sql["strays_of"], names)]
        else:
            whole = await connection.fetch(self._sql["whole_partitions"], WHOLE_PARTITION_S)
            written = [number for number in numbers if not any(low <= number < high for low, high in whole)]
        await connection.execute(self._sql["delete_deliveries"], names)
        for name in ("delete_history", "delete_stream"):
            await connection.execute(self._sql[name], written)
        for name in ("delete_idempotency", "delete_task_dead"):
            await connection.execute(self._sql[name], names)
        used = await connection.fetch(self._sql["delete_task_uses"], names)
        await connection.execute(self._sql["delete_tasks"], numbers)
        await connection.execute(self._sql["count_removed"], len(numbers))
        return len(numbers), sorted({row[0] for row in used}) if erase else []

    async def scrub(self) -> bool:
        """What was removed cannot be asked for any more; here its rows leave the tables' pages.

        The server's log keeps older pages until it is recycled, and backups keep what they have: who needs more than
        that keeps the store encrypted.
        """

        async def work(connection: asyncpg.Connection[Any]) -> None:
            for table in _SCRUBBED:  # giving back empty pages would make readers and writers wait
                await connection.execute(f"VACUUM (TRUNCATE false) {self._schema}.{table}")

        if self._address.proxied:  # it cannot run in a transaction, and the server does it by itself soon
            return True
        await self._with_connection(work)
        return True

    async def shrink(self) -> bool:
        """Drop the oldest partition that no task needs, or sweep a piece of one that few still need.

        All other space is given back to later rows by the server's own vacuum.
        """
        for low, high, swept_to, in_use in await self._rows("old_partitions"):
            if not in_use:
                return await self._drop(low)
            if swept_to < high:
                few = int(self._tables.partition_tasks * SWEPT_BELOW)
                if (await self._rows("count_between", low, high, few))[0][0] < few:
                    await self._sweep(low, swept_to, min(high, swept_to + NUMBERS_AT_ONCE))
                    return True
        return False

    async def _drop(self, low: int) -> bool:
        try:
            async with self._connections.connection() as connection:
                await self._tables.drop_partition(connection, low)
        except self._connections.server_error as error:
            if sqlstate(error) in {"55P03", "42P01"}:  # somebody reads for long, or another one has dropped it
                return False
            raise
        return True

    async def _sweep(self, low: int, first: int, end: int) -> None:
        async def work(connection: asyncpg.Connection[Any]) -> None:
            for name in ("sweep_history", "sweep_stream"):
                await connection.execute(self._sql[name], first, end)
            await connection.execute(self._sql["note_swept"], low, end)

        await self._with_connection(work, transaction=True)

    async def import_task(self, row: TaskRow, history: Sequence[HistoryRow], chunks: Sequence[StreamChunk]) -> None:
        columns = (
            (row.task_id, row.session_id, row.service, row.state, row.version, row.steps)
            + (row.created_at, row.updated_at, row.ended_at, row.origin, row.paused, row.error)
        )  # fmt: skip

        async def work(connection: asyncpg.Connection[Any]) -> None:
            number = await connection.fetchval(self._sql["import_task"], *columns)
            entries = [[e.seq for e in history], [e.at for e in history], [e.kind for e in history]]
            await connection.execute(self._sql["import_history"], number, *entries, [e.data for e in history])
            names = ("first", "count", "step_id", "attempt", "attempt_first", "at", "data")
            stream = [[getattr(chunk, name) for chunk in chunks] for name in names]
            await connection.execute(self._sql["import_chunks"], number, *stream)

        if await self.load_task(row.task_id) is not None:
            raise existing_task(row.task_id)
        try:
            await self._with_connection(work, transaction=True)
        except Exception as error:
            if sqlstate(error.__cause__ or error) == "23505":
                raise existing_task(row.task_id) from error
            if sqlstate(error.__cause__ or error)[:2] in {"22", "23"}:
                raise CommitConflictError("that cannot be stored", why=str(error)) from error
            raise

    # --- in the background ------------------------------------------------------------------------------------------

    async def _keep_partitions_ahead(self, highest: int) -> None:
        if self._tables.needs_partition(highest):
            async with self._connections.connection() as connection:
                await self._tables.make_partitions(connection)

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _letter(row: tuple[Any, ...]) -> DeadLetterRow:
    step_id, task_id, service, attempt, at, code, message, redriven = row
    return DeadLetterRow(
        step_id, task_id, service, attempt, at, code, message.decode("utf-8", "surrogatepass"), redriven
    )
