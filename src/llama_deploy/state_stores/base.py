"""The contract of a state store: the only memory of the system, and what is true of it after a crash.

Everything that one hop changes is one `Transition`, and a transition is recorded whole or not at all. A store groups
the transitions that are waiting into one commit, in the order in which they were handed over. It knows rows, guards
and bytes; what they mean (states, policies, retries) is the engine's business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from llama_deploy.state_stores.rows import (
    Condition,
    DeadLetterRow,
    DeadListing,
    DeliveryMove,
    DeliveryRow,
    HistoryRow,
    SessionListing,
    SessionRow,
    SharedRead,
    SharedValue,
    SharedWrite,
    StoreStatistics,
    StreamChunk,
    TaskFilter,
    TaskListing,
    TaskRow,
    Transition,
)

__all__ = [
    "BLOB_PART_BYTES",
    "Condition",
    "DeadLetterRow",
    "DeadListing",
    "DeliveryMove",
    "DeliveryRow",
    "HistoryRow",
    "SessionListing",
    "SessionRow",
    "SharedRead",
    "SharedValue",
    "SharedWrite",
    "StateStore",
    "StoreStatistics",
    "StreamChunk",
    "TaskFilter",
    "TaskListing",
    "TaskRow",
    "Transition",
]

BLOB_PART_BYTES = 262_144
"""Every part of a content but the last has exactly so many bytes, so that the same content has the same parts."""


class StateStore(ABC):
    """A durable memory for tasks, sessions and services.

    Methods are called on the event loop that `open` ran on. Reads see everything whose `settled` was called.
    """

    statistics: StoreStatistics
    location: str
    """Where the data lives, as shown to people: a path, `:memory:`, or a URL without its password."""
    blob_part_bytes: int = BLOB_PART_BYTES
    """How many bytes a part of a content has as it is kept; a store around this one may add to each."""
    expects_encryption: bool = False
    """Whether a store around this one seals what it is given. Without, an encrypted store is not opened."""

    @abstractmethod
    async def open(self) -> None:
        """Open the store, create or migrate its schema.

        Afterwards everything that was recorded before is readable. A crash during a migration leaves the old
        schema or the new one. Raises `StoreLockedError` when another process has the store open,
        `StoreReadOnlyError`, `StoreVersionError`; nothing is changed then.
        """

    @abstractmethod
    async def close(self) -> None:
        """Record what was handed over, then release everything. Repeating it does nothing."""

    @abstractmethod
    def record(self, transition: Transition) -> None:
        """Hand over one transition; returns at once, and `transition.settled` tells the end of it.

        Before `settled`: after a crash the transition is recorded whole, or not at all. After `settled(None)`: it
        survives any crash, with SQLite's `synchronous=FULL` also a loss of power. When the store cannot write, it
        keeps the transition and tries again; `healthy` is false meanwhile. Handing over the same transition twice
        is refused by its guards.
        """

    @property
    @abstractmethod
    def healthy(self) -> bool:
        """Whether the latest attempt to write succeeded. New work is refused while this is false."""

    @property
    @abstractmethod
    def backlog(self) -> int:
        """Number of transitions handed over and not settled."""

    @abstractmethod
    async def load_task(self, task_id: str) -> TaskRow | None:
        """The task's row, or `None`."""

    @abstractmethod
    async def load_deliveries(self, task_id: str) -> list[DeliveryRow]:
        """The task's open deliveries, in the order in which they were sent."""

    @abstractmethod
    async def load_history(self, task_id: str, *, after: int = 0, limit: int | None = None) -> list[HistoryRow]:
        """The task's history entries with `seq > after`, in order; all of them without a limit."""

    @abstractmethod
    async def load_chunks(self, task_id: str, *, first: int = 0, limit: int = 100) -> list[StreamChunk]:
        """At most `limit` chunks that hold events numbered `first` or higher, in order."""

    @abstractmethod
    async def load_stream_end(self, task_id: str) -> tuple[int, dict[str, tuple[int, int]]]:
        """How many stream events the task has, and per step its latest attempt in the stream with its event count."""

    @abstractmethod
    async def list_tasks(self, where: TaskFilter, *, limit: int, cursor: str | None = None) -> TaskListing:
        """One page of tasks, newest first by default.

        Raises `InvalidRequestError` for a cursor that is not ours and a condition that makes no sense.
        """

    @abstractmethod
    async def count_tasks(self) -> dict[str, int]:
        """The number of tasks by state. Costs no more than the number of unfinished tasks; see the implementation."""

    @abstractmethod
    async def count_matching(self, where: TaskFilter) -> int:
        """How many tasks a list without an end would show. Raises `InvalidRequestError` as `list_tasks` does."""

    @abstractmethod
    async def count_ended(self) -> int:
        """How many tasks have ended and are kept. Costs no more than the number of unfinished tasks."""

    @abstractmethod
    async def count_session_tasks(self, session_id: str) -> tuple[int, int]:
        """How many tasks a session has, and how many of them are unfinished."""

    @abstractmethod
    async def due_deliveries(self, now: float, *, limit: int) -> list[DeliveryRow]:
        """The deliveries that are not parked and overdue at `now`, longest overdue first."""

    @abstractmethod
    async def next_due(self) -> float | None:
        """The earliest `visible_at` of deliveries that are not parked, or `None` when there is none."""

    @abstractmethod
    async def make_due(self, now: float) -> int:
        """Set `visible_at` of every delivery that is not parked to at most `now`; returns how many there are.

        A starting control plane calls it: what was published before is not known to be on its way any more.
        Repeating it does nothing more.
        """

    @abstractmethod
    async def load_session(self, session_id: str) -> SessionRow | None:
        """The session's row, or `None`."""

    @abstractmethod
    async def list_sessions(self, *, limit: int, cursor: str | None = None) -> SessionListing:
        """One page of sessions, newest first."""

    @abstractmethod
    async def load_shared(self, session_id: str) -> list[SharedValue]:
        """The session's shared state, removed keys included (their versions still guard)."""

    @abstractmethod
    async def delete_session(self, session_id: str, *, if_unused: bool = False) -> bool:
        """Remove the session's row and shared state, not its tasks. True when it existed; repeating is harmless.

        With `if_unused`, a session that has tasks stays, and false is returned.
        """

    @abstractmethod
    async def unused_sessions(self, before: float, *, limit: int) -> list[str]:
        """At most `limit` sessions that were created before then and have no task, oldest first."""

    @abstractmethod
    async def find_idempotent(self, key: str) -> tuple[str, str] | None:
        """Task id and request digest recorded under an idempotency key, or `None`."""

    @abstractmethod
    async def put_service(self, name: str, definition: bytes) -> None:
        """Record a service's definition (JSON), replacing an earlier one. Durable when it returns."""

    @abstractmethod
    async def delete_service(self, name: str) -> bool:
        """Forget a service. True when it existed; repeating is harmless."""

    @abstractmethod
    async def load_services(self) -> dict[str, bytes]:
        """Every recorded service definition, by name."""

    # --- documents --------------------------------------------------------------------------------------------------

    @abstractmethod
    async def put_document(self, kind: str, name: str, data: bytes) -> None:
        """Keep something under a name, replacing an earlier one: schedules, limits, paused services.

        Durable when it returns. Raises `InvalidRequestError` for a name that cannot be stored; nothing is changed then.
        """

    @abstractmethod
    async def delete_document(self, kind: str, name: str) -> bool:
        """Forget a document. True when it existed; repeating is harmless."""

    @abstractmethod
    async def load_documents(self, kind: str) -> dict[str, bytes]:
        """Every document of a kind, by name."""

    # --- dead letters -----------------------------------------------------------------------------------------------

    @abstractmethod
    async def list_dead(
        self, *, service: str | None = None, task_id: str | None = None, limit: int, cursor: str | None = None
    ) -> DeadListing:
        """One page of dead letters, newest first, those that were sent again included."""

    @abstractmethod
    async def load_dead(self, step_id: str) -> DeadLetterRow | None:
        """The dead letter of a step, or `None`."""

    @abstractmethod
    async def count_dead(self) -> dict[str, int]:
        """The number of dead letters by service that were not sent again."""

    @abstractmethod
    async def mark_redriven(self, step_id: str, task_id: str) -> bool:
        """Note the task in which a dead letter was sent again.

        False when there is no such letter, or it was sent again before; nothing is changed then, so that of two who
        ask at the same time one is told that it is theirs.
        """

    @abstractmethod
    async def delete_dead(self, step_ids: Sequence[str]) -> int:
        """Remove dead letters; returns how many there were. Repeating is harmless."""

    @abstractmethod
    async def dead_before(self, when: float, *, limit: int) -> list[str]:
        """The steps of at most `limit` dead letters older than `when`, oldest first."""

    # --- large contents ---------------------------------------------------------------------------------------------

    @abstractmethod
    async def put_blob_part(self, hash: str, position: int, data: bytes, *, at: float) -> None:  # noqa: A002
        """Keep a part of a content that is on its way; durable when it returns, and repeating it is harmless.

        `position` counts parts from 0; every part but the last has `BLOB_PART_BYTES` bytes. `at` is the time: an
        upload without a part since long is given up by `delete_unused_blobs`. A content that is there already stays
        as it is. Raises `InvalidRequestError` for a part that is too large.
        """

    @abstractmethod
    async def finish_blob(self, hash: str, bytes_: int, created_at: float) -> None:  # noqa: A002
        """Say that all parts of a content are there; from now on it can be read and used. Repeating it makes it young.

        That `hash` belongs to the content is for the caller to check. Raises `InvalidRequestError` when the parts that
        are there do not make up `bytes_` bytes; they stay.
        """

    @abstractmethod
    async def blob_bytes(self, hash: str) -> int | None:  # noqa: A002
        """The size of a content that is there, or `None`."""

    @abstractmethod
    async def load_blob(self, hash: str, *, first: int = 0, limit: int | None = None) -> bytes:  # noqa: A002
        """At most `limit` bytes of a content from byte `first` on.

        Raises `StoreUnavailableError` for a content that is not there: whoever asks has seen that it is.
        """

    @abstractmethod
    async def use_blob(self, hash: str, task_id: str) -> None:  # noqa: A002
        """Note that a task needs a content for as long as the task is kept; repeating it is harmless.

        Raises `CommitConflictError` when the content or the task is not there.
        """

    @abstractmethod
    async def delete_unused_blobs(self, before: float, limit: int) -> int:
        """Remove at most `limit` contents older than `before` that no task uses, and uploads given up before then.

        Returns how many. A crash in between leaves some of them, whole; repeating it goes on.
        """

    # --- keeping and removing ---------------------------------------------------------------------------------------

    @abstractmethod
    async def ended_before(self, when: float, *, limit: int) -> list[str]:
        """At most `limit` tasks that ended before `when` and that nothing holds back, in the order of their submission.

        An open delivery (a notification that is still to be made) and a dead letter that was not sent again hold a
        task back, and so does a caller that has not ended: its next attempt asks for the child's outcome. A store
        stops looking once it met many tasks that were submitted after `when`: those that were taken in from elsewhere
        go when they come to the front.
        """

    @abstractmethod
    async def delete_tasks(self, task_ids: Sequence[str], *, erase: bool = False) -> int:
        """Remove ended tasks and all that belongs to them, in one commit; returns how many tasks were removed.

        History, stream, deliveries, idempotency keys, dead letters and uses of contents go too; the contents
        themselves when `delete_unused_blobs` comes by. A task that has not ended is left alone. `erase` removes
        unfinished ones too, what came in late for tasks that are gone already, and at once the contents that nobody
        else uses. Repeating it is harmless.
        """

    @abstractmethod
    async def scrub(self) -> bool:
        """Make what was removed so far unreadable in whatever the store writes to.

        False while something that still reads an earlier state (a backup) prevents it; ask again then.
        """

    @abstractmethod
    async def shrink(self) -> bool:
        """Give a piece of unused space back, when there is much of it; true when there is more to give back.

        What is removed leaves space that later rows take; only what they will not need soon is worth the work.
        """

    @abstractmethod
    async def import_task(self, row: TaskRow, history: Sequence[HistoryRow], chunks: Sequence[StreamChunk]) -> None:
        """Take in a task as it was recorded elsewhere, in one commit; durable when it returns.

        Raises `CommitConflictError` when the task exists; nothing is changed then.
        """

    @abstractmethod
    async def backup(self, path: Path) -> None:
        """Write a copy of everything that is committed now to a new file, which `SQLiteStore` opens.

        Writing goes on meanwhile, and is not in the copy. The file is whole and on disk when it returns. Raises
        `StoreUnavailableError` when that fails, or when there is a file of that name; no file is left behind by it.
        """
