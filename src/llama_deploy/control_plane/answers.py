"""Folding back: an answer, good or bad, becomes a retry, the next steps, or the end of its task.

The delivery is the ticket: an answer whose step is not open any more is counted and dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from llama_deploy.control_plane.dead_letters import dead_letters
from llama_deploy.control_plane.decisions import Decision, Outcome, encode_result
from llama_deploy.control_plane.recording import sent_message
from llama_deploy.control_plane.records import Record
from llama_deploy.control_plane.refusals import failure, too_large
from llama_deploy.control_plane.retries import Next, after_failure, worn_out
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry, paused_because
from llama_deploy.errors import (
    AttemptsExhaustedError,
    CommitConflictError,
    InvalidRequestError,
    LlamaDeployError,
    MemoryMovedError,
)
from llama_deploy.messages.frames import HEARTBEAT_BYTES_MAX, Answer
from llama_deploy.runtime import failpoint
from llama_deploy.state_stores.base import DeliveryMove, StreamChunk, Transition
from llama_deploy.types import RetryPolicy, TaskResult
from llama_deploy.types.artifacts import MARK_BYTES, hashes_in
from llama_deploy.types.retry import asked_for_s

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine

NO_DATA = b"{}"
"""The data of a message that names a step and says nothing new: what the step was sent before stays."""


class Answers:
    """How answers come back into one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def answer(self, instance_id: str, op: Answer, done: Callable[[], None]) -> None:
        """Fold a step's answer back. `done` is called when the instance may forget it: recorded, or not wanted."""
        task_id = op.step_id.rpartition(":")[0]

        def fold(entry: TaskEntry | None) -> None:
            if entry is None:
                self._engine.statistics.answers_late += 1
                done()
            else:
                self._engine.in_turn(entry, lambda: self._fold(entry, instance_id, op, done))

        self._engine.cache.with_entry(task_id, fold)

    def _late(self, entry: TaskEntry, done: Callable[[], None], again: Callable[[], None]) -> None:
        """Not wanted: but what made it so may be on its way to the store, and is what the instance must not forget.

        Where the store refuses that, the answer may be wanted after all: `again` brings it once more.
        """
        self._engine.statistics.answers_late += 1
        self._engine.when_certain(entry, done, again)

    def _fold(self, entry: TaskEntry, instance_id: str, op: Answer, done: Callable[[], None]) -> None:
        if entry.stale:  # loaded again meanwhile: the answer starts over
            self.answer(instance_id, op, done)
            return
        step = entry.open.get(op.step_id)
        again = partial(self.answer, instance_id, op, done)
        if step is None:
            self._late(entry, done, again)
            return
        if op.attempt == step.attempt and entry.is_anothers(step, instance_id):
            self._late(entry, done, again)  # what that one has streamed is its stream
            return
        self._engine.statistics.answers += 1
        service = self._engine.registry.services.get(step.service)
        if service is not None:
            service.answered += 1
        excess = self._engine.streams.refusal(entry, step, op.attempt, op.events_from, op.events)
        result = self._read(entry, step, op, excess)
        if op.attempt > step.attempt or (result.status == "failed" and op.attempt < step.attempt):
            self._late(entry, done, again)  # a failure of an attempt that was given up; or nothing that was ever sent
            return
        if op.heartbeat is not None and len(op.heartbeat) <= HEARTBEAT_BYTES_MAX:
            step.beat = op.heartbeat
        self.conclude(
            entry,
            step,
            result,
            self._engine.recording.or_again(op.step_id, partial(self.answer, instance_id, op, done), done),
            chunks=partial(self._engine.streams.take_for_answer, entry, step, op) if excess is None else tuple,
            by=instance_id,
            started_at=op.started_at,
            finished_at=op.finished_at,
            memory=op.memory,
        )

    def _read(self, entry: TaskEntry, step: OpenStep, op: Answer, refusal: LlamaDeployError | None) -> TaskResult:
        """The result that an instance sent, with what only this side knows; a failed one where it cannot be taken."""
        about: dict[str, Any] = {
            "task_id": entry.row.task_id,
            "step_id": step.step_id,
            "service": step.service,
            "attempt": op.attempt,
            "tag": step.tag,
        }
        error: LlamaDeployError | None = refusal
        if len(op.result) > self._engine.settings.payload_bytes_max:
            error = too_large("result", len(op.result), self._engine.settings.payload_bytes_max)
        if error is None and op.memory is not None:
            error = self._engine.memory.refusal(entry, step, op.memory, op.memory_version)
        if error is None and MARK_BYTES in op.result:
            error = self._engine.contents.refusal(entry, hashes_in(op.result))
        if error is None:
            try:
                return TaskResult.model_validate({"history": [], **msgspec.json.decode(op.result), **about})
            except (ValueError, TypeError) as problem:
                error = InvalidRequestError("the answer is not a result", why=str(problem))
        again = isinstance(error, MemoryMovedError)
        return failure(entry.row.task_id, error, retryable=again).model_copy(update=about)

    def recall(self, entry: TaskEntry, step: OpenStep) -> bool:
        """Fold in what a step is known to have answered in the task that this one was made from; true: it will be."""

        def turn() -> None:
            if entry.stale or step.step_id not in entry.open or step.known is None:
                return
            result = TaskResult.model_validate_json(step.known)
            settled = self._engine.recording.or_again(step.step_id, lambda: None, lambda: None)
            self.conclude(entry, step, result, settled)  # refused: the step is published again with its task

        asyncio.get_running_loop().call_soon(self._engine.in_turn, entry, turn)
        return True

    def conclude(
        self,
        entry: TaskEntry,
        step: OpenStep,
        result: TaskResult,
        settled: Callable[[LlamaDeployError | None], None],
        *,
        chunks: Callable[[], tuple[StreamChunk, ...]] = tuple,
        by: str | None = None,
        started_at: float | None = None,
        finished_at: float | None = None,
        memory: bytes | None = None,
    ) -> None:
        """A step has a result, good or bad: retry it, or fold it into the policy and record what that decides.

        `settled` is called after the commit, or with the error where that was refused and all starts over. `chunks`
        takes the stream events that commit with it; it is called when it is recorded, and not before.
        """
        failed = result.status == "failed" and not step.notification
        following: Next = after_failure(self._engine, entry, step, result) if failed else None
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
        if step.beat is not None and result.status == "failed":
            record.heartbeat = msgspec.Raw(step.beat)
        transition = Transition(settled=lambda error: self._answer_settled(error, settled))
        step.stop_asking()
        if step.notification:
            self._settle_notification(entry, step, result, transition)
            return
        if following is not None:
            transition.chunks = chunks()
            if following == "pause":
                said = f"{result.error.type}: {result.error.message}" if result.error else result.result
                reason = f"attempt {step.attempt} of {step.service} failed and was the last: {said}"
                transition.dead = dead_letters(entry, step, result, self._engine.clock.now())
                self.pause_worn_out(entry, step, record, transition, reason)
            else:
                self._retry(entry, step, record, transition, following)
            return
        if result.status == "failed":
            transition.dead = dead_letters(entry, step, result, self._engine.clock.now())
        if result.status == "failed" and not entry.policy.handles_failures:
            transition.chunks = chunks()
            self._fail(entry, step, result, record, transition)
            return

        def decided(decision: Decision | LlamaDeployError) -> None:
            if entry.stale:
                settled(self._moved_on(entry))
                return
            if entry.final or step.step_id not in entry.open:  # canceled while the policy was thinking
                self._late(entry, lambda: settled(None), lambda: settled(self._moved_on(entry)))
                return
            transition.chunks = chunks()
            if isinstance(decision, Decision):
                self._record_fold(entry, step, transition, record, decision, result=result, memory=memory)
            else:
                self._end_by_error(entry, transition, "answered", record, decision, answered=(step.step_id,))

        self._engine.decide(entry, (result, encoded), decided)

    def _moved_on(self, entry: TaskEntry) -> LlamaDeployError:
        """The refusal of what was decided about a task that is not the one in memory any more."""
        leadership, session_id = self._engine.leadership, entry.row.session_id
        if entry.moved and not leadership.keeps(session_id):
            return leadership.not_led(session_id)
        return CommitConflictError("the task was loaded again while its policy was thinking")

    def _record_fold(
        self,
        entry: TaskEntry,
        step: OpenStep,
        transition: Transition,
        record: Record,
        decision: Decision,
        *,
        result: TaskResult,
        memory: bytes | None,
    ) -> None:
        """Record an answer with its decision, and what the service remembers from now on.

        A message that names the step, for the same service, is the step's next attempt; for another service it is a
        further step.
        """
        now = self._engine.clock.now()
        named = (step.step_id, step.service)
        retry = next((s for s in decision.sendings if (s.step_id, s.service) == named), None)
        if retry is not None and decision.outcome is None:
            decision.sendings.remove(retry)
            transition.dead = ()
            if worn_out(self._engine, step):
                transition.dead = dead_letters(entry, step, result, now)
                self._end_by_attempts(entry, step, transition, record, result)
                return
            if retry.data not in (step.body, NO_DATA) or retry.options not in (None, step.options):
                excess = self._engine.recording.excess_of(retry)
                if excess is not None:
                    self._end_by_error(entry, transition, "answered", record, excess, answered=(step.step_id,))
                    return
                step.body = retry.data if retry.data != NO_DATA else step.body
                step.options = retry.options or step.options
                record.messages.append(sent_message(step, retry.delay_s))
            step.failures += 1
            self._engine.statistics.retries += 1
            delay_s = self._engine.jitter(retry.delay_s, least_s=min(retry.delay_s, asked_for_s(result.error)))
            transition.moved = (self._reschedule(step, now, delay_s),)
            record.due_at = step.due_at
            self._engine.recording.record_decision(entry, transition, "retrying", record, decision, now=now)
            return
        transition.answered = (step.step_id,)
        del entry.open[step.step_id]
        remembers = (step, memory) if result.status == "completed" else None
        self._engine.recording.record_decision(
            entry, transition, "answered", record, decision, now=now, remembers=remembers
        )

    def _end_by_attempts(
        self, entry: TaskEntry, step: OpenStep, transition: Transition, record: Record, result: TaskResult
    ) -> None:
        """The policy asks for one attempt too many: the last failure is the outcome, where there was one."""
        error = AttemptsExhaustedError(
            f"step {step.step_id} was tried {step.attempt} times",
            why=f"attempts_max is {self._engine.settings.attempts_max}",
        )
        if result.status != "failed":
            self._end_by_error(entry, transition, "answered", record, error, answered=(step.step_id,))
            return
        transition.answered = (step.step_id,)
        del entry.open[step.step_id]
        record.reason = str(error)
        outcome = Outcome("failed", bytes(record.result))
        self._engine.recording.end(entry, transition, "answered", record, outcome, now=self._engine.clock.now())

    def _retry(self, entry: TaskEntry, step: OpenStep, record: Record, transition: Transition, delay_s: float) -> None:
        """The next attempt, without asking the policy: the same ticket, due after a delay."""
        now = self._engine.clock.now()
        step.failures += 1
        self._engine.statistics.retries += 1
        transition.moved = (self._reschedule(step, now, delay_s),)
        record.due_at = step.due_at
        self._engine.recording.commit(entry, transition, "retrying", record, now=now, state=entry.working_state())

    def pause_worn_out(
        self, entry: TaskEntry, step: OpenStep, record: Record, transition: Transition, reason: str
    ) -> None:
        """A step whose attempts are used up: its next attempt, counted anew, and a pause until somebody resumes."""
        now = self._engine.clock.now()
        transition.moved = (self._reschedule(step, now, self._engine.settings.overdue_s),)
        step.due_at, step.due_since = 0.0, now
        step.failures = step.losses = 0
        record.reason = reason
        entry.paused_because = paused_because(record)
        self._engine.recording.commit(
            entry, transition, "paused", record, now=now, state=entry.working_state(), paused=True
        )
        self._engine.hold_back(entry)

    def _fail(
        self, entry: TaskEntry, step: OpenStep, result: TaskResult, record: Record, transition: Transition
    ) -> None:
        """Where the policy never sees failures: the last one is the outcome."""
        transition.answered = (step.step_id,)
        del entry.open[step.step_id]
        outcome = Outcome(result.status, bytes(record.result))
        self._engine.recording.end(entry, transition, "answered", record, outcome, now=self._engine.clock.now())

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
        self._engine.recording.end(entry, transition, kind, record, outcome, now=self._engine.clock.now())

    def _settle_notification(
        self, entry: TaskEntry, step: OpenStep, result: TaskResult, transition: Transition
    ) -> None:
        """Somebody was told that the task has ended; nothing but the delivery changes.

        A failure is tried again as the service's own settings say, else up to `attempts_max`; what is given up
        becomes a dead letter.
        """
        now = self._engine.clock.now()
        if result.status == "failed":
            definition = self._engine.registry.definition(step.service)
            retry = definition.retry if definition is not None else None
            if retry is None:
                retry = RetryPolicy(max_retries=self._engine.settings.attempts_max - 1)
            delay_s = retry.delay_for(result.error, step.attempt)
            step.trouble = result.error.message if result.error is not None else result.result
            if delay_s is not None:
                pause_s = self._engine.jitter(delay_s, retry.jitter, least_s=asked_for_s(result.error))
                transition.moved = (self._reschedule(step, now, pause_s),)
                self._engine.recording.hand_over(transition)
                return
            transition.dead = dead_letters(entry, step, result, now)
        transition.answered = (step.step_id,)
        del entry.open[step.step_id]
        self._engine.recording.hand_over(transition)
        self._engine.cache.notified(entry)

    def _reschedule(self, step: OpenStep, now: float, delay_s: float) -> DeliveryMove:
        """Make the next attempt of a step due after a delay; the same ticket, one attempt higher."""
        step.attempt += 1
        step.published = step.found = False
        step.claimed_by = None
        step.parked = 0
        step.prompt = step.resume = step.snapshot = step.memory = None
        step.due_at = step.due_since = now + delay_s
        step.overdue_s = 0.0
        return DeliveryMove(step.step_id, step.attempt - 1, step.attempt, step.due_at)

    @staticmethod
    def _answer_settled(error: LlamaDeployError | None, settled: Callable[[LlamaDeployError | None], None]) -> None:
        if error is None:
            failpoint("engine.after_record")
        settled(error)
