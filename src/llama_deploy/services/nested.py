"""A workflow inside of a workflow, where the inner one is a service of its own: its runs are calls of that service.

The inner workflow's `run` becomes a durable task that survives the outer run's process. The call is named by what is
asked for, since the order in which steps run may differ between attempts: the same request finds the same task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable
from typing import Any

from workflows import Workflow
from workflows.events import StartEvent

from llama_deploy.errors import NonRetryableError, ServiceUnknownError
from llama_deploy.messages.values import encode_json
from llama_deploy.services.base import Service, StepContext, running_step
from llama_deploy.services.workflow import PlainWorkflowService
from llama_deploy.services.workflow_events import event_fields


class CalledWorkflow:
    """Stands for a workflow that another service runs. `run(...)` calls it, from the step of a workflow.

    `original`, where there is one, runs in this process wherever no step of a service runs; with `here_when_unserved`
    also where nobody serves the service. Without that, a call waits until somebody does.
    """

    def __init__(self, service: str, original: Workflow | None = None, *, here_when_unserved: bool = False) -> None:
        self.service = service
        self._original = original
        self._here_when_unserved = here_when_unserved

    def __repr__(self) -> str:
        return f"<workflow of service {self.service!r}>"

    def run(self, ctx: Any = None, start_event: StartEvent | None = None, **kwargs: Any) -> Any:
        """Begin the call; what is returned is awaited for the service's output, as JSON has it.

        Takes the keyword arguments of the start event, or the event. Raises `NonRetryableError` for a context: the
        run has one of its own, where the service is.
        """
        step = running_step()
        if step is None and self._original is not None:
            return self._original.run(ctx=ctx, start_event=start_event, **kwargs)
        if step is None:
            raise NonRetryableError(f"no step runs here that could call {self.service!r}")
        if ctx is not None:
            raise NonRetryableError(
                f"the workflow of {self.service!r} runs elsewhere, so it cannot be given a context",
                fix="give it what it needs as arguments, or serve it with memory",
            )
        otherwise = self._original if self._here_when_unserved else None
        arguments = {**(event_fields(start_event) if start_event else {}), **kwargs}
        return CalledRun(step, self.service, arguments, otherwise)


class CalledRun:
    """A run that was called for and is awaited, once or again."""

    def __init__(
        self, step: StepContext, service: str, arguments: dict[str, Any], otherwise: Workflow | None = None
    ) -> None:
        self._otherwise = otherwise
        self._step = step
        self._service = service
        self._arguments = arguments
        digest = hashlib.sha256(encode_json([service, arguments])).hexdigest()[:24]
        number = step.nested_calls[digest] = step.nested_calls.get(digest, 0) + 1
        self._key = f"run {digest} {number}"

    def __await__(self) -> Generator[Any, None, Any]:
        return self._call().__await__()

    async def _call(self) -> Any:
        try:
            return await self._step.call(
                self._service, input=self._arguments, key=self._key, wait_for_service=self._otherwise is None
            )
        except ServiceUnknownError:
            if self._otherwise is None:
                raise
            return await self._otherwise.run(**self._arguments)

    def stream_events(self, **_: Any) -> Any:
        """Not here. Raises `NonRetryableError`."""
        raise NonRetryableError(
            f"the events of {self._service!r} are in the stream of its own task",
            fix="await the run; or leave the inner workflow in its process: WorkflowService(outer, nested={})",
        )


def nest(services: Iterable[Service]) -> None:
    """Have every workflow call those workflows inside of it that are services beside it in this instance.

    It is the same object that counts; what `WorkflowService(nested=...)` says, stands.
    """
    workflows = [one for one in services if isinstance(one, PlainWorkflowService)]
    served = {id(one.template): one.definition.service_name for one in workflows if one.template is not None}
    for one in workflows:
        if one.nested is None and one.template is not None:
            found = {name: served.get(id(value)) for name, value in vars(one.template).items()}
            mine = {name: service for name, service in found.items() if service is not None}
            one.nested = {name: service for name, service in mine.items() if service != one.definition.service_name}
