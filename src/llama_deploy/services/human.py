"""A person as a service: a step waits for an answer, and a finished task is told to whoever wants to know.

Nothing is held in memory while a person thinks: the step is parked, and this process may stop meanwhile. How a person
sees the prompt and answers (page, command line, client) is not decided here.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from llama_deploy._lazy import published_names
from llama_deploy.errors import SettingError
from llama_deploy.services.base import Parked, Service, StepContext
from llama_deploy.services.results import result_from_value
from llama_deploy.services.threads import WorkerThreads
from llama_deploy.types import ActionTypes, ServiceDefinition, TaskResult

logger = logging.getLogger(__name__)

Notify = Callable[[TaskResult], Awaitable[Any] | Any]
"""Called with the outcome of a finished task; async, or plain and then run in a thread."""


class PlainHumanService(Service):
    """Asks a person: `HumanService`, which takes the published arguments as well.

    `prompt` is the text shown, in which `{input}` stands for the task's input; without it the input itself is shown.
    Without `answer` whatever the person gives is the step's answer, and no instance has to live when it comes. With
    `answer`, a type, its JSON Schema goes out with the prompt, and an answer that does not fit is asked for again
    with the reason. `notify` gets the outcome of tasks whose end is announced to this service; without it the outcome
    is logged. It may be called again for the same task after a crash.
    """

    def __init__(
        self,
        name: str = "human",
        *,
        prompt: str | None = None,
        answer: Any = None,
        notify: Notify | None = None,
        description: str = "A person who answers questions and hears of finished tasks.",
        concurrency: int = 64,
        run_timeout_s: float = 60.0,
    ) -> None:
        """Raises `SettingError` for an `answer` type that JSON cannot become."""
        self._prompt = prompt
        self._answer: TypeAdapter[Any] | None = None if answer is None else _adapter(name, answer)
        self._schema = None if self._answer is None else self._answer.json_schema()
        self._notify = notify
        self._threads: WorkerThreads | None = None
        self.definition = ServiceDefinition(
            service_name=name,
            description=description,
            kind="human",
            output_schema=self._schema or {},
            concurrency=concurrency,
            run_timeout_s=run_timeout_s,
        )

    async def stop(self) -> None:
        if self._threads is not None:
            self._threads.stop()
            self._threads = None

    async def run(self, context: StepContext) -> TaskResult | Parked:
        """Park the step with its prompt, or pass the news of a finished task on. Raises what `notify` raises."""
        if context.action == ActionTypes.COMPLETED_TASK.value:
            return await self._tell(context)
        prompt: dict[str, Any] = {"prompt": self._text(context)}
        if self._answer is None:
            return Parked(prompt=prompt, resume="answer")
        prompt["schema"] = self._schema
        given = [context.inputs.get_nowait() for _ in range(context.inputs.qsize())]
        if given:
            try:
                return result_from_value(self._answer.validate_python(given[-1]))
            except ValidationError as error:
                prompt["problem"] = _in_words(error)
        return Parked(prompt=prompt, resume="redeliver", consumed=len(given))

    def _text(self, context: StepContext) -> str:
        is_task = isinstance(context.data.get("task"), dict)
        given = context.input if is_task else json.dumps(context.data, ensure_ascii=False)
        return given if self._prompt is None else self._prompt.replace("{input}", given)

    async def _tell(self, context: StepContext) -> TaskResult:
        outcome = TaskResult.model_validate({"task_id": context.task_id, "history": [], "result": "", **context.data})
        if self._notify is None:
            logger.info("task %s of session %s has %s", context.task_id, context.session_id, outcome.status)
        elif inspect.iscoroutinefunction(self._notify):
            await self._notify(outcome)
        else:
            await self._notify_in_thread(self._notify, outcome)
        return TaskResult(task_id=context.task_id, history=[], result=outcome.result)  # told, however the task ended

    async def _notify_in_thread(self, notify: Notify, outcome: TaskResult) -> None:
        if self._threads is None:
            name = self.definition.service_name
            self._threads = WorkerThreads(name=name, count=self.definition.concurrency)
        value = await self._threads.call(lambda: notify(outcome))
        if inspect.isawaitable(value):
            await value


def _adapter(name: str, answer: Any) -> TypeAdapter[Any]:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(answer)
        adapter.json_schema()
    except (RuntimeError, TypeError, NameError) as error:  # pydantic's errors of definition are RuntimeErrors
        raise SettingError(
            f"the answer type of `{name}` has no JSON form",
            why=str(error).splitlines()[0],
            fix="use JSON types, an enum, a Literal, a dataclass or a pydantic model",
        ) from error
    return adapter


def _in_words(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"]))) for one in found)


if TYPE_CHECKING:
    HumanService = PlainHumanService
else:
    __getattr__, __dir__ = published_names(__name__)
