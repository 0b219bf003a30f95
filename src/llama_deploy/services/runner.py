"""The runner: receives deliveries, runs them, streams, answers; the same in every process.

It owns one instance's running steps, their deadlines and cancellation, and keeps every answer and every stream event
until the control plane has recorded it. It knows no transport: a link gives it operations and takes its own.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from llama_deploy.errors import (
    ArgumentsError,
    ResultNotSerialisableError,
    RunTimeoutError,
    ServiceRaisedError,
    StepCanceledError,
)
from llama_deploy.messages.frames import (
    FRAME_BYTES_TARGET,
    PROTOCOL_VERSION,
    Acknowledged,
    Answer,
    AskInput,
    CancelStep,
    ContentReply,
    ControlOp,
    Credits,
    Deliver,
    DeliverInput,
    Disowned,
    Drain,
    Events,
    EventsCommitted,
    Goodbye,
    HeldStep,
    Hello,
    Park,
    ParkRefused,
    Refused,
    Remembered,
    Returned,
    Welcome,
    pieces,
)
from llama_deploy.runtime import Clock, SystemClock, failpoint
from llama_deploy.runtime.logs import get_logger
from llama_deploy.services.base import Parked, Service, StepContext, encode_value, enter_step
from llama_deploy.services.encoding import check_size
from llama_deploy.services.failures import error_from_exception
from llama_deploy.services.steps import RunningStep
from llama_deploy.services.transfers import Transfers
from llama_deploy.types import TaskResult, generate_id
from llama_deploy.types.artifacts import artifact_source

log = get_logger("llama_deploy.runner")

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class Runner:
    """One instance: serves a set of services over one link."""

    def __init__(
        self, services: Sequence[Service], *, instance_id: str | None = None, clock: Clock | None = None
    ) -> None:
        self.services = {service.definition.service_name: service for service in services}
        self.instance_id = instance_id or generate_id()
        self._clock = clock or SystemClock()
        self.steps: dict[str, RunningStep] = {}
        self.send: Callable[[list[Any]], None] = lambda _: None
        """Set by the link: sends operations, in order, without waiting."""
        self.ready = asyncio.Event()
        """Set while the control plane has this instance registered."""
        self.refused: Callable[[dict[str, Any]], None] = lambda _: None
        """Called when the control plane does not want this instance."""
        self.draining = False
        self.drain_requested: Callable[[float | None], None] = lambda _: None
        """Called when the control plane wants this instance to leave, with the seconds that it may take for that."""
        self.transfers = Transfers(self.ready, self._post)
        self._outgoing: list[Any] = []
        self._flush_scheduled = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._handlers: dict[type, Callable[[Any], None]] = {
            EventsCommitted: self._events_committed,
            Welcome: self._welcomed,
            Disowned: self._disowned,
            CancelStep: lambda operation: self._stop(operation.step_id, operation.reason),
            DeliverInput: self._input,
            ParkRefused: self._park_refused,
            Remembered: self._reply,
            Returned: self._reply,
            Drain: lambda operation: self.drain_requested(operation.timeout_s),
            Refused: lambda operation: self.refused(_decode(operation.problem)),
        }

    async def start(self) -> None:
        """Start the services; call it on the loop that their code shall run on."""
        self._loop = asyncio.get_running_loop()
        self.transfers.start()
        for service in self.services.values():
            await service.start()

    # --- the link's side --------------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """What to say first on a connection, and again after every reconnect."""
        definitions = [service.definition.model_dump(mode="json") for service in self.services.values()]
        return Hello(
            PROTOCOL_VERSION, self.instance_id, _encode(definitions), self.held(), os.getpid(), socket.gethostname()
        )

    def held(self) -> list[HeldStep]:
        """Every step that runs here or whose answer is not acknowledged; may be called from another thread."""
        return [HeldStep(step_id, step.attempt) for step_id, step in list(self.steps.items())]

    def disconnected(self) -> None:
        """The connection is gone. Work goes on; answers wait for the next one."""
        self.ready.clear()
        self.transfers.disconnected()

    def receive(self, operations: Sequence[ControlOp]) -> None:
        """What the control plane says, in order."""
        for operation in operations:
            if isinstance(operation, Deliver):
                self._deliver(operation)
            elif isinstance(operation, Acknowledged):
                for step_id in operation.step_ids:
                    self._acknowledged(step_id)
            elif isinstance(operation, ContentReply):
                self.transfers.receive(operation)
            else:
                self._handlers[type(operation)](operation)

    def _disowned(self, operation: Disowned | Welcome) -> None:
        for step_id in operation.disowned if isinstance(operation, Welcome) else operation.step_ids:
            self._stop(step_id, "the step went to another instance")

    def _reply(self, operation: Remembered | Returned) -> None:
        """What user code asked for is answered."""
        step = self.steps.get(operation.step_id)
        if step is None or step.attempt != operation.attempt:
            return
        if isinstance(operation, Remembered):
            step.take_remembered(operation)
        else:
            failpoint("runner.returned")
            step.take_returned(operation)

    def _post(self, operation: Any) -> None:
        self._outgoing.append(operation)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._outgoing and self.ready.is_set():
            operations, self._outgoing = self._outgoing, []
            self.send(operations)

    def _welcomed(self, welcome: Welcome) -> None:
        """Registered (again): drop what is not ours any more, repeat what was not acknowledged."""
        self._disowned(welcome)
        failpoint("runner.welcomed")
        self._outgoing.clear()
        self.ready.set()
        for step in self.steps.values():
            if step.answer is not None:
                self._post_answer(step, step.answer)
            else:
                self._post_events(step, step.committed, step.events)
            step.unsent = 0
            if step.answer is None:
                for operation in [*step.asked.values(), *step.unanswered()]:
                    self._post(operation)
        if self.draining:
            self._stop_taking()

    # --- running ----------------------------------------------------------------------------------------------------

    def _deliver(self, delivery: Deliver) -> None:
        known = self.steps.get(delivery.step_id)
        if known is not None:
            if known.attempt >= delivery.attempt:
                if known.attempt == delivery.attempt and known.answer is not None:  # its answer went astray
                    self._post_answer(known, known.answer)
                return
            self._stop(delivery.step_id, "a newer attempt has come")
        failpoint("runner.delivered")
        service = self.services.get(delivery.service)
        if service is not None and not delivery.run_timeout_s:
            delivery = msgspec.structs.replace(delivery, run_timeout_s=service.definition.run_timeout_s)
        step = RunningStep(delivery, loop=self._loop, post=self._post)
        self.steps[delivery.step_id] = step
        self._idle.clear()
        step.task = self._loop.create_task(self._run(step))

    async def _run(self, step: RunningStep) -> None:
        """One attempt from beginning to answer. Whatever user code does ends here, and is answered."""
        delivery = step.delivery
        started_at = self._clock.now()
        result: TaskResult | Parked
        try:
            service = self._service(delivery.service)
            context = step.context = self._context(step)
            enter_step(context)
            artifact_source.set(self.transfers)
            deadline = step.deadline = asyncio.timeout(delivery.run_timeout_s or None)
            try:
                async with deadline:
                    result = await service.run(context)
            except TimeoutError as error:
                if not deadline.expired():
                    raise
                context.canceled = True
                raise RunTimeoutError(
                    f"{delivery.service} ran longer than {delivery.run_timeout_s:g} s",
                    why=f"run_timeout_s is {delivery.run_timeout_s:g}",
                    fix="make it faster, or raise run_timeout_s of the service or of the task",
                ) from error
        except asyncio.CancelledError as error:
            if step.context is not None and step.context.canceled:
                self._forget(delivery.step_id, step)
                raise
            result = _failed(step, error)
        except BaseException as error:  # noqa: BLE001 - the edge of user code; recorded with the task
            result = _failed(step, error)
        failpoint("runner.before_answer")
        self._answer(step, result, started_at)
        failpoint("runner.after_answer")

    def _service(self, name: str) -> Service:
        service = self.services.get(name)
        if service is None:
            raise ServiceRaisedError(f"this instance does not serve {name!r}")
        return service

    def _context(self, step: RunningStep) -> StepContext:
        delivery = step.delivery
        inputs: asyncio.Queue[Any] = asyncio.Queue()
        for value in delivery.inputs:
            inputs.put_nowait(_decode(value))
        data = _decode(delivery.message)
        return StepContext(
            step_id=delivery.step_id,
            attempt=delivery.attempt,
            task_id=delivery.task_id,
            session_id=delivery.session_id,
            service=delivery.service,
            action=delivery.action,
            data=data if isinstance(data, dict) else {},
            emit=partial(self._emit, step),
            ask=partial(self._ask, step),
            inputs=inputs,
            inputs_given=len(delivery.inputs),
            snapshot=delivery.snapshot,
            run_timeout_s=delivery.run_timeout_s,
            desk=step,
            contents=self.transfers,
        )

    def _answer(self, step: RunningStep, result: TaskResult | Parked, started_at: float) -> None:
        delivery = step.delivery
        if self.steps.get(delivery.step_id) is not step:
            return
        try:
            step.answer = _encoded(step, result, started_at, self._clock.now())
        except (TypeError, ValueError, ArithmeticError, RecursionError, ResultNotSerialisableError) as error:
            if not isinstance(error, ResultNotSerialisableError):
                error = ResultNotSerialisableError("the service's result cannot be recorded", why=str(error))
            step.answer = _encoded(step, _failed(step, error), started_at, self._clock.now())
        step.task = None
        if step.open:
            step.abandon(StepCanceledError("the attempt has ended"))
        self._post_answer(step, step.answer)

    def _post_answer(self, step: RunningStep, answer: Answer | Park) -> None:
        """Send the answer with the stream events that are not committed yet; many of them go ahead of it."""
        if sum(map(len, step.events)) > FRAME_BYTES_TARGET:
            self._post_events(step, step.committed, step.events)
        elif step.events:
            answer = msgspec.structs.replace(answer, events_from=step.committed, events=list(step.events))
        self._post(answer)

    def _post_events(self, step: RunningStep, first: int, events: list[bytes]) -> None:
        for offset, part in pieces(events):
            self._post(Events(step.delivery.step_id, step.attempt, first + offset, list(part)))

    def _acknowledged(self, step_id: str) -> None:
        step = self.steps.get(step_id)
        if step is not None and step.answer is not None:
            failpoint("runner.acknowledged")
            self._forget(step_id, step)

    def _forget(self, step_id: str, step: RunningStep) -> None:
        if self.steps.get(step_id) is step:
            del self.steps[step_id]
            if not self.steps:
                self._idle.set()

    def _stop(self, step_id: str, reason: str) -> None:
        """Stop a step whose result nobody wants any more; no answer is sent."""
        step = self.steps.get(step_id)
        if step is None:
            return
        step.stopped = True
        if step.context is not None:
            step.context.canceled = True
        if step.task is not None:
            log.info("step stopped", step_id=step_id, reason=reason)
            step.task.cancel(reason)
        step.abandon(StepCanceledError("the attempt was canceled", why=reason))
        self._forget(step_id, step)

    # --- streams and inputs -----------------------------------------------------------------------------------------

    def _emit(self, step: RunningStep, event: bytes) -> None:
        """Take one event of user code, from whatever thread it comes."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            self._append(step, event)
        else:
            self._loop.call_soon_threadsafe(self._append, step, event)

    def _append(self, step: RunningStep, event: bytes) -> None:
        if step.answer is not None or self.steps.get(step.delivery.step_id) is not step:
            return
        failpoint("runner.streamed")
        step.events.append(event)
        if step.unsent == 0:
            self._loop.call_soon(self._send_events, step)
        step.unsent += 1

    def _send_events(self, step: RunningStep) -> None:
        """Send what user code has streamed in this turn of the loop, as one operation."""
        count, step.unsent = step.unsent, 0
        if count and step.answer is None and self.ready.is_set():
            self._post_events(step, step.committed + len(step.events) - count, step.events[-count:])

    def _events_committed(self, operation: EventsCommitted) -> None:
        step = self.steps.get(operation.step_id)
        if step is not None and step.attempt == operation.attempt and operation.count > step.committed:
            failpoint("runner.events_committed")
            del step.events[: operation.count - step.committed]
            step.committed = operation.count

    def _ask(self, step: RunningStep, prompt: dict[str, Any]) -> None:
        """User code asks a person; the run deadline stands still until the answer is here."""
        encoded = encode_value(prompt)

        def post() -> None:
            if step.answer is not None or self.steps.get(step.delivery.step_id) is not step:
                return  # the attempt has ended without waiting for the answer
            step.stand_still()
            failpoint("runner.asked")
            number = max(len(step.delivery.inputs), *step.asked, 0) + 1
            step.asked[number] = AskInput(step.delivery.step_id, step.attempt, encoded, number)
            self._post(step.asked[number])

        self._loop.call_soon_threadsafe(post)

    def _input(self, operation: DeliverInput) -> None:
        step = self.steps.get(operation.step_id)
        if step is None or step.context is None or operation.number <= len(step.delivery.inputs):
            return  # gone, or known: inputs are repeated after a connection was lost
        failpoint("runner.input")
        step.asked.pop(operation.number, None)
        step.go_on()
        step.delivery.inputs.append(operation.value)
        step.context.inputs.put_nowait(_decode(operation.value))

    def _park_refused(self, operation: ParkRefused) -> None:
        """An input came while the step was letting go: it runs again here, with that input."""
        step = self.steps.get(operation.step_id)
        if step is None or not isinstance(step.answer, Park):
            return
        step.delivery = msgspec.structs.replace(step.delivery, snapshot=step.answer.snapshot)
        step.answer = None
        step.task = self._loop.create_task(self._run(step))

    # --- ending -----------------------------------------------------------------------------------------------------

    def _stop_taking(self) -> None:
        for name in self.services:
            self._post(Credits(name, 0))

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing new, finish what is held, say goodbye; what is not finished in time is handed back.

        True when everything was finished and acknowledged.
        """
        self.draining = True
        self._stop_taking()
        finished = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            finished = False
        running = [step.task for step in self.steps.values() if step.task is not None]
        for step_id in list(self.steps):
            self._stop(step_id, "the instance is shutting down")
        failpoint("runner.before_goodbye")
        self._post(Goodbye())
        self._flush()
        failpoint("runner.after_goodbye")
        if running:
            await asyncio.wait(running, timeout=1.0)
        for service in self.services.values():
            await service.stop()
        return finished


def _encoded(step: RunningStep, result: TaskResult | Parked, started_at: float, finished_at: float) -> Answer | Park:
    """The operation that carries a result. Raises where it has no JSON form, or is no result at all."""
    step_id = step.delivery.step_id
    if isinstance(result, Parked):
        prompt = encode_value(result.prompt)
        check_size(result.snapshot or b"")
        return Park(step_id, step.attempt, prompt, result.resume, result.snapshot, result.consumed)
    if not isinstance(result, TaskResult):
        raise ResultNotSerialisableError(
            f"the service answered with a {type(result).__name__}", fix="return a TaskResult, or Parked"
        )
    encoded = _encode(result.model_dump())
    check_size(encoded)
    return Answer(step_id, step.attempt, encoded, started_at, finished_at)


def _failed(step: RunningStep, error: BaseException) -> TaskResult:
    """The failed result of an attempt; whoever watches this process sees it too."""
    found = error_from_exception(error)
    log.warning(
        "attempt failed",
        service=step.delivery.service,
        step_id=step.delivery.step_id,
        attempt=step.attempt,
        error=f"{found.type}: {found.message}",
        # Where the input was refused, no code of the service has run.
        exception="" if isinstance(error, ArgumentsError) else (found.traceback or "").rstrip(),
    )
    return TaskResult(task_id="", history=[], result=found.message, status="failed", error=found)
