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
import os
import queue
import random
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from llama_deploy.errors import (
    CommitConflictError,
    LlamaDeployError,
    StoreUnavailableError,
)
from llama_deploy.runtime import failpoint
from llama_deploy.runtime.logs import get_logger
from llama_deploy.state_stores.base import (
    StoreStatistics,
    Transition,
)
from llama_deploy.state_stores.sqlite_file import lock, open_connection
from llama_deploy.state_stores.sqlite_keeping import SQLiteKeeping

log = get_logger("llama_deploy.store")

T = TypeVar("T")

BATCH_TRANSITIONS_MAX = 512
"""Transitions in one commit at most; what is beyond waits for the next one."""

_REFUSALS = (sqlite3.IntegrityError, UnicodeError, OverflowError)
"""What makes a single transition unfit to be recorded, as opposed to a database that cannot be written."""

RETRY_DELAY_S = (0.05, 2.0)
"""First and longest pause before a commit that failed (disk full, I/O error) is tried again."""


class _RareWrite:
    """Work outside of the flow of tasks, and the future of whoever waits for it."""

    def __init__(self, work: Callable[[sqlite3.Connection], Any], done: asyncio.Future[Any]) -> None:
        self._work = work
        self._done = done
        self._outcome: Any = None
        self._refusal: Exception | None = None

    def run(self, connection: sqlite3.Connection) -> None:
        """Do the work within the open transaction, or nothing of it; a refusal harms nobody else."""
        self._refusal = None
        connection.execute("SAVEPOINT rare")
        try:
            self._outcome = self._work(connection)
        except (*_REFUSALS, LlamaDeployError) as error:
            connection.execute("ROLLBACK TO rare")
            self._refusal = error
        connection.execute("RELEASE rare")

    def settle(self) -> None:
        """Tell the outcome, after the commit."""
        if self._done.done():  # whoever asked may have been canceled meanwhile
            return
        if self._refusal is None:
            self._done.set_result(self._outcome)
        elif isinstance(self._refusal, LlamaDeployError):
            self._done.set_exception(self._refusal)
        else:
            self._done.set_exception(CommitConflictError("that cannot be stored", why=str(self._refusal)))


class SQLiteStore(SQLiteKeeping):
    """A store in one file, for one control plane at a time.

    `path` is created when missing. `synchronous` is `FULL` (survives a loss of power) or `NORMAL` (survives a crash
    of the process; a loss of power may take back the newest commits).
    """

    def __init__(self, path: str | os.PathLike[str], *, synchronous: str = "FULL") -> None:
        if synchronous not in ("FULL", "NORMAL"):
            raise StoreUnavailableError(f"synchronous must be FULL or NORMAL, not {synchronous!r}")
        super().__init__(Path(path))
        self.location = str(path)
        self.statistics = StoreStatistics()
        self._synchronous = synchronous
        self._pending: list[Transition] = []
        self._rare: list[_RareWrite] = []
        self._between: list[Callable[[], None]] = []
        self.last_error = ""
        self._in_flight = 0
        self._committing = False
        self._flush_scheduled = False
        self._healthy = True
        self._idle = asyncio.Event()
        self._failures = 0

    # --- opening and closing ----------------------------------------------------------------------------------------

    async def open(self) -> None:
        self._lock_file = lock(self.path)
        try:
            self._connection = open_connection(self.path, self._synchronous, expects_encryption=self.expects_encryption)
        except BaseException:
            os.close(self._lock_file)
            raise
        self._start_writer()
        self._open_readers(asyncio.get_running_loop())
        self._idle.set()
        self._closed = False

    async def close(self) -> None:
        if self._closed:
            return
        self._flush()
        await self._idle.wait()
        self._closed = True
        await self._stop_copies()
        await self._stop_writer()
        self._close_readers()
        self._connection.close()
        os.close(self._lock_file)

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
        if self._between:
            self._committing = True
            self._hand_to_writer(self._between.pop(0))
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
                write.run(self._connection)
        except sqlite3.Error as error:
            self._postpone(batch, rare, error)
            return
        self._hand_to_writer(lambda: self._commit(batch, rare, errors))

    def _start_writer(self) -> None:
        self._commits: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run_commits, name="sqlite-writer", daemon=True)
        self._thread.start()

    async def _stop_writer(self) -> None:
        self._commits.put(None)
        await asyncio.to_thread(self._thread.join)

    def _hand_to_writer(self, job: Callable[[], None]) -> None:
        self._commits.put(job)

    def _run_commits(self) -> None:
        """The writer's thread: one commit after the other, each followed by its notification on the loop."""
        while (job := self._commits.get()) is not None:
            job()

    def _commit(self, batch: list[Transition], rare: list[_RareWrite], errors: dict[int, LlamaDeployError]) -> None:
        failpoint("store.before_commit")
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._loop.call_soon_threadsafe(self._postpone, batch, rare, error)
            return
        failpoint("store.after_commit")
        self._loop.call_soon_threadsafe(self._settle, batch, rare, errors)

    def _settle(self, batch: list[Transition], rare: list[_RareWrite], errors: dict[int, LlamaDeployError]) -> None:
        self._healthy = True
        self._failures = 0
        self._committing = False
        self._in_flight = 0
        self.statistics.commits += 1
        self.statistics.transitions += len(batch)
        self._flush()  # the next batch goes to disk while this one's consequences are worked on
        for index, transition in enumerate(batch):
            try:
                transition.settle(errors.get(index))
            except Exception as error:  # a defect of one task's follow-up must not keep the others from theirs
                log.exception("what follows a commit failed", exc_info=error)
        for write in rare:
            write.settle()
        failpoint("store.after_settled")
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
        delay = min(longest, first * 2 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
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
        except _REFUSALS:
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
            except _REFUSALS:
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
        if not self._reads_hold(batch) or _moves_after_answers(batch):
            return False
        inserted: list[tuple[Any, ...]] = []
        updated: list[tuple[Any, ...]] = []
        history: list[tuple[Any, ...]] = []
        keeping: list[Transition] = []
        for item in batch:
            row = item.task
            if row is not None:
                if item.expected_version == 0:
                    inserted.append(
                        (row.task_id, row.session_id, row.service, row.state, row.version, row.steps)
                        + (row.created_at, row.updated_at, row.ended_at, row.origin, row.paused, row.error)
                    )
                else:
                    updated.append(
                        (row.service, row.state, row.version, row.steps, row.updated_at, row.ended_at)
                        + (row.paused, row.error, row.task_id, item.expected_version)
                    )
            entry = item.entry
            if entry is not None:
                history.append((entry.task_id, entry.seq, entry.at, entry.kind, entry.data))
            if item.dead or item.blobs or item.blob_uses:
                keeping.append(item)
        shared = [change for item in batch for change in item.shared]
        sessions = [(i.session.session_id, i.session.created_at) for i in batch if i.session]
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
                    (d.step_id, d.task_id, d.service, d.attempt, d.visible_at, d.seq, d.index, d.parked, d.started)
                    for item in batch
                    for d in item.sent
                ],
            )
            and self._execute(
                "move_delivery",
                [
                    (m.attempt, m.visible_at, m.parked, m.started, m.step_id, m.expected_attempt)
                    for i in batch
                    for m in i.moved
                ],
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
            and self._execute("insert_session", sessions, guard=False)
            and all(
                self._execute("insert_shared", [(s.value, s.session_id, s.key)])
                if s.expected_version == 0
                else self._execute("update_shared", [(s.value, s.session_id, s.key, s.expected_version)])
                for s in shared
            )
            and (not keeping or self._apply_keeping(keeping))
        )

    def _apply_keeping(self, batch: Sequence[Transition]) -> bool:
        """The dead letters and contents of those transitions that have some; false when a guard failed."""
        uses: list[tuple[str, str]] = []
        for item in batch:
            if not (item.blobs or item.blob_uses):
                continue
            if item.task is None:
                return False
            for hash_, data in item.blobs.items():
                self.put_blob(self._connection, hash_, data, item.task.updated_at)
            uses += [(hash_, item.task.task_id) for hash_ in item.blob_uses]
        letters = [
            (d.step_id, d.task_id, d.service, d.attempt, d.at, d.code, d.message, d.redriven)
            for item in batch
            for d in item.dead
        ]
        return self._execute("insert_dead", letters) and self._execute("insert_blob_use", uses)

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

    async def _write_now(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """A rare write: it goes with the next commit, and what `work` returns is told after it."""
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        done: asyncio.Future[T] = self._loop.create_future()
        self._rare.append(_RareWrite(work, done))
        self._idle.clear()
        if not self._committing:
            self._flush()
        return await done

    async def _between_commits(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        done: asyncio.Future[T] = self._loop.create_future()

        def ended(outcome: T | None, error: Exception | None) -> None:
            self._committing = False
            self._flush()
            if done.done():
                return
            if error is not None:
                done.set_exception(StoreUnavailableError("the store cannot be written now", why=str(error)))
            else:
                done.set_result(outcome)  # type: ignore[arg-type]

        def run() -> None:
            try:
                outcome = work(self._connection)
            except sqlite3.Error as error:
                self._loop.call_soon_threadsafe(ended, None, error)
            else:
                self._loop.call_soon_threadsafe(ended, outcome, None)

        self._between.append(run)
        self._idle.clear()
        if not self._committing:
            self._flush()
        return await done


def _moves_after_answers(batch: Sequence[Transition]) -> bool:
    """Whether a delivery is moved after an earlier transition of the batch has taken it away."""
    answered: set[str] = set()
    for item in batch:
        if item.moved and any(move.step_id in answered for move in item.moved):
            return True
        answered.update(item.answered)
    return False
