"""Submitting: every check, the first decision, and what repeating a request finds.

What is refused here changes nothing; what is accepted is recorded with its first decision in one commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from llama_deploy.control_plane import state_changes
from llama_deploy.control_plane.deadlines import DEADLINE_INDEX, begins_at, deadline_id, ends_at
from llama_deploy.control_plane.decisions import Decision
from llama_deploy.control_plane.forks import Fork
from llama_deploy.control_plane.records import Record
from llama_deploy.control_plane.refusals import check_id, conflict, digest, resolve, too_large
from llama_deploy.control_plane.registry import is_reserved
from llama_deploy.control_plane.session_state import SessionState
from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.errors import (
    InvalidRequestError,
    LlamaDeployError,
    QueueFullError,
    ShardLostError,
    ShuttingDownError,
    StoreUnavailableError,
)
from llama_deploy.runtime import failpoint
from llama_deploy.state_stores.base import DeliveryRow, SessionRow, TaskRow, Transition
from llama_deploy.types import TaskDefinition, TaskOptions
from llama_deploy.types.artifacts import MARK
from llama_deploy.types.reserved import DEADLINE_SERVICE

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine

_encode = msgspec.json.Encoder().encode

BEGIN_S_MAX = 10 * 366 * 86_400.0
"""How far from now a task may begin, in seconds."""
REFUSALS_MAX = 5
"""A submission whose commit was refused this often, though nobody else has recorded it, is given up."""

Submitted = Callable[[TaskEntry | None, LlamaDeployError | None], None]
"""Called once a submission is committed, with the task, or refused, with the error."""


class Submissions:
    """How tasks come into one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._keys_in_flight: dict[str, asyncio.Future[None]] = {}

    def submit(self, definition: TaskDefinition, done: Submitted, *, fork: Fork | None = None) -> None:
        """Accept a task: decide its first messages and record it. `done` is called after the commit.

        Repeating it with the same task id or idempotency key finds the first task; a different request under the
        same id or key is refused with `TaskConflictError`. What is refused changes nothing. With a `fork` the task
        goes on from there, and no policy is asked first.
        """
        try:
            self._check_submission(definition)
        except LlamaDeployError as error:
            done(None, error)
            return
        failpoint("submissions.received")
        existing = self._engine.cache.tasks.get(definition.task_id)
        if existing is not None:
            self._found(existing, definition, done)
        elif (
            definition.idempotency_key
            or MARK in definition.input
            or (definition.session_id and definition.session_id not in self._engine.cache.sessions)
        ):
            self._engine.spawn(self._submit_slowly(definition, done, fork))
        else:
            session = self._engine.cache.sessions[definition.session_id] if definition.session_id else None
            self._begin(definition, session, done, fork=fork)

    async def submit_and_wait(self, definition: TaskDefinition, *, fork: Fork | None = None) -> TaskEntry:
        """`submit` as a coroutine: returns the recorded task, or raises what it was refused with."""
        future: asyncio.Future[TaskEntry] = asyncio.get_running_loop().create_future()

        def done(entry: TaskEntry | None, error: LlamaDeployError | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            elif entry is not None:
                future.set_result(entry)

        self.submit(definition, done, fork=fork)
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
        if definition.session_id or not definition.idempotency_key:
            self._check_leads(definition)  # under a key there may be a task of another session
        _check_text("input", [definition.input], settings.payload_bytes_max)
        if definition.metadata:
            texts = [text for pair in definition.metadata.items() for text in pair]
            _check_text("metadata", texts, settings.payload_bytes_max)
        if not definition.agent_id and self._engine.default_service:
            definition.agent_id = self._engine.default_service
        for name in ("task_id", "session_id", "agent_id", "idempotency_key"):
            check_id(name, getattr(definition, name), settings.id_length_max)
        if definition.session_id == definition.task_id:
            raise InvalidRequestError(
                f"a task cannot be named as its session ({definition.task_id[:80]!r})",
                why="a row with one name for both is a task without a session, which erasing would not find",
                fix="name the task otherwise, or leave one of the two names out",
            )
        if definition.agent_id and is_reserved(definition.agent_id):
            raise InvalidRequestError(
                f"{definition.agent_id!r} takes no tasks",
                why="names that begin with two underscores are the control plane's own",
                fix="name another service",
            )
        if definition.options is not None:
            self._engine.policies.choose(definition)
            _check_begin(definition.options, self._engine.clock.now())
            if definition.options.webhook is not None:
                self._engine.webhooks.check(definition.options.webhook)

    def _check_leads(self, definition: TaskDefinition) -> None:
        """Raise `ShardLostError` for a task that another control plane is to make."""
        session_id = definition.session_id or definition.task_id
        if not self._engine.leadership.leads(session_id):
            raise self._engine.leadership.not_led(session_id)

    async def _submit_slowly(self, definition: TaskDefinition, done: Submitted, fork: Fork | None) -> None:
        """Where the store has to be asked first: an idempotency key, a session that is not in memory.

        One submission per key is on its way at a time: others wait for it and then find its task.
        """
        key = definition.idempotency_key
        session = None
        finished = done
        try:
            if MARK in definition.input:
                await self._engine.contents.check(definition.input)
            if key:
                while (earlier := self._keys_in_flight.get(key)) is not None:
                    await earlier
                finished = self._hold_key(key, done)
                found = await self._find_by_key(key, definition)
                if found is not None:
                    finished(found, None)
                    return
                self._check_leads(definition)
            if definition.session_id:  # last, so that the session cannot leave memory before the task holds it
                session = await self._engine.cache.load_session(definition.session_id)
        except LlamaDeployError as error:
            finished(None, error)
            return
        existing = self._engine.cache.tasks.get(definition.task_id)
        if existing is not None:
            self._found(existing, definition, finished)
        else:
            self._begin(definition, session, finished, fork=fork)

    def _hold_key(self, key: str, done: Submitted) -> Submitted:
        """Mark a key as being used; the returned callback lets go of it and passes on to `done`."""
        used = self._keys_in_flight[key] = asyncio.get_running_loop().create_future()

        def finished(entry: TaskEntry | None, error: LlamaDeployError | None) -> None:
            self._keys_in_flight.pop(key, None)
            resolve(used)
            done(entry, error)

        return finished

    async def _find_by_key(self, key: str, definition: TaskDefinition) -> TaskEntry | None:
        """The task that was recorded under a key. Raises `TaskConflictError` where its request was another one."""
        found = await self._engine.store.find_idempotent(key)
        if found is None:
            return None
        entry = await self._engine.cache.load(found[0])
        if entry is None or found[1] != digest(definition):
            raise conflict(f"idempotency key {key!r}", found[0])
        return entry

    def _found(self, entry: TaskEntry, definition: TaskDefinition, done: Submitted) -> None:
        """A task of this id exists: it is the answer, if the request is the same."""
        if digest(entry.definition) != digest(definition):
            done(None, conflict(f"task id {definition.task_id!r}", definition.task_id))
        elif entry.recorded:
            done(entry, None)
        else:
            entry.recorded_callbacks.append(done)

    def _begin(
        self,
        definition: TaskDefinition,
        session: SessionState | None,
        done: Submitted,
        *,
        refusals: int = 0,
        fork: Fork | None = None,
    ) -> None:
        policies = self._engine.policies
        policy = policies.choose(definition) if fork is None else policies.find(fork.orchestrator)
        if not _is_child(definition):
            try:
                self._engine.backpressure.check(session)
            except QueueFullError as error:
                done(None, error)
                return
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
            origin=origin_of(definition),
        )
        entry = TaskEntry(row, definition, session, policy)
        if self._engine.releases.current:
            entry.release = self._engine.releases.of_new(definition)
        entry.recorded_callbacks.append(done)
        self._engine.cache.tasks[definition.task_id] = entry
        if session is not None:
            session.unfinished += 1

        def decided(decision: Decision | LlamaDeployError) -> None:
            if entry.stale:
                return
            if isinstance(decision, Decision):
                try:
                    self._record_submission(entry, decision, refusals)
                except LlamaDeployError as error:
                    self._refuse_submission(entry, error)
            else:
                self._refuse_submission(entry, decision)

        if fork is None:
            self._engine.decide(entry, None, decided, retries=0)
            return
        try:
            self._record_fork(entry, fork, refusals)
        except LlamaDeployError as error:
            self._refuse_submission(entry, error)

    def _refuse_submission(self, entry: TaskEntry, error: LlamaDeployError) -> None:
        """Nothing was recorded: forget the entry and say why."""
        self._engine.cache.forget(entry)
        for callback in entry.recorded_callbacks:
            callback(None, error)

    def _record_submission(self, entry: TaskEntry, decision: Decision, refusals: int) -> None:
        waiting = self._waits_for_service(entry, [sending.service for sending in decision.sendings])
        if not _is_child(entry.definition):
            for sending in decision.sendings:
                self._engine.backpressure.check_queue(sending.service)
        now = self._engine.clock.now()
        options = entry.definition.options
        record, transition = self._first_entry(entry, refusals, None, now)
        if options is not None:
            waiting = waiting or entry.begins_at > now
        self._engine.recording.record_decision(
            entry, transition, "submitted", record, decision, now=now, state="submitted" if waiting else None
        )

    def _record_fork(self, entry: TaskEntry, fork: Fork, refusals: int) -> None:
        """Record a task that goes on from where another one stood: its first entry says all that it needs of it."""
        wanted = [message.service for message in fork.messages if message.carried is None or not message.carried.answer]
        waiting = self._waits_for_service(entry, wanted)
        now = self._engine.clock.now()
        record, transition = self._first_entry(entry, refusals, fork, now)
        record.messages, record.change = fork.messages, fork.change
        if fork.change is not None:
            state_changes.read(fork.change, entry.private, b"")
        self._engine.recording.take_over(entry, transition, record, now)
        asks = any(step.asking for step in entry.open.values())
        state = "input_required" if asks else "submitted" if waiting else "working"
        self._engine.recording.commit(entry, transition, "forked", record, now=now, state=state, steps=fork.steps)

    def _waits_for_service(self, entry: TaskEntry, services: list[str]) -> bool:
        """Whether some of these are served by nobody yet. Raises `ServiceUnknownError` unless the task waits for it."""
        missing = [service for service in services if not self._engine.releases.serves(service, entry.release)]
        if missing and not entry.definition.wait_for_service:
            raise self._engine.registry.unserved(missing[0])
        return bool(missing)

    def _first_entry(self, entry: TaskEntry, refusals: int, fork: Fork | None, now: float) -> tuple[Record, Transition]:
        """What the first entry of every history says, and the transition that it goes with."""
        definition = entry.definition
        entry.definition_json = _encode(definition.dumped())
        mark = self._engine.policies.mark(entry.policy, definition) if fork is None else fork.orchestrator
        entry.decided_by = mark
        definition_json = msgspec.Raw(entry.definition_json)
        record = Record(state="", definition=definition_json, orchestrator=mark, release=entry.release)
        transition = Transition(settled=lambda error: self._submission_settled(entry, error, refusals, fork))
        if entry.session is not None and not entry.session.recorded:
            transition.session = SessionRow(entry.session.session_id, now)
        if definition.idempotency_key:
            transition.idempotency = (definition.idempotency_key, digest(definition))
        if definition.options is not None:
            entry.begins_at, entry.deadline_at = begins_at(definition.options, now), ends_at(definition.options, now)
        if entry.deadline_at:
            task_id = definition.task_id
            row = DeliveryRow(deadline_id(task_id), task_id, DEADLINE_SERVICE, 1, entry.deadline_at, 1, DEADLINE_INDEX)
            transition.sent = [row]
        return record, transition

    def _submission_settled(
        self, entry: TaskEntry, error: LlamaDeployError | None, refusals: int, fork: Fork | None
    ) -> None:
        if isinstance(error, ShardLostError):
            self._refuse_submission(entry, self._engine.leadership.not_led(entry.row.session_id))
            return
        if error is not None:
            self._engine.spawn(self._submission_refused(entry, error, refusals + 1, fork))
            return
        failpoint("submissions.recorded")
        entry.recorded = True
        self._engine.statistics.submitted += 1
        if entry.session is not None:
            entry.session.recorded = True
        callbacks, entry.recorded_callbacks = entry.recorded_callbacks, []
        for callback in callbacks:
            callback(entry, None)
        failpoint("submissions.acknowledged")

    async def _submission_refused(
        self, entry: TaskEntry, error: LlamaDeployError, refusals: int, fork: Fork | None
    ) -> None:
        """The store knows the id or the key already, or the session had moved on: find the task, or decide again."""
        self._engine.statistics.conflicts += 1
        self._engine.cache.forget(entry)
        callbacks, entry.recorded_callbacks = entry.recorded_callbacks, []
        definition = entry.definition
        key = definition.idempotency_key

        def done(found: TaskEntry | None, failure: LlamaDeployError | None) -> None:
            if found is not None:  # whoever waits for the entry that never was, waits for the one that is
                for callback in entry.ended_callbacks:
                    self._engine.when_ended(found, callback)
            for recorded in callbacks:
                recorded(found, failure)

        try:
            found = await self._engine.cache.load(definition.task_id)
            if found is None and key:
                found = await self._find_by_key(key, definition)
            session = entry.session
            if found is None and session is not None:
                session = await self._engine.cache.load_session(session.session_id)
        except LlamaDeployError as failure:
            done(None, failure)
            return
        if found is not None and found.row.task_id != definition.task_id:
            done(found, None)  # the key's task, of the same request
        elif found is not None:
            self._found(found, definition, done)
        elif refusals < REFUSALS_MAX:
            self._begin(definition, session, done, refusals=refusals, fork=fork)
        else:
            done(None, error)


def _check_begin(options: TaskOptions, now: float) -> None:
    """Raise for a task that is to begin in a time that nobody will wait for."""
    if options.run_at is not None and options.run_at > now + BEGIN_S_MAX:
        raise InvalidRequestError(
            f"options.run_at is {options.run_at:.0f}, more than {BEGIN_S_MAX / 86_400:.0f} days from now",
            why="it counts seconds since the epoch",
            fix="give seconds, not milliseconds, or a date and time such as 2030-01-31T08:00:00Z",
        )


def _check_text(name: str, texts: list[str], bytes_max: int) -> None:
    """Raise for text that cannot be encoded, and for more of it than is allowed."""
    try:
        size = sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"the {name} is not valid text", why=str(error)) from error
    if size > bytes_max:
        raise too_large(name, size, bytes_max)


def _is_child(definition: TaskDefinition) -> bool:
    """Whether a running step waits for this task, so that refusing it would keep work from being finished."""
    options = definition.options
    return options is not None and options.origin is not None and options.origin.kind == "child"


def origin_of(definition: TaskDefinition) -> str:
    """What a task came from, as its row has it."""
    options = definition.options
    return options.origin.text if options is not None and options.origin is not None else ""
