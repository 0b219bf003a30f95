"""Tasks and sessions in memory: what is unfinished, what ended lately, and how the rest is loaded from the store.

Bounded by settings. Nothing here decides or records.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from llama_deploy.control_plane.session_state import SessionState
from llama_deploy.control_plane.tasks import TaskEntry, rebuild
from llama_deploy.errors import SessionNotFoundError, TaskNotFoundError

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine


class TaskCache:
    """The engine's memory of tasks and sessions."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.tasks: dict[str, TaskEntry] = {}
        self.sessions: dict[str, SessionState] = {}
        self.ended_tasks: OrderedDict[str, TaskEntry] = OrderedDict()
        self._loading: dict[str, list[Callable[[TaskEntry | None], None]]] = {}
        self._idle_sessions: OrderedDict[str, SessionState] = OrderedDict()

    def with_entry(self, task_id: str, use: Callable[[TaskEntry | None], None]) -> None:
        """Call `use` with the task, at once when it is in memory, else when it is loaded; `None`: no such task."""
        entry = self.tasks.get(task_id)
        if entry is not None:
            use(entry)
            return
        waiting = self._loading.get(task_id)
        if waiting is not None:
            waiting.append(use)
            return
        self._loading[task_id] = [use]
        self._engine.spawn(self._load(task_id))

    async def load(self, task_id: str) -> TaskEntry | None:
        """The task from memory or from the store, `None` when there is none."""
        future: asyncio.Future[TaskEntry | None] = asyncio.get_running_loop().create_future()
        self.with_entry(task_id, lambda entry: None if future.done() else future.set_result(entry))
        return await future

    async def get(self, task_id: str) -> TaskEntry:
        """The recorded task. Raises `TaskNotFoundError`."""
        entry = await self.load(task_id)
        if entry is None or not entry.recorded:
            raise TaskNotFoundError(f"there is no task {task_id!r}", fix="llamactl tasks list   shows the newest tasks")
        return entry

    async def _load(self, task_id: str) -> None:
        entry: TaskEntry | None = None
        try:
            row = await self._engine.store.load_task(task_id)
            if row is not None:
                session = await self.load_session(row.session_id) if row.session_id != row.task_id else None
                history = await self._engine.store.load_history(task_id)
                deliveries = await self._engine.store.load_deliveries(task_id)
                entry = rebuild(row, history, deliveries, session)
                await self._engine.streams.load(entry)
                self.tasks[task_id] = entry
                if entry.final:
                    self.keep_ended(entry)
                elif session is not None:
                    session.unfinished += 1
        finally:
            for use in self._loading.pop(task_id, []):
                use(entry)

    async def load_session(self, session_id: str, *, again: bool = False, must_exist: bool = False) -> SessionState:
        """The session's shared state, from memory or the store; an unknown session is an empty one.

        With `must_exist` an unknown session raises `SessionNotFoundError`.
        """
        session = self.sessions.get(session_id)
        if session is None or again:
            row = await self._engine.store.load_session(session_id)
            values = await self._engine.store.load_shared(session_id)
            session = self.sessions.get(session_id)
            if session is None:
                session = self.sessions[session_id] = SessionState(session_id)
            elif not again:
                return session
            session.recorded = row is not None
            for value in values:
                session.put(value.key, value.value, value.version, committed=True)
            self._idle_sessions[session_id] = session
            self._evict_sessions()
        if must_exist and not session.recorded:
            raise SessionNotFoundError(f"there is no session {session_id!r}")
        return session

    def forget_session(self, session_id: str) -> None:
        """Drop a session's shared state from memory; unfinished tasks of it keep what they have."""
        self.sessions.pop(session_id, None)
        self._idle_sessions.pop(session_id, None)

    def leave_session(self, entry: TaskEntry) -> None:
        session = entry.session
        if session is None:
            return
        session.unfinished -= 1
        if session.unfinished == 0:
            self._idle_sessions[session.session_id] = session
            self._evict_sessions()

    def _evict_sessions(self) -> None:
        while len(self._idle_sessions) > self._engine.settings.sessions_cached_max:
            session_id, session = self._idle_sessions.popitem(last=False)
            if session.unfinished == 0 and all(c.version == c.committed for c in session.cells.values()):
                self.sessions.pop(session_id, None)

    def keep_ended(self, entry: TaskEntry) -> None:
        """Keep an ended task in memory for a while, with everything that only an unfinished one needs let go."""
        entry.private.keys.clear()
        entry.private.own = None
        self.ended_tasks[entry.row.task_id] = entry
        while len(self.ended_tasks) > self._engine.settings.ended_tasks_cached_max:
            task_id, old = self.ended_tasks.popitem(last=False)
            if self.tasks.get(task_id) is old:
                del self.tasks[task_id]

    @property
    def unfinished(self) -> int:
        """Unfinished tasks in memory."""
        return len(self.tasks) - len(self.ended_tasks)
