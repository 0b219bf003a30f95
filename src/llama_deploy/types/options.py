"""What a client may ask for beyond the input: deadlines, retries, a later start, priority, what a task came from.

All of it is optional and travels with the task's definition, so that it is recorded with the task and survives what
the task survives. An orchestrator may say the same of a single step (`StepOptions` on a message), which comes first;
what neither says is the service's to say, and then the settings'. An option that does not exist is refused: whoever
asks for it would wait for something that nobody does.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from llama_deploy.types.retry import RetryPolicy

PRIORITY_DEFAULT = 5
"""The priority of what has none."""
SECONDS_MAX = 366 * 86_400.0
"""The longest deadline or delay that may be asked for, in seconds."""


class StepOptions(BaseModel):
    """How one step is carried out; on a task, how each of its steps is."""

    model_config = ConfigDict(extra="forbid", defer_build=True, frozen=True)

    retry: RetryPolicy | None = None
    """How failed attempts are tried again."""
    queue_timeout_s: float | None = Field(default=None, gt=0, le=SECONDS_MAX, allow_inf_nan=False, strict=True)
    """The step fails when no instance has taken it within so many seconds of being due."""
    run_timeout_s: float | None = Field(default=None, gt=0, le=SECONDS_MAX, allow_inf_nan=False, strict=True)
    """Deadline of one attempt in seconds."""
    heartbeat_timeout_s: float | None = Field(default=None, gt=0, le=SECONDS_MAX, allow_inf_nan=False, strict=True)
    """An attempt is given up when the service's code has not called `ctx.heartbeat` for so many seconds."""
    priority: int | None = Field(default=None, ge=0, le=9, strict=True)
    """0 to 9; what waits for the same service goes by this, the higher first, and none of them starves."""
    key: str | None = Field(default=None, min_length=1, max_length=200)
    """Whom the work is for (a customer, a document): keys take turns, and a service may limit each of them."""


class Origin(BaseModel):
    """What a task came from. It is recorded with the task and never changes."""

    model_config = ConfigDict(extra="ignore", defer_build=True, frozen=True)

    kind: Literal["child", "retry", "replay", "fork", "redrive", "schedule", "import"]
    task_id: str | None = None
    """The task that this one was made from, or that called it."""
    step_id: str | None = None
    """The step that called it, or that it begins again with."""
    seq: int | None = Field(default=None, strict=True)
    """The entry of that task's history after which this one goes its own way."""
    edited: str | None = None
    """A hash of what was given in the place of what that task had; None where nothing was changed."""
    schedule: str | None = None
    depth: int = Field(default=0, strict=True)
    """How many calls are above a child."""

    @property
    def text(self) -> str:
        """The origin in one word, as the task's row has it: `child:<task id>`, `schedule:<name>`."""
        return f"{self.kind}:{self.schedule if self.kind == 'schedule' else self.task_id or ''}"


class Webhook(BaseModel):
    """Whom to tell over HTTP that the task has ended."""

    model_config = ConfigDict(extra="forbid", defer_build=True, frozen=True)

    url: str = Field(min_length=1, max_length=2_000, pattern=r"^https?://")
    secret: str | None = Field(default=None, max_length=200)
    """The name of a secret that the control plane knows; the request is signed with it."""


class TaskOptions(StepOptions):
    """What may be asked for a whole task; the fields of `StepOptions` count for each of its steps."""

    run_at: float | None = Field(default=None, ge=0, allow_inf_nan=False, strict=True)
    """Not to begin before this time: seconds since the epoch, or a date and time with its zone (ISO 8601)."""
    delay_s: float | None = Field(default=None, ge=0, le=SECONDS_MAX, allow_inf_nan=False, strict=True)
    """Not to begin before so many seconds after it was submitted."""
    total_timeout_s: float | None = Field(default=None, gt=0, le=SECONDS_MAX, allow_inf_nan=False, strict=True)
    """The task fails when it has not ended so many seconds after it was due to begin."""
    orchestrator: str | None = Field(default=None, min_length=1, max_length=200)
    """Who decides about the task, by one of the names that the deployment has; None for its default."""
    webhook: Webhook | None = None
    origin: Origin | None = None
    """Set by the control plane; what a client sends here is refused."""

    @field_validator("run_at", mode="before")
    @classmethod
    def _read_run_at(cls, value: Any) -> Any:
        return cls.read_time(value)

    @staticmethod
    def read_time(value: Any) -> Any:
        """ISO text and datetimes as seconds since the epoch. Raises `ValueError` for a time without its zone."""
        if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            if value.tzinfo is None:
                raise ValueError("give the time's zone, as in 2030-01-31T08:00:00Z")
            return value.timestamp()
        return value
