"""Tasks and sessions in memory: what is unfinished, what ended lately, and how the rest is loaded from the store.

Bounded by settings. Nothing here decides or records.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from llama_deploy.control_plane.session_state import SessionState
from llama_deploy.control_plane.tasks import StreamState, TaskEntry, rebuild
from llama_deploy.errors import LlamaDeployError, ShardLostError, TaskNotFoundError
from llama_deploy.runtime.logs import get_logger
from llama_deploy.types.artifacts import MARK_BYTES, hashes_in

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine

log = get_logger("llama_deploy.engine")
Use = Callable[[TaskEntry | None], None]

LOAD_AGAIN_S = 1.0
"""Pause before a task is asked for again from a store that could not be read."""

LEAVING_SESSIONS_MAX = 100
"""Sessions whose last changes are committed are forgotten once there are more of them."""


class TaskCache:
    """The engine's memory of tasks and sessions."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.tasks: dict[str, TaskEntry] = {}
        self.sessions: dict[str, SessionState] = {}
        self.ended_tasks: OrderedDict[str, TaskEntry] = OrderedDict()
        self._loading: dict[str, list[tuple[Use, Callable[[LlamaDeployError], None] | None]]] = {}
        self._idle_sessions: OrderedDict[str, SessionState] = OrderedDict()
        self._leaving_sessions: dict[str, SessionState] = {}
        """Sessions that left memory while changes of them were on their way to the store."""
        self._leaving_streams: dict[str, StreamState] = {}
        """By task: streams that left memory while events of them were on their way to the store."""

    def with_entry(self, task_id: str, use: Use, *, failed: Callable[[LlamaDeployError], None] | None = None) -> None:
        """Call `use` with the task, at once when it is in memory, else when it is loaded; `None`: no such task.

        A task whose submission is on its way is waited for: it may turn out to be another one, or none.
        When the store cannot be read, `failed` is told; without it, the task is asked for until the store can be. Of a
        task that another control plane leads `failed` is told, too; without it, nobody is.
        """
        entry = self.tasks.get(task_id)
        if entry is not None and entry.recorded:
            use(entry)
            return
        if entry is not None:
            entry.recorded_callbacks.append(lambda *_: self.with_entry(task_id, use, failed=failed))
            return
        waiting = self._loading.get(task_id)
        if waiting is not None:
            waiting.append((use, failed))
            return
        self._loading[task_id] = [(use, failed)]
        self._engine.spawn(self._load(task_id))

    async def load(self, task_id: str, *, patient: bool = False) -> TaskEntry | None:
        """The task from memory or from the store, `None` when there is none.

        When the store cannot be read, raises `StoreUnavailableError`; with `patient`, waits until it can be. Raises
        `ShardLostError` for a task that another control plane leads.
        """
        future: asyncio.Future[TaskEntry | None] = asyncio.get_running_loop().create_future()

        def use(entry: TaskEntry | None) -> None:
            if not future.done():
                future.set_result(entry)

        def failed(error: LlamaDeployError) -> None:
            if not future.done():
                future.set_exception(error)

        def failed_or_again(error: LlamaDeployError) -> None:
            if patient and not isinstance(error, ShardLostError):
                self._engine.spawn(self._again(task_id, use, failed_or_again, error))
            else:
                failed(error)

        self.with_entry(task_id, use, failed=failed_or_again)
        return await future

    async def _again(
        self, task_id: str, use: Use, failed: Callable[[LlamaDeployError], None] | None, error: LlamaDeployError
    ) -> None:
        log.warning("a task cannot be loaded, trying again", task_id=task_id, error=str(error))
        await self._engine.sleep(LOAD_AGAIN_S)
        self.with_entry(task_id, use, failed=failed)

    async def get(self, task_id: str) -> TaskEntry:
        """The recorded task. Raises `TaskNotFoundError`, and `ShardLostError` where another control plane leads it."""
        entry = await self.load(task_id)
        if entry is None:
            raise not_found(task_id)
        if not self._engine.leadership.leads(entry.row.session_id):
            raise self._engine.leadership.not_led(entry.row.session_id)
        return entry

    async def _load(self, task_id: str) -> None:
        try:
            entry = await self._read(task_id)
        except LlamaDeployError as error:
            for use, failed in self._loading.pop(task_id):
                if failed is not None:
                    failed(error)
                elif not isinstance(error, ShardLostError):
                    self._engine.spawn(self._again(task_id, use, None, error))
            return
        for use, _ in self._loading.pop(task_id):
            use(entry)

    async def _read(self, task_id: str) -> TaskEntry | None:
        """Take a task from the store into memory."""
        store = self._engine.store
        while (leaving := self._leaving_streams.get(task_id)) is not None:
            # Else the next events would have numbers that are taken, and readers would miss some.
            await leaving.arrived()
            if self._leaving_streams.get(task_id) is leaving:
                del self._leaving_streams[task_id]
        row = await store.load_task(task_id)
        if row is None:
            return None
        epoch = self._engine.leadership.epoch_of(row.session_id)
        if epoch is None:
            raise self._engine.leadership.not_led(row.session_id)
        history = await self._engine.contents.history(task_id)
        deliveries = await store.load_deliveries(task_id)
        stream = StreamState(*await store.load_stream_end(task_id))
        # Last, so that the session cannot leave memory before the task holds it.
        session = await self.load_session(row.session_id) if row.session_id != row.task_id else None
        try:
            entry = rebuild(row, history, deliveries, session, self._engine.policies.find)
        except (msgspec.DecodeError, LookupError, ValueError) as error:
            raise LlamaDeployError(f"the record of task {task_id} cannot be read", why=str(error)) from error
        if self._engine.leadership.epoch_of(row.session_id) != epoch:  # it went away meanwhile, and perhaps came back
            return await self._read(task_id)
        entry.stream = stream
        spoken_of = [hash_ for one in history if MARK_BYTES in one.data for hash_ in hashes_in(one.data)]
        for hash_ in spoken_of:
            size = await self._engine.contents.size(hash_)
            if size is not None:
                entry.artifacts = {**(entry.artifacts or {}), hash_: size}
        self._find_holders(entry)
        self.tasks[task_id] = entry
        if entry.final:
            self.keep_ended(entry)
        elif session is not None:
            session.unfinished += 1
        return entry

    def _find_holders(self, entry: TaskEntry) -> None:
        """Who holds the open steps of a task that was not in memory: nobody but their connections knows."""
        for port in self._engine.registry.instances.values():
            for step in entry.open.values() if port.held else ():
                holds = port.held.get(step.step_id) == step.attempt and not step.parked
                if holds and not entry.is_anothers(step, port.instance_id):
                    step.claimed_by, step.claimed_at = port.instance_id, self._engine.clock.now()
                    step.published = True

    async def load_session(self, session_id: str) -> SessionState:
        """The session's shared state, from memory or the store; an unknown session is an empty one.

        Raises `ShardLostError` for one that another control plane leads.
        """
        epoch = self._engine.leadership.epoch_of(session_id)
        if epoch is None:
            raise self._engine.leadership.not_led(session_id)
        while (earlier := self._leaving_sessions.get(session_id)) is not None:
            await earlier.settled()  # what is on its way to the store is part of what is to be read
            self._leaving_sessions.pop(session_id, None)
        session = self.sessions.get(session_id)
        if session is not None:
            return session
        row = await self._engine.store.load_session(session_id)
        values = await self._engine.store.load_shared(session_id)
        moved = self._engine.leadership.epoch_of(session_id) != epoch
        if moved or session_id in self.sessions or session_id in self._leaving_sessions:
            return await self.load_session(session_id)
        session = self.sessions[session_id] = SessionState(session_id)
        session.recorded = row is not None
        for value in values:
            session.put(value.key, value.value, value.version, committed=True)
        self._evict_sessions()
        self._idle_sessions[session_id] = session  # not before: whoever asked for it is about to use it
        return session

    async def session_of(self, entry: TaskEntry) -> SessionState | None:
        """The session of a task, loaded again where memory was found to be wrong; waits until the store can be read."""
        while entry.session is not None and entry.session.stale:
            try:
                session = await self.load_session(entry.session.session_id)
            except ShardLostError:
                break
            except LlamaDeployError as error:
                log.warning("a session cannot be loaded, trying again", error=str(error))
                await self._engine.sleep(LOAD_AGAIN_S)
                continue
            if not entry.final and not entry.stale:
                session.unfinished += 1
                self.leave_session(entry)
            entry.session = session
        return entry.session

    def forget_session(self, session: SessionState) -> None:
        """Drop a session whose state in memory is not what the store says; whoever needs it next loads it."""
        if session.stale:
            return
        session.stale = True
        if self.sessions.get(session.session_id) is session:
            del self.sessions[session.session_id]
            self._idle_sessions.pop(session.session_id, None)
        self._leaving_sessions[session.session_id] = session

    def forget(self, entry: TaskEntry) -> None:
        """Drop an entry that is not what the store says, or was never recorded; it must not be used any more."""
        if entry.stale:
            return
        entry.stale = True
        if self.tasks.get(entry.row.task_id) is entry:
            del self.tasks[entry.row.task_id]
        if entry.stream is not None and entry.stream.in_flight:
            self._leaving_streams[entry.row.task_id] = entry.stream
        self.leave_session(entry)

    def leave(self, entry: TaskEntry) -> None:
        """Drop an entry that another control plane leads, however far it is."""
        self.ended_tasks.pop(entry.row.task_id, None)
        if not entry.ended:
            self.forget(entry)
            return
        entry.stale = True
        if self.tasks.get(entry.row.task_id) is entry:
            del self.tasks[entry.row.task_id]

    def leave_session(self, entry: TaskEntry) -> None:
        """A task of a session needs its shared state no more: it has ended, or was forgotten."""
        session = entry.session
        if session is None:
            return
        session.unfinished -= 1
        if session.unfinished == 0 and not session.stale:
            self._idle_sessions[session.session_id] = session
            self._evict_sessions()

    def _evict_sessions(self) -> None:
        while len(self._idle_sessions) > self._engine.settings.sessions_cached_max:
            session_id, session = self._idle_sessions.popitem(last=False)
            if session.unfinished:
                continue  # it comes back when its last task ends
            del self.sessions[session_id]
            if session.pending:
                session.stale = True
                self._leaving_sessions[session_id] = session
        if len(self._leaving_sessions) > LEAVING_SESSIONS_MAX:
            self._leaving_sessions = {key: one for key, one in self._leaving_sessions.items() if one.pending}

    def keep_ended(self, entry: TaskEntry) -> None:
        """Keep an ended task in memory for a while, with everything that only an unfinished one needs let go."""
        if entry.moved:
            return
        entry.private.keys.clear()
        entry.private.memory.clear()
        entry.private.own = None
        self.ended_tasks[entry.row.task_id] = entry
        self._evict_ended()

    def notified(self, entry: TaskEntry) -> None:
        """Nothing is open any more of a task that has ended: it may leave memory now."""
        if self.tasks.get(entry.row.task_id) is entry and entry.row.task_id not in self.ended_tasks:
            self.ended_tasks[entry.row.task_id] = entry
            self._evict_ended()

    def _evict_ended(self) -> None:
        while len(self.ended_tasks) > max(1, self._engine.settings.ended_tasks_cached_max):  # whoever loaded it uses it
            task_id, old = self.ended_tasks.popitem(last=False)
            if any(step.claimed_by for step in old.open.values()):
                continue  # an instance is telling somebody of its end; it leaves memory after that
            if self.tasks.get(task_id) is old:
                del self.tasks[task_id]

    async def drop(self, task_ids: Sequence[str]) -> None:
        """Forget tasks that the store does not have any more, those included that are just being read from it."""
        for task_id in task_ids:
            if task_id in self._loading:
                with contextlib.suppress(LlamaDeployError):
                    await self.load(task_id)
            entry = self.tasks.get(task_id)
            if entry is None or not entry.recorded:
                continue  # a new task of the same id
            self.ended_tasks.pop(task_id, None)
            if entry.final:
                entry.stale = True
                del self.tasks[task_id]
            else:
                self.forget(entry)
            entry.notify()

    async def drop_session(self, session_id: str) -> None:
        """Forget a session that is to be removed from the store, once what is on its way there has arrived."""
        session = self.sessions.get(session_id)
        if session is not None:
            await session.settled()
            self.forget_session(session)
        self._leaving_sessions.pop(session_id, None)

    def let_go_of_session(self, session_id: str) -> bool:
        """Forget a session unless it is in use; whoever needs it next reads it from the store."""
        session = self.sessions.get(session_id)
        if session is None:
            return True
        if session.unfinished or session.pending:
            return False
        self._idle_sessions.pop(session_id, None)
        del self.sessions[session_id]
        return True

    @property
    def unfinished(self) -> int:
        """Unfinished tasks in memory."""
        return len(self.tasks) - len(self.ended_tasks)


def not_found(task_id: str) -> TaskNotFoundError:
    """The refusal of a task that there is not."""
    return TaskNotFoundError(f"there is no task {task_id!r}", fix="llamactl tasks list   shows the newest tasks")
