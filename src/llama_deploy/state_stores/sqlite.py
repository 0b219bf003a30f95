"""The SQLite store: WAL, one writing connection, group commit, `synchronous=FULL` by default.

What is handed over while a commit is being written to disk becomes the next batch, so that one `fsync` serves many
tasks. The statements of a batch run on the event loop's thread; only `COMMIT` runs on the writer's thread. Running
the statements there too would cost a hand-over of the interpreter lock per row, because `sqlite3` lets go of it at
every step. Reads use connections of their own, in a thread, and never wait for a write.

A file lock beside the database refuses a second process: with one writing connection, none of the known defects of
concurrent WAL writers in old SQLite versions can occur.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import random
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from llama_deploy.errors import (
    CommitConflictError,
    InvalidRequestError,
    LlamaDeployError,
    StoreLockedError,
    StoreReadOnlyError,
    StoreUnavailableError,
    StoreVersionError,
)
from llama_deploy.runtime import failpoint
from llama_deploy.state_stores.base import (
    DeliveryRow,
    HistoryRow,
    SessionListing,
    SessionRow,
    SharedValue,
    StateStore,
    StoreStatistics,
    StreamChunk,
    TaskFilter,
    TaskListing,
    TaskRow,
    Transition,
)

T = TypeVar("T")

APPLICATION_ID = 0x4C444550
"""Marks the file as ours (`PRAGMA application_id`), so that another program's database is never touched."""

BATCH_TRANSITIONS_MAX = 512
"""Transitions in one commit at most; what is beyond waits for the next one."""

RETRY_DELAY_S = (0.05, 2.0)
"""First and longest pause before a commit that failed (disk full, I/O error) is tried again."""


class _RareWrite:
    """Statements outside of the flow of tasks, and the future of whoever waits for them."""

    def __init__(self, statements: Sequence[tuple[str, tuple[Any, ...]]], done: asyncio.Future[int]) -> None:
        self.statements = statements
        self.done = done
        self.changed = 0

    def run(self, connection: sqlite3.Connection, sql: dict[str, str]) -> None:
        counts = [connection.execute(sql[name], parameters).rowcount for name, parameters in self.statements]
        self.changed = counts[0]


class SQLiteStore(StateStore):
    """A store in one file, for one control plane at a time.

    `path` is created when missing. `synchronous` is `FULL` (survives a loss of power) or `NORMAL` (survives a crash
    of the process; a loss of power may take back the newest commits).
    """

    def __init__(self, path: str | os.PathLike[str], *, synchronous: str = "FULL") -> None:
        if synchronous not in ("FULL", "NORMAL"):
            raise StoreUnavailableError(f"synchronous must be FULL or NORMAL, not {synchronous!r}")
        self.path = Path(path)
        self.location = str(path)
        self.statistics = StoreStatistics()
        self._synchronous = synchronous
        self._sql = load_statements()
        self._pending: list[Transition] = []
        self._rare: list[_RareWrite] = []
        self.last_error = ""
        self._in_flight = 0
        self._committing = False
        self._flush_scheduled = False
        self._healthy = True
        self._closed = True
        self._idle = asyncio.Event()
        self._failures = 0
        self._random = random.Random()  # noqa: S311 - jitter, not a secret

    # --- opening and closing ----------------------------------------------------------------------------------------

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock_file = _lock(self.path)
        try:
            self._connection = self._open_connection()
            self._migrate()
        except BaseException:
            os.close(self._lock_file)
            raise
        self._commits: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run_commits, name="sqlite-writer", daemon=True)
        self._thread.start()
        self._readers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="sqlite-reader")
        self._local = threading.local()
        self._reader_connections: list[sqlite3.Connection] = []
        self._idle.set()
        self._closed = False

    async def close(self) -> None:
        if self._closed:
            return
        self._flush()
        await self._idle.wait()
        self._closed = True
        self._commits.put(None)
        await asyncio.to_thread(self._thread.join)
        self._readers.shutdown(wait=True)
        for connection in self._reader_connections:
            connection.close()
        self._connection.close()
        os.close(self._lock_file)

    def _open_connection(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, cached_statements=64)
            connection.execute("PRAGMA busy_timeout = 5000")
            tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            if tables == 0:
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            elif connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise StoreVersionError(
                    f"{self.path} is a database of another program",
                    fix="name another file with --store; this one was not changed",
                )
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute("PRAGMA cache_size = -32000")
            connection.execute("PRAGMA wal_autocheckpoint = 2000")
        except sqlite3.DatabaseError as error:
            raise _opening_error(self.path, error) from error
        return connection

    def _migrate(self) -> None:
        scripts = migrations()
        current = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if current > len(scripts):
            raise StoreVersionError(
                f"{self.path} was written by a later version (schema {current}, this version knows {len(scripts)})",
                fix="upgrade this program, or name another file with --store; this one was not changed",
            )
        for number, script in enumerate(scripts[current:], start=current + 1):
            try:
                self._connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")
            except sqlite3.DatabaseError as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise _opening_error(self.path, error) from error

    # --- writing ----------------------------------------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        return self._healthy

    @property
    def backlog(self) -> int:
        return len(self._pending) + self._in_flight

    def record(self, transition: Transition) -> None:
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        self._pending.append(transition)
        self._idle.clear()
        if not self._committing and not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what has accumulated and hand the commit to the writer's thread."""
        self._flush_scheduled = False
        if self._committing:
            return
        if not self._pending and not self._rare:
            self._idle.set()
            return
        batch = self._pending[:BATCH_TRANSITIONS_MAX]
        del self._pending[:BATCH_TRANSITIONS_MAX]
        rare, self._rare = self._rare, []
        self._in_flight = len(batch)
        self._committing = True
        try:
            errors = self._write(batch)
            for write in rare:
                write.run(self._connection, self._sql)
        except sqlite3.Error as error:
            self._postpone(batch, rare, error)
            return
        self._commits.put(lambda: self._commit(batch, rare, errors))

    def _run_commits(self) -> None:
        """The writer's thread: one commit after the other, each followed by its notification on the loop."""
        while (job := self._commits.get()) is not None:
            job()

    def _commit(
        self, batch: list[Transition], rare: list[_RareWrite], errors: dict[int, LlamaDeployError]
    ) -> None:
        failpoint("store.before_commit")
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._loop.call_soon_threadsafe(self._postpone, batch, rare, error)
            return
        failpoint("store.after_commit")
        self._loop.call_soon_threadsafe(self._settle, batch, rare, errors)

    def _settle(
        self, batch: list[Transition], rare: list[_RareWrite], errors: dict[int, LlamaDeployError]
    ) -> None:
        self._healthy = True
        self._failures = 0
        self._committing = False
        self._in_flight = 0
        self.statistics.commits += 1
        self.statistics.transitions += len(batch)
        self._flush()  # the next batch goes to disk while this one's consequences are worked on
        for index, transition in enumerate(batch):
            transition.settled(errors.get(index))
        for write in rare:
            write.done.set_result(write.changed)
        self._flush()

    def _postpone(self, batch: list[Transition], rare: list[_RareWrite], error: sqlite3.Error) -> None:
        """The database cannot be written now: keep the batch, in front, and try again after a growing pause."""
        self._healthy = False
        self._failures += 1
        self.statistics.retried_batches += 1
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._pending[:0] = batch
        self._rare[:0] = rare
        self._in_flight = 0
        first, longest = RETRY_DELAY_S
        delay = min(longest, first * 2 ** min(self._failures, 10)) * self._random.uniform(0.5, 1.0)
        self.last_error = str(error)

        def again() -> None:
            self._committing = False
            self._flush()

        self._loop.call_later(delay, again)

    def _write(self, batch: list[Transition]) -> dict[int, LlamaDeployError]:
        """Run the statements of a batch in one open transaction; returns the refused transitions by position."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            if self._apply(batch):
                return {}
        except sqlite3.IntegrityError:
            pass
        except sqlite3.Error:
            self._rollback()
            raise
        self._rollback()
        self.statistics.conflicts += 1
        self._connection.execute("BEGIN IMMEDIATE")
        return self._apply_one_by_one(batch)

    def _rollback(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _apply_one_by_one(self, batch: list[Transition]) -> dict[int, LlamaDeployError]:
        """One bad transition harms nobody else: each is applied under a savepoint of its own."""
        errors: dict[int, LlamaDeployError] = {}
        for index, transition in enumerate(batch):
            self._connection.execute("SAVEPOINT item")
            try:
                applied = self._apply([transition])
            except sqlite3.IntegrityError:
                applied = False
            if not applied:
                self._connection.execute("ROLLBACK TO item")
                errors[index] = CommitConflictError(
                    "the record has changed meanwhile",
                    why=f"a guard failed for task {transition.task.task_id}" if transition.task else "a guard failed",
                )
            self._connection.execute("RELEASE item")
        return errors

    def _apply(self, batch: Sequence[Transition]) -> bool:
        """All statements of a batch, one execution per kind; false when any guard failed."""
        if not self._reads_hold(batch):
            return False
        inserted: list[tuple[Any, ...]] = []
        updated: list[tuple[Any, ...]] = []
        history: list[tuple[Any, ...]] = []
        for item in batch:
            row = item.task
            if row is not None:
                if item.expected_version == 0:
                    inserted.append(
                        (row.task_id, row.session_id, row.service, row.state, row.version, row.steps)
                        + (row.created_at, row.updated_at, row.ended_at)
                    )
                else:
                    updated.append(
                        (row.service, row.state, row.version, row.steps, row.updated_at, row.ended_at)
                        + (row.task_id, item.expected_version)
                    )
            entry = item.entry
            if entry is not None:
                history.append((entry.task_id, entry.seq, entry.at, entry.kind, entry.data))
        shared = [change for item in batch for change in item.shared]
        return (
            self._execute("insert_task", inserted)
            and self._execute("update_task", updated)
            and self._execute(
                "insert_idempotency",
                [(i.idempotency[0], i.task.task_id, i.idempotency[1]) for i in batch if i.idempotency and i.task],
            )
            and self._execute("insert_history", history)
            and self._execute(
                "insert_delivery",
                [
                    (d.step_id, d.task_id, d.service, d.attempt, d.visible_at, d.seq, d.index, d.parked)
                    for item in batch
                    for d in item.sent
                ],
            )
            and self._execute(
                "move_delivery",
                [(m.attempt, m.visible_at, m.parked, m.step_id, m.expected_attempt) for i in batch for m in i.moved],
            )
            and self._execute("delete_delivery", [(step_id,) for item in batch for step_id in item.answered])
            and self._execute(
                "insert_chunk",
                [
                    (c.task_id, c.first, c.count, c.step_id, c.attempt, c.attempt_first, c.at, c.data)
                    for item in batch
                    for c in item.chunks
                ],
            )
            and self._execute(
                "insert_session", [(i.session.session_id, i.session.created_at) for i in batch if i.session], guard=False
            )
            and all(
                self._execute("insert_shared", [(s.value, s.session_id, s.key)])
                if s.expected_version == 0
                else self._execute("update_shared", [(s.value, s.session_id, s.key, s.expected_version)])
                for s in shared
            )
        )

    def _execute(self, name: str, rows: list[tuple[Any, ...]], *, guard: bool = True) -> bool:
        if not rows:
            return True
        self.statistics.statements += 1
        cursor = self._connection.executemany(self._sql[name], rows)
        self.statistics.rows_written += cursor.rowcount
        return not guard or cursor.rowcount == len(rows)

    def _reads_hold(self, batch: Sequence[Transition]) -> bool:
        """Whether every shared key that a decision was based on still has the version it had."""
        written: dict[tuple[str, str], int] = {}
        for item in batch:
            for read in item.shared_reads:
                key = (read.session_id, read.key)
                version = written.get(key)
                if version is None:
                    self.statistics.statements += 1
                    found = self._connection.execute(self._sql["shared_version"], key).fetchone()
                    version = found[0] if found else 0
                if version != read.version:
                    return False
            for write in item.shared:
                written[write.session_id, write.key] = write.expected_version + 1
        return True

    async def _write_now(self, statements: Sequence[tuple[str, tuple[Any, ...]]]) -> int:
        """Rare writes: they go with the next commit; returns how many rows the first statement changed."""
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        rare = _RareWrite(statements, self._loop.create_future())
        self._rare.append(rare)
        self._idle.clear()
        if not self._committing:
            self._flush()
        return await rare.done

    # --- reading ----------------------------------------------------------------------------------------------------

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
        # Step ids are `<task_id>:<n>`, and ";" follows ":" in ASCII.
        return [DeliveryRow(*r) for r in await self._rows("load_deliveries", (f"{task_id}:", f"{task_id};"))]

    async def load_history(self, task_id: str, *, after: int = 0, limit: int | None = None) -> list[HistoryRow]:
        rows = await self._rows("load_history", (task_id, after, -1 if limit is None else limit))
        return [HistoryRow(*row) for row in rows]

    async def load_chunks(self, task_id: str, *, first: int = 0, limit: int = 100) -> list[StreamChunk]:
        return [StreamChunk(*r) for r in await self._rows("load_chunks", (task_id, first, limit)) if r[1] + r[2] > first]

    async def load_stream_end(self, task_id: str) -> tuple[int, dict[str, tuple[int, int]]]:
        def query(connection: sqlite3.Connection) -> tuple[int, dict[str, tuple[int, int]]]:
            end = connection.execute(self._sql["load_stream_end"], (task_id,)).fetchone()[0]
            latest: dict[str, tuple[int, int]] = {}
            for step_id, attempt, count in connection.execute(self._sql["load_stream_attempts"], (task_id,)):
                latest[step_id] = (attempt, count)
            return end, latest

        return await self._read(query)

    async def list_tasks(self, where: TaskFilter, *, limit: int, cursor: str | None = None) -> TaskListing:
        sql, parameters = _list_statement(where, limit, _cursor_number(cursor))
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

    async def count_session_tasks(self, session_id: str) -> tuple[int, int]:
        total, unfinished = (await self._rows("count_session_tasks", (session_id,)))[0]
        return total, unfinished

    async def due_deliveries(self, now: float, *, limit: int) -> list[DeliveryRow]:
        return [DeliveryRow(*row) for row in await self._rows("due_deliveries", (now, limit))]

    async def next_due(self) -> float | None:
        found: float | None = (await self._rows("next_due", ()))[0][0]
        return found

    async def make_due(self, now: float) -> int:
        await self._write_now([("make_due", (now,))])
        count: int = (await self._rows("count_deliveries", ()))[0][0]
        return count

    async def load_session(self, session_id: str) -> SessionRow | None:
        rows = await self._rows("load_session", (session_id,))
        return SessionRow(*rows[0]) if rows else None

    async def list_sessions(self, *, limit: int, cursor: str | None = None) -> SessionListing:
        below = _cursor_number(cursor) or (1 << 62)
        rows = await self._rows("list_sessions", (below, limit + 1))
        shown = rows[:limit]
        return SessionListing([SessionRow(*row[1:]) for row in shown], str(shown[-1][0]) if len(rows) > limit else None)

    async def load_shared(self, session_id: str) -> list[SharedValue]:
        return [SharedValue(*row) for row in await self._rows("load_shared", (session_id,))]

    async def delete_session(self, session_id: str) -> bool:
        deleted = await self._write_now([("delete_session", (session_id,)), ("delete_shared", (session_id,))])
        return deleted > 0

    async def find_idempotent(self, key: str) -> tuple[str, str] | None:
        rows = await self._rows("find_idempotent", (key,))
        return (rows[0][0], rows[0][1]) if rows else None

    async def put_service(self, name: str, definition: bytes) -> None:
        await self._write_now([("put_service", (name, definition))])

    async def delete_service(self, name: str) -> bool:
        return await self._write_now([("delete_service", (name,))]) > 0

    async def load_services(self) -> dict[str, bytes]:
        return dict(await self._rows("load_services", ()))  # type: ignore[arg-type]


def load_statements() -> dict[str, str]:
    """The named statements of `statements.sql`."""
    text = (resources.files(__package__) / "sql" / "sqlite" / "statements.sql").read_text(encoding="utf-8")
    statements: dict[str, str] = {}
    for block in text.split("-- name: ")[1:]:
        name, _, body = block.partition("\n")
        statements[name.strip()] = body.strip().removesuffix(";")
    return statements


def migrations() -> list[str]:
    """The migration scripts in order; the database's `user_version` counts those that have run."""
    folder = resources.files(__package__) / "sql" / "sqlite"
    names = sorted(item.name for item in folder.iterdir() if item.name[:4].isdigit())
    return [(folder / name).read_text(encoding="utf-8") for name in names]


def _list_statement(where: TaskFilter, limit: int, cursor: int | None) -> tuple[str, tuple[Any, ...]]:
    """The statement of a task list: one shape per combination of filters, so that an index fits each."""
    clauses: list[str] = []
    parameters: list[Any] = []
    if where.states is not None:
        clauses.append(f"state IN ({', '.join('?' * len(where.states))})")
        parameters.extend(where.states)
        if not set(where.states) & {"completed", "failed", "canceled", "rejected"}:
            clauses.append("ended_at IS NULL")
        elif set(where.states) <= {"failed", "canceled", "rejected"}:
            clauses.append("state IN ('failed', 'canceled', 'rejected')")
    if where.session_id is not None:
        clauses.append("session_id = ? AND session_id <> task_id")
        parameters.append(where.session_id)
    if where.service is not None:
        clauses.append("service = ?")
        parameters.append(where.service)
    if cursor is not None:
        clauses.append("number > ?" if where.oldest_first else "number < ?")
        parameters.append(cursor)
    condition = f"WHERE {' AND '.join(clauses)} " if clauses else ""
    columns = "number, task_id, session_id, service, state, version, steps, created_at, updated_at, ended_at"
    order = "ASC" if where.oldest_first else "DESC"
    sql = f"SELECT {columns} FROM tasks {condition}ORDER BY number {order} LIMIT ?"  # noqa: S608 - no user text
    return sql, (*parameters, limit + 1)


def _cursor_number(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise InvalidRequestError(f"{cursor!r} is not a cursor", fix="use the `next` of the page before")
    return int(cursor)


def _lock(path: Path) -> int:
    """Take the lock file beside the database; it is released when the process ends, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _read_only_error(path, str(error)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise StoreLockedError(
            f"{path} is in use by another process" + (f" (pid {holder})" if holder else ""),
            why="a store has one writer at a time",
            fix="stop the other process, or name another file with --store",
        ) from error
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


def _opening_error(path: Path, error: sqlite3.DatabaseError) -> LlamaDeployError:
    text = str(error)
    if "readonly" in text or "unable to open" in text:
        return _read_only_error(path, text)
    if "not a database" in text or "malformed" in text or "no such" in text:
        return StoreVersionError(
            f"{path} is not a store of this program", why=text, fix="name another file with --store; it was not changed"
        )
    return StoreUnavailableError(f"{path} cannot be opened", why=text)


def _read_only_error(path: Path, why: str) -> StoreReadOnlyError:
    return StoreReadOnlyError(
        f"{path} cannot be written",
        why=why,
        fix="make the file and its folder writable, or name another place with --store",
    )
