"""Rows and transitions as the conformance suites of stores make them, and how they hand them over.

The defaults are the smallest valid task: one step sent, due at `AT + 60`. Nothing here knows a particular store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from llama_deploy.errors import CommitConflictError, LlamaDeployError
from llama_deploy.state_stores.base import (
    DeadLetterRow,
    DeliveryMove,
    DeliveryRow,
    HistoryRow,
    StateStore,
    StreamChunk,
    TaskFilter,
    TaskRow,
    Transition,
)

AT = 1_700_000_000.0
"""The time at which everything happens unless it says otherwise, in seconds since the epoch."""

DEADLINE_S = 60.0
"""How long a test of a suite may work with a store, and how long that may take to open and to close."""

_FINAL = frozenset({"completed", "failed", "canceled", "rejected"})

Outcome = LlamaDeployError | None
"""What `settled` is called with."""


class StoreSuite:
    """What the parts of the store suite share: how they get a store."""

    durable = True
    """Whether a second `make_store()` of a test, after the first was closed, must find what that one recorded."""

    def make_store(self) -> StateStore:
        """Make a store that is not open yet, always over the same data within one test, empty at first."""
        raise NotImplementedError

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[StateStore]:
        """Open a store for a part of a test, close it afterwards, and end a test that hangs."""
        store = self.make_store()
        async with asyncio.timeout(DEADLINE_S):
            await store.open()
        try:
            async with asyncio.timeout(DEADLINE_S):
                yield store
        finally:
            async with asyncio.timeout(DEADLINE_S):
                await store.close()


def hand_over(store: StateStore, **changes: Any) -> asyncio.Future[Outcome]:
    """Hand over a transition; the future is its outcome."""
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    store.record(Transition(settled=outcome.set_result, **changes))
    return outcome


async def record(store: StateStore, **changes: Any) -> None:
    """Record a transition that no guard refuses."""
    outcome = await hand_over(store, **changes)
    assert outcome is None, outcome


async def record_all(store: StateStore, transitions: Sequence[dict[str, Any]]) -> None:
    """Record transitions that no guard refuses, handed over together."""
    outcomes = await asyncio.gather(*[hand_over(store, **changes) for changes in transitions])
    assert outcomes == [None] * len(outcomes), outcomes


async def refused(store: StateStore, **changes: Any) -> None:
    """Hand over a transition that one of its guards must refuse."""
    outcome = await hand_over(store, **changes)
    assert isinstance(outcome, CommitConflictError), outcome


def task_row(task_id: str, version: int = 1, **values: Any) -> TaskRow:
    """Make the row of a task without a session, ended at `AT` when its state is a final one."""
    state = values.setdefault("state", "submitted")
    defaults = {
        "session_id": task_id,
        "service": "echo",
        "steps": 1,
        "created_at": AT,
        "updated_at": AT + version,
        "ended_at": AT if state in _FINAL else None,
    }
    return TaskRow(task_id=task_id, version=version, **{**defaults, **values})


def entry_row(task_id: str, seq: int = 1, data: bytes = b"{}") -> HistoryRow:
    """Make an entry of a task's history."""
    return HistoryRow(task_id=task_id, seq=seq, at=AT + seq, kind="answered", data=data)


def delivery(task_id: str, number: int = 1, **values: Any) -> DeliveryRow:
    """Make the delivery of a task's n-th step, its first attempt, due at `AT + 60`."""
    defaults = {"service": "echo", "attempt": 1, "visible_at": AT + 60, "seq": 1, "index": number - 1}
    return DeliveryRow(step_id=f"{task_id}:{number}", task_id=task_id, **{**defaults, **values})


def move(step_id: str, expected_attempt: int = 1, attempt: int = 2, **values: Any) -> DeliveryMove:
    """Make the change of a delivery to its next attempt, due at `AT + 90`."""
    values.setdefault("visible_at", AT + 90)
    return DeliveryMove(step_id=step_id, expected_attempt=expected_attempt, attempt=attempt, **values)


def chunk(task_id: str, first: int, count: int = 1, **values: Any) -> StreamChunk:
    """Make a chunk of the first attempt of a task's first step, whose events are the task's only ones."""
    defaults = {"step_id": f"{task_id}:1", "attempt": 1, "attempt_first": first, "at": AT, "data": b"[1]"}
    return StreamChunk(task_id=task_id, first=first, count=count, **{**defaults, **values})


def dead(task_id: str, number: int = 1, **values: Any) -> DeadLetterRow:
    """Make the dead letter of a task's n-th step."""
    defaults = {"service": "echo", "attempt": 3, "at": AT, "code": "LD405", "message": "given up"}
    return DeadLetterRow(step_id=f"{task_id}:{number}", task_id=task_id, **{**defaults, **values})


def submission(task_id: str, **changes: Any) -> dict[str, Any]:
    """Make what submitting a task changes: its row, its first history entry and its first delivery."""
    return {"task": task_row(task_id), "entry": entry_row(task_id), "sent": [delivery(task_id)], **changes}


def completion(task_id: str, version: int = 2, **changes: Any) -> dict[str, Any]:
    """Make what the answer to a task's first step changes when it ends the task."""
    defaults = {
        "task": task_row(task_id, version, state="completed"),
        "expected_version": version - 1,
        "entry": entry_row(task_id, version),
        "answered": [f"{task_id}:1"],
    }
    return {**defaults, **changes}


async def all_tasks(store: StateStore, where: TaskFilter | None = None, *, limit: int = 100) -> list[str]:
    """Read the ids of all tasks that a list shows, page by page."""
    found: list[str] = []
    cursor = None
    while True:
        page = await store.list_tasks(where or TaskFilter(), limit=limit, cursor=cursor)
        assert len(page.rows) <= limit
        found += [row.task_id for row in page.rows]
        cursor = page.next
        if cursor is None:
            return found
