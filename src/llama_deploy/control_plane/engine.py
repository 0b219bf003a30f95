"""The engine: decide, record, publish, fold back, end.

It holds the unfinished tasks in memory, ahead of the store by what is being committed. Every change of a task is one
transition, recorded in one commit; nobody acts on a decision before that commit. Decisions of one task are made one at
a time and in the order in which their triggers arrived. What arrives from outside (cancel, input, a lost instance) is
in `signals.py`, what falls due in `sweeper.py`, streams in `streams.py`; they all end in `commit` here.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec
from llama_deploy.runtime.logs import get_logger

from llama_deploy.control_plane.decisions import (
    Decision,
    Outcome,
    decide,
    drive,
    encode_result,
    outcome_from_state,
)
from llama_deploy.control_plane.records import NOTHING, Record, SentMessage, StateChange, encode_record
from llama_deploy.control_plane.registry import Registry, encode_definition
from llama_deploy.control_plane.session_state import Delta, SessionState
from llama_deploy.control_plane.settings import EngineSettings
from llama_deploy.control_plane.streams import Streams
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry, rebuild
from llama_deploy.errors import (
    AttemptsExhaustedError,
    InvalidRequestError,
    LimitExceededError,
    LlamaDeployError,
    NoProgressError,
    OrchestratorError,
    QueueFullError,
    ServiceUnknownError,
    SessionNotFoundError,
    ShuttingDownError,
    StoreUnavailableError,
    TaskConflictError,
    TaskNotFoundError,
)
from llama_deploy.message_queues import Envelope, MessageQueue
from llama_deploy.messages.frames import Answer, Deliver, encode_op
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.runtime import Clock, SystemClock, failpoint
from llama_deploy.state_stores import StateStore
from llama_deploy.state_stores.base import (
    DeliveryMove,
    DeliveryRow,
    HistoryRow,
    SessionRow,
    SharedRead,
    SharedWrite,
    StreamChunk,
    TaskRow,
    Transition,
)
from llama_deploy.types import RetryPolicy, TaskDefinition, TaskError, TaskResult

log = get_logger("llama_deploy.engine")

Submitted = Callable[[TaskEntry | None, LlamaDeployError | None], None]
"""Called once a submission is committed, with the task, or refused, with the error."""


@dataclass
class EngineStatistics:
    """What an engine has done since it started."""

    submitted: int = 0
    ended: int = 0
    answers: int = 0
    answers_late: int = 0
    """Answers whose ticket was gone: another attempt answered first, or the task had ended."""
    retries: int = 0
    lost: int = 0
    """Attempts taken from instances that died, went silent or overran their deadline."""
    published: int = 0
    conflicts: int = 0
    decisions_repeated: int = 0


class Engine:
    """One control plane's engine over one store and one queue."""

    def __init__(
        self,
        *,
        store: StateStore,
        queue: MessageQueue,
        orchestrator: BaseOrchestrator,
        settings: EngineSettings | None = None,
        clock: Clock | None = None,
        default_service: str | None = None,
        seed: int | None = None,
    ) -> None:
        self.store = store
        self.queue = queue
        self.policy = orchestrator
        self.settings = settings or EngineSettings()
        self.clock = clock or SystemClock()
        self.default_service = default_service
        self.registry = Registry(self.clock, self.settings)
        self.statistics = EngineStatistics()
        self.tasks: dict[str, TaskEntry] = {}
        self.streams = Streams(self)
        self.arm_sweeper: Callable[[float], None] = lambda when: None
        """Set by the sweeper: something falls due at that time."""
        self.stopping = False
        self._ended: OrderedDict[str, TaskEntry] = OrderedDict()
        self._loading: dict[str, list[Callable[[TaskEntry | None], None]]] = {}
        self._sessions: dict[str, SessionState] = {}
        self._idle_sessions: OrderedDict[str, SessionState] = OrderedDict()
        self._keys_in_flight: dict[str, asyncio.Future[None]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._random = random.Random(seed)  # noqa: S311 - jitter, not a secret

    # --- submitting -------------------------------------------------------------------------------------------------

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
        existing = self.tasks.get(definition.task_id)
        if existing is not None:
            self._found(existing, definition, done)
        elif definition.idempotency_key or (definition.session_id and definition.session_id not in self._sessions):
            self.spawn(self._submit_slowly(definition, done))
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
        settings = self.settings
        if self.stopping:
            raise ShuttingDownError("the control plane is stopping", fix="submit again once it has restarted")
        if not self.store.healthy:
            raise StoreUnavailableError(
                f"the store {self.store.location} cannot be written at the moment",
                why=getattr(self.store, "last_error", ""),
                fix="what was accepted before is safe; submit again later",
            )
        if len(self.tasks) - len(self._ended) >= settings.tasks_unfinished_max:
            raise QueueFullError(
                f"{settings.tasks_unfinished_max} tasks are unfinished",
                fix="submit again later, or raise tasks_unfinished_max",
                setting="tasks_unfinished_max",
                limit=settings.tasks_unfinished_max,
            )
        if len(definition.input) > settings.payload_bytes_max:
            raise too_large("input", len(definition.input), settings.payload_bytes_max)
        if not definition.agent_id and self.default_service:
            definition.agent_id = self.default_service
        for name in ("task_id", "session_id", "agent_id", "idempotency_key"):
            check_id(name, getattr(definition, name), settings.id_length_max)

    def _session_of(self, definition: TaskDefinition) -> SessionState | None:
        return self._sessions[definition.session_id] if definition.session_id else None

    async def _submit_slowly(self, definition: TaskDefinition, done: Submitted) -> None:
        """Where the store has to be asked first: an idempotency key, a session that is not in memory."""
        key = definition.idempotency_key
        try:
            if definition.session_id:
                await self.load_session(definition.session_id)
            while key is not None and key in self._keys_in_flight:
                await self._keys_in_flight[key]
            if key is not None:
                found = await self.store.find_idempotent(key)
                if found is not None:
                    entry = await self.load(found[0])
                    if entry is not None and found[1] == digest(definition):
                        done(entry, None)
                        return
                    raise conflict(f"idempotency key {key!r}", found[0])
                self._keys_in_flight[key] = asyncio.get_running_loop().create_future()
            existing = self.tasks.get(definition.task_id)
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
        now = self.clock.now()
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
        self.tasks[definition.task_id] = entry
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

        self.decide(entry, None, decided, retries=0)

    def _refuse_submission(self, entry: TaskEntry, error: LlamaDeployError) -> None:
        """Nothing was recorded: forget the entry and say why."""
        self.tasks.pop(entry.row.task_id, None)
        self._leave_session(entry)
        entry.stale = True
        for callback in entry.recorded_callbacks:
            callback(error)

    def _record_submission(self, entry: TaskEntry, decision: Decision) -> None:
        definition = entry.definition
        waiting = False
        for sending in decision.sendings:
            if not self.registry.serves(sending.service):
                if not definition.wait_for_service:
                    raise self.registry.unserved(sending.service)
                waiting = True
        now = self.clock.now()
        entry.definition_json = msgspec.json.encode(definition.model_dump())
        record = Record(state="", definition=msgspec.Raw(entry.definition_json))
        transition = Transition(settled=lambda error: self._submission_settled(entry, error))
        if entry.session is not None and not entry.session.recorded:
            transition.session = SessionRow(entry.session.session_id, now)
        if definition.idempotency_key:
            transition.idempotency = (definition.idempotency_key, digest(definition))
        self.record_decision(
            entry, transition, "submitted", record, decision, now=now, state="submitted" if waiting else None
        )

    def _submission_settled(self, entry: TaskEntry, error: LlamaDeployError | None) -> None:
        if error is not None:
            self.spawn(self._submission_refused(entry, error))
            return
        entry.recorded = True
        self.statistics.submitted += 1
        if entry.session is not None:
            entry.session.recorded = True
        callbacks, entry.recorded_callbacks = entry.recorded_callbacks, []
        for callback in callbacks:
            callback(None)

    async def _submission_refused(self, entry: TaskEntry, error: LlamaDeployError) -> None:
        """The store knows the id or the key already: the task of an earlier run, or a state that had moved on."""
        self.statistics.conflicts += 1
        self.tasks.pop(entry.row.task_id, None)
        self._leave_session(entry)
        entry.stale = True
        callbacks, entry.recorded_callbacks = entry.recorded_callbacks, []
        definition = entry.definition

        def done(found: TaskEntry | None, failure: LlamaDeployError | None) -> None:
            if found is not None:  # whoever waits for the entry that never was, waits for the one that is
                for callback in entry.ended_callbacks:
                    self.when_ended(found, callback)
                entry.private = found.private
            for callback in callbacks:
                callback(failure)

        try:
            if entry.session is not None:
                await self.load_session(entry.session.session_id, again=True)
            found = await self.load(definition.task_id)
        except LlamaDeployError as failure:
            done(None, failure)
            return
        if found is not None:
            self._found(found, definition, done)
        elif definition.idempotency_key and await self.store.find_idempotent(definition.idempotency_key):
            await self._submit_slowly(definition, done)
        else:
            done(None, error)

    # --- deciding ---------------------------------------------------------------------------------------------------

    def decide(
        self,
        entry: TaskEntry,
        answer: tuple[TaskResult, bytes] | None,
        decided: Callable[[Decision | LlamaDeployError], None],
        *,
        retries: int | None = None,
    ) -> None:
        """Ask the policy; `decided` is called at once where it never waits, else when it has answered."""
        if self.policy.synchronous and (entry.session is None or not entry.session.lock.locked()):
            try:
                decision = drive(decide(self.policy, entry.definition, entry.private, entry.session, answer))
            except LlamaDeployError as error:
                decided(error)
                return
            decided(decision)
            return
        entry.busy = True
        attempts = self.settings.decision_retries_max if retries is None else retries
        self.spawn(self._decide_slowly(entry, answer, decided, attempts))

    async def _decide_slowly(
        self,
        entry: TaskEntry,
        answer: tuple[TaskResult, bytes] | None,
        decided: Callable[[Decision | LlamaDeployError], None],
        retries: int,
    ) -> None:
        """A policy that takes time: decided outside of any commit, again when what it was based on has moved."""
        session = entry.session
        decision: Decision | LlamaDeployError = OrchestratorError("no decision")
        conflicts = failures = 0
        locked = False
        while True:
            if session is not None and not locked and (conflicts >= 2 or session.lock.locked()):
                await session.lock.acquire()
                locked = True
            try:
                async with asyncio.timeout(self.settings.decision_timeout_s):
                    decision = await decide(self.policy, entry.definition, entry.private, session, answer)
            except TimeoutError:
                decision = OrchestratorError(
                    f"the orchestrator {type(self.policy).__name__} did not decide in time",
                    why=f"decision_timeout_s is {self.settings.decision_timeout_s:g}",
                )
            except LlamaDeployError as error:
                decision = error
            if isinstance(decision, Decision):
                if session is None or self._holds(session, decision.delta):
                    break
                conflicts += 1
                self.statistics.decisions_repeated += 1
                continue
            failures += 1
            if failures > retries:
                break
            await self.sleep(self.settings.decision_retry_s * 2 ** (failures - 1))
        entry.busy = False
        try:
            if not entry.stale:
                decided(decision)
        finally:
            if locked and session is not None:
                session.lock.release()
        self.drain(entry)

    def _holds(self, session: SessionState, delta: Delta) -> bool:
        """Whether every shared key that was read or is written still has the version that the policy saw."""
        return all(session.version(key) == version for key, version in delta.reads.items())

    def drain(self, entry: TaskEntry) -> None:
        """Work on what arrived for a task while it was being decided on."""
        while entry.mailbox and not entry.busy:
            entry.mailbox.popleft()()

    def in_turn(self, entry: TaskEntry, work: Callable[[], None]) -> None:
        """Run `work` now, or after the decision that is being made."""
        if entry.busy or entry.mailbox:
            entry.mailbox.append(work)
        else:
            work()

    # --- folding back -----------------------------------------------------------------------------------------------

    def answer(self, instance_id: str, op: Answer, done: Callable[[], None]) -> None:
        """Fold a step's answer back. `done` is called when the instance may forget it: recorded, or not wanted."""
        task_id = op.step_id.rpartition(":")[0]

        def fold(entry: TaskEntry | None) -> None:
            if entry is None:
                self._late(done)
            else:
                self.in_turn(entry, lambda: self._fold(entry, instance_id, op, done))

        self.with_entry(task_id, fold)

    def _late(self, done: Callable[[], None]) -> None:
        self.statistics.answers_late += 1
        done()

    def _fold(self, entry: TaskEntry, instance_id: str, op: Answer, done: Callable[[], None]) -> None:
        if entry.stale:  # loaded again meanwhile: the answer starts over
            self.answer(instance_id, op, done)
            return
        step = entry.open.get(op.step_id)
        if step is None:
            self._late(done)
            return
        self.statistics.answers += 1
        try:
            if len(op.result) > self.settings.payload_bytes_max:
                raise too_large("result", len(op.result), self.settings.payload_bytes_max)
            result = TaskResult.model_validate({"history": [], **msgspec.json.decode(op.result), "task_id": ""})
        except (LlamaDeployError, ValueError, TypeError) as error:
            result = failure(entry.row.task_id, InvalidRequestError("the answer is not a result", why=str(error)))
        if result.status == "failed" and op.attempt < step.attempt:
            self._late(done)  # a failure of an attempt that was given up already
            return
        excess = self.streams.exceeds(entry, len(op.events))
        if excess is not None:
            result = failure(entry.row.task_id, excess)
        result.task_id = entry.row.task_id
        result.step_id, result.service, result.attempt, result.tag = step.step_id, step.service, op.attempt, step.tag
        chunks = self.streams.take_for_answer(entry, step, op) if excess is None else ()
        self.conclude(
            entry, step, result, done, chunks=chunks, by=instance_id, started_at=op.started_at, finished_at=op.finished_at
        )

    def conclude(
        self,
        entry: TaskEntry,
        step: OpenStep,
        result: TaskResult,
        done: Callable[[], None],
        *,
        chunks: tuple[StreamChunk, ...] = (),
        by: str | None = None,
        started_at: float | None = None,
        finished_at: float | None = None,
    ) -> None:
        """A step has a result, good or bad: retry it, or fold it into the policy and record what that decides."""
        now = self.clock.now()
        encoded = encode_result(result)
        record = Record(
            state="",
            step_id=step.step_id,
            service=step.service,
            attempt=result.attempt,
            result=msgspec.Raw(encoded),
            by=by,
            started_at=started_at,
            finished_at=finished_at,
        )
        transition = Transition(settled=lambda error: self._answer_settled(entry, error, done), chunks=chunks)
        step.asking = False
        if step.notification:
            self._settle_notification(entry, step, result, transition)
            return
        if result.status == "failed" and not self.policy.handles_failures:
            self._conclude_failure(entry, step, result, record, transition, now)
            return

        def decided(decision: Decision | LlamaDeployError) -> None:
            if entry.final or step.step_id not in entry.open:  # canceled while the policy was thinking
                self._late(done)
            elif isinstance(decision, Decision):
                self._record_fold(entry, step, transition, record, decision)
            else:
                self._end_by_error(entry, transition, "answered", record, decision, answered=(step.step_id,))

        self.decide(entry, (result, encoded), decided)

    def _record_fold(
        self, entry: TaskEntry, step: OpenStep, transition: Transition, record: Record, decision: Decision
    ) -> None:
        """Record an answer with its decision; a message that names the step is the step's next attempt."""
        now = self.clock.now()
        retry = next((s for s in decision.sendings if s.step_id == step.step_id), None)
        if retry is not None and decision.outcome is None:
            decision.sendings.remove(retry)
            if step.attempt >= self.settings.attempts_max:
                error = AttemptsExhaustedError(
                    f"step {step.step_id} failed {step.attempt} times", why=f"attempts_max is {self.settings.attempts_max}"
                )
                self._end_by_error(entry, transition, "answered", record, error, answered=(step.step_id,))
                return
            transition.moved = (self._reschedule(step, now, self._jitter(retry.delay_s)),)
            record.due_at = step.due_at
            self.record_decision(entry, transition, "retrying", record, decision, now=now)
            return
        transition.answered = (step.step_id,)
        del entry.open[step.step_id]
        self.record_decision(entry, transition, "answered", record, decision, now=now)

    def _conclude_failure(
        self, entry: TaskEntry, step: OpenStep, result: TaskResult, record: Record, transition: Transition, now: float
    ) -> None:
        """Where the policy never sees failures: the service's retry settings, then the end of the task."""
        definition = self.registry.definition(step.service)
        policy = definition.retry if definition is not None else RetryPolicy()
        delay_s = policy.delay_for(result.error, step.failures + 1)
        if delay_s is not None and step.attempt < self.settings.attempts_max:
            step.failures += 1
            transition.moved = (self._reschedule(step, now, self._jitter(delay_s, policy.jitter)),)
            record.due_at = step.due_at
            self.statistics.retries += 1
            self.commit(entry, transition, "retrying", record, now=now, state=entry.working_state())
            return
        transition.answered = (step.step_id,)
        del entry.open[step.step_id]
        outcome = Outcome(result.status, bytes(record.result))
        self.end(entry, transition, "answered", record, outcome, now=now)

    def _end_by_error(
        self,
        entry: TaskEntry,
        transition: Transition,
        kind: str,
        record: Record,
        error: LlamaDeployError,
        *,
        answered: tuple[str, ...],
    ) -> None:
        """The policy cannot decide: the task fails with its error; what was answered is kept in the history."""
        for step_id in answered:
            entry.open.pop(step_id, None)
        transition.answered = answered
        record.reason = str(error)
        outcome = Outcome("failed", encode_result(failure(entry.row.task_id, error)))
        self.end(entry, transition, kind, record, outcome, now=self.clock.now())

    def _settle_notification(
        self, entry: TaskEntry, step: OpenStep, result: TaskResult, transition: Transition
    ) -> None:
        """Somebody was told that the task has ended; nothing but the delivery changes. A failure is tried again."""
        if result.status == "failed" and step.attempt < self.settings.attempts_max:
            transition.moved = (self._reschedule(step, self.clock.now(), self._jitter(RetryPolicy().next_delay(step.attempt))),)
        else:
            transition.answered = (step.step_id,)
            del entry.open[step.step_id]
        self.store.record(transition)

    def _reschedule(self, step: OpenStep, now: float, delay_s: float) -> DeliveryMove:
        """Make the next attempt of a step due after a delay; the same ticket, one attempt higher."""
        step.attempt += 1
        step.published = False
        step.claimed_by = None
        step.due_at = now + delay_s
        step.overdue_s = 0.0
        self.arm_sweeper(step.due_at)
        return DeliveryMove(step.step_id, step.attempt - 1, step.attempt, step.due_at)

    def _jitter(self, delay_s: float, share: float = 0.2) -> float:
        return delay_s * (1 + share * (2 * self._random.random() - 1)) if delay_s > 0 else 0.0

    def _answer_settled(self, entry: TaskEntry, error: LlamaDeployError | None, done: Callable[[], None]) -> None:
        if error is None:
            failpoint("engine.after_record")
            done()
        # A refused answer is not acknowledged: its instance keeps it and sends it again to the reloaded task.

    # --- recording --------------------------------------------------------------------------------------------------

    def record_decision(
        self,
        entry: TaskEntry,
        transition: Transition,
        kind: str,
        record: Record,
        decision: Decision,
        *,
        now: float,
        state: str | None = None,
    ) -> None:
        """Put a decision into a transition and hand it to the store."""
        outcome = decision.outcome
        sendings = decision.sendings
        if outcome is not None:
            sendings = [decision.notify] if decision.notify and self.registry.serves(decision.notify.service) else []
        elif entry.row.steps + len(sendings) > self.settings.steps_per_task_max:
            outcome = Outcome("failed", encode_result(failure(entry.row.task_id, self._too_many_steps())))
            sendings = []
        self._record_delta(entry, transition, record, decision.delta)
        if outcome is None and not sendings and not entry.open:
            outcome = outcome_from_state(entry.definition, entry.private) or self._no_progress(entry)
        if outcome is not None:
            self.end(entry, transition, kind, record, outcome, now=now, sendings=sendings)
            return
        self._send(entry, transition, record, sendings, now)
        self.commit(
            entry, transition, kind, record, now=now, state=state or entry.working_state(), steps=len(sendings)
        )

    def _too_many_steps(self) -> LlamaDeployError:
        limit = self.settings.steps_per_task_max
        return LimitExceededError(
            f"the orchestrator asks for more than {limit} steps", setting="steps_per_task_max", limit=limit
        )

    def _no_progress(self, entry: TaskEntry) -> Outcome:
        error = NoProgressError(
            "the orchestrator sent no message, no step is open and there is no result",
            fix=f"return a message, or put the result under result_{entry.row.task_id}",
        )
        return Outcome("failed", encode_result(failure(entry.row.task_id, error)))

    def _record_delta(self, entry: TaskEntry, transition: Transition, record: Record, delta: Delta) -> None:
        """Take a decision's changes of state over into memory, the history and the session's rows."""
        if delta.own or delta.own_present or delta.keys or delta.shared:
            change = StateChange(own_present=delta.own_present)
            result = bytes(record.result)
            for key, value in delta.own.items():
                if value is None:
                    change.own_removed.append(key)
                else:
                    change.own[key] = msgspec.Raw(value)
            for key, value in delta.keys.items():
                if value is None:
                    change.keys_removed.append(key)
                elif value == result:
                    change.keys_as_result.append(key)
                else:
                    change.keys[key] = msgspec.Raw(value)
            change.shared = list(delta.shared)
            record.change = change
        entry.private.apply(delta)
        session = entry.session
        if session is None or (not delta.shared and not delta.reads):
            return
        transition.shared_reads = [
            SharedRead(session.session_id, key, version)
            for key, version in delta.reads.items()
            if key not in delta.shared and (cell := session.cells.get(key)) and cell.version > cell.committed
        ]
        writes = []
        for key, value in delta.shared.items():
            version = session.version(key)
            writes.append(SharedWrite(session.session_id, key, version, value))
            session.put(key, value, version + 1, committed=False)
        transition.shared = writes

    def _send(
        self, entry: TaskEntry, transition: Transition, record: Record, sendings: list[Any], now: float
    ) -> None:
        """Turn messages into open steps, history and delivery rows."""
        if not sendings:
            return
        task_id = entry.row.task_id
        seq = entry.row.version + 1
        number = entry.row.steps
        rows: list[DeliveryRow] = []
        for index, sending in enumerate(sendings):
            if len(sending.data) > self.settings.payload_bytes_max:
                raise too_large("message", len(sending.data), self.settings.payload_bytes_max)
            step = OpenStep(
                step_id=f"{task_id}:{number + index + 1}",
                service=sending.service,
                action=sending.action,
                tag=sending.tag,
                body=sending.data,
                seq=seq,
                index=index,
            )
            if sending.delay_s > 0:
                step.due_at = now + self._jitter(sending.delay_s)
                self.arm_sweeper(step.due_at)
            else:
                self.arm_sweeper(now + self.settings.overdue_s)
            entry.open[step.step_id] = step
            record.messages.append(
                SentMessage(
                    step_id=step.step_id,
                    service=step.service,
                    action=step.action,
                    data=msgspec.Raw(step.body),
                    tag=step.tag,
                    delay_s=sending.delay_s,
                )
            )
            visible_at = step.due_at or now + self.settings.overdue_s
            rows.append(DeliveryRow(step.step_id, task_id, step.service, 1, visible_at, seq, index))
        transition.sent = rows

    def end(
        self,
        entry: TaskEntry,
        transition: Transition,
        kind: str,
        record: Record,
        outcome: Outcome,
        *,
        now: float,
        sendings: list[Any] | None = None,
    ) -> None:
        """End the task: its one outcome, and every step that is still open is taken back."""
        abandoned = list(entry.open.values())
        if abandoned:
            transition.answered = [*transition.answered, *(step.step_id for step in abandoned)]
            entry.open.clear()
        self._send(entry, transition, record, sendings or [], now)
        if bytes(record.result) == outcome.result:
            record.outcome_is_result = True
        else:
            record.outcome = msgspec.Raw(outcome.result)
        recorded = transition.settled

        def settled(error: LlamaDeployError | None) -> None:
            if error is None:
                self._task_ended(entry, outcome.result, abandoned)
            recorded(error)

        transition.settled = settled
        self.commit(
            entry, transition, kind, record, now=now, state=outcome.state, steps=len(sendings or []), ended=True
        )

    def _task_ended(self, entry: TaskEntry, outcome: bytes, abandoned: list[OpenStep]) -> None:
        entry.outcome = outcome
        self.statistics.ended += 1
        self._leave_session(entry)
        for step in abandoned:
            self.take_back(step, "the task has ended")
        self._keep_ended(entry)
        callbacks, entry.ended_callbacks = entry.ended_callbacks, []
        for callback in callbacks:
            callback(entry)

    def take_back(self, step: OpenStep, reason: str) -> None:
        """Make sure that nobody works on a step any more."""
        port = self.registry.instances.get(step.claimed_by) if step.claimed_by else None
        if port is not None:
            port.cancel(step.step_id, reason)
        elif step.published:
            self.queue.withdraw([step.step_id])

    def commit(
        self,
        entry: TaskEntry,
        transition: Transition,
        kind: str,
        record: Record,
        *,
        now: float,
        state: str,
        steps: int = 0,
        ended: bool = False,
    ) -> None:
        """Hand one transition of a task to the store, with its history entry and its new row.

        After the commit: what is to be sent is published, whoever follows the task is woken.
        """
        record.state = state
        transition.expected_version = entry.row.version
        service = entry.row.service or (record.messages[0].service if record.messages else "")
        row = entry.bump(now, state=state, steps=steps, service=service, ended=ended)
        transition.task = row
        transition.entry = HistoryRow(row.task_id, row.version, now, kind, encode_record(record))
        recorded = transition.settled
        seq = row.version
        shared = transition.shared
        to_publish = [step for sent in transition.sent if not (step := entry.open[sent.step_id]).due_at]

        def settled(error: LlamaDeployError | None) -> None:
            if error is not None:
                if seq > 1:
                    self.refused(entry)
                recorded(error)
                return
            entry.settled_seq = seq
            for write in shared:
                self._shared_committed(write)
            recorded(None)
            if to_publish:
                self.publish(entry, to_publish)
            if entry.watchers:
                entry.notify()

        transition.settled = settled
        self.store.record(transition)

    def _shared_committed(self, write: SharedWrite) -> None:
        session = self._sessions.get(write.session_id)
        cell = session.cells.get(write.key) if session else None
        if cell is not None:
            cell.committed = max(cell.committed, write.expected_version + 1)

    def refused(self, entry: TaskEntry) -> None:
        """A guard failed: memory is not what the store says. Load the task again; its instances repeat their answers."""
        if entry.stale:
            return
        entry.stale = True
        self.statistics.conflicts += 1
        log.warning("commit refused, task is loaded again", task_id=entry.row.task_id)
        self.tasks.pop(entry.row.task_id, None)
        self._leave_session(entry)

        async def reload() -> None:
            if entry.session is not None:
                await self.load_session(entry.session.session_id, again=True)
            fresh = await self.load(entry.row.task_id)
            if fresh is None:
                return
            for callback in entry.ended_callbacks:
                self.when_ended(fresh, callback)
            fresh.watchers |= entry.watchers
            for work in entry.mailbox:
                self.in_turn(fresh, work)
            self.publish(fresh, [s for s in fresh.open.values() if not s.parked and not s.due_at])
            fresh.notify()

        self.spawn(reload())

    # --- publishing -------------------------------------------------------------------------------------------------

    def publish(self, entry: TaskEntry, steps: list[OpenStep]) -> None:
        """Hand the current attempt of these steps to the queue."""
        failpoint("engine.before_publish")
        envelopes = []
        for step in steps:
            if step.step_id not in entry.open:
                continue
            step.published = True
            step.claimed_by = None
            definition = self.registry.definition(step.service)
            operation = Deliver(
                step.step_id,
                step.attempt,
                step.service,
                step.action,
                entry.row.task_id,
                entry.row.session_id,
                step.body,
                definition.run_timeout_s if definition is not None else 600.0,
                step.inputs,
                step.snapshot,
            )
            envelopes.append(Envelope(step.step_id, step.attempt, step.service, encode_op(operation)))
        self.statistics.published += len(envelopes)
        for refused in self.queue.publish(envelopes):
            entry.open[refused.step_id].published = False

    def claim(self, instance_id: str, step_id: str, attempt: int) -> bool:
        """An instance is about to get a step; false when the delivery is an old one and must be dropped."""
        entry = self.tasks.get(step_id.rpartition(":")[0])
        step = entry.open.get(step_id) if entry is not None else None
        if step is None or step.attempt != attempt or step.parked:
            return False
        step.claimed_by = instance_id
        step.claimed_at = self.clock.now()
        return True

    # --- looking up -------------------------------------------------------------------------------------------------

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
        self.spawn(self._load(task_id))

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
            row = await self.store.load_task(task_id)
            if row is not None:
                session = await self.load_session(row.session_id) if row.session_id != row.task_id else None
                history = await self.store.load_history(task_id)
                deliveries = await self.store.load_deliveries(task_id)
                entry = rebuild(row, history, deliveries, session)
                await self.streams.load(entry)
                self.tasks[task_id] = entry
                if entry.final:
                    self._keep_ended(entry)
                elif session is not None:
                    session.unfinished += 1
        finally:
            for use in self._loading.pop(task_id, []):
                use(entry)

    async def load_session(self, session_id: str, *, again: bool = False, must_exist: bool = False) -> SessionState:
        """The session's shared state, from memory or the store; an unknown session is an empty one.

        With `must_exist` an unknown session raises `SessionNotFoundError`.
        """
        session = self._sessions.get(session_id)
        if session is None or again:
            row = await self.store.load_session(session_id)
            values = await self.store.load_shared(session_id)
            session = self._sessions.get(session_id)
            if session is None:
                session = self._sessions[session_id] = SessionState(session_id)
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
        self._sessions.pop(session_id, None)
        self._idle_sessions.pop(session_id, None)

    def _leave_session(self, entry: TaskEntry) -> None:
        session = entry.session
        if session is None:
            return
        session.unfinished -= 1
        if session.unfinished == 0:
            self._idle_sessions[session.session_id] = session
            self._evict_sessions()

    def _evict_sessions(self) -> None:
        while len(self._idle_sessions) > self.settings.sessions_cached_max:
            session_id, session = self._idle_sessions.popitem(last=False)
            if session.unfinished == 0 and all(c.version == c.committed for c in session.cells.values()):
                self._sessions.pop(session_id, None)

    def _keep_ended(self, entry: TaskEntry) -> None:
        """Keep an ended task in memory for a while, with everything that only an unfinished one needs let go."""
        entry.private.keys.clear()
        entry.private.own = None
        self._ended[entry.row.task_id] = entry
        while len(self._ended) > self.settings.ended_tasks_cached_max:
            task_id, old = self._ended.popitem(last=False)
            if self.tasks.get(task_id) is old:
                del self.tasks[task_id]

    @property
    def unfinished(self) -> int:
        """Unfinished tasks in memory."""
        return len(self.tasks) - len(self._ended)

    def when_ended(self, entry: TaskEntry, callback: Callable[[TaskEntry], None]) -> None:
        """Call back once the end of the task is committed, at once if it is."""
        if entry.ended:
            callback(entry)
        else:
            entry.ended_callbacks.append(callback)

    async def wait_ended(self, entry: TaskEntry, timeout_s: float | None) -> bool:
        """Wait until the task has ended; false when the time is over first. The task goes on either way."""
        if entry.ended:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def ended(_: TaskEntry) -> None:
            if not future.done():
                future.set_result(None)

        entry.ended_callbacks.append(ended)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            return False
        finally:
            if ended in entry.ended_callbacks:
                entry.ended_callbacks.remove(ended)
        return True

    # --- running ----------------------------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the flow; what it raises is logged, and the engine goes on."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background work failed", exc_info=task.exception())

    async def sleep(self, seconds: float) -> None:
        """Let time pass on the engine's clock."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.clock.call_at(self.clock.now() + seconds, lambda: future.done() or future.set_result(None))
        try:
            await future
        finally:
            timer.cancel()

    def learn(self, definitions: list[Any]) -> None:
        """Make new or changed service definitions durable."""

        async def store() -> None:
            for definition in definitions:
                await self.store.put_service(definition.service_name, encode_definition(definition))

        if definitions:
            self.spawn(store())

    async def stop(self) -> None:
        """Take nothing new and end what runs beside the flow. The store is closed by whoever opened it."""
        self.stopping = True
        for task in tuple(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)


def failure(task_id: str, error: LlamaDeployError, *, retryable: bool = False) -> TaskResult:
    """A failed result that carries one of our own errors."""
    return TaskResult(
        task_id=task_id,
        history=[],
        result=str(error),
        status="failed",
        error=TaskError(code=error.code, type=type(error).__name__, message=str(error), retryable=retryable),
    )


def digest(definition: TaskDefinition) -> str:
    """What makes two submissions the same request: input, service and session."""
    import hashlib

    parts = msgspec.json.encode([definition.input, definition.agent_id, definition.session_id])
    return hashlib.blake2b(parts, digest_size=16).hexdigest()


def conflict(what: str, task_id: str) -> TaskConflictError:
    """The refusal of a different request under a known id or key."""
    return TaskConflictError(
        f"{what} was used for a different request",
        why=f"it belongs to task {task_id}, whose input, service or session differ",
        fix="use a new id or key for a new request",
        task_id=task_id,
    )


def too_large(what: str, size: int, limit: int) -> LimitExceededError:
    """The refusal of something bigger than `payload_bytes_max`."""
    return LimitExceededError(
        f"the {what} has {size} bytes, the limit is {limit}",
        fix="pass a reference to large data, or raise payload_bytes_max",
        setting="payload_bytes_max",
        limit=limit,
    )


def check_id(name: str, value: Any, length_max: int) -> None:
    """Raise `InvalidRequestError` for an id that is empty, too long, or has control characters."""
    if value is None:
        return
    if not value or len(value) > length_max or not value.isprintable():
        raise InvalidRequestError(
            f"{name} {value[:40]!r} cannot be used",
            why=f"an id has 1 to {length_max} printable characters",
        )


__all__ = ["Engine", "EngineStatistics", "ServiceUnknownError", "failure"]
