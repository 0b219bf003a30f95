"""What a service is to the runner: a definition, and one method that works on one attempt of one step.

Adapters (functions, workflows, people, tools) implement `Service`; the runner owns everything else: connections,
credits, deadlines, cancellation, answers. An adapter raises when the step failed and never sends anything itself.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import msgspec

from llama_deploy.services.encoding import encode
from llama_deploy.types import ServiceDefinition, TaskResult


class Parked(msgspec.Struct, frozen=True, kw_only=True):
    """What `Service.run` returns instead of a result when the step waits for a person.

    With `resume="answer"` the person's input becomes the step's answer. With `resume="redeliver"` the step runs
    again, on any instance, with `snapshot` and every input so far.
    """

    prompt: dict[str, Any]
    """Shown to the person: at least `prompt` (text); `schema` (JSON schema of the answer) where one is known."""
    resume: str = "answer"
    snapshot: bytes | None = None
    consumed: int = 0
    """How many inputs of this step the service has used up; parking is refused when there are newer ones."""


class StepContext:
    """One attempt of one step, as the service's code sees it. Its methods may be called from any thread.

    `step_id` is the same for all attempts: use it to make side effects idempotent.
    """

    def __init__(
        self,
        *,
        step_id: str,
        attempt: int,
        task_id: str,
        session_id: str,
        service: str,
        action: str,
        data: dict[str, Any],
        emit: Callable[[bytes], None],
        ask: Callable[[dict[str, Any]], None],
        inputs: asyncio.Queue[Any],
        inputs_given: int = 0,
        snapshot: bytes | None = None,
        run_timeout_s: float = 0.0,
    ) -> None:
        self.step_id = step_id
        self.attempt = attempt
        """1 for the first attempt."""
        self.task_id = task_id
        self.session_id = session_id
        self.service = service
        self.action = action
        """Value of `ActionTypes`."""
        self.data = data
        """The message's data; for a new task the fields of `NewTask`."""
        self.snapshot = snapshot
        """What an earlier attempt parked with (`Parked.snapshot`)."""
        self.run_timeout_s = run_timeout_s
        """The run deadline of this attempt in seconds; time spent waiting for a person does not count."""
        self.inputs = inputs
        """Inputs from people for this step, oldest first, as decoded JSON values; also those of earlier attempts."""
        self.inputs_given = inputs_given
        """How many inputs stood in `inputs` when this attempt began."""
        self.canceled = False
        """True once the attempt should stop: its coroutine is cancelled, a thread has to look here."""
        self._emit = emit
        self._ask = ask

    @property
    def input(self) -> str:
        """The task's input text; of a message that carries no task, its data as JSON text (empty for no data)."""
        task = self.data.get("task")
        if isinstance(task, dict) and "input" in task:
            return str(task["input"])
        return encode(self.data).decode() if self.data else ""

    def stream(self, event: Any) -> None:
        """Append an event to the task's stream; any value with a JSON form.

        It reaches subscribers once it is recorded. After a crash the next attempt starts its events anew, after a
        marker. Raises `ResultNotSerialisableError` for a value without a JSON form; nothing is streamed then.
        """
        self._emit(encode_value(event))

    def request_input(self, prompt: dict[str, Any]) -> None:
        """Ask a person without waiting here: the task is `input_required`, and the answer arrives in `inputs`.

        `prompt` as in `Parked.prompt`.
        """
        self._ask(prompt)

    async def ask(self, prompt: str, **details: Any) -> Any:
        """Ask a person and wait for the answer while this attempt keeps running.

        The task is `input_required` meanwhile. The answer is recorded before it is given here; an attempt after a
        crash is given the recorded answers in the same order without anyone being asked again.
        """
        if self.inputs.empty():
            self.request_input({"prompt": prompt, **details})
        return await self.inputs.get()


class Service(ABC):
    """A named consumer of steps. One object serves many steps at once, so `run` keeps its state in locals."""

    definition: ServiceDefinition

    @abstractmethod
    async def run(self, context: StepContext) -> TaskResult | Parked:
        """Work on one attempt of one step.

        Returns the result (its `task_id`, `step_id`, `service` and `attempt` are filled in by the engine), or
        `Parked`. Raises on failure: `NonRetryableError` and `ArgumentsError` are final, everything else is retried
        as the policy says. May run again for the same step after a crash.
        """

    async def start(self) -> None:
        """Called once before the first step, on the loop that `run` will be called on."""

    async def stop(self) -> None:
        """Called once after the last step."""


def encode_value(value: Any) -> bytes:
    """JSON of a value that user code produced: JSON types, pydantic models, dataclasses, msgspec structs, datetimes.

    Raises `ResultNotSerialisableError` that names the type, so that nothing half-serialised is ever recorded.
    """
    return encode(value)
