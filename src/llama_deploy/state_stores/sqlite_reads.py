"""The reading half of the SQLite store: connections of their own, in threads of their own.

A read never waits for a write, and sees everything that is committed. Statements are in `sql/sqlite/statements.sql`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from llama_deploy.errors import StoreUnavailableError
from llama_deploy.state_stores.base import (
    DeliveryRow,
    HistoryRow,
    SessionListing,
    SessionRow,
    SharedValue,
    StateStore,
    StreamChunk,
    TaskFilter,
    TaskListing,
    TaskRow,
)
from llama_deploy.state_stores.checks import row_number
from llama_deploy.state_stores.conditions import where_clauses
from llama_deploy.state_stores.sqlite_file import load_statements

T = TypeVar("T")

TASK_COLUMNS = ", ".join(TaskRow.__struct_fields__)


class SQLiteReads(StateStore):
    """Everything of the store's contract that only reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sql = load_statements()
        self._closed = True

    def _open_readers(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._readers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="sqlite-reader")
        self._local = threading.local()
        self._reader_connections: list[sqlite3.Connection] = []

    def _close_readers(self) -> None:
        self._readers.shutdown(wait=True)
        for connection in self._reader_connections:
            connection.close()

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        try:
            return await self._loop.run_in_executor(self._readers, self._with_reader, query)
        except sqlite3.Error as error:
            raise StoreUnavailableError("the store cannot be read", why=str(error)) from error

    def _with_reader(self, query: Callable[[sqlite3.Connection], T]) -> T:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            uri = f"{self.path.absolute().as_uri()}?mode=ro"
            connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA busy_timeout = 5000")
            self._local.connection = connection
            self._reader_connections.append(connection)
        return query(connection)

    async def _rows(self, name: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return await self._read(lambda c: c.execute(self._sql[name], parameters).fetchall())

    async def load_task(self, task_id: str) -> TaskRow | None:
        rows = await self._rows("load_task", (task_id,))
        return TaskRow(*rows[0]) if rows else None

    async def load_deliveries(self, task_id: str) -> list[DeliveryRow]:
        return [DeliveryRow(*row) for row in await self._rows("load_deliveries", (task_id,))]

    async def load_history(self, task_id: str, *, after: int = 0, limit: int | None = None) -> list[HistoryRow]:
        rows = await self._rows("load_history", (task_id, after, -1 if limit is None else limit))
        return [HistoryRow(*row) for row in rows]

    async def load_chunks(self, task_id: str, *, first: int = 0, limit: int = 100) -> list[StreamChunk]:
        chunks = [StreamChunk(*row) for row in await self._rows("load_chunks", (task_id, first, limit))]
        return [chunk for chunk in chunks if chunk.first + chunk.count > first]

    async def load_stream_end(self, task_id: str) -> tuple[int, dict[str, tuple[int, int]]]:
        def query(connection: sqlite3.Connection) -> tuple[int, dict[str, tuple[int, int]]]:
            end = connection.execute(self._sql["load_stream_end"], (task_id,)).fetchone()[0]
            latest: dict[str, tuple[int, int]] = {}
            for step_id, attempt, count in connection.execute(self._sql["load_stream_attempts"], (task_id,)):
                latest[step_id] = (attempt, count)
            return end, latest

        return await self._read(query)

    async def list_tasks(self, where: TaskFilter, *, limit: int, cursor: str | None = None) -> TaskListing:
        sql, parameters = list_statement(where, limit, row_number(cursor))
        rows = await self._read(lambda c: c.execute(sql, parameters).fetchall())
        shown = rows[:limit]
        return TaskListing([TaskRow(*row[1:]) for row in shown], str(shown[-1][0]) if len(rows) > limit else None)

    async def count_tasks(self) -> dict[str, int]:
        def query(connection: sqlite3.Connection) -> dict[str, int]:
            counts = dict(connection.execute(self._sql["count_unfinished"]).fetchall())
            counts.update(connection.execute(self._sql["count_unhappy"]).fetchall())
            total = connection.execute(self._sql["count_all"]).fetchone()[0]
            counts["completed"] = total - sum(counts.values())
            return {state: count for state, count in counts.items() if count}

        return await self._read(query)

    async def count_matching(self, where: TaskFilter) -> int:
        clauses, parameters = where_clauses(where)
        if not clauses:
            total: int = (await self._rows("count_all", ()))[0][0]
            return total
        sql = f"SELECT count(*) FROM tasks {_where(clauses)}"  # noqa: S608 - no user text
        count: int = await self._read(lambda c: c.execute(sql, parameters).fetchone()[0])
        return count

    async def count_ended(self) -> int:
        count: int = (await self._rows("count_ended", ()))[0][0]
        return count

    async def count_session_tasks(self, session_id: str) -> tuple[int, int]:
        total, unfinished = (await self._rows("count_session_tasks", (session_id,)))[0]
        return total, unfinished

    async def due_deliveries(self, now: float, *, limit: int) -> list[DeliveryRow]:
        return [DeliveryRow(*row) for row in await self._rows("due_deliveries", (now, limit))]

    async def next_due(self) -> float | None:
        found: float | None = (await self._rows("next_due", ()))[0][0]
        return found

    async def load_session(self, session_id: str) -> SessionRow | None:
        rows = await self._rows("load_session", (session_id,))
        return SessionRow(*rows[0]) if rows else None

    async def list_sessions(self, *, limit: int, cursor: str | None = None) -> SessionListing:
        below = row_number(cursor) or (1 << 62)
        rows = await self._rows("list_sessions", (below, limit + 1))
        shown = rows[:limit]
        return SessionListing([SessionRow(*row[1:]) for row in shown], str(shown[-1][0]) if len(rows) > limit else None)

    async def unused_sessions(self, before: float, *, limit: int) -> list[str]:
        return [row[0] for row in await self._rows("unused_sessions", (before, limit))]

    async def load_shared(self, session_id: str) -> list[SharedValue]:
        return [SharedValue(*row) for row in await self._rows("load_shared", (session_id,))]

    async def find_idempotent(self, key: str) -> tuple[str, str] | None:
        rows = await self._rows("find_idempotent", (key,))
        return (rows[0][0], rows[0][1]) if rows else None

    async def load_services(self) -> dict[str, bytes]:
        return dict(await self._rows("load_services", ()))


def list_statement(where: TaskFilter, limit: int, cursor: int | None) -> tuple[str, tuple[Any, ...]]:
    """The statement of a task list: one shape per combination of filters, so that an index fits each."""
    clauses, parameters = where_clauses(where)
    if cursor is not None:
        clauses.append("number > ?" if where.oldest_first else "number < ?")
        parameters.append(cursor)
    order = "ASC" if where.oldest_first else "DESC"
    sql = f"SELECT number, {TASK_COLUMNS} FROM tasks {_where(clauses)}ORDER BY number {order} LIMIT ?"  # noqa: S608 - no user text
    return sql, (*parameters, limit + 1)


def _where(clauses: list[str]) -> str:
    return f"WHERE {' AND '.join(clauses)} " if clauses else ""
