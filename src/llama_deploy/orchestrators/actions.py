"""What an orchestrator may decide, as values: start something, ask, wait, tell, end.

An action does nothing by itself. `Orchestrator` (in `typed`) turns the actions of one turn into messages and state,
which the control plane records in one commit before anybody acts on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from llama_deploy.types.core import TaskError
from llama_deploy.types.options import StepOptions


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from a node, parsed once."""

    tag: str
    """The tag of the action that asked for it."""
    node: str
    """The service or node that answered."""
    status: str
    """`completed`, `failed`, `canceled` or `rejected`."""
    output: Any
    error: TaskError | None = None
    step_id: str = ""
    """The step that answered; empty for a node that is an orchestrator."""
    attempt: int = 1
    usage: Mapping[str, float] = field(default_factory=dict)
    """What the service says that it has used: `data["usage"]` of its result, numbers by name (`tokens`, `cost`)."""

    @property
    def failed(self) -> bool:
        """Whether there is no output to go on with."""
        return self.status != "completed"

    def to_json(self) -> dict[str, Any]:
        """The answer as JSON types."""
        error = self.error.model_dump(mode="json", exclude_defaults=True) if self.error is not None else None
        return {**asdict(self), "usage": dict(self.usage), "error": error}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Answer:
        """The answer that `to_json` wrote."""
        error = value["error"]
        return cls(**{**value, "error": TaskError.model_validate(error) if error is not None else None})


@dataclass(frozen=True, slots=True)
class Run:
    """Start a node: a service by its name, or what `nodes` of the orchestrator has under that name.

    Its answer comes back with `tag`, the node's name where none is given. Two that run at the same time have
    different tags. A dictionary as `input` is the service's keyword arguments, anything else its one input.
    """

    node: str
    input: Any = None
    tag: str = ""
    delay_s: float = 0.0
    options: StepOptions | None = None


@dataclass(frozen=True, slots=True)
class Again:
    """Have the step that has just failed tried again, as it was and under its own id, after a delay."""

    answer: Answer
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a person. Nothing is held in memory while the task waits; the answer comes back with `tag`."""

    prompt: str
    tag: str = "ask"
    schema: Mapping[str, Any] | None = None
    """JSON Schema of the answer."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else the person is shown."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Let time pass; a completed answer comes back with `tag` when it is over, across any crash."""

    delay_s: float
    tag: str = "wait"


@dataclass(frozen=True, slots=True)
class Emit:
    """Append an event to the task's stream."""

    event: Any


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Stop what runs under this tag; no answer of it comes back."""

    tag: str


@dataclass(frozen=True, slots=True)
class Compensate:
    """Remember how to undo what was done. If this orchestrator fails, its undoings run, the latest first.

    They run one after the other before the failure is told; one that fails itself is skipped, and noted in the error.
    """

    node: str
    input: Any = None


@dataclass(frozen=True, slots=True)
class Hold:
    """From `observe`: keep this answer, and all that follow, from those below until `Release`."""


@dataclass(frozen=True, slots=True)
class Release:
    """Let those below have what was held."""


@dataclass(frozen=True, slots=True)
class Finish:
    """End with this output: the task's, or the answer to the orchestrator that this one is a node of."""

    output: Any = None


@dataclass(frozen=True, slots=True)
class Fail:
    """End as failed."""

    error: TaskError

    @classmethod
    def because(cls, message: str, *, fix: str = "") -> Fail:
        """A failure with a message of the orchestrator's own."""
        return cls(TaskError(code="LD530", type="OrchestrationFailedError", message=message, fix=fix, retryable=False))


Action = Run | Again | Ask | Wait | Emit | TakeBack | Compensate | Hold | Release | Finish | Fail
