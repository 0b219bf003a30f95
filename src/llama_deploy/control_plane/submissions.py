"""Submitting: every check, the first decision, and what repeating a request finds.

What is refused here changes nothing; what is accepted is recorded with its first decision in one commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from llama_deploy.control_plane.decisions import Decision
from llama_deploy.control_plane.records import Record
from llama_deploy.control_plane.refusals import check_id, conflict, digest, too_large
from llama_deploy.control_plane.session_state import SessionState
from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.errors import (
    InvalidRequestError,
    LlamaDeployError,
    QueueFullError,
    ShuttingDownError,
    StoreUnavailableError,
)
from llama_deploy.state_stores.base import SessionRow, TaskRow, Transition
from llama_deploy.types import TaskDefinition

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine

Submitted = Callable[[TaskEntry | None, LlamaDeployError | None], None]
"""Called once a submission is committed, with the task, or refused, with the error."""


class Submissions:
    """How tasks come into one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._keys_in_flight: dict[str, asyncio.Future[None]] = {}

    def submit(self, definition: TaskDefinition, done: Submitted) -> None:
        """Accept a task: decide its first messages and record it. `done` is called after the commit.

        Repeating it with the same task id or idempotency key finds the first task; a different request under the
        same id or key is refused with `TaskConflictError`. What is refused changes nothing.
        """
        try:
            self._check_submission(definition)
        except LlamaDeployError as error:
            done(None, error)
            return
        existing = self._engine.cache.tasks.get(definition.task_id)
        if existing is not None:
            self._found(existing, definition, done)
        elif definition.idempotency_key or (
            definition.session_id and definition.session_id not in self._engine.cache.sessions
        ):
            self._engine.spawn(self._submit_slowly(definition, done))
        else:
            self._begin(definition, self._session_of(definition), done)

    async def submit_and_wait(self, definition: TaskDefinition) -> TaskEntry:
        """`submit` as a coroutine: returns the recorded task, or raises what it was refused with."""
        future: asyncio.Future[TaskEntry] = asyncio.get_running_loop().create_future()

        def done(entry: TaskEntry | None, error: LlamaDeployError | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            elif entry is not None:
                future.set_result(entry)

        self.submit(definition, done)
        return await future

    def _check_submission(self, definition: TaskDefinition) -> None:
        settings = self._engine.settings
        if self._engine.stopping:
            raise ShuttingDownError("the control plane is stopping", fix="submit again once it has restarted")
        if not self._engine.store.healthy:
            raise StoreUnavailableError(
                f"the store {self._engine.store.location} cannot be written at the moment",
                why=getattr(self._engine.store, "last_error", ""),
                fix="what was accepted before is safe; submit again later",
            )
        if self._engine.cache.unfinished >= settings.tasks_unfinished_max:
            raise QueueFullError(
                f"{settings.tasks_unfinished_max} tasks are unfinished",
                fix="submit again later, or raise tasks_unfinished_max",
                setting="tasks_unfinished_max",
                limit=settings.tasks_unfinished_max,
            )
        try:
            size = len(definition.input.encode())
        except UnicodeEncodeError as error:
            raise InvalidRequestError("the input is not valid text", why=str(error)) from error
        if size > settings.payload_bytes_max:
            raise too_large("input", size, settings.payload_bytes_max)
        if not definition.agent_id and self._engine.default_service:
            definition.agent_id = self._engine.default_service
        for name in ("task_id", "session_id", "agent_id", "idempotency_key"):
            check_id(name, getattr(definition, name), settings.id_length_max)

    def _session_of(self, definition: TaskDefinition) -> SessionState | None:
        return self._engine.cache.sessions[definition.session_id] if definition.session_id else None

    async def _submit_slowly(self, definition: TaskDefinition, done: Submitted) -> None:
        """Where the store has to be asked first: an idempotency key, a session that is not in memory."""
        key = definition.idempotency_key
        try:
            if definition.session_id:
                await self._engine.cache.load_session(definition.session_id)
            while key is not None and key in self._keys_in_flight:
                await self._keys_in_flight[key]
            if key is not None:
                found = await self._engine.store.find_idempotent(key)
                if found is not None:
                    entry = await self._engine.cache.load(found[0])
                    if entry is not None and found[1] == digest(definition):
                        done(entry, None)
                        return
                    raise conflict(f"idempotency key {key!r}", found[0])
                self._keys_in_flight[key] = asyncio.get_running_loop().create_future()
            existing = self._engine.cache.tasks.get(definition.task_id)
            if existing is not None:
                self._release_key(key)
                self._found(existing, definition, done)
                return
        except LlamaDeployError as error:
            done(None, error)
            return

        def finished(entry: TaskEntry | None, error: LlamaDeployError | None) -> None:
            self._release_key(key)
            done(entry, error)

        self._begin(definition, self._session_of(definition), finished)

    def _release_key(self, key: str | None) -> None:
        future = self._keys_in_flight.pop(key, None) if key is not None else None
        if future is not None and not future.done():
            future.set_result(None)

    def _found(self, entry: TaskEntry, definition: TaskDefinition, done: Submitted) -> None:
        """A task of this id exists: it is the answer, if the request is the same."""
        if digest(entry.definition) != digest(definition):
            done(None, conflict(f"task id {definition.task_id!r}", definition.task_id))
        elif entry.recorded:
            done(entry, None)
        else:
            entry.recorded_callbacks.append(lambda error: done(None if error else entry, error))

    def _begin(self, definition: TaskDefinition, session: SessionState | None, done: Submitted) -> None:
        now = self._engine.clock.now()
        row = TaskRow(
            definition.task_id,
            definition.session_id or definition.task_id,
            definition.agent_id or "",
            "submitted",
            0,
            0,
            now,
            now,
        )
        entry = TaskEntry(row, definition, session)
        entry.recorded_callbacks.append(lambda error: done(None if error else entry, error))
        self._engine.cache.tasks[definition.task_id] = entry
        if session is not None:
            session.unfinished += 1

        def decided(decision: Decision | LlamaDeployError) -> None:
            if isinstance(decision, Decision):
                try:
                    self._record_submission(entry, decision)
                except LlamaDeployError as error:
                    self._refuse_submission(entry, error)
            else:
                self._refuse_submission(entry, decision)

        self._engine.decide(entry, None, decided, retries=0)

    def _refuse_submission(self, entry: TaskEntry, error: LlamaDeployError) -> None:
        """Nothing was recorded: forget the entry and say why."""
        self._engine.cache.tasks.pop(entry.row.task_id, None)
        self._engine.cache.leave_session(entry)
        entry.stale = True
        for callback in entry.recorded_callbacks:
            callback(error)

    def _record_submission(self, entry: TaskEntry, decision: Decision) -> None:
        definition = entry.definition
        waiting = False
        for sending in decision.sendings:
            if not self._engine.registry.serves(sending.service):
                if not definition.wait_for_service:
                    raise self._engine.registry.unserved(sending.service)
                waiting = True
        now = self._engine.clock.now()
        entry.definition_json = msgspec.json.encode(definition.model_dump())
        record = Record(state="", definition=msgspec.Raw(entry.definition_json))
        transition = Transition(settled=lambda error: self._submission_settled(entry, error))
        if entry.session is not None and not entry.session.recorded:
            transition.session = SessionRow(entry.session.session_id, now)
        if definition.idempotency_key:
            transition.idempotency = (definition.idempotency_key, digest(definition))
        self._engine.recording.record_decision(
            entry, transition, "submitted", record, decision, now=now, state="submitted" if waiting else None
        )

    def _submission_settled(self, entry: TaskEntry, error: LlamaDeployError | None) -> None:
        if error is not None:
            self._engine.spawn(self._submission_refused(entry, error))
            return
        entry.recorded = True
        self._engine.statistics.submitted += 1
        if entry.session is not None:
            entry.session.recorded = True
        callbacks, entry.recorded_callbacks = entry.recorded_callbacks, []
        for callback in callbacks:
            callback(None)

    async def _submission_refused(self, entry: TaskEntry, error: LlamaDeployError) -> None:
        """The store knows the id or the key already: the task of an earlier run, or a state that had moved on."""
        self._engine.statistics.conflicts += 1
        self._engine.cache.tasks.pop(entry.row.task_id, None)
        self._engine.cache.leave_session(entry)
        entry.stale = True
        callbacks, entry.recorded_callbacks = entry.recorded_callbacks, []
        definition = entry.definition

        def done(found: TaskEntry | None, failure: LlamaDeployError | None) -> None:
            if found is not None:  # whoever waits for the entry that never was, waits for the one that is
                for callback in entry.ended_callbacks:
                    self._engine.when_ended(found, callback)
                entry.private = found.private
            for callback in callbacks:
                callback(failure)

        try:
            if entry.session is not None:
                await self._engine.cache.load_session(entry.session.session_id, again=True)
            found = await self._engine.cache.load(definition.task_id)
        except LlamaDeployError as failure:
            done(None, failure)
            return
        if found is not None:
            self._found(found, definition, done)
        elif definition.idempotency_key and await self._engine.store.find_idempotent(definition.idempotency_key):
            await self._submit_slowly(definition, done)
        else:
            done(None, error)
