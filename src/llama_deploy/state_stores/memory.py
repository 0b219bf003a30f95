"""A state store in memory: the same contract and the same guards as the durable stores, without a file.

It keeps its rows for as long as the object lives, over `close` and `open` too, so a test can restart everything else
around it. It does not survive its process; what must, belongs into `SQLiteStore`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

import msgspec

from llama_deploy.errors import CommitConflictError, LlamaDeployError, StoreUnavailableError
from llama_deploy.runtime.failpoints import failpoint
from llama_deploy.runtime.logs import get_logger
from llama_deploy.state_stores.base import (
    DeliveryRow,
    HistoryRow,
    SessionListing,
    SessionRow,
    SharedValue,
    StoreStatistics,
    StreamChunk,
    TaskFilter,
    TaskListing,
    TaskRow,
    Transition,
)
from llama_deploy.state_stores.checks import row_number
from llama_deploy.state_stores.conditions import predicate
from llama_deploy.state_stores.memory_keeping import MemoryKeeping
from llama_deploy.state_stores.memory_parts import Stream

log = get_logger("llama_deploy.store")


class MemoryStore(MemoryKeeping):
    """A store for tests, notebooks and deployments whose tasks may be forgotten with the process.

    Transitions that are handed over in one iteration of the event loop are one commit. Failpoints are passed as in
    the durable stores: an action that raises at `store.before_commit` loses the batch, as a crash would; at
    `store.after_commit` the batch is recorded and nobody is told.
    """

    def __init__(self) -> None:
        super().__init__()
        self.statistics = StoreStatistics()
        self.location = ":memory:"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handed_over: list[Transition] = []
        self._unsettled = 0

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        self._commit()
        self._loop = None

    @property
    def healthy(self) -> bool:
        return True

    @property
    def backlog(self) -> int:
        return self._unsettled

    # --- recording ------------------------------------------------------------------------------------------------

    def record(self, transition: Transition) -> None:
        if self._loop is None:
            raise StoreUnavailableError("The store is not open.", fix="Call `open` first, and nothing after `close`.")
        if not self._handed_over:
            self._loop.call_soon(self._commit)
        self._handed_over.append(transition)
        self._unsettled += 1

    def _commit(self) -> None:
        """Record what was handed over so far; does nothing when that has happened already."""
        batch, self._handed_over = self._handed_over, []
        if not batch:
            return
        failpoint("store.before_commit")
        outcomes = [self._apply(transition) for transition in batch]
        self.statistics.commits += 1
        failpoint("store.after_commit")
        for transition, outcome in zip(batch, outcomes, strict=True):
            self._unsettled -= 1
            try:
                transition.settle(outcome)
            except Exception as error:  # a defect of one task's follow-up must not keep the others from theirs
                log.exception("what follows a commit failed", exc_info=error)

    def _apply(self, transition: Transition) -> LlamaDeployError | None:
        """Record one transition whole; or nothing of it, and return why."""
        for refusal in self._refusals(transition):
            self.statistics.conflicts += 1
            return CommitConflictError(refusal, fix="Read again what it was based on, and decide again.")
        self._write_task(transition)
        for step_id in transition.answered:
            self._deliveries.remove(step_id)
        for move in transition.moved:
            row = self._deliveries.rows[move.step_id]
            changed = {name: getattr(move, name) for name in ("attempt", "visible_at", "parked", "started")}
            self._deliveries.put(msgspec.structs.replace(row, **changed))
        for delivery in transition.sent:
            self._deliveries.put(delivery)
        for write in transition.shared:
            values = self._shared.setdefault(write.session_id, {})
            values[write.key] = SharedValue(write.key, write.expected_version + 1, write.value)
        for chunk in transition.chunks:
            self._streams.setdefault(chunk.task_id, Stream()).append(chunk)
        session = transition.session
        if session is not None and session.session_id not in self._sessions:
            self._sessions_inserted += 1
            self._sessions[session.session_id] = (self._sessions_inserted, session)
        self.statistics.transitions += 1
        self.statistics.rows_written += _row_count(transition)
        return None

    def _write_task(self, transition: Transition) -> None:
        task = transition.task
        if task is not None:
            self._tasks.put(task)
            if transition.idempotency is not None:
                key, digest = transition.idempotency
                self._idempotent[key] = (task.task_id, digest)
                self._keys.setdefault(task.task_id, []).append(key)
            for hash_, data in transition.blobs.items():
                self._blobs.put(hash_, data, task.updated_at)
            for hash_ in transition.blob_uses:
                self._blobs.use(hash_, task.task_id)
        if transition.entry is not None:
            self._history.setdefault(transition.entry.task_id, []).append(transition.entry)
        for letter in transition.dead:
            self._dead.pop(letter.step_id, None)
            self._dead_inserted += 1
            self._dead[letter.step_id] = (self._dead_inserted, letter)

    def _refusals(self, transition: Transition) -> Iterator[str]:
        """Every guard of the transition that fails, in words."""
        task, entry = transition.task, transition.entry
        if task is not None:
            stored = self._tasks.rows.get(task.task_id)
            version = 0 if stored is None else stored.version
            if version != transition.expected_version:
                yield f"Task {task.task_id} has version {version}, not {transition.expected_version}."
        if entry is not None and entry.seq != len(self._history.get(entry.task_id, ())) + 1:
            yield f"Entry {entry.seq} is not the next one in the history of task {entry.task_id}."
        if transition.idempotency is not None and transition.idempotency[0] in self._idempotent:
            yield f"Idempotency key {transition.idempotency[0]!r} was used before."
        if transition.blobs or transition.blob_uses:
            yield from self._blob_refusals(transition)
        yield from self._delivery_refusals(transition)
        for write in transition.shared:
            yield from self._shared_refusals(write.session_id, write.key, write.expected_version)
        for read in transition.shared_reads:
            yield from self._shared_refusals(read.session_id, read.key, read.version)
        ends: dict[str, int] = {}
        for chunk in transition.chunks:
            stream = self._streams.get(chunk.task_id)
            if chunk.first != ends.get(chunk.task_id, 0 if stream is None else stream.end):
                yield f"Event {chunk.first} is not the next one in the stream of task {chunk.task_id}."
            ends[chunk.task_id] = chunk.first + chunk.count

    def _blob_refusals(self, transition: Transition) -> Iterator[str]:
        if transition.task is None:
            yield "Contents belong to a task, and there is none."
        for hash_ in transition.blob_uses:
            if hash_ not in transition.blobs and self._blobs.size(hash_) is None:
                yield f"There is no content {hash_}."

    def _delivery_refusals(self, transition: Transition) -> Iterator[str]:
        rows = self._deliveries.rows
        answered: set[str] = set()
        for step_id in transition.answered:
            if step_id not in rows or step_id in answered:
                yield f"Step {step_id} is not open."
            answered.add(step_id)
        for move in transition.moved:
            row = rows.get(move.step_id)
            if row is None or move.step_id in answered:
                yield f"Step {move.step_id} is not open."
            elif row.attempt != move.expected_attempt:
                yield f"Step {move.step_id} is at attempt {row.attempt}, not {move.expected_attempt}."
        sent: set[str] = set()
        for delivery in transition.sent:
            if (delivery.step_id in rows and delivery.step_id not in answered) or delivery.step_id in sent:
                yield f"Step {delivery.step_id} is open already."
            sent.add(delivery.step_id)

    def _shared_refusals(self, session_id: str, key: str, expected: int) -> Iterator[str]:
        stored = self._shared.get(session_id, {}).get(key)
        version = 0 if stored is None else stored.version
        if version != expected:
            yield f"Key {key!r} of session {session_id} has version {version}, not {expected}."

    # --- tasks ----------------------------------------------------------------------------------------------------

    async def load_task(self, task_id: str) -> TaskRow | None:
        return self._tasks.rows.get(task_id)

    async def load_deliveries(self, task_id: str) -> list[DeliveryRow]:
        return self._deliveries.of_task(task_id)

    async def load_history(self, task_id: str, *, after: int = 0, limit: int | None = None) -> list[HistoryRow]:
        return self._history.get(task_id, [])[after : None if limit is None else after + limit]

    async def load_chunks(self, task_id: str, *, first: int = 0, limit: int = 100) -> list[StreamChunk]:
        stream = self._streams.get(task_id)
        return [] if stream is None else stream.chunks_from(first, limit)

    async def load_stream_end(self, task_id: str) -> tuple[int, dict[str, tuple[int, int]]]:
        stream = self._streams.get(task_id)
        return (0, {}) if stream is None else (stream.end, dict(stream.attempts))

    async def list_tasks(self, where: TaskFilter, *, limit: int, cursor: str | None = None) -> TaskListing:
        matches = predicate(where, self.given_up())
        found: list[tuple[int, TaskRow]] = []
        after = row_number(cursor)
        for number, row in self._tasks.in_order(
            session_id=where.session_id, oldest_first=where.oldest_first, after=after
        ):
            if matches(row):
                found.append((number, row))
                if len(found) > limit:
                    break
        rows = [row for _, row in found[:limit]]
        return TaskListing(rows, str(found[limit - 1][0]) if len(found) > limit else None)

    async def count_matching(self, where: TaskFilter) -> int:
        matches = predicate(where, self.given_up())
        return sum(matches(row) for _, row in self._tasks.in_order(session_id=where.session_id))

    async def count_tasks(self) -> dict[str, int]:
        """The number of tasks by state, from counters that are kept with every change."""
        return {state: count for state, count in self._tasks.states.items() if count}

    async def count_session_tasks(self, session_id: str) -> tuple[int, int]:
        rows = self._tasks.of_session(session_id)
        return len(rows), sum(row.ended_at is None for row in rows)

    # --- deliveries -----------------------------------------------------------------------------------------------

    async def due_deliveries(self, now: float, *, limit: int) -> list[DeliveryRow]:
        return self._deliveries.due(now, limit)

    async def next_due(self) -> float | None:
        return self._deliveries.next_due()

    async def make_due(self, now: float) -> int:
        self._commit()
        return self._deliveries.make_due(now)

    # --- sessions -------------------------------------------------------------------------------------------------

    async def load_session(self, session_id: str) -> SessionRow | None:
        found = self._sessions.get(session_id)
        return None if found is None else found[1]

    async def list_sessions(self, *, limit: int, cursor: str | None = None) -> SessionListing:
        last = row_number(cursor)
        found: list[tuple[int, SessionRow]] = []
        for number, row in reversed(self._sessions.values()):
            if last is None or number < last:
                found.append((number, row))
                if len(found) > limit:
                    break
        rows = [row for _, row in found[:limit]]
        return SessionListing(rows, str(found[limit - 1][0]) if len(found) > limit else None)

    async def load_shared(self, session_id: str) -> list[SharedValue]:
        return list(self._shared.get(session_id, {}).values())

    async def delete_session(self, session_id: str, *, if_unused: bool = False) -> bool:
        self._commit()
        if if_unused and self._tasks.of_session(session_id):
            return False
        self._shared.pop(session_id, None)
        return self._sessions.pop(session_id, None) is not None

    async def unused_sessions(self, before: float, *, limit: int) -> list[str]:
        rows = [row for _, row in self._sessions.values() if row.created_at < before]
        return [row.session_id for row in rows if not self._tasks.of_session(row.session_id)][:limit]

    async def find_idempotent(self, key: str) -> tuple[str, str] | None:
        return self._idempotent.get(key)

    # --- services -------------------------------------------------------------------------------------------------

    async def put_service(self, name: str, definition: bytes) -> None:
        self._services[name] = definition

    async def delete_service(self, name: str) -> bool:
        return self._services.pop(name, None) is not None

    async def load_services(self) -> dict[str, bytes]:
        return dict(self._services)


def _row_count(transition: Transition) -> int:
    single: Iterable[object] = (transition.task, transition.entry, transition.session, transition.idempotency)
    parts = (transition.answered, transition.sent, transition.moved, transition.shared, transition.chunks)
    many = (*parts, transition.dead, transition.blob_uses)
    return sum(part is not None for part in single) + sum(len(rows) for rows in many)
