"""A task in memory: its row, its private state, its open steps; and how it is rebuilt from the store.

An entry runs ahead of the store by what is being committed. Only the engine changes entries; they hold no policy.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from llama_deploy.control_plane import state_changes
from llama_deploy.control_plane.deadlines import DEADLINE_INDEX, begins_at, ends_at
from llama_deploy.control_plane.open_steps import SOMEBODY, OpenStep, holder_mark
from llama_deploy.control_plane.records import Record, SentMessage, decode_record
from llama_deploy.control_plane.session_state import PrivateState, SessionState
from llama_deploy.errors import LlamaDeployError
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.state_stores.base import DeliveryRow, HistoryRow, TaskRow
from llama_deploy.types import TaskDefinition
from llama_deploy.types.reserved import PERSON_SERVICE, TIMER_SERVICE

__all__ = ["FINAL", "OpenStep", "StreamState", "TaskEntry", "paused_because", "rebuild", "step_of"]

FINAL = frozenset({"completed", "failed", "canceled", "rejected"})


class TaskEntry:
    """One task in memory."""

    __slots__ = (
        "artifacts",
        "begins_at",
        "busy",
        "children",
        "deadline_at",
        "decided_by",
        "definition",
        "definition_json",
        "ended_callbacks",
        "mailbox",
        "moved",
        "moved_callbacks",
        "open",
        "outcome",
        "paused_because",
        "policy",
        "private",
        "recorded",
        "recorded_callbacks",
        "release",
        "row",
        "session",
        "settled_seq",
        "shown",
        "stale",
        "stream",
        "watchers",
    )

    def __init__(
        self, row: TaskRow, definition: TaskDefinition, session: SessionState | None, policy: BaseOrchestrator
    ) -> None:
        self.policy = policy
        self.decided_by = ""
        """What the history calls that policy: `name@version`, empty for the default in its first version."""
        """Who decides about it."""
        self.row = row
        self.shown = row
        """The row as it is recorded: what anybody is told of. `row` is ahead of it while a commit is on its way."""
        self.definition = definition
        self.definition_json = b""
        self.session = session
        self.private = PrivateState(row.task_id)
        self.open: dict[str, OpenStep] = {}
        self.mailbox: deque[Callable[[], None]] = deque()
        """What arrived while a decision was being made, in order."""
        self.begins_at = 0.0
        """No step of it is due before this time; 0 where it began at once."""
        self.deadline_at = 0.0
        """It fails unless it has ended by this time; 0 where it may take for ever."""
        self.busy = False
        """A decision is being made; the mailbox waits for it."""
        self.recorded = False
        """The submission is committed."""
        self.stale = False
        """A commit was refused: the entry is to be loaded again and must not be used any more."""
        self.moved = False
        """Another control plane leads it, or it was removed: whoever is concerned with it asks again."""
        self.moved_callbacks: list[Callable[[], None]] | None = None
        """Called when that comes to be, `None` while nobody asks; see `when_moved`."""
        self.settled_seq = 0
        """The newest history entry that is committed."""
        self.children: dict[str, bool] | None = None
        """Tasks that its steps have called, and whether each is known to have ended; `None` where there is none."""
        self.outcome: bytes | None = None
        """JSON of the final `TaskResult`, once that is committed."""
        self.paused_because = ""
        """Who paused it and why, while it is paused."""
        self.release = ""
        """The release whose instances get its steps; empty where it is bound to none."""
        self.recorded_callbacks: list[Callable[[TaskEntry | None, LlamaDeployError | None], None]] = []
        """Called once the submission is committed, with the task (this one, unless it was known already), or refused.
        """
        self.ended_callbacks: list[Callable[[TaskEntry], None]] = []
        self.watchers: dict[Callable[[], None], None] = {}
        """Called after each commit that concerns the task (history, stream, end), in the order of asking."""
        self.stream: StreamState | None = None
        self.artifacts: dict[str, int] | None = None
        """The contents that the task's records speak of, with their sizes; `None` is the rule."""

    @property
    def final(self) -> bool:
        """Whether the task has ended, be it committed or not."""
        return self.row.ended_at is not None

    @property
    def ended(self) -> bool:
        """Whether the end of the task is committed."""
        return self.outcome is not None

    def notify(self) -> None:
        """Wake whoever follows the task."""
        for watcher in tuple(self.watchers):
            watcher()

    def when_moved(self, callback: Callable[[], None]) -> None:
        """Call back when another control plane leads the task, at once if one does."""
        if self.moved:
            callback()
        elif self.moved_callbacks is None:
            self.moved_callbacks = [callback]
        else:
            self.moved_callbacks.append(callback)

    def forget_moved(self, callback: Callable[[], None]) -> None:
        """Call that back no more."""
        if self.moved_callbacks is not None and callback in self.moved_callbacks:
            self.moved_callbacks.remove(callback)

    def tell_moved(self) -> None:
        """Wake everybody who waits for something here: it does not come from here any more."""
        callbacks, self.moved_callbacks = self.moved_callbacks, None
        for callback in callbacks or ():
            callback()
        self.notify()
        while self.mailbox:  # each of them sees that the entry is stale, and starts over
            self.mailbox.popleft()()

    def bump(
        self,
        now: float,
        *,
        state: str,
        steps: int = 0,
        service: str = "",
        ended: bool = False,
        error: str = "",
        paused: bool | None = None,
    ) -> TaskRow:
        """The row after one more history entry; it becomes the entry's row."""
        row = self.row
        self.row = TaskRow(
            row.task_id,
            row.session_id,
            service or row.service,
            state,
            row.version + 1,
            row.steps + steps,
            row.created_at,
            now,
            now if ended else row.ended_at,
            row.origin,
            0 if ended else (row.paused if paused is None else int(paused)),
            error,
        )
        return self.row

    def call(self, child: str) -> None:
        """A step has called another task."""
        if self.children is None:
            self.children = {}
        self.children.setdefault(child, False)

    def end_like(self, other: TaskEntry) -> None:
        """The entry that took the place of this stale one has ended: whoever still waits with this one sees that."""
        self.row, self.outcome, self.settled_seq = other.row, other.outcome, other.settled_seq
        self.shown = other.shown

    def move_like_it(self) -> None:
        """The entry that took the place of this stale one is led elsewhere by now: whoever still waits here is told."""
        self.moved = True
        self.tell_moved()

    def option(self, step: OpenStep, name: str) -> Any:
        """One of `StepOptions` for a step: what its decision said, else what the task's options say, else `None`."""
        for options in (step.options, self.definition.options):
            value = getattr(options, name) if options is not None else None
            if value is not None:
                return value
        return None

    def was_begun(self, step: OpenStep) -> bool:
        """Whether an attempt is known to have been worked on: it must not begin a second time under its number."""
        streamed = self.stream is not None and self.stream.count_of(step.step_id, step.attempt) > 0
        return step.started == step.attempt or streamed

    def must_not_begin(self, step: OpenStep) -> bool:
        """Whether it was begun, and nobody who had it has let go of it: then only the next attempt may begin."""
        return step.resume != "redeliver" and self.was_begun(step)

    def is_anothers(self, step: OpenStep, instance_id: str) -> bool:
        """Whether another instance has the present attempt: in memory, or by what is on record of it."""
        if step.claimed_by is not None:
            return step.claimed_by != instance_id
        return step.recorded_holder not in (0, SOMEBODY, holder_mark(instance_id))

    def working_state(self) -> str:
        """`input_required` while a person is asked by any open step, else `working`."""
        if self.row.state != "input_required":  # whoever begins to ask says so: no need to look at a thousand steps
            return "working"
        return "input_required" if any(step.asking for step in self.open.values()) else "working"


class StreamState:
    """The stream of one task in memory: its numbers, what is being committed, and the newest events."""

    __slots__ = ("acknowledge", "attempts", "committed", "in_flight", "next", "pending", "tail", "waiting")

    TAIL_EVENTS_MAX = 256

    def __init__(self, end: int, attempts: dict[str, tuple[int, int]]) -> None:
        self.next = end
        """Number of the next event."""
        self.committed = end
        """Events below this number are in the store."""
        self.attempts = attempts
        """Per step: its latest attempt in the stream, and how many events of that attempt were taken."""
        self.pending: list[tuple[str, int, int, int, list[bytes]]] = []
        """Chunks that wait for the commit in flight: step, attempt, index in the attempt, first number, events."""
        self.in_flight = False
        self.acknowledge: dict[tuple[str, int], Callable[[int], None]] = {}
        """Whom to tell, per step and attempt, how many events are committed."""
        self.tail: deque[tuple[int, list[bytes]]] = deque()
        """The newest committed chunks: first number, events."""
        self.waiting: list[asyncio.Future[None]] = []
        """Who waits until nothing is in flight."""

    def landed(self) -> None:
        """The commit in flight is made, or refused."""
        self.in_flight = False
        waiting, self.waiting = self.waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def arrived(self) -> None:
        """Wait until nothing is in flight."""
        if self.in_flight:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting.append(future)
            await future

    def count_of(self, step_id: str, attempt: int) -> int:
        """How many events of an attempt were taken."""
        known_attempt, count = self.attempts.get(step_id, (attempt, 0))
        return count if known_attempt == attempt else 0

    def take(self, step_id: str, attempt: int, first: int, events: Sequence[bytes]) -> list[bytes] | None:
        """The events that are new, or `None` when there is a gap or the attempt is an old one.

        Repeated events are recognised by their index within the attempt and left out.
        """
        known_attempt, count = self.attempts.get(step_id, (attempt, 0))
        if attempt < known_attempt:
            return None
        if attempt > known_attempt:
            count = 0
        if first > count:
            return None
        return list(events[count - first :])


def rebuild(
    row: TaskRow,
    history: Sequence[HistoryRow],
    deliveries: Sequence[DeliveryRow],
    session: SessionState | None,
    find_policy: Callable[[str], BaseOrchestrator],
) -> TaskEntry:
    """The task as its history and its open deliveries tell it. `find_policy` knows what the first entry calls it."""
    records = [(entry, decode_record(entry.data)) for entry in history]
    first = records[0][1]
    definition = TaskDefinition.model_validate(msgspec.json.decode(bytes(first.definition)))
    decided_by = mark_of(record for _, record in records)
    entry = TaskEntry(row, definition, session, find_policy(decided_by))
    entry.decided_by = decided_by
    entry.definition_json = bytes(first.definition)
    entry.recorded = True
    entry.settled_seq = row.version
    by_seq = {row.seq: (row, record) for row, record in records}
    options = definition.options
    if options is not None:
        entry.begins_at = begins_at(options, history[0].at)
        entry.deadline_at = ends_at(options, history[0].at)
    for delivery in deliveries:
        if delivery.index == DEADLINE_INDEX:
            continue
        sent_by, record = by_seq[delivery.seq]
        message = record.messages[delivery.index]
        step = step_of(message, delivery.seq, delivery.index)
        step.attempt = delivery.attempt
        sent_at = sent_by.at if step.notification else max(sent_by.at, entry.begins_at)
        if message.delay_s or sent_at > sent_by.at or step.service == TIMER_SERVICE:
            step.due_at = sent_at + message.delay_s
        step.due_since = step.due_at or sent_by.at
        step.parked = delivery.parked
        step.started, step.begun_by = (delivery.attempt, delivery.started) if delivery.started else (0, 0)
        step.found = True
        entry.open[step.step_id] = step
    for row_of_entry, record in records:
        _replay(entry, row_of_entry.kind, row_of_entry.at, record)
    entry.private.settle()
    return entry


def mark_of(records: Iterable[Record]) -> str:
    """Who decides after these entries, as they call it: whoever began, or the last that the task was moved to."""
    marks = [record.orchestrator for record in records if record.orchestrator]
    return "" if not marks or marks[-1] == "@1" else marks[-1]


def step_of(message: SentMessage, seq: int, index: int) -> OpenStep:
    """The step of a message that stands in history entry `seq` at position `index`, as it is when it is sent."""
    step = OpenStep(
        step_id=message.step_id,
        service=message.service,
        action=message.action,
        tag=message.tag,
        body=b"",
        seq=seq,
        index=index,
    )
    step.renew(message)
    if message.carried is not None:
        step.inputs = [bytes(value) for value in message.carried.inputs]
        step.snapshot = message.carried.snapshot
        step.known = bytes(message.carried.answer) or None
        step.memory = bytes(message.carried.memory) or None
        for key, value in message.carried.memos.items():
            step.remember(key, bytes(value))
    if step.service == PERSON_SERVICE:
        step.wait_for_person()
    return step


def _replay(entry: TaskEntry, kind: str, at: float, record: Record) -> None:
    """Fold one history entry into the private state and the open steps."""
    if record.change is not None:
        state_changes.read(record.change, entry.private, bytes(record.result))
    outcome = bytes(record.result if record.outcome_is_result else record.outcome)
    if outcome:
        entry.outcome = outcome
    if kind == "paused":
        entry.paused_because = paused_because(record)
    elif kind == "resumed":
        entry.paused_because = ""
        for waiting in entry.open.values():
            waiting.due_since = max(waiting.due_since, at)
    if record.child is not None:
        entry.call(record.child)
    if record.release:
        entry.release = record.release
    step = entry.open.get(record.step_id or "")
    if step is not None:
        _replay_step(step, kind, at, record)


def _replay_step(step: OpenStep, kind: str, at: float, record: Record) -> None:
    """What one history entry says of a step that is still open."""
    if bytes(record.heartbeat):
        step.beat = bytes(record.heartbeat)
    if kind == "input_requested" and record.resume is None:
        step.ask(record.number, bytes(record.prompt))
    elif kind == "input_requested":
        step.stop_asking()
        step.asking = True
        step.prompt = bytes(record.prompt)
        step.resume = record.resume
        step.snapshot = record.snapshot
        step.memory = bytes(record.memory) or None
        step.consumed = record.consumed
    elif kind == "input":
        step.take_input(bytes(record.input))
        step.due_since = at
    elif kind == "remembered" and record.key is not None:
        step.remember(record.key, bytes(record.value))
    elif kind == "retrying":
        step.failures += 1
        step.stop_asking()
        step.prompt = step.resume = step.snapshot = step.memory = None
        step.due_at = record.due_at or 0.0
        step.due_since = step.due_at or at
        for message in record.messages:
            if message.step_id == step.step_id:
                step.renew(message)
    elif kind in {"lost", "paused"}:
        step.stop_asking()
        step.due_at, step.due_since = 0.0, at
        if kind == "paused":
            step.failures = step.losses = 0
        elif not record.on_purpose:
            step.losses += 1


def paused_because(record: Record) -> str:
    """Who paused a task and why, as it is shown."""
    by = f" by {record.by}" if record.by and not record.step_id else ""  # of a step: the instance that had it
    return by + (f": {record.reason}" if record.reason else "")
