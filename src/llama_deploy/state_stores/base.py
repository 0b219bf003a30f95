"""The contract of a state store: the only memory of the system, and what is true of it after a crash.

Everything that one hop changes is one `Transition`, and a transition is recorded whole or not at all. A store groups
the transitions that are waiting into one commit, in the order in which they were handed over. It knows rows, guards
and bytes; what they mean (states, policies, retries) is the engine's business.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from llama_deploy.state_stores.rows import (
    Condition,
    DeadLetterRow,
    DeadListing,
    DeliveryMove,
    DeliveryRow,
    HistoryRow,
    MemberRow,
    SessionListing,
    SessionRow,
    ShardRow,
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
    "MemberRow",
    "SessionListing",
    "SessionRow",
    "ShardRow",
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

    Methods are called on the event loop that `open` ran on. Reads see everything that was settled.
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
        """Hand over one transition; returns at once; the store calls `transition.settle` with the end of it.

        Before: after a crash the transition is recorded whole, or not at all. After `settle(None)`: it
        survives any crash, with SQLite's `synchronous=FULL` also a loss of power. When the store cannot write, it
        keeps the transition and tries again; `healthy` is false meanwhile. Handing over the same transition twice
        is refused by its guards.
        """

    # --- shards -----------------------------------------------------------------------------------------------------
    #
    # A store for one control plane has one shard, and whoever has it open holds that: the methods here say so, and
    # such a store leaves them as they are. A store that several control planes share replaces all of them, claims every
    # shard in `open` unless it is told to leave that to its user, and keeps these promises:
    #
    # * A commit takes effect only while the store that hands it over leads every shard that it touches; it locks their
    #   rows, and a takeover changes them. So once a claim has returned, no commit of an earlier owner can follow.
    # * A batch may span shards. All of their epochs are checked in the statement that writes, in the order of shards,
    #   so that no two commits wait for each other; what belongs to a lost shard is refused alone. Batches that never
    #   mixed shards would make of one commit as many as there are shards, and guard nothing further.
    # * The epoch belongs to the store that claimed, not to the transition: no decision can carry a wrong one along.
    #   What was handed over before a shard was lost is refused, though the store hold that shard again when it writes.
    # * After a crash the owner's shards stay its own until its lease ends; what it recorded stands.

    shards_count: int = 1
    """Into how many shards the sessions are divided; fixed when the store was made, known once it is open."""
    owner: str = ""
    """The name under which this store claims shards, unique to it."""

    @property
    def held(self) -> Mapping[int, int]:
        """The shards that this store leads, as far as it knows, and the epoch of each."""
        return {0: 1}

    async def shards(self) -> list[ShardRow]:
        """Every shard, in order, as it is recorded now."""
        return [ShardRow(0, self.owner, 1, math.inf)]

    async def claim_shards(self, shards: Sequence[int] | None = None, *, lease_s: float = 10.0) -> dict[int, int]:
        """Take the lead of those shards (of all) that nobody leads, and of those whose owner's lease has ended.

        Returns what it got, with the new epochs, one above those before; what is held already is not among them, and
        others that are led are left alone. Waits for the commits of earlier owners that are under way; none can follow.
        The lease of everything held is `lease_s` seconds from now by the store's clock. After a crash before it
        returned, the shards are held by nobody who works until that lease ends.
        """
        del shards, lease_s
        return {}

    async def renew_shards(self, *, lease_s: float = 10.0) -> dict[int, int]:
        """Prolong the lease of everything that is held; returns what still is. What is not there was taken over.

        A lease that has ended is prolonged too, as long as nobody has taken the shard over.
        """
        del lease_s
        return dict(self.held)

    async def release_shards(self, shards: Sequence[int] | None = None) -> None:
        """Give up the lead of shards (of all), after what was handed over for them is settled; others may take it."""
        del shards

    on_lost: Callable[[Sequence[int]], None] = staticmethod(lambda _: None)
    """Called on the loop when a commit, or a renewal, finds that shards were taken over: before anything that belongs
    to them is settled as refused."""

    async def join(self, *, name: str, url: str) -> int:
        """Make this owner known to the others that share the store, by a name and the URL where they reach it.

        Returns its seat: the smallest number that no other living member has, so that what is kept under it is soon
        somebody's again when this one is gone. Repeating it keeps the seat, unless the lease ended and another has it.
        """
        del name, url
        return 0

    async def resign(self) -> None:
        """Be no member any more, so that the others share out what was released. Repeating it does nothing."""

    async def members(self, *, lease_s: float = 10.0) -> list[MemberRow]:
        """Prolong the lease of everything that is held, as `renew_shards` does, and tell who there is.

        One statement, so that it may be asked often. What was found to be taken over is not in `held` afterwards.
        """
        del lease_s
        return [MemberRow(self.owner, False, "", "", 0, math.inf, dict(self.held), {})]  # noqa: FBT003 - a row

    async def take_up(self, shards: Sequence[int], when: float) -> int:
        """Have every delivery of these shards that is not parked looked at at `when`; returns how many there are.

        Whoever has just claimed them calls it: what was published before is not known to be on its way any more.
        """
        del shards
        return await self.make_due(when)

    def announce(self, word: str) -> None:
        """Tell the other control planes on this store something, soon and apart from any commit.

        It is a hint to look, of at most some thousand bytes: it may be lost or repeated. Where there is only one
        control plane, nobody hears it.
        """
        del word

    def listen(self, heard: Callable[[str], None]) -> None:
        """Have `heard` called on the loop with what others announce, and with `""` when anything may have been missed.

        Once per opening, after `open`. Where nothing can be heard it is never called; so whoever listens also looks by
        itself from time to time.
        """
        del heard

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
