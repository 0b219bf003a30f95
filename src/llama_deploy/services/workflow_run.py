"""One attempt of one workflow run: its events go to the task's stream, people's inputs go in, its result comes out.

The run is driven from one mailbox, so that nothing here happens at the same time as anything else. When all that the
run does is wait for somebody, it is saved and let go of (`Parked`); a run that cannot be saved waits here instead.
Which workflow is run, and how its parts look as JSON, is decided elsewhere (`workflow`, `workflow_events`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import warnings
from collections import deque
from typing import Any

from workflows import Context, Workflow
from workflows.context.context_types import SerializedContext
from workflows.context.state_store import UnserializableKeyWarning
from workflows.errors import (
    ContextSerdeError,
    WorkflowCancelledByUser,
    WorkflowConfigurationError,
    WorkflowTimeoutError,
    WorkflowValidationError,
)
from workflows.events import (
    Event,
    InputRequiredEvent,
    InternalDispatchEvent,
    StartEvent,
    StepState,
    StepStateChanged,
    StopEvent,
    UnhandledEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowIdleEvent,
    WorkflowTimedOutEvent,
)
from workflows.handler import WorkflowHandler

from llama_deploy.errors import (
    ArgumentsError,
    NoInputExpectedError,
    ResultNotSerialisableError,
    RunTimeoutError,
    ServiceRaisedError,
    SettingError,
    TaskCanceledError,
)
from llama_deploy.messages.stream_events import EVENT_OMITTED_KEY, EVENT_TYPE_KEY
from llama_deploy.services.base import Parked, StepContext
from llama_deploy.services.workflow_events import (
    EventTypes,
    SnapshotSerializer,
    awaited_events,
    check_complete,
    check_names,
    check_values,
    keeps_waiting_right,
    stream_event,
)
from llama_deploy.types import generate_id

logger = logging.getLogger(__name__)

IDLE_GRACE_S = 0.05
"""How long a run has to wait for a person, in seconds, before it is parked; a quick answer finds it still running."""
CANCEL_TIMEOUT_S = 3.0
"""How long steps are given to end when a run is cancelled, in seconds."""
END_GRACE_S = 0.1
"""How long the last events are waited for, in seconds, when a run has ended and its stream has not."""
SETTLE_TURNS = 16
"""Turns of the event loop after which what is under way inside the engine has shown itself in the mailbox."""
SNAPSHOT_VERSION = 1
MEMORY_FIELD = "context"
"""Where the state of a workflow's context stands in the memory of its service."""

_ENGINE_OUTCOMES = (WorkflowFailedEvent, WorkflowTimedOutEvent, WorkflowCancelledEvent)
"""How the engine announces a run that has no result; the attempt's error tells it instead."""
_PROMPT_FIELDS = ("prompt", "prefix", "question", "message", "msg")


class WorkflowRun:
    """One run of `workflow`, an instance that no other run uses. `drive` is called once."""

    def __init__(
        self, workflow: Workflow, *, start: StartEvent | None, context: StepContext, types: EventTypes, may_park: bool
    ) -> None:
        self._workflow = workflow
        self._start_event = start
        self._context = context
        self._types = types
        self._serializer = SnapshotSerializer(types)
        self._may_park = may_park
        self._mail: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._started = context.snapshot is not None
        self._running: set[tuple[str, str]] = set()
        """Steps that run now, by name and worker."""
        self._prompt: dict[str, Any] | None = None
        """What a person is to be asked, while the run waits for the answer."""
        self._asked = False
        self._answered: dict[str, Any] | None = None
        """The prompt that was answered last: a step that waits is run again from its top, and may repeat it."""
        self._inputs_seen = 0
        self._inputs_skipped = 0
        """How many inputs the snapshot has used up already."""
        self._held: deque[tuple[Any, int]] = deque()
        """Inputs that are not delivered yet, and how often the workflow had no use for each."""
        self._try_held = False
        """Whether something has changed since an input was of no use."""
        self._sent: list[tuple[str, Any, int]] = []
        self._settle_at: float | None = None
        self._lost_traceback: str | None = None
        """Where a step failed; set by engines that raise its exception without that."""

    async def drive(self) -> Any:
        """Run to the end; the workflow's result, or `Parked`.

        Raises what a step raised, `RunTimeoutError`, `TaskCanceledError`, `SettingError`. However it ends, no task of
        the run is left behind, as far as its steps heed their cancellation.
        """
        handler = self._start()  # this reference keeps the run from being collected
        events = asyncio.create_task(self._collect_events(handler))
        inputs = asyncio.create_task(self._collect_inputs())
        end = asyncio.create_task(_result_of(handler))  # awaited once: the second time a traceback is gone
        end.add_done_callback(lambda _: self._mail.put_nowait(("end", None)))
        try:
            parked = await self._follow(handler, events)
            return parked if parked is not None else await self._end_well(handler, await end)
        except Exception as error:
            if self._lost_traceback:
                error.add_note(self._lost_traceback)
            raise
        finally:
            events.cancel()
            inputs.cancel()
            try:
                if not handler.is_done():
                    await handler.cancel_run(timeout=CANCEL_TIMEOUT_S)
            finally:
                end.cancel()  # only now: this tears the run down without waiting for its steps
            await asyncio.gather(events, inputs, end, return_exceptions=True)

    # --- start --------------------------------------------------------------------------------------------------

    def _start(self) -> WorkflowHandler:
        run_id = (
            f"{self._context.step_id}-{self._context.attempt}-{generate_id()}"  # the engine refuses one used before
        )
        try:
            if self._context.snapshot is None:
                return self._workflow.run(start_event=self._start_event, ctx=self._carried_over(), run_id=run_id)
            return self._workflow.run(ctx=self._restore(self._context.snapshot), run_id=run_id)
        except (WorkflowValidationError, WorkflowConfigurationError) as error:
            raise SettingError("the workflow cannot run", why=str(error)) from error

    def _carried_over(self) -> Context[Any] | None:
        """A context with the state that an earlier run has left in the memory of the service."""
        state = self._context.memory.get(MEMORY_FIELD) if self._context.kept_memory is not None else None
        if state is None:
            return None
        try:
            fresh = SerializedContext(state=state).model_dump(mode="json")
            check_names(fresh, self._types)
            check_values(state, self._serializer)
            return Context.from_dict(self._workflow, fresh, self._serializer)
        except (ContextSerdeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServiceRaisedError(
                "the context that an earlier run has left cannot be read",
                why=str(error),
                fix="serve the version of the workflow that left it, or clear the memory of the service",
            ) from error

    async def _end_well(self, handler: WorkflowHandler, result: Any) -> Any:
        """The result; what the state of the run is in the end is left in the memory of the service."""
        if self._context.kept_memory is None:
            return result
        try:
            state = await handler.ctx.store.get_state()
            await self._serializer.look_at(state)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UnserializableKeyWarning)  # `check_complete` deals with it
                snapshot = handler.ctx.to_dict(self._serializer)
            check_names(snapshot, self._types)
            check_values(snapshot.get("state"), self._serializer)
            check_complete(snapshot, state)
        except Exception as error:
            raise ResultNotSerialisableError(
                "the context of the workflow cannot be kept as its memory",
                why=str(error),
                fix="keep JSON types and pydantic models in the context, or serve the workflow without memory",
            ) from error
        self._context.memory[MEMORY_FIELD] = snapshot["state"]
        return result

    def _restore(self, snapshot: bytes) -> Context[Any]:
        try:
            saved, prompt, consumed = _read_snapshot(snapshot)
            check_names(saved, self._types)
            check_values(saved, self._serializer)
            restored = Context.from_dict(self._workflow, saved, self._serializer)
        except (ContextSerdeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServiceRaisedError(
                "the waiting run cannot be resumed",
                why=str(error),
                fix="serve the version of the workflow that the run began with",
            ) from error
        self._inputs_skipped = consumed
        self._prompt = prompt
        self._asked = True
        self._settle_soon()
        return restored

    # --- the mailbox --------------------------------------------------------------------------------------------

    async def _collect_events(self, handler: WorkflowHandler) -> None:
        async for event in handler.stream_events(expose_internal=True):
            self._mail.put_nowait(("event", event))

    async def _collect_inputs(self) -> None:
        while True:
            self._mail.put_nowait(("input", await self._context.inputs.get()))

    async def _follow(self, handler: WorkflowHandler, events: asyncio.Task[None]) -> Parked | None:
        """Work through the mail until the run has ended, or is parked."""
        ended = False
        while not (ended and self._mail.empty()):
            item = await self._next_mail()
            if item is None:
                if (parked := await self._settle(handler)) is not None:
                    return parked
                continue
            kind, content = item
            if kind == "event":
                if self._take_event(content):
                    return None
            elif kind == "input":
                await self._take_input(handler, content)
            else:  # a run that was torn down does not say so in its stream
                await asyncio.wait([events], timeout=END_GRACE_S)
                ended = True
        return None

    async def _next_mail(self) -> tuple[str, Any] | None:
        """The next mail, or None when it is time to see what the run waits for."""
        if self._settle_at is None:
            return await self._mail.get()
        if asyncio.get_running_loop().time() >= self._settle_at and self._mail.empty():
            return None
        try:
            async with asyncio.timeout_at(self._settle_at):
                return await self._mail.get()
        except TimeoutError:
            return None

    def _settle_soon(self, delay_s: float = IDLE_GRACE_S) -> None:
        settle_at = asyncio.get_running_loop().time() + delay_s
        if self._settle_at is None or settle_at < self._settle_at:
            self._settle_at = settle_at

    # --- what the workflow says ---------------------------------------------------------------------------------

    def _take_event(self, event: Event) -> bool:
        """Whether the event was the last one."""
        if isinstance(event, InternalDispatchEvent):
            self._take_internal(event)
            return False
        if isinstance(event, _ENGINE_OUTCOMES):
            self._lost_traceback = getattr(event, "traceback", None)
            return True
        fields = stream_event(event, self._context)
        if isinstance(event, InputRequiredEvent):
            self._open_prompt(fields)
        return isinstance(event, StopEvent)

    def _take_internal(self, event: InternalDispatchEvent) -> None:
        if isinstance(event, StepStateChanged):
            self._started = True
            worker = (event.name, event.worker_id)
            if event.step_state is StepState.RUNNING:
                self._running.add(worker)
            elif event.step_state is StepState.NOT_RUNNING:
                self._running.discard(worker)
                if self._held and self._held[0][1]:
                    self._try_held = True
                    self._settle_soon(0.0)
            if not self._running:
                self._settle_soon()
        elif isinstance(event, WorkflowIdleEvent):
            self._settle_soon(0.0 if self._held else IDLE_GRACE_S)
        elif isinstance(event, UnhandledEvent):
            self._take_back(event)

    def _open_prompt(self, fields: dict[str, Any]) -> None:
        self._prompt = _prompt_from(fields)
        self._asked = False
        if not self._held and self._prompt != self._answered:
            self._ask()
        self._settle_soon()

    def _ask(self) -> None:
        assert self._prompt is not None
        self._asked = True
        self._context.request_input(self._prompt)

    def _take_back(self, event: UnhandledEvent) -> None:
        """The workflow had no use for an event. If we sent it, it came too early, or is not wanted at all."""
        index = next((i for i in reversed(range(len(self._sent))) if self._sent[i][0] == event.qualified_name), None)
        if index is None:
            return
        _, value, times = self._sent.pop(index)
        if times and not self._running:
            self._refuse_input(NoInputExpectedError(f"nothing in the workflow waits for {event.event_type} now"))
        else:
            self._held.appendleft((value, times + 1))
            self._try_held = False
            self._prompt = self._prompt or self._answered
            self._settle_soon()

    # --- what people say ----------------------------------------------------------------------------------------

    async def _take_input(self, handler: WorkflowHandler, value: Any) -> None:
        self._inputs_seen += 1
        if self._inputs_seen <= self._inputs_skipped:
            return
        was_recorded = self._inputs_seen <= self._context.inputs_given
        if was_recorded or self._held:  # an earlier attempt's answers wait until this one asks
            self._held.append((value, 0))
            self._settle_soon()
        else:
            await self._deliver(handler, value, 0)

    async def _deliver(self, handler: WorkflowHandler, value: Any, times: int) -> None:
        try:
            event = self._types.read_input(value)
        except ArgumentsError as error:
            self._refuse_input(error)
            return
        self._answered, self._prompt = self._prompt or self._answered, None
        self._sent.append((f"{type(event).__module__}.{type(event).__name__}", value, times))
        await handler.send_event(event)

    def _refuse_input(self, error: ArgumentsError | NoInputExpectedError) -> None:
        """Say in the stream that an input was of no use, and ask again where somebody was asked."""
        logger.warning("step %s refused an input: %s", self._context.step_id, error)
        self._context.stream({"error": {"code": error.code, "message": str(error)}})
        prompt = self._prompt or self._answered
        if prompt is not None and not self._running:
            self._prompt = {**prompt, "problem": str(error)}
            self._ask()
        self._settle_soon()

    # --- waiting ------------------------------------------------------------------------------------------------

    async def _settle(self, handler: WorkflowHandler) -> Parked | None:
        """The run may be waiting: give it a held input, or ask, or park it."""
        self._settle_at = None
        for _ in range(SETTLE_TURNS):
            await asyncio.sleep(0)
            if not (self._mail.empty() and self._context.inputs.empty()):
                self._settle_soon()
                return None
        if self._held:
            await self._settle_held(handler)
            return None
        if self._running or not self._started:
            return None
        if self._prompt is not None and not self._asked:
            self._ask()
        return await self._park(handler) if self._may_park else None

    async def _settle_held(self, handler: WorkflowHandler) -> None:
        """Give the run the next held input if it asks for one, or can do nothing without."""
        value, times = self._held[0]
        wanted = self._try_held if times else self._prompt is not None
        if wanted or (self._started and not self._running and await self._is_idle(handler)):
            self._held.popleft()
            await self._deliver(handler, value, times)

    async def _is_idle(self, handler: WorkflowHandler) -> bool:
        snapshot = await self._snapshot(handler)
        return snapshot is None or awaited_events(snapshot) is not None

    async def _park(self, handler: WorkflowHandler) -> Parked | None:
        """The saved run, if it does nothing but wait for somebody and can be saved."""
        snapshot = await self._snapshot(handler)
        awaited = None if snapshot is None else awaited_events(snapshot)
        if snapshot is None or awaited is None or not (awaited or self._prompt):
            return None
        if self._prompt is None:
            self._prompt = {"prompt": f"The workflow waits for {', '.join(awaited)}.", "events": awaited}
            self._ask()
        if not keeps_waiting_right(snapshot):
            return None
        try:
            check_complete(snapshot, await handler.ctx.store.get_state())
            encoded = self._save(snapshot)
        except Exception as error:  # noqa: BLE001 - user types raise what they like when they are read back
            self._wait_in_memory(error)
            return None
        return Parked(prompt=self._prompt, resume="redeliver", snapshot=encoded, consumed=self._inputs_seen)

    async def _snapshot(self, handler: WorkflowHandler) -> dict[str, Any] | None:
        try:
            await self._serializer.look_at(await handler.ctx.store.get_state())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UnserializableKeyWarning)  # `check_complete` deals with it
                return handler.ctx.to_dict(self._serializer)
        except Exception as error:  # noqa: BLE001 - user types raise what they like when they are saved
            self._wait_in_memory(error)
            return None

    def _wait_in_memory(self, why: Exception) -> None:
        if self._may_park:
            self._may_park = False
            logger.info("step %s waits in memory, its run cannot be saved: %s", self._context.step_id, why)

    def _save(self, snapshot: dict[str, Any]) -> bytes:
        """The snapshot as it is stored; raises whatever reading it back raises, so that nothing unreadable is kept."""
        check_names(snapshot, self._types)
        check_values(snapshot, self._serializer)
        Context.from_dict(self._workflow, snapshot, self._serializer)
        saved = {
            "version": SNAPSHOT_VERSION,
            "consumed": self._inputs_seen,
            "prompt": self._prompt,
            "context": snapshot,
        }
        return json.dumps(saved).encode()


def _read_snapshot(snapshot: bytes) -> tuple[dict[str, Any], dict[str, Any] | None, int]:
    """The engine's snapshot, the open prompt, and how many inputs were used up."""
    saved = json.loads(snapshot)
    if saved["version"] != SNAPSHOT_VERSION:
        raise ValueError(f"it has the format {saved['version']}, this program reads {SNAPSHOT_VERSION}")
    return saved["context"], saved["prompt"], saved["consumed"]


async def _result_of(handler: WorkflowHandler) -> Any:
    try:
        return await handler
    except WorkflowTimeoutError as error:
        raise RunTimeoutError(
            "the workflow ran longer than its timeout",
            why=str(error),
            fix="give the workflow a longer `timeout`, or leave it out and set `run_timeout_s` of the service",
        ) from error
    except WorkflowCancelledByUser as error:
        raise TaskCanceledError("the workflow was cancelled from within") from error


def _prompt_from(fields: dict[str, Any]) -> dict[str, Any]:
    """What is shown to a person: the text among the event's fields that reads like a question, and the event."""
    shown = {key: value for key, value in fields.items() if key not in (EVENT_TYPE_KEY, EVENT_OMITTED_KEY)}
    texts = [shown[name] for name in _PROMPT_FIELDS if isinstance(shown.get(name), str)]
    return {"prompt": texts[0] if texts else json.dumps(shown, ensure_ascii=False), "event": fields}
