"""A PostgreSQL store as one file, and back: a backup that `SQLiteStore` opens, and a backup put into a database.

Both go in pieces, so that no table is ever in memory as a whole, and each is one moment's state: reading is one
snapshot, writing one transaction. For large databases the server's own tools (`pg_dump`, a standby, an archive of its
log) are the better backup; this is the way to look at a store, and to move one.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_deploy.errors import StoreExistsError, StoreUnavailableError
from llama_deploy.state_stores.backups import BackupFacts, check_backup, write_file
from llama_deploy.state_stores.postgres_connection import Connections, quoted
from llama_deploy.state_stores.shards import shard_of
from llama_deploy.state_stores.sqlite_file import load_statements, open_connection

if TYPE_CHECKING:
    import asyncpg

    from llama_deploy.state_stores.postgres import PostgresStore

ROWS_AT_ONCE = 500

_TASK = "task_id, session_id, service, state, version, steps, created_at, updated_at, ended_at, origin, paused, error"
_DELIVERY = "step_id, task_id, service, attempt, visible_at, seq, position, parked, started"
_LETTER = "step_id, task_id, service, attempt, at, code, message, redriven"
_CHUNK = "first, count, step_id, attempt, attempt_first, at, data"

READS: dict[str, str] = {
    "insert_task": f"SELECT {_TASK} FROM {{schema}}.tasks ORDER BY number",  # noqa: S608 - no user text
    "insert_history": "SELECT t.task_id, h.seq, h.at, h.kind, h.data FROM {schema}.history AS h"
    " JOIN {schema}.tasks AS t USING (number)",
    "insert_delivery": f"SELECT {_DELIVERY} FROM {{schema}}.deliveries",  # noqa: S608
    "insert_chunk": "SELECT t.task_id, c.first, c.count, c.step_id, c.attempt, c.attempt_first, c.at, c.data"
    " FROM {schema}.stream_chunks AS c JOIN {schema}.tasks AS t USING (number)",
    "insert_session": "SELECT session_id, created_at FROM {schema}.sessions ORDER BY number",
    "copy_shared": "SELECT session_id, convert_from(key, 'UTF8'), version, value FROM {schema}.session_state",
    "insert_idempotency": "SELECT key, task_id, digest FROM {schema}.idempotency",
    "put_service": "SELECT name, definition FROM {schema}.services",
    "put_document": "SELECT kind, name, data FROM {schema}.documents",
    "insert_dead": f"SELECT {_LETTER} FROM {{schema}}.dead_letters ORDER BY number",  # noqa: S608
    "copy_blob": "SELECT hash, bytes, created_at FROM {schema}.blobs",
    "put_blob_part": "SELECT hash, position, data FROM {schema}.blob_parts",
    "copy_blob_use": "SELECT hash, task_id FROM {schema}.blob_uses",
}
"""What is read, by the statement of the SQLite store that writes it."""


async def write_copy(connections: Connections, schema: str, path: Path) -> None:
    """Write everything that is committed now to a new file. Raises `StoreUnavailableError`; no file is left then."""
    pieces: queue.Queue[tuple[str, list[tuple[Any, ...]]] | Exception | None] = queue.Queue(maxsize=4)
    writing = asyncio.ensure_future(asyncio.to_thread(write_file, path, lambda unfinished: _fill(unfinished, pieces)))
    try:
        async for piece in _read(connections, schema):
            while not writing.done() and not await asyncio.to_thread(_put, pieces, piece):
                pass
            if writing.done():
                break
    except connections.all_errors as error:
        end: Exception | None = StoreUnavailableError("the store cannot be read now", why=str(error))
    except BaseException:
        end = StoreUnavailableError("the copy was given up")
        raise
    else:
        end = None
    finally:
        while not writing.done() and not await asyncio.shield(asyncio.to_thread(_put, pieces, end)):
            pass
        await asyncio.wait([writing])
    await writing


def _put(pieces: queue.Queue[Any], piece: object) -> bool:
    try:
        pieces.put(piece, timeout=0.1)
    except queue.Full:
        return False
    return True


def _fill(unfinished: Path, pieces: queue.Queue[tuple[str, list[tuple[Any, ...]]] | Exception | None]) -> None:
    statements = load_statements()
    connection = open_connection(unfinished, "FULL")
    try:
        connection.execute("BEGIN")
        while (piece := pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            connection.executemany(statements[piece[0]], piece[1])
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = DELETE")
    finally:
        connection.close()


async def _read(connections: Connections, schema: str) -> AsyncIterator[tuple[str, list[tuple[Any, ...]]]]:
    connection = await connections.connect()
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            for name, statement in READS.items():
                rows: list[tuple[Any, ...]] = []
                async for row in connection.cursor(statement.replace("{schema}", schema), prefetch=ROWS_AT_ONCE):
                    rows.append(_for_file(name, tuple(row)))
                    if len(rows) == ROWS_AT_ONCE:
                        yield name, rows
                        rows = []
                if rows:
                    yield name, rows
    finally:
        connection.terminate()


def _for_file(name: str, row: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row as the SQLite store writes it."""
    if name == "insert_dead":
        return (*row[:6], row[6].decode("utf-8", "surrogatepass"), row[7])
    return row


# --- the way back -----------------------------------------------------------------------------------------------------

_TARGETS: dict[str, tuple[str, str]] = {
    "deliveries": (_DELIVERY + ", shard", f"SELECT {_DELIVERY}, task_id FROM deliveries"),  # noqa: S608
    "sessions": ("session_id, created_at", "SELECT session_id, created_at FROM sessions ORDER BY number"),
    "session_state": ("session_id, key, version, value", "SELECT session_id, key, version, value FROM session_state"),
    "idempotency": ("key, task_id, digest", "SELECT key, task_id, digest FROM idempotency"),
    "services": ("name, definition", "SELECT name, definition FROM services"),
    "documents": ("kind, name, data", "SELECT kind, name, data FROM documents"),
    "dead_letters": (_LETTER, f"SELECT {_LETTER} FROM dead_letters ORDER BY number"),  # noqa: S608
    "blobs": ("hash, bytes, created_at", "SELECT hash, bytes, created_at FROM blobs"),
    "blob_parts": ("hash, position, data", "SELECT hash, position, data FROM blob_parts"),
    "blob_uses": ("hash, task_id", "SELECT hash, task_id FROM blob_uses"),
}
"""Tables that are the same in both: columns there, and what is read here."""


async def restore_into(backup: Path, store: PostgresStore) -> BackupFacts:
    """Put a backup into a schema that holds nothing yet, which nobody has open.

    Raises what `check_backup` and `PostgresStore.open` raise, `StoreExistsError` when the schema has content; nothing
    is changed then. It is one transaction: a crash leaves the schema empty.
    """
    facts = await asyncio.to_thread(check_backup, backup)
    store.expects_encryption = True  # what is sealed stays so, and needs no key to be moved
    await store.open()
    try:
        if await store.count_tasks() or (await store.list_sessions(limit=1)).rows or await store.load_services():
            raise StoreExistsError(
                f"there is a store at {store.location}", fix="name another schema with ?schema=NAME, or drop this one"
            )
        await store.fill(facts.tasks, partial(_load, backup, shards=store.shards_count))
    finally:
        await store.close()
    return facts


def _open_file(backup: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{backup.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)


async def _load(backup: Path, connection: asyncpg.Connection[Any], schema: str, *, shards: int) -> None:
    file = await asyncio.to_thread(_open_file, backup)
    try:
        await _load_tasks(file, connection, schema, shards)
        for table, (columns, statement) in _TARGETS.items():
            await _copy(connection, schema, table, columns, _rows_for(table, file.execute(statement), shards))
        await connection.execute(
            f"UPDATE {quoted(schema)}.deliveries AS d SET shard = m.shard "  # noqa: S608 - no user text
            "FROM moved_tasks AS m WHERE m.task_id = d.task_id"
        )
    finally:
        file.close()


async def _load_tasks(file: sqlite3.Connection, connection: asyncpg.Connection[Any], schema: str, shards: int) -> None:
    await connection.execute(
        'CREATE TEMPORARY TABLE moved_tasks (number bigint, task_id text COLLATE "C" PRIMARY KEY, shard integer)'
        " ON COMMIT DROP"
    )
    tasks = file.execute(f"SELECT row_number() OVER (ORDER BY number), {_TASK} FROM tasks ORDER BY number")  # noqa: S608
    await _copy(connection, schema, "tasks", f"number, {_TASK}", tasks)
    moved = file.execute("SELECT row_number() OVER (ORDER BY number), task_id, session_id FROM tasks ORDER BY number")
    rows = ((number, task_id, shard_of(session_id, shards)) for number, task_id, session_id in moved)
    for piece in _pieces(rows):
        await connection.copy_records_to_table("moved_tasks", records=piece, columns=["number", "task_id", "shard"])
    numbers = "(SELECT row_number() OVER (ORDER BY number) AS place, task_id FROM tasks)"
    history = file.execute(
        f"SELECT place, seq, at, kind, data FROM history JOIN {numbers} USING (task_id)"  # noqa: S608
    )
    await _copy(connection, schema, "history", "number, seq, at, kind, data", history)
    stream = file.execute(f"SELECT place, {_CHUNK} FROM stream_chunks JOIN {numbers} USING (task_id)")  # noqa: S608
    await _copy(connection, schema, "stream_chunks", f"number, {_CHUNK}", stream)


def _rows_for(table: str, rows: Iterator[tuple[Any, ...]], shards: int) -> Iterator[tuple[Any, ...]]:
    for row in rows:
        if table == "deliveries":
            yield (*row[:-1], shard_of(row[-1], shards))
        elif table == "session_state":
            yield (row[0], row[1].encode(), *row[2:])
        elif table == "dead_letters":
            yield (*row[:6], row[6].encode("utf-8", "surrogatepass"), row[7])
        else:
            yield row


async def _copy(
    connection: asyncpg.Connection[Any], schema: str, table: str, columns: str, rows: Iterator[tuple[Any, ...]]
) -> None:
    names = columns.split(", ")
    for piece in _pieces(rows):
        await connection.copy_records_to_table(table, records=piece, columns=names, schema_name=schema)


def _pieces(rows: Iterator[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    piece: list[tuple[Any, ...]] = []
    for row in rows:
        piece.append(row)
        if len(piece) == ROWS_AT_ONCE:
            yield piece
            piece = []
    if piece:
        yield piece
