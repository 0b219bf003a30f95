"""A state store in memory: the same contract and the same guards as the durable stores, without a file.

It keeps its rows for as long as the object lives, over `close` and `open` too, so a test can restart everything else
around it. It does not survive its process; what must, belongs into `SQLiteStore`.
"""

from __future__ import annotations

import asyncio
import heapq
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from llama_deploy.errors import CommitConflictError, InvalidRequestError, LlamaDeployError, StoreUnavailableError
from llama_deploy.runtime.failpoints import failpoint
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

_CURSOR_DIGITS_MAX = 18
"""Longer numbers are no row numbers: 63 bits, as in SQLite, have 19 digits."""


class MemoryStore(StateStore):
    """A store for tests, notebooks and deployments whose tasks may be forgotten with the process.

    Transitions that are handed over in one iteration of the event loop are one commit. Failpoints are passed as in
    the durable stores: an action that raises at `store.before_commit` loses the batch, as a crash would; at
    `store.after_commit` the batch is recorded and nobody is told.
    """

    def __init__(self) -> None:
        self.statistics = StoreStatistics()
        self.location = ":memory:"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handed_over: list[Transition] = []
        self._unsettled = 0
        self._tasks: dict[str, TaskRow] = {}
        self._task_ids: list[str] = []
        """In order of insertion; a task's row number is its position here plus one."""
        self._numbers_by_session: dict[str, list[int]] = {}
        """The row numbers of each session's tasks; a task without a session is in none."""
        self._states: Counter[str] = Counter()
        self._history: dict[str, list[HistoryRow]] = {}
        self._deliveries = _Deliveries()
        self._streams: dict[str, _Stream] = {}
        self._sessions: dict[str, tuple[int, SessionRow]] = {}
        self._sessions_inserted = 0
        self._shared: dict[str, dict[str, SharedValue]] = {}
        self._idempotent: dict[str, tuple[str, str]] = {}
        self._services: dict[str, bytes] = {}

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
            transition.settled(outcome)

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
            self._streams.setdefault(chunk.task_id, _Stream()).append(chunk)
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
            earlier = self._tasks.get(task.task_id)
            if earlier is None:
                self._task_ids.append(task.task_id)
                if task.session_id != task.task_id:
                    self._numbers_by_session.setdefault(task.session_id, []).append(len(self._task_ids))
            else:
                self._states[earlier.state] -= 1
            self._states[task.state] += 1
            self._tasks[task.task_id] = task
            if transition.idempotency is not None:
                key, digest = transition.idempotency
                self._idempotent[key] = (task.task_id, digest)
        if transition.entry is not None:
            self._history.setdefault(transition.entry.task_id, []).append(transition.entry)

    def _refusals(self, transition: Transition) -> Iterator[str]:
        """Every guard of the transition that fails, in words."""
        task, entry = transition.task, transition.entry
        if task is not None:
            stored = self._tasks.get(task.task_id)
            version = 0 if stored is None else stored.version
            if version != transition.expected_version:
                yield f"Task {task.task_id} has version {version}, not {transition.expected_version}."
        if entry is not None and entry.seq != len(self._history.get(entry.task_id, ())) + 1:
            yield f"Entry {entry.seq} is not the next one in the history of task {entry.task_id}."
        if transition.idempotency is not None and transition.idempotency[0] in self._idempotent:
            yield f"Idempotency key {transition.idempotency[0]!r} was used before."
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
        return self._tasks.get(task_id)

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
        last = _row_number(cursor)
        numbers: Sequence[int] = range(1, len(self._task_ids) + 1)
        if where.session_id is not None:
            numbers = self._numbers_by_session.get(where.session_id, [])
        if where.oldest_first:
            numbers = numbers[bisect_right(numbers, 0 if last is None else last) :]
        else:
            numbers = numbers[: len(numbers) if last is None else bisect_left(numbers, last)][::-1]
        found: list[tuple[int, TaskRow]] = []
        for number in numbers:
            row = self._tasks[self._task_ids[number - 1]]
            if _matches(row, where):
                found.append((number, row))
                if len(found) > limit:
                    break
        rows = [row for _, row in found[:limit]]
        return TaskListing(rows, str(found[limit - 1][0]) if len(found) > limit else None)

    async def count_tasks(self) -> dict[str, int]:
        """The number of tasks by state, from counters that are kept with every change."""
        return {state: count for state, count in self._states.items() if count}

    async def count_session_tasks(self, session_id: str) -> tuple[int, int]:
        numbers = self._numbers_by_session.get(session_id, [])
        rows = [self._tasks[self._task_ids[number - 1]] for number in numbers]
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
        last = _row_number(cursor)
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

    async def delete_session(self, session_id: str) -> bool:
        self._commit()
        self._shared.pop(session_id, None)
        return self._sessions.pop(session_id, None) is not None

    async def find_idempotent(self, key: str) -> tuple[str, str] | None:
        return self._idempotent.get(key)

    # --- services -------------------------------------------------------------------------------------------------

    async def put_service(self, name: str, definition: bytes) -> None:
        self._services[name] = definition

    async def delete_service(self, name: str) -> bool:
        return self._services.pop(name, None) is not None

    async def load_services(self) -> dict[str, bytes]:
        return dict(self._services)


class _Deliveries:
    """The open deliveries: by step, by task in the order of sending, and by the time at which they fall due."""

    def __init__(self) -> None:
        self.rows: dict[str, DeliveryRow] = {}
        self._by_task: dict[str, dict[str, None]] = {}
        self._heap: list[tuple[float, int, DeliveryRow]] = []
        """Rows by `visible_at`. One that was answered, moved or parked since stays until it surfaces: it is stale
        when it is not the very object that `rows` holds."""
        self._heap_inserted = 0

    def put(self, row: DeliveryRow) -> None:
        """Insert a row, or replace the one of the same step in its place."""
        self.rows[row.step_id] = row
        self._by_task.setdefault(row.task_id, {})[row.step_id] = None
        if not row.parked:
            self._push(row)

    def remove(self, step_id: str) -> None:
        row = self.rows.pop(step_id)
        steps = self._by_task[row.task_id]
        del steps[step_id]
        if not steps:
            del self._by_task[row.task_id]

    def of_task(self, task_id: str) -> list[DeliveryRow]:
        return [self.rows[step_id] for step_id in self._by_task.get(task_id, ())]

    def due(self, now: float, limit: int) -> list[DeliveryRow]:
        """The rows with `visible_at <= now`, longest overdue first; they stay due."""
        taken: list[tuple[float, int, DeliveryRow]] = []
        while len(taken) < limit:
            earliest = self.next_due()
            if earliest is None or earliest > now:
                break
            taken.append(heapq.heappop(self._heap))
        for item in taken:
            heapq.heappush(self._heap, item)
        return [row for _, _, row in taken]

    def next_due(self) -> float | None:
        heap = self._heap
        while heap and self.rows.get(heap[0][2].step_id) is not heap[0][2]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def make_due(self, now: float) -> int:
        waiting = [row for row in self.rows.values() if not row.parked]
        for row in waiting:
            if row.visible_at > now:
                self.put(msgspec.structs.replace(row, visible_at=now))
        return len(waiting)

    def _push(self, row: DeliveryRow) -> None:
        self._heap_inserted += 1
        heapq.heappush(self._heap, (row.visible_at, self._heap_inserted, row))
        if len(self._heap) > 2 * len(self.rows) + 1000:
            self._heap = [item for item in self._heap if self.rows.get(item[2].step_id) is item[2]]
            heapq.heapify(self._heap)


class _Stream:
    """One task's stream: its chunks in order, and where each step stands."""

    def __init__(self) -> None:
        self.chunks: list[StreamChunk] = []
        self.end = 0
        """The number of the next event."""
        self.attempts: dict[str, tuple[int, int]] = {}

    def append(self, chunk: StreamChunk) -> None:
        self.chunks.append(chunk)
        self.end = chunk.first + chunk.count
        latest = (chunk.attempt, chunk.attempt_first + chunk.count)
        self.attempts[chunk.step_id] = max(self.attempts.get(chunk.step_id, latest), latest)

    def chunks_from(self, first: int, limit: int) -> list[StreamChunk]:
        start = bisect_left(self.chunks, first, key=_last_event)
        return self.chunks[start : start + limit]


def _last_event(chunk: StreamChunk) -> int:
    return chunk.first + chunk.count - 1


def _row_count(transition: Transition) -> int:
    single: Iterable[object] = (transition.task, transition.entry, transition.session, transition.idempotency)
    many = (transition.answered, transition.sent, transition.moved, transition.shared, transition.chunks)
    return sum(part is not None for part in single) + sum(len(rows) for rows in many)


def _matches(row: TaskRow, where: TaskFilter) -> bool:
    """Whether the row passes the filter; its session is looked at elsewhere."""
    return (where.states is None or row.state in where.states) and where.service in (None, row.service)


def _row_number(cursor: str | None) -> int | None:
    """The row number that a cursor stands for. Raises `InvalidRequestError` for anything that no page gave out."""
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) <= _CURSOR_DIGITS_MAX):
        raise InvalidRequestError(
            f"cursor: {cursor!r} is not a cursor of this list.", fix="Pass `next` of the page before, unchanged."
        )
    return int(cursor)
