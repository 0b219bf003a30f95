"""What is submitted, carried, answered and streamed: the published models, and the fields that were added to them.

Names, fields and defaults are those of the published system, so programs and JSON written for it work unchanged.
Every added field has a default, and unknown fields are ignored, so old and new sides read each other. The models are
mutable, as published, and cheap to make: they are on the path of every task. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

import uuid_utils
from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from llama_deploy.types.limits import ServiceLimits
from llama_deploy.types.options import TaskOptions
from llama_deploy.types.retry import RetryPolicy

CONTROL_PLANE_NAME = "control_plane"
"""The name under which the control plane itself is addressed in messages."""


def generate_id() -> str:
    """A new unique id: the text of a UUID version 7 (RFC 9562), so that later ids sort after earlier ones."""
    return str(uuid_utils.uuid7())


class _Model(BaseModel):
    """Base of the published models: mutable, and fields of other versions are ignored."""

    model_config = ConfigDict(extra="ignore", defer_build=True)


def _merge_names(data: Any, name: str, later_name: str) -> Any:
    """Input in which a field may come under either of two names, with the value under `name` alone.

    Raises `ValueError` when both are given and differ: nobody can know which one was meant.
    """
    if not isinstance(data, Mapping) or (later := data.get(later_name)) is None:
        return data
    if (given := data.get(name)) is not None and given != later:
        raise ValueError(f"{name} ({given!r}) and {later_name} ({later!r}) are the same field: give one of them")
    return {**data, name: later}


class ActionTypes(str, Enum):
    """What a message asks its receiver to do, or tells it."""

    NEW_TASK = "new_task"
    COMPLETED_TASK = "completed_task"
    REQUEST_FOR_HELP = "request_for_help"
    NEW_TOOL_CALL = "new_tool_call"
    COMPLETED_TOOL_CALL = "completed_tool_call"
    TASK_STREAM = "task_stream"
    SEND_EVENT = "send_event"


class MessageRole(str, Enum):
    """Who speaks in a chat message."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    FUNCTION = "function"
    TOOL = "tool"
    CHATBOT = "chatbot"
    MODEL = "model"


class ChatMessage(_Model):
    """One message of a conversation. JSON that carries `blocks` in the place of `content` is read as well."""

    role: MessageRole = MessageRole.USER
    content: Any | None = ""
    additional_kwargs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _read_blocks(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "content" in data or not isinstance(blocks := data.get("blocks"), list):
            return data
        texts = [block["text"] for block in blocks if isinstance(block, Mapping) and isinstance(block.get("text"), str)]
        return {**data, "content": "\n".join(texts)}

    @classmethod
    def from_str(cls, content: str, role: MessageRole | str = MessageRole.USER, **kwargs: Any) -> ChatMessage:
        """A message of this text; `kwargs` are further fields. Raises `ValueError` for an unknown role."""
        return cls(role=MessageRole(role), content=content, **kwargs)

    def __str__(self) -> str:
        return f"{self.role.value}: {self.content}"


class TaskDefinition(_Model):
    """What a client asks for. `agent_id` names the service; `service_id` is the same field under its later name."""

    input: str
    """Text, or the JSON of the keyword arguments for services that take several."""
    task_id: str = Field(default_factory=generate_id)
    session_id: str | None = None
    agent_id: str | None = None
    """The service that the task is for; None leaves the choice to the orchestrator or the default service."""
    wait_for_service: bool = False
    """Wait visibly when nobody serves the service, where the task would otherwise be refused."""
    idempotency_key: str | None = None
    """Submitting again under the same key returns the task of the first submission."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """The client's own labels; carried, never interpreted."""
    options: TaskOptions | None = None
    """Deadlines, retries, a later start, priority; None is the rule."""

    if TYPE_CHECKING:
        service_id: str | None = None
    else:

        @computed_field(repr=False)
        @property
        def service_id(self) -> str | None:
            """The later name of `agent_id`."""
            return self.agent_id

        @service_id.setter
        def service_id(self, value: str | None) -> None:
            self.agent_id = value

    def dumped(self) -> dict[str, Any]:
        """As `model_dump()`, at a tenth of its cost where nothing is nested; what is nested is not copied."""
        if self.options is not None or type(self) is not TaskDefinition:
            return self.model_dump()
        return {**self.__dict__, "service_id": self.agent_id}

    @model_validator(mode="before")
    @classmethod
    def _accept_service_id(cls, data: Any) -> Any:
        return _merge_names(data, "agent_id", "service_id")


class SessionDefinition(_Model):
    """An ordered group of tasks that share state."""

    session_id: str = Field(default_factory=generate_id)
    task_ids: list[str] = Field(default_factory=list)
    """In the order of submission."""
    state: dict[str, Any] = Field(default_factory=dict)

    @property
    def current_task_id(self) -> str | None:
        """The task submitted last, or None in an empty session."""
        return self.task_ids[-1] if self.task_ids else None


class NewTask(_Model):
    """The data of a `NEW_TASK` message: the task, and the part of the state that belongs to it."""

    task: TaskDefinition
    state: dict[str, Any] = Field(default_factory=dict)


class TaskError(_Model):
    """Why a step or a task failed, as recorded."""

    code: str = "LD502"
    """The code of the error, as in `llama_deploy.errors`."""
    type: str = ""
    """The class of the exception that the service raised."""
    message: str = ""
    fix: str = ""
    """What to do about it, where the error says so."""
    retryable: bool = True
    """False when another attempt can only fail in the same way."""
    traceback: str | None = None
    retry_after_s: float | None = None
    """Seconds that the service asks to be left alone before the next attempt."""


class TaskResult(_Model):
    """The answer to a step, and the recorded outcome of a task.

    `result` is always text, for every reader. Where `kind` is `json`, `value` holds the answer itself. A result
    written before there was a `status` is a completed one.
    """

    task_id: str
    history: list[ChatMessage]
    result: str
    data: dict[str, Any] = Field(default_factory=dict)
    status: Literal["completed", "failed", "canceled", "rejected"] = "completed"
    error: TaskError | None = None
    """Set when `status` is not `completed`."""
    kind: Literal["text", "json"] = "text"
    value: Any = None
    """The answer as a JSON value; it counts only where `kind` is `json`, where None is the answer null."""
    step_id: str | None = None
    """The step that this answers; filled in by the control plane, the same for all attempts."""
    service: str | None = None
    """The service that answered; filled in by the control plane."""
    attempt: int = 1
    """The attempt of the step that answered, counted from 1."""
    tag: str | None = None
    """The orchestrator's own word for the step, from the message that asked for it."""

    def dumped(self) -> dict[str, Any]:
        """As `model_dump()`, at a tenth of its cost where nothing is nested; what is nested is not copied."""
        nested = self.error is not None or self.history or self.data or self.value is not None
        return self.model_dump() if nested or type(self) is not TaskResult else dict(self.__dict__)

    @property
    def output(self) -> Any:
        """What the service returned: `value` where `kind` is `json`, else the text."""
        return self.value if self.kind == "json" else self.result


class TaskStream(_Model):
    """One event of a task's stream. `index` counts the task's events from 0, without a gap."""

    task_id: str
    session_id: str | None = None
    data: dict[str, Any]
    index: int


class EventDefinition(_Model):
    """An event for a running workflow. `agent_id` is the same field as `service_id` under its earlier name."""

    service_id: str
    event_obj_str: str
    """JSON of the event."""

    if TYPE_CHECKING:
        agent_id: str = ""
    else:

        @computed_field(repr=False)
        @property
        def agent_id(self) -> str:
            """The earlier name of `service_id`."""
            return self.service_id

        @agent_id.setter
        def agent_id(self, value: str) -> None:
            self.service_id = value

    @model_validator(mode="before")
    @classmethod
    def _accept_agent_id(cls, data: Any) -> Any:
        return _merge_names(data, "service_id", "agent_id")


class ToolCallBundle(_Model):
    """The name of a tool and what to call it with."""

    tool_name: str
    tool_args: list[Any]
    tool_kwargs: dict[str, Any]


class ToolCall(_Model):
    """A request to call a tool. `source_id` names who asks and gets the answer."""

    id_: str = Field(default_factory=generate_id)
    tool_call_bundle: ToolCallBundle
    source_id: str


class ToolCallResult(_Model):
    """The answer to the `ToolCall` with the same `id_`."""

    id_: str
    tool_message: ChatMessage
    result: str


class ServiceDefinition(_Model):
    """What a service says about itself when it registers."""

    service_name: str
    description: str
    prompt: list[ChatMessage] = Field(default_factory=list)
    host: str | None = None
    port: int | None = None
    kind: Literal["function", "workflow", "human", "tool", "agent", "other"] = "other"
    input_schema: dict[str, Any] | None = None
    """JSON Schema of the keyword arguments, where it is known."""
    output_schema: dict[str, Any] | None = None
    """JSON Schema of the answer, where it is known."""
    memory: Literal["none", "session", "task"] = "none"
    """What its steps share, one after the other: a memory of their session, one of their task, or nothing."""
    concurrency: int = Field(default=8, ge=1)
    """Steps that one instance works on at the same time."""
    run_timeout_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    """Deadline of one attempt in seconds."""
    retry: RetryPolicy | None = None
    """How failed attempts are tried again. None leaves it to the orchestrator, and to `RetryPolicy()` where that does
    not handle failures; what is given here counts with every orchestrator."""
    limits: ServiceLimits | None = None
    """How much of it runs at once over all instances, and how often. An operator's word comes before it."""


class HumanResponse(_Model):
    """What a person answered."""

    result: str
