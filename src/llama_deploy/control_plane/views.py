"""Tasks and sessions as the API shows them; services, queues and why something waits are in `queue_views`.

Reads memory where a task is in it and the store where it is not; changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.filters import task_filter
from llama_deploy.control_plane.memory import memory_in
from llama_deploy.control_plane.queue_views import QueueViews
from llama_deploy.control_plane.records import to_entry
from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.errors import SessionNotFoundError
from llama_deploy.state_stores.base import Condition, TaskFilter, TaskRow
from llama_deploy.types import (
    HistoryEntry,
    HistoryPage,
    SessionPage,
    SessionView,
    TaskPage,
    TaskResult,
    TaskResultView,
    TaskState,
    TaskView,
)
from llama_deploy.types.reserved import MEMORY_KEY

ROWS_AT_ONCE = 500
"""Tasks that are looked up by their ids with one statement."""


class Views(QueueViews):
    """Read-only answers about one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # --- tasks ------------------------------------------------------------------------------------------------------

    def task(self, entry: TaskEntry) -> TaskView:
        """A task in memory, as it is recorded."""
        asking = next((step for step in entry.open.values() if step.asking and step.prompt), None)
        view = self.row(entry.shown)
        view.release = entry.release or None
        if view.ended_at is None:
            view.waiting_for = self.task_reason(entry)
            view.heartbeat = self._engine.redact.value(_heartbeat(entry))
            if self._engine.redact and view.waiting_for:
                view.waiting_for = self._engine.redact.text(view.waiting_for)
            if asking is not None and asking.prompt is not None and view.state is TaskState.INPUT_REQUIRED:
                view.prompt = {"step_id": asking.step_id, **self._shown(asking.prompt)}
        return view

    async def task_in_full(self, entry: TaskEntry) -> TaskView:
        """A task with what only the store knows of it."""
        view = self.task(entry)
        view.webhook = await self._engine.webhooks.view(entry)
        return view

    def row(self, row: TaskRow) -> TaskView:
        """A task as the store has it."""
        return TaskView(
            task_id=row.task_id,
            session_id=row.session_id,
            service=row.service or None,
            state=TaskState(row.state),
            created_at=row.created_at,
            updated_at=row.updated_at,
            ended_at=row.ended_at,
            hops=row.steps,
            paused=bool(row.paused),
            origin=row.origin or None,
            error=row.error or None,
        )

    async def tasks_of(self, task_ids: Sequence[str]) -> list[TaskView]:
        """Tasks in this order, as far as they are known here; those that there are not are left out."""
        tasks = self._engine.cache.tasks
        rows = await self.rows_of([task_id for task_id in task_ids if task_id not in tasks])
        views = {task_id: self.row(row) for task_id, row in rows.items()}
        views |= {task_id: self.task(tasks[task_id]) for task_id in task_ids if task_id in tasks}
        return [views[task_id] for task_id in dict.fromkeys(task_ids) if task_id in views]

    async def rows_of(self, task_ids: Sequence[str]) -> dict[str, TaskRow]:
        """Tasks as the store has them, by id; those that there are not are left out."""
        wanted = list(dict.fromkeys(task_ids))
        rows: dict[str, TaskRow] = {}
        for first in range(0, len(wanted), ROWS_AT_ONCE):
            some = tuple(wanted[first : first + ROWS_AT_ONCE])
            where = TaskFilter(conditions=(Condition(column="task_id", values=some),))
            listing = await self._engine.store.list_tasks(where, limit=ROWS_AT_ONCE)
            rows |= {row.task_id: row for row in listing.rows}
        return rows

    async def result(self, entry: TaskEntry) -> TaskResultView:
        """The outcome of a task, `None` inside while it has none."""
        result = TaskResult.model_validate_json(entry.outcome) if entry.outcome is not None else None
        return TaskResultView(task_id=entry.row.task_id, state=TaskState(entry.shown.state), result=result)

    async def list_tasks(
        self,
        *,
        states: list[str] | None,
        service: str | None,
        session_id: str | None,
        oldest_first: bool,
        limit: int,
        cursor: str | None,
        filter: str | None = None,
    ) -> TaskPage:
        """One page of tasks. Raises `InvalidRequestError` for a filter or a state that means nothing."""
        where = task_filter(
            filter,
            now=self._engine.clock.now(),
            states=states or (),
            service=service,
            session_id=session_id,
            oldest_first=oldest_first,
        )
        listing = await self._engine.store.list_tasks(where, limit=limit, cursor=cursor)
        items = []
        for row in listing.rows:
            entry = self._engine.cache.tasks.get(row.task_id)
            items.append(self.task(entry) if entry is not None else self.row(row))
        return TaskPage(items=items, next=listing.next)

    async def history(self, entry: TaskEntry, *, after: int, limit: int) -> HistoryPage:
        """One page of a task's history."""
        rows = await self._engine.contents.history(entry.row.task_id, after=after, limit=limit + 1)
        items: list[HistoryEntry] = [
            to_entry(row.seq, row.at, row.kind, row.data, self._engine.redact) for row in rows[:limit]
        ]
        return HistoryPage(items=items, next=items[-1].seq if len(rows) > limit else None)

    # --- sessions ---------------------------------------------------------------------------------------------------

    async def session(self, session_id: str) -> SessionView:
        """A session. Raises `SessionNotFoundError`."""
        row = await self._engine.store.load_session(session_id)
        if row is None:
            raise SessionNotFoundError(f"there is no session {session_id!r}", fix="llamactl sessions list")
        newest = await self._engine.store.list_tasks(TaskFilter(session_id=session_id), limit=1)
        counts = await self._engine.store.count_session_tasks(session_id)
        return SessionView(
            session_id=row.session_id,
            created_at=row.created_at,
            updated_at=newest.rows[0].updated_at if newest.rows else None,
            task_count=counts[0],
            open_task_count=counts[1],
            current_task_id=newest.rows[0].task_id if newest.rows else None,
        )

    async def list_sessions(self, *, limit: int, cursor: str | None) -> SessionPage:
        """One page of sessions, newest first."""
        listing = await self._engine.store.list_sessions(limit=limit, cursor=cursor)
        return SessionPage(items=[await self.session(row.session_id) for row in listing.rows], next=listing.next)

    async def session_state(self, session_id: str) -> dict[str, Any]:
        """The shared state of a session, as recorded. Raises `SessionNotFoundError`."""
        if await self._engine.store.load_session(session_id) is None:
            raise SessionNotFoundError(f"there is no session {session_id!r}", fix="llamactl sessions list")
        values = await self._engine.store.load_shared(session_id)
        state = {
            value.key: msgspec.json.decode(value.value)
            for value in values
            if value.value is not None and not value.key.startswith(MEMORY_KEY)
        }
        shown: dict[str, Any] = self._engine.redact.value(state)
        return shown

    async def session_memory(self, session_id: str) -> dict[str, Any]:
        """What services remember of a session, by their name, as recorded. Raises `SessionNotFoundError`."""
        if await self._engine.store.load_session(session_id) is None:
            raise SessionNotFoundError(f"there is no session {session_id!r}", fix="llamactl sessions list")
        found = {}
        for value in await self._engine.store.load_shared(session_id):
            if value.key.startswith(MEMORY_KEY) and value.value is not None:
                memory = msgspec.json.decode(memory_in(value.value))
                found[value.key.removeprefix(MEMORY_KEY)] = self._engine.redact.value(memory)
        return {service: memory for service, memory in sorted(found.items()) if memory}

    def _shown(self, prompt: bytes) -> dict[str, Any]:
        """What a person is asked, without what is to be left out."""
        return _as_dict(self._engine.redact.value(msgspec.json.decode(prompt)))


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"prompt": value}


def _heartbeat(entry: TaskEntry) -> dict[str, Any] | None:
    """What the code of a task's steps said last with a sign of life."""
    step = max((one for one in entry.open.values() if one.beat is not None), key=lambda one: one.beat_at, default=None)
    if step is None or step.beat is None:
        return None
    return {"step_id": step.step_id, "at": step.beat_at, "details": msgspec.json.decode(step.beat)}
