"""Streams: numbered once, committed with whatever else a commit drains, read by number.

Events of a task that arrive while a commit of that task's stream is on its way become the next chunk; there is no
timer. Followers see committed events only. One that is behind reads from the store until it has caught up with the
newest events, which are kept in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Self

import msgspec

from llama_deploy.control_plane.refusals import step_failure, too_large
from llama_deploy.control_plane.tasks import OpenStep, StreamState, TaskEntry
from llama_deploy.errors import InvalidRequestError, LimitExceededError, LlamaDeployError, TaskNotFoundError
from llama_deploy.messages.frames import Answer
from llama_deploy.runtime import failpoint
from llama_deploy.state_stores.base import HistoryRow, StreamChunk, Transition
from llama_deploy.types.artifacts import hashes_in

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine

_decode_raw_list = msgspec.json.Decoder(list[msgspec.Raw]).decode

_Waiting = dict[tuple[str, int], Callable[[int], None]]
"""By step and attempt: whom to tell how many events are committed."""


class Streams:
    """The streams of all tasks in memory."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def append(
        self,
        step_id: str,
        attempt: int,
        first: int,
        events: Sequence[bytes],
        done: Callable[[int], None],
        *,
        by: str,
        holds: bool,
    ) -> None:
        """Append events of a running attempt; `done(count)` says how many of them are dealt with.

        Of the instance `by`, which must have held it when it said so (`holds`): it may have answered since. What
        anybody else says comes again where it is adopted, or not at all.
        """

        def use(entry: TaskEntry | None) -> None:
            step = entry.open.get(step_id) if entry is not None else None
            if entry is None:
                done(first + len(events))
                return
            if step is None or attempt != step.attempt or step.notification:
                again = partial(self.append, step_id, attempt, first, events, done, by=by, holds=holds)
                self._engine.when_certain(entry, partial(done, first + len(events)), again)
                return
            if not (holds or step.claimed_by == by) or entry.is_anothers(step, by):
                return
            refusal = self.refusal(entry, step, attempt, first, events)
            if refusal is not None:
                self._engine.in_turn(entry, partial(self._refuse, entry, step_id, attempt, refusal))
                return
            failpoint("streams.received")
            self._engine.claims.tells(entry, step, by)
            stream = self._take(entry, step, attempt, first, events)
            stream.acknowledge[step_id, attempt] = done
            self._flush(entry)

        self._engine.cache.with_entry(step_id.rpartition(":")[0], use)

    def refusal(
        self, entry: TaskEntry, step: OpenStep, attempt: int, first: int, events: Sequence[bytes]
    ) -> LlamaDeployError | None:
        """Why these events cannot be taken: not JSON, one of them too large, or more than a task may have."""
        if not events:
            return None
        settings = self._engine.settings
        largest = max(map(len, events))
        if largest > settings.payload_bytes_max:
            return too_large("event", largest, settings.payload_bytes_max)
        try:
            count = len(_decode_raw_list(b"[" + b",".join(events) + b"]"))
        except msgspec.DecodeError as error:
            return InvalidRequestError("a stream event is not JSON", why=str(error))
        if count != len(events):
            return InvalidRequestError("a stream event is not JSON", why="it holds more than one value")
        missing = self._engine.contents.refusal(None, hashes_in(b",".join(events)))
        if missing is not None:
            return missing
        stream = entry.stream or StreamState(0, {})
        fresh = stream.take(step.step_id, attempt, first, events) or ()
        limit = settings.stream_events_per_task_max
        if stream.next + len(fresh) <= limit:
            return None
        return LimitExceededError(
            f"the task streams more than {limit} events",
            why=f"stream_events_per_task_max is {limit}",
            setting="stream_events_per_task_max",
            limit=limit,
        )

    def _refuse(self, entry: TaskEntry, step_id: str, attempt: int, refusal: LlamaDeployError) -> None:
        """A running attempt streams what cannot be taken: it is stopped, and has failed."""
        step = entry.open.get(step_id)
        if entry.stale or step is None or step.attempt != attempt:
            return  # its events come again, with its answer at the latest
        holder = step.claimed_by
        self._engine.recording.take_back(step, str(refusal))
        self._engine.answers.conclude(entry, step, step_failure(entry, step, refusal), lambda _: None, by=holder)

    def _take(self, entry: TaskEntry, step: OpenStep, attempt: int, first: int, events: Sequence[bytes]) -> StreamState:
        """Number what is new and put it in line for the next commit; a new attempt opens with a marker."""
        stream = entry.stream
        if stream is None:
            stream = entry.stream = StreamState(0, {})
        fresh = stream.take(step.step_id, attempt, first, events)
        if not fresh:
            return stream
        known = stream.attempts.get(step.step_id)
        if (known is None and attempt > 1) or (known is not None and attempt > known[0]):
            marker = msgspec.json.encode({"llama_deploy": "attempt", "step_id": step.step_id, "attempt": attempt})
            stream.pending.append((step.step_id, attempt, -1, stream.next, [marker]))
            stream.next += 1
            known = None
        count = known[1] if known is not None else 0
        stream.pending.append((step.step_id, attempt, count, stream.next, fresh))
        stream.next += len(fresh)
        stream.attempts[step.step_id] = (attempt, count + len(fresh))
        return stream

    def _chunks(self, entry: TaskEntry) -> tuple[StreamChunk, ...]:
        """Everything in line, as chunks of bounded size; the line is empty afterwards."""
        stream = entry.stream
        if stream is None or not stream.pending:
            return ()
        now = self._engine.clock.now()
        limit = self._engine.settings.stream_chunk_bytes_max
        chunks: list[StreamChunk] = []
        for step_id, attempt, attempt_first, first, events in stream.pending:
            start = size = 0
            for position, event in enumerate(events):
                size += len(event)
                if size >= limit or position == len(events) - 1:
                    part = events[start : position + 1]
                    index = attempt_first if attempt_first < 0 else attempt_first + start
                    data = b"[" + b",".join(part) + b"]"
                    chunks.append(
                        StreamChunk(entry.row.task_id, first + start, len(part), step_id, attempt, index, now, data)
                    )
                    start, size = position + 1, 0
        stream.pending = []
        return tuple(chunks)

    def take_for_answer(self, entry: TaskEntry, step: OpenStep, op: Answer) -> tuple[StreamChunk, ...]:
        """The chunks that commit with an answer and before it: what is in line, and the events it brings."""
        if op.events:
            self._take(entry, step, op.attempt, op.events_from, op.events)
        chunks = self._chunks(entry)
        if chunks:
            self._committed_with(entry, chunks)
        return chunks

    def take_emitted(self, entry: TaskEntry, events: list[bytes]) -> tuple[StreamChunk, ...]:
        """The chunks of what the orchestrator itself tells, which commit with its decision; no step has sent them."""
        step = OpenStep(step_id=f"{entry.row.task_id}:0", service="", action="", tag=None, body=b"", seq=0, index=0)
        first = entry.stream.count_of(step.step_id, 1) if entry.stream is not None else 0
        self._take(entry, step, 1, first, events)
        chunks = self._chunks(entry)
        self._committed_with(entry, chunks)
        return chunks

    def take_for_end(self, entry: TaskEntry) -> tuple[StreamChunk, ...]:
        """The chunks that commit with the end of a task: what is in line. Nothing comes after the end."""
        chunks = self._chunks(entry)
        if chunks:
            self._committed_with(entry, chunks)
        return chunks

    def _committed_with(self, entry: TaskEntry, chunks: tuple[StreamChunk, ...]) -> None:
        """Show and acknowledge chunks once the task's next history entry is committed, which carries them."""
        seq = entry.row.version + 1
        stream = entry.stream
        assert stream is not None
        acknowledge, counts = self._taken(stream)

        def watch() -> None:
            if entry.settled_seq >= seq or entry.stale:
                entry.watchers.pop(watch, None)
                if not entry.stale:
                    self._show(entry, chunks)
                    self._acknowledge(acknowledge, counts)

        entry.watchers[watch] = None

    @staticmethod
    def _taken(stream: StreamState) -> tuple[_Waiting, dict[tuple[str, int], tuple[int, int]]]:
        """Who waits for what is in line now, and how far each attempt is taken."""
        acknowledge, stream.acknowledge = stream.acknowledge, {}
        return acknowledge, {key: stream.attempts.get(key[0], (key[1], 0)) for key in acknowledge}

    def _show(self, entry: TaskEntry, chunks: Sequence[StreamChunk]) -> None:
        stream = entry.stream
        assert stream is not None
        for chunk in chunks:
            events = [bytes(raw) for raw in _decode_raw_list(chunk.data)]
            stream.tail.append((chunk.first, events))
            stream.committed = max(stream.committed, chunk.first + chunk.count)
        kept = sum(len(events) for _, events in stream.tail)
        while len(stream.tail) > 1 and kept - len(stream.tail[0][1]) >= StreamState.TAIL_EVENTS_MAX:
            kept -= len(stream.tail.popleft()[1])

    def _flush(self, entry: TaskEntry) -> None:
        """Hand what is in line to the store, unless a commit of this stream is on its way already."""
        stream = entry.stream
        if stream is None or stream.in_flight or entry.stale:
            return
        chunks = self._chunks(entry)
        acknowledge, counts = self._taken(stream)
        if not chunks:
            self._acknowledge(acknowledge, counts)
            return
        stream.in_flight = True

        def settled(error: LlamaDeployError | None) -> None:
            stream.landed()
            if error is not None:
                self._engine.recording.refused(entry)
                return
            failpoint("streams.recorded")
            self._show(entry, chunks)
            self._acknowledge(acknowledge, counts)
            failpoint("streams.acknowledged")
            entry.notify()
            self._flush(entry)

        self._engine.store.record(Transition(settled=settled, shard_key=entry.row.session_id, chunks=chunks))

    @staticmethod
    def _acknowledge(acknowledge: _Waiting, counts: dict[tuple[str, int], tuple[int, int]]) -> None:
        for key, done in acknowledge.items():
            attempt, count = counts[key]
            if attempt == key[1]:
                done(count)

    # --- following --------------------------------------------------------------------------------------------------

    async def follow(self, entry: TaskEntry, first: int = 0) -> AsyncIterator[tuple[int, list[bytes]]]:
        """The task's events from number `first` on as (number of the first, events), until the task has ended."""
        first = max(0, first)
        while True:
            with _Bell(entry) as bell:
                while not entry.stale:
                    ended = entry.ended
                    async for number, events in self._committed_from(entry, first):
                        yield number, events
                        first = number + len(events)
                    if ended:
                        return
                    await bell.wait()
            entry = await self._engine.cache.get(entry.row.task_id)  # memory was not what the store says

    async def _committed_from(self, entry: TaskEntry, first: int) -> AsyncIterator[tuple[int, list[bytes]]]:
        """What is committed of a stream from number `first` on, from memory where it reaches back that far."""
        stream = entry.stream
        if stream is None:
            stream = entry.stream = StreamState(0, {})
        while first < stream.committed:
            batch = _from_tail(stream, first)
            if batch:
                yield first, batch
                first += len(batch)
                continue
            chunks = await self._engine.store.load_chunks(entry.row.task_id, first=first, limit=64)
            if not chunks:
                raise _removed(entry)
            for chunk in chunks:
                events = [bytes(raw) for raw in _decode_raw_list(chunk.data)][first - chunk.first :]
                yield first, events
                first += len(events)

    async def follow_history(self, entry: TaskEntry, after: int = 0) -> AsyncIterator[HistoryRow]:
        """The task's history entries with a number above `after`, as they are recorded, until the task has ended."""
        while True:
            with _Bell(entry) as bell:
                while not entry.stale:
                    ended = entry.ended
                    while after < entry.settled_seq:
                        rows = await self._engine.contents.history(entry.row.task_id, after=after, limit=500)
                        if not rows:
                            raise _removed(entry)
                        for row in rows:
                            yield row
                            after = row.seq
                    if ended:
                        return
                    await bell.wait()
            entry = await self._engine.cache.get(entry.row.task_id)


def _removed(entry: TaskEntry) -> TaskNotFoundError:
    """What is committed is not there: the task was removed while somebody followed it."""
    return TaskNotFoundError(f"task {entry.row.task_id!r} was removed meanwhile")


class _Bell:
    """Rings after each commit of a task; a ring is never missed between two waits."""

    def __init__(self, entry: TaskEntry) -> None:
        self._entry = entry
        self._event = asyncio.Event()

    def __enter__(self) -> Self:
        self._entry.watchers[self._event.set] = None
        return self

    def __exit__(self, *_: object) -> None:
        self._entry.watchers.pop(self._event.set, None)

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()


def _from_tail(stream: StreamState, first: int) -> list[bytes]:
    """The newest events from number `first` on, empty when memory does not reach back that far."""
    found: list[bytes] = []
    for start, events in stream.tail:
        if start + len(events) <= first:
            continue
        if start > first + len(found):
            return []
        found.extend(events[first + len(found) - start :])
    return found
