"""The runner: receives deliveries, runs them, streams, answers; the same in every process.

It owns one instance's running steps, their deadlines and cancellation, and keeps every answer and every stream event
until the control plane has recorded it. It knows no transport: a link gives it operations and takes its own.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from llama_deploy.errors import (
    LlamaDeployError,
    ResultNotSerialisableError,
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
    Heartbeat,
    HeldStep,
    Hello,
    LedgerRead,
    Park,
    ParkRefused,
    Refused,
    Remembered,
    Returned,
    Welcome,
    pieces,
)
from llama_deploy.messages.mesh import Adopted, Begun, Claimed, NotLed, Planes, Queued
from llama_deploy.runtime import Clock, SystemClock, failpoint
from llama_deploy.runtime.logs import get_logger, leave_out
from llama_deploy.services.base import Parked, Service, StepContext, encode_value, enter_step
from llama_deploy.services.memory import StepMemory
from llama_deploy.services.starting import start_all, stop_all
from llama_deploy.services.steps import RunningStep, encoded_answer, failed_result
from llama_deploy.services.stopping import Stopping
from llama_deploy.services.transfers import Transfers
from llama_deploy.services.turns import Turns
from llama_deploy.services.upstream import Upstream
from llama_deploy.services.upstreams import Upstreams
from llama_deploy.types import TaskResult, generate_id
from llama_deploy.types.artifacts import artifact_source
from llama_deploy.types.redaction import Redaction

log = get_logger("llama_deploy.runner")

_decode, _encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode


class Runner:
    """One instance: serves a set of services, for one control plane or for several that share a store."""

    def __init__(
        self, services: Sequence[Service], *, instance_id: str | None = None, clock: Clock | None = None
    ) -> None:
        self.services = {service.definition.service_name: service for service in services}
        if "llama_deploy.services.workflow" in sys.modules:
            from llama_deploy.services.nested import nest

            nest(services)
        self.instance_id = instance_id or generate_id()
        self._clock = clock or SystemClock()
        self.steps: dict[str, RunningStep] = {}
        self.turns = Turns(self.services)
        self.upstreams = Upstreams(self.steps, self.turns, repeat=self._repeat, stop=self._stop)
        self.ready = self.upstreams.ready
        """Set while a control plane has this instance registered."""
        self.refused: Callable[[dict[str, Any]], None] = lambda _: None
        """Called when the control plane does not want this instance."""
        self.mesh = True
        """Whether its link connects it to every control plane that it hears of."""
        self.stays, self.release = False, ""  # lives in a control plane's own process; the release that its code is of
        self.draining = False
        self.drain_requested: Callable[[float | None], None] = lambda _: None
        """Called when the control plane wants this instance to leave, with the seconds that it may take for that."""
        self.transfers = Transfers(self.ready, self.upstreams.carry)
        self.upstreams.carrier_lost = self.transfers.disconnected
        self.stopping = Stopping(self.services, post=self.upstreams.tell_all, fail=self._fail)
        """How code is made to stop here."""
        self._heartbeat_s = 1.0
        self._idle = asyncio.Event()
        self._idle.set()
        self._mesh_handlers: dict[type, Callable[[Any, Upstream], None]] = {
            Deliver: self._deliver,
            Welcome: self._welcomed,
            Disowned: self._disowned,
            CancelStep: self._canceled,
            Adopted: self.upstreams.adopted,
            Claimed: self.upstreams.claimed,
            NotLed: self.upstreams.not_led,
        }
        """What depends on who says it."""
        self._handlers: dict[type, Callable[[Any], None]] = {
            EventsCommitted: self._events_committed,
            DeliverInput: self._input,
            ParkRefused: self._park_refused,
            Remembered: self._reply,
            LedgerRead: self._reply,
            Returned: self._reply,
            Drain: lambda operation: self.drain_requested(operation.timeout_s),
            Refused: lambda operation: self.refused(_decode(operation.problem)),
            Planes: lambda _: None,  # the link's
        }

    async def start(self) -> None:
        """Start the services; call it on the loop that their code shall run on."""
        self._loop = asyncio.get_running_loop()
        self.transfers.start()
        self.stopping.start()
        await start_all(self.services.values())

    # --- the link's side --------------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """What to say first on a connection, and again after every reconnect."""
        definitions = [service.definition.model_dump(mode="json") for service in self.services.values()]
        held = [HeldStep(step.delivery.step_id, step.attempt) for step in list(self.steps.values())]
        me = (os.getpid(), socket.gethostname(), self.mesh, self.stays, self.release)
        return Hello(PROTOCOL_VERSION, self.instance_id, _encode(definitions), held, *me)

    def held(self, upstream: Upstream | None = None) -> list[HeldStep]:
        """Every step of a control plane that runs here or whose answer is not acknowledged; for any thread."""
        wanted = upstream or self.upstreams.main
        return [step.held() for step in list(self.steps.values()) if step.upstream is wanted]

    @property
    def send(self) -> Callable[[list[Any]], None]:
        """Sends operations, in order, without waiting; set by whoever connects this to one control plane alone."""
        return self.upstreams.main.send

    @send.setter
    def send(self, send: Callable[[list[Any]], None]) -> None:
        self.upstreams.main.send = send

    def disconnected(self, upstream: Upstream | None = None) -> None:
        """The connection is gone. Work goes on; answers wait for the next one."""
        self.upstreams.disconnected(upstream or self.upstreams.main)

    def receive(self, operations: Sequence[ControlOp], upstream: Upstream | None = None) -> None:
        """What a control plane says, in order."""
        said_by = upstream or self.upstreams.main
        for operation in operations:
            of_mesh = self._mesh_handlers.get(type(operation))
            if of_mesh is not None:
                of_mesh(operation, said_by)
            elif isinstance(operation, Acknowledged):
                for step_id in operation.step_ids:
                    self._acknowledged(step_id)
            elif isinstance(operation, ContentReply):
                self.transfers.receive(operation)
            else:
                self._handlers[type(operation)](operation)

    def _disowned(self, operation: Disowned | Welcome, upstream: Upstream) -> None:
        for step_id in operation.disowned if isinstance(operation, Welcome) else operation.step_ids:
            step = self.steps.get(step_id)
            if step is not None and self.upstreams.listens_to(step, upstream):
                self._stop(step_id, "the step went to another instance")

    def _canceled(self, operation: CancelStep, upstream: Upstream) -> None:
        step = self.steps.get(operation.step_id)
        if step is not None and self.upstreams.listens_to(step, upstream):
            self._stop(operation.step_id, operation.reason)

    def _reply(self, operation: Remembered | LedgerRead | Returned) -> None:
        """What user code asked for is answered."""
        step = self.steps.get(operation.step_id)
        if step is None or step.attempt != operation.attempt:
            return
        if isinstance(operation, Remembered):
            step.take_remembered(operation)
        elif isinstance(operation, LedgerRead):
            step.take_page(operation)
        else:
            failpoint("runner.returned")
            step.take_returned(operation)

    def _welcomed(self, welcome: Welcome, upstream: Upstream) -> None:
        """Registered (again): drop what is not ours any more, repeat what was not acknowledged."""
        self._disowned(welcome, upstream)
        failpoint("runner.welcomed")
        self._heartbeat_s = welcome.heartbeat_s
        leave_out(self, Redaction(welcome.redact).text if welcome.redact else None)
        self.upstreams.welcomed(upstream, welcome.adopted, meshed=welcome.planes is not None)
        self.stopping.welcomed(welcome.cancel_grace_s)
        if self.draining:
            self._stop_taking()

    def _repeat(self, step: RunningStep) -> None:
        """Say again what is not acknowledged of a step, to whom it belongs now."""
        if step.beat is not None:
            step.beat_unsent = True
            self._beaten(step)
        if step.answer is not None:
            self._post_answer(step, step.answer)
        else:
            self._post_events(step, step.committed, step.events)
        step.unsent = 0
        if step.answer is None:
            if step.task is None:
                step.post(Queued(step.delivery.step_id, step.attempt))
            for operation in [*step.asked.values(), *step.unanswered()]:
                step.post(operation)

    # --- running ----------------------------------------------------------------------------------------------------

    def _deliver(self, delivery: Deliver, upstream: Upstream) -> None:
        known = self.steps.get(delivery.step_id)
        if known is not None:
            if known.attempt >= delivery.attempt:
                if known.attempt == delivery.attempt and known.upstream is not upstream:
                    known.upstream = upstream
                    self._repeat(known)
                elif known.attempt == delivery.attempt and known.answer is not None:  # its answer went astray
                    self._post_answer(known, known.answer)
                return
            self._stop(delivery.step_id, "a newer attempt has come")
        failpoint("runner.delivered")
        service = self.services.get(delivery.service)
        if service is not None and not delivery.run_timeout_s:
            delivery = msgspec.structs.replace(delivery, run_timeout_s=service.definition.run_timeout_s)
        step = RunningStep(delivery, loop=self._loop, upstream=upstream, turns=self.turns, beaten=self._beaten)
        self.steps[delivery.step_id] = step
        self._idle.clear()
        self._begin(step)

    def _begin(self, step: RunningStep) -> None:
        """Run an attempt, once the service has room for it."""
        if self.turns.take(step.delivery.service, partial(self._begin_late, step)):
            self._start(step)
        else:
            step.post(Queued(step.delivery.step_id, step.attempt))

    def _begin_late(self, step: RunningStep) -> bool:
        if step.stopped or self.steps.get(step.delivery.step_id) is not step:
            return False
        step.post(Begun(step.delivery.step_id, step.attempt))
        self._start(step)
        return True

    def _start(self, step: RunningStep) -> None:
        step.task = self._loop.create_task(self._run(step))
        step.task.add_done_callback(lambda _: step.end_turn())

    async def _run(self, step: RunningStep) -> None:
        """One attempt from beginning to answer. Whatever user code does ends here, and is answered."""
        delivery = step.delivery
        step.started_at = self._clock.now()
        result: TaskResult | Parked
        try:
            service = self._service(delivery.service)
            context = step.context = self._context(step)
            enter_step(context)
            artifact_source.set(self.transfers)
            self.stopping.begin(step)
            result = await service.run(context)
        except asyncio.CancelledError as error:
            if step.stopped or step.answer is not None:
                raise
            result = failed_result(step, step.failure or error)
        except BaseException as error:  # noqa: BLE001 - the edge of user code; recorded with the task
            if step.stopped or step.answer is not None:
                return
            asked_to_stop = isinstance(error, StepCanceledError) and step.failure is not None
            result = failed_result(step, step.failure if asked_to_stop and step.failure else error)
        failpoint("runner.before_answer")
        self._answer(step, result)
        failpoint("runner.after_answer")

    def _service(self, name: str) -> Service:
        service = self.services.get(name)
        if service is None:
            raise ServiceRaisedError(f"this instance does not serve {name!r}")
        return service

    def _context(self, step: RunningStep) -> StepContext:
        delivery = step.delivery
        data = _decode(delivery.message)
        context = StepContext(
            step_id=delivery.step_id,
            attempt=delivery.attempt,
            task_id=delivery.task_id,
            session_id=delivery.session_id,
            service=delivery.service,
            action=delivery.action,
            data=data if isinstance(data, dict) else {},
            emit=partial(self._emit, step),
            ask=partial(self._ask, step),
            inputs_given=len(delivery.inputs),
            snapshot=delivery.snapshot,
            run_timeout_s=delivery.run_timeout_s,
            desk=step,
            contents=self.transfers,
            memory=self._memory(delivery),
        )
        for value in delivery.inputs:
            context.inputs.put_nowait(_decode(value))
        return context

    def _memory(self, delivery: Deliver) -> StepMemory | None:
        """What the service remembers, where it does."""
        service = self.services.get(delivery.service)
        if service is None or service.definition.memory == "none":
            return None
        return StepMemory(delivery.memory, delivery.memory_version)

    def _answer(self, step: RunningStep, result: TaskResult | Parked) -> None:
        delivery = step.delivery
        if self.steps.get(delivery.step_id) is not step or step.answer is not None:
            return
        now = self._clock.now()
        try:
            answer = encoded_answer(step, result, step.started_at, now)
        except (TypeError, ValueError, ArithmeticError, RecursionError, ResultNotSerialisableError) as error:
            if not isinstance(error, ResultNotSerialisableError):
                error = ResultNotSerialisableError("the service's result cannot be recorded", why=str(error))
            answer = encoded_answer(step, failed_result(step, error), step.started_at, now)
        step.answer = answer
        step.end_limit()
        step.task = None
        if step.open:
            step.abandon(StepCanceledError("the attempt has ended"))
        self._post_answer(step, step.answer)

    def _fail(self, step: RunningStep, error: LlamaDeployError) -> Answer | None:
        """Answer for code that does not; `None` where there is an answer. Called from whatever thread watches."""
        if step.answer is not None or step.stopped:
            return None
        answer = encoded_answer(step, failed_result(step, error), step.started_at, self._clock.now())
        step.answer, step.task = answer, None
        return answer if isinstance(answer, Answer) else None

    def _beaten(self, step: RunningStep) -> None:
        """User code has said how far it is; told with the next heartbeat, at the latest after one's time."""
        self._loop.call_later(self._heartbeat_s, self._tell_heartbeat, step)

    def _tell_heartbeat(self, step: RunningStep) -> None:
        if step.beat_unsent and step.answer is None and not step.stopped and self.ready.is_set():
            step.post(Heartbeat([step.held()]))

    def _post_answer(self, step: RunningStep, answer: Answer | Park) -> None:
        """Send the answer with the stream events that are not committed yet; many of them go ahead of it."""
        if sum(map(len, step.events)) > FRAME_BYTES_TARGET:
            self._post_events(step, step.committed, step.events)
        elif step.events:
            answer = msgspec.structs.replace(answer, events_from=step.committed, events=list(step.events))
        step.post(msgspec.structs.replace(answer, runs_on=True) if step.runs_on else answer)

    def _post_events(self, step: RunningStep, first: int, events: list[bytes]) -> None:
        for offset, part in pieces(events):
            step.post(Events(step.delivery.step_id, step.attempt, first + offset, list(part)))

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
        self.stopping.take_away(step, reason)
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
            step.post(step.asked[number])

        self._loop.call_soon_threadsafe(post)

    def _input(self, operation: DeliverInput) -> None:
        step = self.steps.get(operation.step_id)
        if step is None or operation.number <= len(step.delivery.inputs):
            return  # gone, or known: inputs are repeated after a connection was lost
        failpoint("runner.input")
        step.asked.pop(operation.number, None)
        step.go_on()
        step.delivery.inputs.append(operation.value)
        if step.context is not None:  # else its code has not begun, and will find it there
            step.context.inputs.put_nowait(_decode(operation.value))

    def _park_refused(self, operation: ParkRefused) -> None:
        """An input came while the step was letting go: it runs again here, with that input."""
        step = self.steps.get(operation.step_id)
        if step is None or not isinstance(step.answer, Park):
            return
        memory = step.answer.memory if step.answer.memory is not None else step.delivery.memory
        step.delivery = msgspec.structs.replace(step.delivery, snapshot=step.answer.snapshot, memory=memory)
        step.answer = None
        self._begin(step)

    # --- ending -----------------------------------------------------------------------------------------------------

    def _stop_taking(self) -> None:
        for name in self.services:
            self.upstreams.tell_all(Credits(name, 0))

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
        running = [step.task for step in self.steps.values() if step.task is not None] + list(self.stopping.tasks)
        for step_id in list(self.steps):
            self._stop(step_id, "the instance is shutting down")
        if running:  # what is handed back does not run any more when somebody else begins it
            await asyncio.wait(running, timeout=1.0)
        failpoint("runner.before_goodbye")
        self.upstreams.tell_all(Goodbye())
        self.upstreams.flush_all()
        failpoint("runner.after_goodbye")
        await stop_all(self.services.values())
        leave_out(self, None)
        return finished
