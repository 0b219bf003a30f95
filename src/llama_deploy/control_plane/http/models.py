"""Bodies of `/v1` requests, and the answers that only HTTP has.

What is answered about tasks, sessions and services is in `llama_deploy.types.api` and `llama_deploy.types.history`.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from llama_deploy.control_plane.http.problems import Problem
from llama_deploy.control_plane.refusals import refuse_origin
from llama_deploy.types import MissingPlane, ServiceLimits, TaskDefinition, TaskOptions, TaskView
from llama_deploy.types.options import SECONDS_MAX
from llama_deploy.types.schedules import Schedule

REASON_CHARACTERS_MAX = 10_000

BATCH_TASKS_MAX = 1_000
"""Tasks in one batch of submissions."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TaskRequest(_Body):
    """A task to submit."""

    service: str | None = Field(default=None, description="Who shall do it; the default service if there is one.")
    input: Any = Field(
        default="", description="A string is passed as it is, any other JSON as its text (keyword arguments)."
    )
    session_id: str | None = None
    task_id: str | None = Field(default=None, description="Choose it yourself to make repeating the request safe.")
    idempotency_key: str | None = None
    wait_for_service: bool = Field(default=False, description="Wait visibly instead of refusing when nobody serves it.")
    metadata: dict[str, str] = Field(default_factory=dict)
    options: TaskOptions | None = Field(default=None, description="Deadlines, retries, a later start, priority.")

    def definition(self) -> TaskDefinition:
        """The task as the engine takes it. Raises `InvalidRequestError` for what only the control plane may say."""
        text = self.input
        if not isinstance(text, str):  # to the letter as a client of ours writes it: the same request is the same text
            text = json.dumps(text, ensure_ascii=False, separators=(",", ":"))
        fields: dict[str, Any] = {
            "input": text,
            "agent_id": self.service,
            "session_id": self.session_id,
            "idempotency_key": self.idempotency_key,
            "wait_for_service": self.wait_for_service,
            "metadata": self.metadata,
            "options": self.options,
        }
        if self.task_id is not None:
            fields["task_id"] = self.task_id
        definition = TaskDefinition.model_validate(fields)
        refuse_origin(definition)
        return definition


class BatchRequest(_Body):
    """Tasks to submit at once; each is accepted or refused on its own."""

    tasks: list[TaskRequest] = Field(max_length=BATCH_TASKS_MAX)


class LookupRequest(_Body):
    """Tasks to look up."""

    task_ids: list[str] = Field(max_length=BATCH_TASKS_MAX)


class InputRequest(_Body):
    """What a person answers."""

    value: Any
    step_id: str | None = Field(default=None, description="Needed only where several steps of the task ask.")


class CancelRequest(_Body):
    """Why a task is canceled, and who wants it."""

    reason: str = Field(default="", max_length=REASON_CHARACTERS_MAX)
    by: str = Field(default="", max_length=200, description="Who; it stands in the record.")


class PauseRequest(_Body):
    """Why something is paused or goes on, and who wants it: a task, a schedule, a service."""

    reason: str = Field(default="", max_length=REASON_CHARACTERS_MAX)
    by: str = Field(default="", max_length=200, description="Who; it stands in the record.")


class LimitsRequest(_Body):
    """The limits that shall count for a service, all of them; what is left out is not limited."""

    limits: ServiceLimits
    by: str = Field(default="", max_length=200)


class ReleaseRequest(_Body):
    """How the release before gives way."""

    finish_within_s: float | None = Field(
        default=None,
        ge=0,
        le=SECONDS_MAX,
        allow_inf_nan=False,
        description="Seconds that its tasks may take to finish on it; 0: none. By default release_finish_within_s.",
    )


class DrainRequest(_Body):
    """How an instance is to leave."""

    timeout_s: float | None = Field(
        default=None,
        ge=0,
        le=SECONDS_MAX,
        allow_inf_nan=False,
        description="What it has not finished by then goes to others; by default it takes as long as it takes.",
    )


class ScheduleRequest(Schedule):
    """A schedule to create, or to put in the place of the one of this name."""

    model_config = ConfigDict(extra="forbid", strict=True, defer_build=False, frozen=True)

    def schedule(self) -> Schedule:
        """The schedule as it is kept."""
        return Schedule.model_validate(self.model_dump())


class SessionRequest(_Body):
    """A session to create."""

    session_id: str | None = None


class BatchItem(BaseModel):
    """One of the two: the task as recorded, or why it was refused."""

    task: TaskView | None = None
    problem: Problem | None = None


class BatchAnswer(BaseModel):
    """What became of the tasks of a batch, in the order of the request."""

    items: list[BatchItem]


class Health(BaseModel):
    """The process lives."""

    status: str = "ok"


class Readiness(BaseModel):
    """Whether tasks are taken."""

    ready: bool
    store: bool = Field(description="The store can be written.")


class StoreStatus(BaseModel):
    """Where the data lives, and how that is."""

    location: str
    healthy: bool
    backlog: int = Field(description="Transitions that are not committed yet.")


class Status(BaseModel):
    """What the control planes are doing, in numbers. Times are seconds since the epoch.

    Where several share a store, what is counted is of all of them, and what is about one of the one that was asked.
    """

    model_config = ConfigDict(extra="allow")

    name: str
    redact: list[str] = Field(default_factory=list, description="Keys whose values people do not get to see.")
    ready: bool
    version: str = Field(description="Of the program.")
    started_at: float
    now: float = Field(description="The time by the control plane's clock.")
    store: StoreStatus
    tasks: dict[str, int] = Field(description="How many tasks are in each state; states without any are left out.")
    services: dict[str, bool] = Field(description="Every known service, and whether an instance of it is connected.")
    instances: int
    clients: int
    statistics: dict[str, int] = Field(description="What was done since the start.")
    control_planes: list[dict[str, Any]] = Field(
        default_factory=list, description="Each of those that share the store, by itself; empty where there is one."
    )
    missing: list[MissingPlane] = Field(
        default_factory=list, description="Those that did not answer: they are not counted."
    )
