"""The reading half of the PostgreSQL store, over a pool of connections.

A read that meets a lost connection, a server that restarts or a statement that took too long is made again, until its
deadline. Statements are in `sql/postgres/statements.sql`.
"""

from __future__ import annotations

import asyncio
import math
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from llama_deploy.errors import InvalidRequestError, StoreReadOnlyError, StoreUnavailableError
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
from llama_deploy.state_stores.postgres_connection import (
    TRANSIENT,
    Connections,
    PostgresAddress,
    is_about_values,
    pause_s,
    quoted,
    sqlstate,
)
from llama_deploy.state_stores.postgres_schema import statements_of

if TYPE_CHECKING:
    import asyncpg

T = TypeVar("T")

READ_DEADLINE_S = 10.0
"""How long a read, or a rare write, is tried before whoever asked is told that the store is not there."""
_NO_LIMIT = 2**62

TASK_COLUMNS = ", ".join(TaskRow.__struct_fields__)


class PostgresReads(StateStore):
    """Everything of the store's contract that only reads."""

    def __init__(self, address: PostgresAddress) -> None:
        self._address = address
        self._schema = quoted(address.schema)
        self._sql = statements_of(address.schema)
        self._connections = Connections(address)
        self._closed = True

    @property
    @abstractmethod
    def _shards_read(self) -> list[int]:
        """The shards whose deliveries are ours to look after."""

    async def _with_connection(
        self, work: Callable[[asyncpg.Connection[Any]], Awaitable[T]], *, transaction: bool = False
    ) -> T:
        """Run something on a connection of the pool, again where that may help, until the deadline."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + READ_DEADLINE_S
        failures = 0
        while True:
            if self._closed:
                raise StoreUnavailableError("the store is closed")
            try:
                async with self._connections.connection(transaction=transaction) as connection:
                    return await work(connection)
            except self._connections.server_error as error:
                if is_about_values(error):
                    raise InvalidRequestError("that cannot be stored, nor be found", why=str(error)) from error
                if sqlstate(error) == "25006":
                    failure: Exception = StoreReadOnlyError("the store cannot be written now", why=str(error))
                else:
                    failure = StoreUnavailableError("the store does not do what it was asked", why=str(error))
                worthwhile = sqlstate(error) in TRANSIENT or sqlstate(error)[:2] in {"08", "25", "53", "57"}
            except (UnicodeError, OverflowError) as error:
                raise InvalidRequestError("that cannot be stored, nor be found", why=str(error)) from error
            except self._connections.connection_errors as error:
                if is_about_values(error):
                    raise InvalidRequestError("that cannot be stored, nor be found", why=str(error)) from error
                failure = StoreUnavailableError(
                    "the store cannot be reached now", why=str(error) or type(error).__name__
                )
                worthwhile = True
            failures += 1
            pause = pause_s(failures)
            if not worthwhile or loop.time() + pause > ends_at:
                raise failure
            await asyncio.sleep(pause)

    async def _rows(self, name: str, *parameters: Any) -> list[Any]:
        return await self._fetch(self._sql[name], *parameters)

    async def _fetch(self, statement: str, *parameters: Any) -> list[Any]:
        return await self._with_connection(lambda connection: connection.fetch(statement, *parameters))

    # --- tasks ------------------------------------------------------------------------------------------------------

    async def load_task(self, task_id: str) -> TaskRow | None:
        rows = await self._rows("load_task", task_id)
        return TaskRow(*rows[0]) if rows else None

    async def load_deliveries(self, task_id: str) -> list[DeliveryRow]:
        return [DeliveryRow(*row) for row in await self._rows("load_deliveries", task_id)]

    async def load_history(self, task_id: str, *, after: int = 0, limit: int | None = None) -> list[HistoryRow]:
        rows = await self._rows("load_history", task_id, after, _NO_LIMIT if limit is None else limit)
        return [HistoryRow(*row) for row in rows]

    async def load_chunks(self, task_id: str, *, first: int = 0, limit: int = 100) -> list[StreamChunk]:
        chunks = [StreamChunk(*row) for row in await self._rows("load_chunks", task_id, first, limit)]
        return [chunk for chunk in chunks if chunk.first + chunk.count > first]

    async def load_stream_end(self, task_id: str) -> tuple[int, dict[str, tuple[int, int]]]:
        rows = await self._rows("load_stream_attempts", task_id)
        return max((row[3] for row in rows), default=0), {row[0]: (row[1], row[2]) for row in rows}

    async def list_tasks(self, where: TaskFilter, *, limit: int, cursor: str | None = None) -> TaskListing:
        statement, parameters = list_statement(self._schema, where, limit, row_number(cursor))
        rows = await self._fetch(statement, *parameters)
        shown = rows[:limit]
        listed = [TaskRow(*list(row)[1:]) for row in shown]
        return TaskListing(listed, str(shown[-1][0]) if len(rows) > limit else None)

    async def count_tasks(self) -> dict[str, int]:
        counts = {row[0]: row[1] for row in await self._rows("count_tasks")}
        total = counts.pop("", 0)
        counts["completed"] = total - sum(counts.values())
        return {state: count for state, count in counts.items() if count}

    async def count_matching(self, where: TaskFilter) -> int:
        clauses, parameters = _numbered(*where_clauses(where, letters=f"{self._schema}.dead_letters"))
        if not clauses:
            total: int = (await self._rows("count_all"))[0][0]
            return total
        statement = f"SELECT count(*) FROM {self._schema}.tasks WHERE {' AND '.join(clauses)}"  # noqa: S608 - no user text
        count: int = (await self._fetch(statement, *parameters))[0][0]
        return count

    async def count_ended(self) -> int:
        count: int = (await self._rows("count_ended"))[0][0]
        return count

    async def count_session_tasks(self, session_id: str) -> tuple[int, int]:
        total, unfinished = (await self._rows("count_session_tasks", session_id))[0]
        return total, unfinished

    # --- deliveries -------------------------------------------------------------------------------------------------

    async def due_deliveries(self, now: float, *, limit: int) -> list[DeliveryRow]:
        return [DeliveryRow(*row) for row in await self._rows("due_deliveries", now, limit, self._shards_read)]

    async def next_due(self) -> float | None:
        rows = await self._rows("next_due", self._shards_read)
        return rows[0][0] if rows else None

    # --- sessions, keys, services, documents ------------------------------------------------------------------------

    async def load_session(self, session_id: str) -> SessionRow | None:
        rows = await self._rows("load_session", session_id)
        return SessionRow(*rows[0]) if rows else None

    async def list_sessions(self, *, limit: int, cursor: str | None = None) -> SessionListing:
        rows = await self._rows("list_sessions", row_number(cursor) or _NO_LIMIT, limit + 1)
        shown = rows[:limit]
        return SessionListing(
            [SessionRow(row[1], row[2]) for row in shown], str(shown[-1][0]) if len(rows) > limit else None
        )

    async def unused_sessions(self, before: float, *, limit: int) -> list[str]:
        return [row[0] for row in await self._rows("unused_sessions", before, limit)]

    async def load_shared(self, session_id: str) -> list[SharedValue]:
        return [SharedValue(row[0].decode(), row[1], row[2]) for row in await self._rows("load_shared", session_id)]

    async def find_idempotent(self, key: str) -> tuple[str, str] | None:
        rows = await self._rows("find_idempotent", key)
        return (rows[0][0], rows[0][1]) if rows else None

    async def load_services(self) -> dict[str, bytes]:
        return {row[0]: row[1] for row in await self._rows("load_services")}

    async def load_documents(self, kind: str) -> dict[str, bytes]:
        return {row[0]: row[1] for row in await self._rows("load_documents", kind)}


def list_statement(schema: str, where: TaskFilter, limit: int, cursor: int | None) -> tuple[str, list[Any]]:
    """The statement of a task list: one shape per combination of filters, so that an index fits each."""
    clauses, parameters = _numbered(*where_clauses(where, letters=f"{schema}.dead_letters"))
    if cursor is not None:
        parameters.append(cursor)
        clauses.append(f"number {'>' if where.oldest_first else '<'} ${len(parameters)}::bigint")
    order = "ASC" if where.oldest_first else "DESC"
    condition = f"WHERE {' AND '.join(clauses)} " if clauses else ""
    parameters.append(limit + 1)
    statement = (
        f"SELECT number, {TASK_COLUMNS} FROM {schema}.tasks {condition}ORDER BY number {order} LIMIT ${len(parameters)}"  # noqa: S608 - no user text
    )
    return statement, parameters


def _numbered(clauses: list[str], parameters: list[Any]) -> tuple[list[str], list[Any]]:
    """Terms with a parameter for each `?`, text as text and every number as one that all columns compare with."""
    number = 0
    written: list[str] = []
    for clause in clauses:
        head, *rest = clause.split("?")
        for part in rest:
            value = parameters[number]
            number += 1
            head += f"${number}::{'text' if isinstance(value, str) else 'float8'}{part}"
        written.append(head)
    return written, [value if isinstance(value, str) else _float(value) for value in parameters]


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
