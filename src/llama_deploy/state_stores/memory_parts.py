"""What the store in memory consists of: the rows of tasks, deliveries, streams and contents, each with its indexes.

No guards and no commits: `memory` has them.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from llama_deploy.state_stores.base import DeliveryRow, StreamChunk, TaskRow


class Tasks:
    """The rows of tasks: by id, by the number that each got when it came, by session, counted by state."""

    def __init__(self) -> None:
        self.rows: dict[str, TaskRow] = {}
        self.states: Counter[str] = Counter()
        self._numbers: dict[str, int] = {}
        self._ids: dict[int, str] = {}
        """In ascending order; a removed task leaves a hole."""
        self._lowest = 1
        self._highest = 0
        self._by_session: dict[str, list[int]] = {}
        """The numbers of each session's tasks; a task without a session is in none."""

    def put(self, row: TaskRow) -> None:
        """Insert a row, or replace the one of the same task."""
        earlier = self.rows.get(row.task_id)
        if earlier is None:
            self._highest += 1
            self._ids[self._highest] = row.task_id
            self._numbers[row.task_id] = self._highest
            if row.session_id != row.task_id:
                self._by_session.setdefault(row.session_id, []).append(self._highest)
        else:
            self.states[earlier.state] -= 1
        self.states[row.state] += 1
        self.rows[row.task_id] = row

    def remove(self, task_id: str) -> None:
        """Remove a row that is there."""
        row = self.rows.pop(task_id)
        self.states[row.state] -= 1
        number = self._numbers.pop(task_id)
        del self._ids[number]
        while self._lowest <= self._highest and self._lowest not in self._ids:
            self._lowest += 1
        if row.session_id != task_id:
            numbers = self._by_session[row.session_id]
            del numbers[bisect_left(numbers, number)]
            if not numbers:
                del self._by_session[row.session_id]

    def in_order(
        self, *, session_id: str | None = None, oldest_first: bool = True, after: int | None = None
    ) -> Iterator[tuple[int, TaskRow]]:
        """Numbers and rows, from beyond the number `after` on in the direction of the order."""
        numbers: Sequence[int] = range(self._lowest, self._highest + 1)
        if session_id is not None:
            numbers = self._by_session.get(session_id, [])
        if oldest_first:
            numbers = numbers[bisect_right(numbers, 0 if after is None else after) :]
        else:
            numbers = numbers[: len(numbers) if after is None else bisect_left(numbers, after)][::-1]
        for number in numbers:
            task_id = self._ids.get(number)
            if task_id is not None:
                yield number, self.rows[task_id]

    def of_session(self, session_id: str) -> list[TaskRow]:
        return [self.rows[self._ids[number]] for number in self._by_session.get(session_id, [])]


class Deliveries:
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

    def remove_task(self, task_id: str) -> None:
        """Remove every delivery of a task."""
        for step_id in self._by_task.pop(task_id, ()):
            del self.rows[step_id]

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


class Stream:
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


class Blobs:
    """Contents by their hash, and which tasks use them."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[int, bytes]] = {}
        self._times: dict[str, float] = {}
        self._sizes: dict[str, int] = {}
        """Of the contents that are there; one whose size is missing is an upload that is not finished."""
        self._users: dict[str, set[str]] = {}
        self._used: dict[str, set[str]] = {}
        """What each task uses."""

    def size(self, hash_: str) -> int | None:
        return self._sizes.get(hash_)

    def put(self, hash_: str, data: bytes, at: float) -> None:
        """A whole content at once; one that is there stays."""
        if hash_ not in self._sizes:
            self._parts[hash_] = {0: data}
            self._sizes[hash_], self._times[hash_] = len(data), at

    def put_part(self, hash_: str, position: int, data: bytes, at: float) -> None:
        if hash_ not in self._sizes:
            self._parts.setdefault(hash_, {})[position] = data
            self._times[hash_] = max(at, self._times.get(hash_, at))

    def finish(self, hash_: str, bytes_: int, at: float, part_bytes: int) -> int:
        """Make a content of its parts; returns how many bytes they have, and has done nothing if that is wrong."""
        parts = self._parts.get(hash_, {})
        whole = {position: data for position, data in parts.items() if position * part_bytes < bytes_}
        there = self._sizes.get(hash_, sum(map(len, whole.values())))
        if there == bytes_ and hash_ not in self._sizes:
            self._parts[hash_] = {0: b"".join(whole[position] for position in sorted(whole))}
            self._sizes[hash_] = bytes_
        if there == bytes_:
            self._times[hash_] = at
        return there

    def load(self, hash_: str) -> bytes:
        return self._parts[hash_][0]

    def use(self, hash_: str, task_id: str) -> None:
        self._users.setdefault(hash_, set()).add(task_id)
        self._used.setdefault(task_id, set()).add(hash_)

    def leave(self, task_id: str) -> list[str]:
        """The task is gone; returns what nobody uses any more."""
        left = []
        for hash_ in self._used.pop(task_id, ()):
            self._users[hash_].discard(task_id)
            if not self._users[hash_]:
                del self._users[hash_]
                left.append(hash_)
        return left

    def unused(self, before: float) -> list[str]:
        return [hash_ for hash_, at in self._times.items() if at < before and hash_ not in self._users]

    def table_rows(self, part_bytes: int) -> dict[str, list[tuple[Any, ...]]]:
        """Every row as SQLite has it, by the name of the statement that inserts it."""
        parts = [
            (hash_, position + first // part_bytes, data[first : first + part_bytes])
            for hash_, found in self._parts.items()
            for position, data in found.items()
            for first in range(0, len(data), part_bytes)
        ]
        return {
            "copy_blob": [(hash_, self._sizes.get(hash_), at) for hash_, at in self._times.items()],
            "put_blob_part": parts,
            "copy_blob_use": [(hash_, task_id) for hash_, users in self._users.items() for task_id in users],
        }

    def remove(self, hash_: str) -> None:
        del self._parts[hash_], self._times[hash_]
        self._sizes.pop(hash_, None)
