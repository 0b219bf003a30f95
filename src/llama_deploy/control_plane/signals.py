"""What reaches a task from outside its services: cancellation, a person's input, parking, and the loss of an instance.

Each is recorded like any other hop before anybody is told, and ends in the engine's `commit`. A task that has ended
is never touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from llama_deploy.control_plane.dead_letters import dead_letters
from llama_deploy.control_plane.deadlines import look_again_at
from llama_deploy.control_plane.decisions import Outcome, encode_result
from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.records import NOTHING, Record
from llama_deploy.control_plane.refusals import check_id, clean, failure, resolve, step_failure, too_large
from llama_deploy.control_plane.retries import attempts_so_far, pauses_when_worn_out, worn_out
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry
from llama_deploy.errors import (
    AttemptsExhaustedError,
    CommitConflictError,
    InvalidRequestError,
    LlamaDeployError,
    NoInputExpectedError,
    TaskCanceledError,
    TaskEndedError,
)
from llama_deploy.messages.frames import Answer, AskInput, Park
from llama_deploy.runtime import failpoint
from llama_deploy.state_stores.base import DeliveryMove, SessionRow, StreamChunk, Transition
from llama_deploy.types import TaskResult
from llama_deploy.types.artifacts import MARK_BYTES

Settled = Callable[[LlamaDeployError | None], None]

REFUSALS_MAX = 5
"""A change that somebody asked for is given up after so many refused commits."""


class Signals:
    """Changes of running tasks that do not come from an answer."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # --- cancel -----------------------------------------------------------------------------------------------------

    async def cancel(self, task_id: str, *, reason: str = "", by: str = "") -> TaskEntry:
        """End a task as canceled: one commit takes its deliveries back, then its instances are told to stop.

        Repeating it on a canceled task does nothing. Raises `TaskNotFoundError`, and `TaskEndedError` for a task
        that ended otherwise.
        """
        reason, by = clean(reason), clean(by)

        def work(entry: TaskEntry, settled: Settled) -> None:
            if entry.final:
                once_recorded(
                    self._engine, entry, settled, None if entry.row.state == "canceled" else ended_error(entry)
                )
                return
            error = TaskCanceledError("the task was canceled" + (f": {reason}" if reason else ""))
            result = failure(task_id, error)
            result.status = "canceled"
            record = Record(state="", reason=reason or None, by=by or None)
            outcome = Outcome("canceled", encode_result(result))
            transition = Transition(settled=settled)
            self._engine.recording.end(entry, transition, "canceled", record, outcome, now=self._engine.clock.now())

        return await self.record_in_turn(task_id, work, even_if_busy=True)

    # --- input ------------------------------------------------------------------------------------------------------

    async def send_input(self, task_id: str, value: Any, *, step_id: str | None = None, by: str = "") -> str:
        """Record a person's input and hand it to the step that asks for it; returns the step's id.

        When it returns, the input is in the history and survives any crash. Raises `NoInputExpectedError` when
        nothing asks, or several steps do and `step_id` does not say which; `TaskEndedError`, `TaskNotFoundError`.
        """
        by = clean(by)
        try:
            encoded = msgspec.json.encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidRequestError("the input has no JSON form", why=str(error)) from error
        if len(encoded) > self._engine.settings.payload_bytes_max:
            raise too_large("input", len(encoded), self._engine.settings.payload_bytes_max)
        if MARK_BYTES in encoded:
            await self._engine.contents.check(encoded.decode())
        found: list[str] = []

        def work(entry: TaskEntry, settled: Settled) -> None:
            try:
                step = self._asking_step(entry, step_id, value)
            except LlamaDeployError as error:
                once_recorded(self._engine, entry, settled, error)
                return
            refusal = self._engine.recording.history_refusal(entry)
            if refusal is not None and not (step.parked and step.resume == "answer"):
                settled(refusal)
                return
            found.append(step.step_id)
            self._take_input(entry, step, encoded, by, settled)

        await self.record_in_turn(task_id, work)
        return found[-1]

    def _asking_step(self, entry: TaskEntry, step_id: str | None, value: Any) -> OpenStep:
        if entry.final:
            raise ended_error(entry)
        if step_id is not None and step_id not in entry.open:
            raise NoInputExpectedError(f"step {step_id!r} is not open", why="it was answered, or never existed")
        candidates = [s for s in entry.open.values() if s.asking and step_id in (None, s.step_id)]
        if not candidates and isinstance(value, dict) and "event" in value:
            # An event for a running workflow needs no question before it.
            candidates = [
                s
                for s in entry.open.values()
                if step_id in (None, s.step_id)
                and (definition := self._engine.registry.definition(s.service)) is not None
                and definition.kind == "workflow"
            ]
        if not candidates:
            raise NoInputExpectedError(
                f"task {entry.row.task_id} is not waiting for input",
                why=f"it is {entry.row.state}",
                fix=f"llamactl tasks get {entry.row.task_id}   shows where it stands",
            )
        if len(candidates) > 1:
            raise NoInputExpectedError(
                "several steps of the task wait for input",
                fix="name one with step_id: " + ", ".join(s.step_id for s in candidates),
                steps=[s.step_id for s in candidates],
            )
        return candidates[0]

    def _take_input(
        self,
        entry: TaskEntry,
        step: OpenStep,
        encoded: bytes,
        by: str,
        settled: Settled,
    ) -> None:
        engine = self._engine
        failpoint("signals.before_input")
        now = engine.clock.now()
        if step.parked and step.resume == "answer":
            text = msgspec.json.decode(encoded)
            result = TaskResult(
                task_id=entry.row.task_id,
                history=[],
                result=text if isinstance(text, str) else encoded.decode(),
                kind="text" if isinstance(text, str) else "json",
                value=None if isinstance(text, str) else text,
                step_id=step.step_id,
                service=step.service,
                attempt=step.attempt,
                tag=step.tag,
            )
            used: list[bool] = []

            def take() -> tuple[StreamChunk, ...]:  # called when the answer is recorded, and not when it is not wanted
                used.append(True)
                return ()

            def done(error: LlamaDeployError | None) -> None:
                settled(error if error is not None or used else ended_error(entry))

            by = by or "person"
            engine.answers.conclude(entry, step, result, done, chunks=take, by=by, finished_at=now)
            return
        step.take_input(encoded)
        step.resumed_at = now
        number = len(step.inputs)
        record = Record(
            state="",
            step_id=step.step_id,
            service=step.service,
            input=msgspec.Raw(encoded),
            number=number,
            by=by or None,
        )
        parked = step.parked
        transition = Transition(settled=settled)
        if parked:
            step.parked = 0
            step.published = False
            step.due_since = now
            visible_at = look_again_at(entry, step, now, engine.settings.overdue_s)
            transition.moved = (DeliveryMove(step.step_id, step.attempt, step.attempt, visible_at),)

        def recorded(error: LlamaDeployError | None) -> None:
            if error is None:
                failpoint("signals.input_recorded")
                if parked:
                    engine.publish(entry, [step])
                else:  # it had given its place away while it waited
                    engine.admission.go_on(entry, step, partial(self._give_input, step, number, encoded))
            settled(error)

        transition.settled = recorded
        engine.recording.commit(entry, transition, "input", record, now=now, state=entry.working_state())

    def _give_input(self, step: OpenStep, number: int, value: bytes) -> None:
        """Hand a recorded input to the instance that works on the step, if there is one."""
        port = self._engine.registry.instances.get(step.claimed_by) if step.claimed_by else None
        if port is not None:
            port.give_input(step.step_id, number, value)

    # --- asking and parking -----------------------------------------------------------------------------------------

    def ask(self, op: AskInput, done: Callable[[], None]) -> None:
        """A running step asks a person and goes on holding its place."""

        def work(entry: TaskEntry, step: OpenStep) -> None:
            refusal = self._unfit_prompt(op.prompt)
            if refusal is not None:
                self._engine.recording.take_back(step, str(refusal))
                again = self._engine.recording.or_again(op.step_id, partial(self.ask, op, done), done)
                self._engine.answers.conclude(entry, step, step_failure(entry, step, refusal), again)
                return
            number = op.number or len(step.inputs) + 1
            if number <= len(step.inputs) or number in step.questions:
                if number in step.questions:
                    self._engine.admission.release(op.step_id)
                done()  # repeated after a reconnect: it is answered, or known
                return
            step.ask(number, op.prompt)
            record = Record(
                state="", step_id=step.step_id, service=step.service, prompt=msgspec.Raw(op.prompt), number=number
            )

            def asked() -> None:
                self._engine.admission.release(op.step_id)  # while a person thinks, others may work
                done()

            again = self._engine.recording.or_again(op.step_id, partial(self.ask, op, done), asked)
            transition = Transition(settled=again)
            self._engine.recording.commit(
                entry, transition, "input_requested", record, now=self._engine.clock.now(), state="input_required"
            )

        self._with_step(op.step_id, op.attempt, work, done)

    def park(self, op: Park, done: Callable[[int], None]) -> None:
        """A step lets go of its instance until a person has answered.

        `done(0)`: it is parked (or not wanted any more). `done(n)`: refused, input `n` is newer than what the step
        had consumed and it goes on with that.
        """

        def work(entry: TaskEntry, step: OpenStep) -> None:
            if len(step.inputs) > op.consumed:
                done(op.consumed + 1)
                return
            engine = self._engine
            now = engine.clock.now()
            answer = events_of(op)
            settled = engine.recording.or_again(op.step_id, partial(self.park, op, done), partial(done, 0))
            refusal = self._unfit(entry, step, op)
            if refusal is not None:
                result = step_failure(entry, step, refusal)
                engine.answers.conclude(entry, step, result, settled, by=step.claimed_by)
                return
            chunks = engine.streams.take_for_answer(entry, step, answer) if op.events else ()
            step.stop_asking()
            step.asking = True
            step.prompt = op.prompt
            step.resume = op.resume
            step.snapshot = op.snapshot
            step.memory = op.memory if op.memory is not None else step.memory
            step.consumed = op.consumed
            step.parked = entry.row.version + 1
            step.claimed_by = None
            step.published, step.started, step.found = False, 0, True
            record = Record(
                state="",
                step_id=step.step_id,
                service=step.service,
                prompt=msgspec.Raw(op.prompt),
                resume=op.resume,
                snapshot=op.snapshot,
                memory=msgspec.Raw(step.memory) if step.memory is not None else NOTHING,
                consumed=op.consumed,
            )
            move = DeliveryMove(step.step_id, step.attempt, step.attempt, now, step.parked)
            transition = Transition(settled=settled, moved=(move,), chunks=chunks)
            engine.memory.park(entry, step, transition)
            engine.recording.commit(entry, transition, "input_requested", record, now=now, state="input_required")

        self._with_step(op.step_id, op.attempt, work, lambda: done(0))

    def _unfit(self, entry: TaskEntry, step: OpenStep, op: Park) -> LlamaDeployError | None:
        """Why a step cannot be parked as it asks to be."""
        if op.resume not in ("answer", "redeliver"):
            return InvalidRequestError(f"a step cannot be parked with resume {op.resume!r}", why="answer or redeliver")
        limit = self._engine.settings.payload_bytes_max
        if op.snapshot is not None and len(op.snapshot) > limit:
            return too_large("snapshot", len(op.snapshot), limit)
        events = self._engine.streams.refusal(entry, step, op.attempt, op.events_from, op.events)
        return events or self._unfit_prompt(op.prompt) or self._engine.memory.refusal(entry, step, op.memory, None)

    def _unfit_prompt(self, prompt: bytes) -> LlamaDeployError | None:
        """Why a prompt cannot be recorded."""
        limit = self._engine.settings.payload_bytes_max
        if len(prompt) > limit:
            return too_large("prompt", len(prompt), limit)
        try:
            msgspec.json.decode(prompt)
        except (ValueError, RecursionError) as error:
            return InvalidRequestError("the prompt is not JSON", why=str(error))
        return None

    # --- loss -------------------------------------------------------------------------------------------------------

    def lost(self, step_ids: Sequence[str], holder: str | None, reason: str, *, on_purpose: bool = False) -> None:
        """What `holder` held becomes the next attempt, at once: it is gone, or has overrun a deadline.

        What is handed back `on_purpose` never ends a task, however many attempts there were: nothing went wrong.
        `None` stands for whoever held a step when an earlier control plane stopped, and has not come back.
        """
        for step_id in step_ids:
            use = partial(self._lose_in_turn, step_id, holder, reason, on_purpose=on_purpose)
            self._engine.cache.with_entry(step_id.rpartition(":")[0], use)

    def _lose_in_turn(
        self, step_id: str, holder: str | None, reason: str, entry: TaskEntry | None, *, on_purpose: bool
    ) -> None:
        if entry is not None:
            self._engine.in_turn(entry, partial(self._lose, entry, step_id, holder, reason, on_purpose=on_purpose))

    def _lose(self, entry: TaskEntry, step_id: str, holder: str | None, reason: str, *, on_purpose: bool) -> None:
        engine = self._engine
        step = entry.open.get(step_id)
        if entry.stale:
            self.lost([step_id], holder, reason, on_purpose=on_purpose)
            return
        if step is None or step.parked or step.claimed_by != holder:
            return
        again = partial(self.lost, [step_id], None, reason, on_purpose=on_purpose)  # loaded again, nobody holds it
        engine.statistics.lost += 1
        port = engine.registry.instances.get(holder) if holder is not None else None
        if port is not None:  # still connected: it is to stop, and has its place back
            port.cancel(step_id, reason)
        step.claimed_by = None
        step.stop_asking()
        now = engine.clock.now()
        record = Record(
            state="",
            step_id=step_id,
            service=step.service,
            attempt=step.attempt,
            started_at=step.claimed_at or None,
            reason=reason,
            by=holder,
            on_purpose=on_purpose,
            heartbeat=msgspec.Raw(step.beat) if step.beat is not None else NOTHING,
        )
        if not on_purpose and worn_out(engine, step):
            error = AttemptsExhaustedError(
                f"step {step_id} was lost in attempt {step.attempt}, the last of it",
                why=f"{reason}; before: {attempts_so_far(step) or 'none'}",
                fix="look at the service's log; attempts_max sets how often it is tried",
            )
            result = failure(entry.row.task_id, error)
            result.step_id, result.service, result.attempt, result.tag = step_id, step.service, step.attempt, step.tag
            if not entry.final and pauses_when_worn_out(engine, entry, step):
                settled = engine.recording.or_again(step_id, again, lambda: None)
                reason = f"attempt {step.attempt} of {step.service} was lost and was the last: {reason}"
                transition = Transition(settled=settled, dead=dead_letters(entry, step, result, now))
                engine.answers.pause_worn_out(entry, step, record, transition, reason)
                return
            settled = engine.recording.or_again(step_id, again, lambda: None)
            engine.answers.conclude(entry, step, result, settled, by=holder)
            return
        step.attempt += 1
        step.published = step.found = False
        step.due_at, step.due_since = 0.0, now
        step.losses += not on_purpose
        visible_at = look_again_at(entry, step, now, engine.settings.overdue_s)
        move = DeliveryMove(step_id, step.attempt - 1, step.attempt, visible_at)

        def next_attempt() -> None:
            failpoint("signals.lost")
            engine.publish(entry, [step])

        settled = engine.recording.or_again(step_id, again, next_attempt)
        transition = Transition(settled=settled, shard_key=entry.row.session_id, moved=(move,))
        if entry.final:  # a notification: the history of an ended task is closed
            engine.recording.hand_over(transition)
        else:
            engine.recording.commit(entry, transition, "lost", record, now=now, state=entry.working_state())

    # --- sessions ---------------------------------------------------------------------------------------------------

    async def create_session(self, session_id: str | None = None) -> str:
        """Record a session, under a new id where none is given; one that exists stays as it is."""
        engine = self._engine
        check_id("session_id", session_id, engine.settings.id_length_max)
        chosen = session_id or engine.leadership.own_id()
        session = await engine.cache.load_session(chosen)
        if session.recorded:
            return chosen
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        row = SessionRow(chosen, engine.clock.now())
        engine.store.record(Transition(settled=partial(resolve, future), session=row))
        await future
        failpoint("signals.session_recorded")
        session.recorded = True
        return chosen

    # --- shared -----------------------------------------------------------------------------------------------------

    def _with_step(
        self, step_id: str, attempt: int, work: Callable[[TaskEntry, OpenStep], None], unwanted: Callable[[], None]
    ) -> None:
        """Call `work` with an open step in this attempt, in the task's turn; `unwanted` when there is none."""
        again = partial(self._with_step, step_id, attempt, work, unwanted)

        def turn(entry: TaskEntry) -> None:
            if entry.stale:
                again()
                return
            step = entry.open.get(step_id) if not entry.final else None
            if step is None or step.attempt != attempt:
                self._engine.when_certain(entry, unwanted, again)
            else:
                work(entry, step)

        def use(entry: TaskEntry | None) -> None:
            if entry is None:
                unwanted()
            else:
                self._engine.in_turn(entry, partial(turn, entry))

        self._engine.cache.with_entry(step_id.rpartition(":")[0], use)

    async def record_in_turn(
        self, task_id: str, work: Callable[[TaskEntry, Settled], None], *, even_if_busy: bool = False
    ) -> TaskEntry:
        """Run `work` in the task's turn (or at once) and wait until what it recorded is committed.

        Where the commit is refused because the task was not what memory said, it is loaded and all starts over.
        """
        for attempt in range(1, REFUSALS_MAX + 1):
            entry = await self._engine.cache.get(task_id)
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            turn = partial(_work_unless_stale, entry, work, partial(resolve, future))
            if even_if_busy:
                turn()
            else:
                self._engine.in_turn(entry, turn)
            try:
                await future
            except CommitConflictError:
                if attempt == REFUSALS_MAX:
                    raise
            else:
                failpoint("signals.recorded")
                return entry
        raise AssertionError("the last attempt returns or raises")


def _work_unless_stale(entry: TaskEntry, work: Callable[[TaskEntry, Settled], None], settled: Settled) -> None:
    if entry.stale:
        settled(CommitConflictError("the task was loaded again"))
    else:
        work(entry, settled)


def once_recorded(engine: Engine, entry: TaskEntry, settled: Settled, found: LlamaDeployError | None) -> None:
    """Tell what was found instead of recording anything, once what it was found from is committed.

    Where that commit is refused, whoever asked begins anew.
    """

    def tell() -> None:
        settled(CommitConflictError("the task was loaded again") if entry.stale else found)

    engine.when_settled(entry, tell)


def ended_error(entry: TaskEntry) -> TaskEndedError:
    """The refusal of a change to a task that has ended."""
    return TaskEndedError(
        f"task {entry.row.task_id} has ended as {entry.row.state}",
        fix="submit a new task",
        task_id=entry.row.task_id,
        state=entry.row.state,
    )


def events_of(op: Park) -> Answer:
    """The stream events of a `Park`, in the form in which an answer carries them."""
    return Answer(op.step_id, op.attempt, b"", 0.0, 0.0, op.events_from, op.events)
