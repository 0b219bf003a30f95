"""The rows of a state store's contract, the transitions that change them, and what lists and counts are asked for.

All of it is frozen data without behaviour. What is true of it after a crash is in `llama_deploy.state_stores.base`,
which offers all of these names too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec

from llama_deploy.errors import LlamaDeployError


class TaskRow(msgspec.Struct, frozen=True, gc=False):
    """The narrow row of a task: what a list shows and what guards every change to the task."""

    task_id: str
    session_id: str
    """The session that the task shares state with; equal to `task_id` for a task without a session."""
    service: str
    """The service that the client named, or the one that the first message went to."""
    state: str
    version: int
    """How many entries the task's history has; every transition that changes the task adds exactly one."""
    steps: int
    """How many steps were ever sent for the task; the next step is `<task_id>:<steps + 1>`."""
    created_at: float
    updated_at: float
    ended_at: float | None = None
    origin: str = ""
    """What the task came from (`Origin.text`), empty for a task that a client submitted; it never changes."""
    paused: int = 0
    """1 while no step of the task is handed out."""
    error: str = ""
    """The code of the error that the task ended with."""


class HistoryRow(msgspec.Struct, frozen=True, gc=False):
    """One entry of a task's append-only history."""

    task_id: str
    seq: int
    """Dense per task, from 1."""
    at: float
    kind: str
    data: bytes
    """JSON object of everything else that the entry says."""


class DeliveryRow(msgspec.Struct, frozen=True, gc=False):
    """A step that was sent and is not answered: outbox, in-flight record, retry and timeout in one.

    The message itself stands in the history entry `seq` at position `index`, so that this row stays narrow.
    """

    step_id: str
    task_id: str
    service: str
    attempt: int
    visible_at: float
    """When the step is overdue and is published (again), seconds since the epoch."""
    seq: int
    index: int
    parked: int = 0
    """0, or the history entry in which the step was parked; a parked step is never overdue."""
    started: int = 0
    """0 until it is recorded that an instance works on this attempt; then a number of 16 bits, with sign, that stands
    for that instance, or 1 where it is not known which."""


class DeliveryMove(msgspec.Struct, frozen=True, gc=False):
    """A change of an open delivery, guarded by its attempt."""

    step_id: str
    expected_attempt: int
    attempt: int
    visible_at: float
    parked: int = 0
    started: int = 0


class SharedWrite(msgspec.Struct, frozen=True, gc=False):
    """A change of one key of a session's shared state, guarded by that key's version (0: the key is new)."""

    session_id: str
    key: str
    expected_version: int
    value: bytes | None
    """JSON of the new value under version `expected_version + 1`; `None` marks the key as removed."""


class SharedRead(msgspec.Struct, frozen=True, gc=False):
    """A key of a session's shared state that a decision was based on, and its version then (0: absent)."""

    session_id: str
    key: str
    version: int


class SharedValue(msgspec.Struct, frozen=True, gc=False):
    """One key of a session's shared state as recorded; `value` is `None` where the key was removed."""

    key: str
    version: int
    value: bytes | None


class StreamChunk(msgspec.Struct, frozen=True, gc=False):
    """Consecutive stream events of one attempt of one step, under dense numbers of the task."""

    task_id: str
    first: int
    """Number of the first event within the task's stream, from 0."""
    count: int
    step_id: str
    attempt: int
    attempt_first: int
    """Index of the first event within its attempt, from 0; -1 for the marker that opens a further attempt."""
    at: float
    data: bytes
    """JSON array of the events."""


class DeadLetterRow(msgspec.Struct, frozen=True, gc=False):
    """A step that was given up: its deliveries or its attempts ran out. Its message stands in the task's history."""

    step_id: str
    task_id: str
    service: str
    attempt: int
    at: float
    code: str
    """The code of its last error."""
    message: str
    redriven: str = ""
    """The id of the task in which it was sent again, empty while it was not."""


class SessionRow(msgspec.Struct, frozen=True, gc=False):
    """A session that somebody named or created."""

    session_id: str
    created_at: float


class ShardRow(msgspec.Struct, frozen=True, gc=False):
    """Who leads a shard of the sessions, and until when nobody else may take it over."""

    shard: int
    owner: str
    """Whoever claimed it last; empty when it was released, or never claimed."""
    epoch: int
    """How often it was claimed. A commit under an earlier epoch is refused."""
    lease_until: float
    """The store's time until which it cannot be taken over without its owner's consent; `inf` with a single owner."""


class MemberRow(msgspec.Struct, frozen=True, gc=False):
    """A process that has the store open, and the shards that it leads."""

    owner: str
    """Empty for what nobody leads who is known."""
    shared: bool
    """Whether it shares the store: it takes its part of the shards, and leaves the others theirs."""
    name: str
    url: str
    """Where others reach it."""
    seat: int | None
    """A small number that no other living member has."""
    lease_s: float
    """Seconds until its lease ends, by the store's clock; 0 or less where that is over."""
    epochs: dict[int, int]
    """The shards that are recorded as its own, and the epoch of each."""
    since: dict[int, float]
    """When it claimed each of them, by the store's clock; 0 where that is not known."""


class Transition(msgspec.Struct, kw_only=True):
    """Everything that one hop changes. Recorded whole, or refused whole when one of its guards fails.

    A store calls `settle` on the event loop after the commit: with `None` when the transition is recorded, with a
    `CommitConflictError` when a guard failed, with a `ShardLostError` when another control plane leads its shard.
    Calls come in the order in which transitions were handed over.

    Other than the rows it is tracked by the garbage collector: what follows a commit knows the transition, and one
    that is never settled would keep itself, and its task, for ever.
    """

    settled: Callable[[LlamaDeployError | None], None]
    shard_key: str = ""
    """The session that this belongs to, or the task where there is none; with a `task`, or a `session`, that says it.
    A transition that says neither commits only while every shard that this store holds is still its own."""
    task: TaskRow | None = None
    expected_version: int = 0
    """The version of the task row that this replaces; 0 inserts the row and refuses an existing one."""
    entry: HistoryRow | None = None
    answered: Sequence[str] = ()
    """Step ids whose deliveries are deleted; each must exist, that is what makes an answer count once."""
    sent: Sequence[DeliveryRow] = ()
    moved: Sequence[DeliveryMove] = ()
    shared: Sequence[SharedWrite] = ()
    shared_reads: Sequence[SharedRead] = ()
    chunks: Sequence[StreamChunk] = ()
    session: SessionRow | None = None
    """Inserted if no such session exists; nothing happens if one does."""
    idempotency: tuple[str, str] | None = None
    """Key and digest of the request; refused when the key exists."""
    dead: Sequence[DeadLetterRow] = ()
    """Steps that were given up; one that stands there already is replaced."""
    blobs: Mapping[str, bytes] = {}
    """Large contents by hash, written before `blob_uses` is looked at; one that is there already is not written
    again. Only together with a `task`, whose `updated_at` is the time of their making."""
    blob_uses: Sequence[str] = ()
    """Hashes of contents that `task` needs for as long as it is kept; a content that is not there refuses it all,
    one that the task uses already does not."""

    def settle(self, outcome: LlamaDeployError | None) -> None:
        """Tell the end of it to `settled`, once, and let go of that: the two know each other."""
        settled, self.settled = self.settled, _settled_already
        settled(outcome)


def _settled_already(_: LlamaDeployError | None) -> None:
    raise AssertionError("a transition is settled once")


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """One condition on a column of a task's row."""

    column: Literal[
        "task_id",
        "session_id",  # of a task without a session it is ''
        "service",
        "state",
        "error",
        "origin",
        "paused",
        "dead",  # 1 where something of the task was given up and not sent again, else 0; compared with `in` only
        "steps",
        "created_at",
        "updated_at",
        "ended_at",
    ]
    operator: Literal["in", "prefix", "lt", "le", "gt", "ge"] = "in"
    """`in`: one of the values. `prefix`: text that begins with one of them. The others: below, above the one value."""
    values: tuple[str | float, ...]
    negated: bool = False
    """Rows for which the condition does not hold; a row without an end has no `ended_at` and matches neither way."""


class TaskFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which tasks a list shows; `None` means any. All of it must hold."""

    states: tuple[str, ...] | None = None
    service: str | None = None
    session_id: str | None = None
    conditions: tuple[Condition, ...] = ()
    oldest_first: bool = False


class TaskListing(msgspec.Struct, frozen=True):
    """One page of tasks and the cursor of the next page, `None` after the last."""

    rows: list[TaskRow]
    next: str | None


class SessionListing(msgspec.Struct, frozen=True):
    """One page of sessions and the cursor of the next page, `None` after the last."""

    rows: list[SessionRow]
    next: str | None


class DeadListing(msgspec.Struct, frozen=True):
    """One page of dead letters and the cursor of the next page, `None` after the last."""

    rows: list[DeadLetterRow]
    next: str | None


class StoreStatistics(msgspec.Struct):
    """What a store has done since it was opened; tests gate on these counts."""

    commits: int = 0
    transitions: int = 0
    statements: int = 0
    """Statement executions sent to the database; a batched execution over many rows counts once."""
    rows_written: int = 0
    conflicts: int = 0
    retried_batches: int = 0
