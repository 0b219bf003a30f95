"""Workflows of llama-index as services: which instance a task runs on, with which start event and which timeout.

Everything that is known before a task comes is worked out when the service is made. Driving a run is in
`workflow_run`; how events look as JSON is in `workflow_events`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from pydantic import ValidationError
from pydantic.errors import PydanticUserError
from workflows import Workflow
from workflows.context.context_types import SerializedEventAttempt
from workflows.errors import WorkflowConfigurationError, WorkflowRuntimeError, WorkflowValidationError
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy._lazy import published_names
from llama_deploy.errors import ArgumentsError, ResultNotSerialisableError, SettingError
from llama_deploy.services.agent_memory import is_agent
from llama_deploy.services.base import Parked, Service, StepContext
from llama_deploy.services.encoding import encode
from llama_deploy.services.keeping import kept_in
from llama_deploy.services.workflow_events import EventTypes, event_fields
from llama_deploy.services.workflow_run import WorkflowRun
from llama_deploy.types import ActionTypes, RetryPolicy, ServiceDefinition, TaskResult

DEFAULT_AGENT_NAME = "Agent"
"""What llama-index calls an agent that was given no name."""
RUN_TIMEOUT_S = 600.0
"""Deadline of one attempt in seconds where neither the service nor the workflow names one."""

_ENGINE_TIMEOUT_S = inspect.signature(Workflow.__init__).parameters["timeout"].default
_KEEPS_RETRIES = "not_before" in SerializedEventAttempt.model_fields
"""Whether this engine saves a step that waits for its own retry; one that does not would lose it when parked."""


class PlainWorkflowService(Service):
    """A workflow, served: `WorkflowService`, which takes the published arguments as well.

    `workflow` is an instance, a `Workflow` class, or a function that makes an instance. The input of a task is a JSON
    object: the keyword arguments of the start event. Every event that the workflow writes to its stream is an event of
    the task's stream, in order, the last one is the final event. The result is `str` of the workflow's own result,
    with the result itself as a JSON value where it has that form.

    Every run has an instance of its own, so that what steps put on `self` stays with the run: a class or a function is
    called for each run, an instance is copied shallowly (what it refers to is shared, as among concurrent runs before;
    one that holds a reference to itself is not copied). To share one instance on purpose, give a function that returns
    it.

    A run that only waits for a person, or for an event from outside, is parked: its context is saved as JSON and no
    memory is held. It goes on in whichever process serves the workflow when the input comes. Timeouts of
    `wait_for_event` do not run on meanwhile. A context that cannot be saved as JSON keeps its run in memory.

    With `memory`, the state of a run's context (`context.store`) is left to the next run of the session, or of the
    task; with agents of llama-index that is the conversation. One that cannot be saved as JSON fails the step then.

    An input is a person's plain answer, which becomes the workflow's one `HumanResponseEvent` subclass or
    `HumanResponseEvent(response=answer)`, or `{"event": {"type": NAME, ...fields}}` for any event of the workflow.
    """

    def __init__(
        self,
        workflow: Workflow | type[Workflow] | Callable[[], Workflow],
        *,
        name: str | None = None,
        description: str | None = None,
        concurrency: int = 8,
        run_timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
        memory: Literal["none", "session", "task"] = "none",
        allowed_types: Collection[type[Any]] = (),
        nested: Mapping[str, str] | None = None,
    ) -> None:
        """`name` is the workflow's own name if it was given one, else its class's.

        `run_timeout_s` is the deadline of one attempt in seconds; by default the workflow's own `timeout` where that
        was set, else 600. With `memory`, runs go on from the context of the one before. `allowed_types` are classes
        that a saved context may hold beside those of the workflow's own package. `nested` names attributes of the
        workflow that hold another one, each with the service that runs it; by default those whose workflow is a service
        beside it in the same instance. Raises `SettingError` for a workflow that is not valid.
        """
        sample = _make(workflow)
        self.template = workflow if isinstance(workflow, Workflow) else None
        """The instance that was given, where it was one."""
        self.nested = nested
        """Services by the attribute that holds their workflow; `None` while nobody has looked."""
        own_timeout_s = sample._timeout  # noqa: SLF001 - the engine has no other way to read or set it
        has_own = own_timeout_s is not None and own_timeout_s != _ENGINE_TIMEOUT_S
        deadline_s = run_timeout_s or (own_timeout_s if has_own else None) or RUN_TIMEOUT_S
        self._timeout_s = own_timeout_s if has_own else (None if _waits_for_people(sample) else deadline_s)
        self._new_instance = _instance_maker(workflow, sample)
        self._start_class = sample.start_event_class
        self._types = EventTypes(sample, allowed_types)
        self._may_park = _KEEPS_RETRIES or not _retries_steps(sample)
        limit = sample._num_concurrent_runs  # noqa: SLF001 - it counts per instance, and every run has its own
        self.definition = ServiceDefinition(
            service_name=name or _own_name(sample),
            description=_summary(sample) if description is None else description,
            kind="workflow",
            input_schema=_schema(self._start_class, StartEvent),
            output_schema=_schema(sample.stop_event_class, StopEvent),
            concurrency=min(concurrency, limit or concurrency),
            run_timeout_s=deadline_s,
            retry=retry,
            memory=memory,
        )

    async def run(self, context: StepContext) -> TaskResult | Parked:
        """Run the workflow. Raises `ArgumentsError`, `RunTimeoutError`, and what its steps raise."""
        context.calls_need_keys = True
        start = None if context.snapshot is not None else self._start_event(context)
        workflow = self._new_instance()
        workflow._timeout = self._timeout_s  # noqa: SLF001 - see above
        for name, service in (self.nested or {}).items():
            self._call_instead(workflow, name, service)
        run = WorkflowRun(workflow, start=start, context=context, types=self._types, may_park=self._may_park)
        outcome = await run.drive()
        return outcome if isinstance(outcome, Parked) else _task_result(await kept_in(outcome, context))

    @staticmethod
    def _call_instead(workflow: Workflow, name: str, service: str) -> None:
        """Put the service in the place of a workflow inside of the workflow."""
        from llama_deploy.services.nested import CalledWorkflow

        inner = getattr(workflow, name, None)
        if not isinstance(inner, CalledWorkflow):
            setattr(workflow, name, CalledWorkflow(service, inner if isinstance(inner, Workflow) else None))

    def _start_event(self, context: StepContext) -> StartEvent:
        given: Any = context.data
        if context.action == ActionTypes.NEW_TASK.value:
            given = _read_arguments(self._start_class, context.input)
        try:
            return self._start_class(**given)
        except (ValidationError, TypeError) as error:
            raise ArgumentsError(
                "the input does not fit the start event of the workflow",
                why=_in_words(error),
                fix=f"give a JSON object with the fields of {self._start_class.__name__}",
                schema=self.definition.input_schema,
            ) from error


def _make(workflow: Workflow | type[Workflow] | Callable[[], Workflow]) -> Workflow:
    """An instance to read the workflow's shape from. Raises `SettingError`."""
    try:
        sample = workflow if isinstance(workflow, Workflow) else workflow()
        if not isinstance(sample, Workflow):
            raise SettingError(f"{workflow!r} does not make a workflow, but {type(sample).__qualname__}")
        if not sample._disable_validation:  # noqa: SLF001 - `validate` would ignore it
            sample.validate()
    except (WorkflowValidationError, WorkflowConfigurationError, WorkflowRuntimeError) as error:
        raise SettingError(f"{_label(workflow)} is not a valid workflow", why=str(error)) from error
    except TypeError as error:
        raise SettingError(
            f"{_label(workflow)} cannot be made without arguments",
            why=str(error),
            fix="give an instance, or a function that makes one",
        ) from error
    return sample


def _instance_maker(
    workflow: Workflow | type[Workflow] | Callable[[], Workflow], sample: Workflow
) -> Callable[[], Workflow]:
    """A function that makes the instance of one run."""
    if not isinstance(workflow, Workflow):
        return workflow
    for value in vars(sample).values():
        if value is sample or getattr(value, "__self__", None) is sample:
            return lambda: sample  # a copy's steps and what it refers to would be two different objects
    return lambda: copy.copy(sample)


def _waits_for_people(workflow: Workflow) -> bool:
    """Whether a run may wait for a person: then the engine's clock, which counts that time, is not used."""
    return any(issubclass(cls, InputRequiredEvent | HumanResponseEvent) for cls in workflow.events)


def _retries_steps(workflow: Workflow) -> bool:
    return any(step._step_config.retry_policy is not None for step in workflow._get_steps().values())  # noqa: SLF001


def _own_name(workflow: Workflow) -> str:
    name = workflow.workflow_name
    if is_agent(workflow) and workflow.name != DEFAULT_AGENT_NAME:  # type: ignore[attr-defined]  # as agents have it
        return str(workflow.name)  # type: ignore[attr-defined]
    return type(workflow).__name__ if "." in name else name  # the engine's default is module-qualified


def _label(workflow: Any) -> str:
    return str(getattr(workflow, "__qualname__", type(workflow).__qualname__))


def _summary(workflow: Workflow) -> str:
    """What an agent says of itself, else the first paragraph of the docstring of the workflow's own class."""
    if is_agent(workflow):
        return str(workflow.description)  # type: ignore[attr-defined]
    text = inspect.cleandoc(type(workflow).__dict__.get("__doc__") or "")
    return " ".join(text.split("\n\n", 1)[0].split())


def _schema(cls: type[Event], plain: type[Event]) -> dict[str, Any]:
    """JSON Schema of the event's fields; `{}` for the engine's own class, which takes any."""
    if cls is plain:
        return {}
    try:
        return cls.model_json_schema()
    except PydanticUserError:
        return {}


def _read_arguments(cls: type[StartEvent], text: str) -> dict[str, Any]:
    """The fields of the start event; the only field that it has (or needs) also takes any other value."""
    try:
        given = msgspec.json.decode(text) if text.strip() else {}
    except msgspec.DecodeError:
        given = text
    if isinstance(given, dict):
        return given
    required = [name for name, field in cls.model_fields.items() if field.is_required()]
    names = list(cls.model_fields) if len(cls.model_fields) == 1 else required
    if len(names) == 1:
        return {names[0]: given}
    raise ArgumentsError(
        "the input of a workflow is a JSON object of keyword arguments",
        why="the input is text that is not JSON"
        if given is text
        else f"the input is {msgspec.json.encode(given)[:80]!r}",
        fix='give {"name": value, ...}',
    )


def _in_words(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return str(error)
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"`{'.'.join(map(str, one['loc']))}` {one['msg'][:1].lower()}{one['msg'][1:]}" for one in found)


def _task_result(result: Any) -> TaskResult:
    """The published form, `str` of the result, and the value beside it where it has a JSON form."""
    if isinstance(result, str):
        return TaskResult(task_id="", history=[], result=result)
    try:
        encoded = encode(event_fields(result) if isinstance(result, Event) else result)
    except (ValueError, TypeError, ResultNotSerialisableError):
        return TaskResult(task_id="", history=[], result=str(result))
    says_nothing = isinstance(result, StopEvent) and type(result).__str__ is StopEvent.__str__
    text = encoded.decode() if says_nothing else str(result)
    return TaskResult(task_id="", history=[], result=text, kind="json", value=msgspec.json.decode(encoded))


if TYPE_CHECKING:
    WorkflowService = PlainWorkflowService
else:
    __getattr__, __dir__ = published_names(__name__)
