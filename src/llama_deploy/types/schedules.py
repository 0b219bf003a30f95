"""A schedule: when tasks are submitted by the control plane itself, which, and what follows when one still runs.

`Schedule` is what somebody asks for, `ScheduleView` how it stands. Whether a cron expression and a time zone mean
anything is checked by whoever keeps schedules. Nothing here does I/O.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from llama_deploy.types.options import SECONDS_MAX, TaskOptions

NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}$"
"""What a schedule may be called."""
WINDOW_S_MAX = 31 * 86_400.0
"""The longest time back for which missed times are caught up, in seconds."""


class Schedule(BaseModel):
    """When to submit what. Times are in seconds since the epoch, or ISO 8601 with their zone."""

    model_config = ConfigDict(extra="forbid", defer_build=True, frozen=True)

    cron: str | None = Field(default=None, max_length=200)
    """A cron expression of five fields: minute, hour, day of month, month, day of week; or `@hourly`, `@daily`,
    `@weekly`, `@monthly`, `@yearly`."""
    time_zone: str = Field(default="UTC", max_length=100)
    """The IANA time zone that `cron` is meant in, such as `Europe/Berlin`."""
    every_s: float | None = Field(default=None, ge=1, le=SECONDS_MAX, allow_inf_nan=False)
    """In the place of `cron`: so many seconds from one time to the next, counted from `start_at` or the creation."""
    start_at: float | None = Field(default=None, ge=0, le=32_503_680_000, allow_inf_nan=False)
    """No time before this one counts."""
    end_at: float | None = Field(default=None, ge=0, le=32_503_680_000, allow_inf_nan=False)
    """No time after this one counts."""
    jitter_s: float = Field(default=0.0, ge=0, le=86_400, allow_inf_nan=False)
    """Each task is submitted up to so many seconds later than its time, always the same number for the same time."""
    overlap: Literal["skip", "queue", "allow", "cancel"] = "skip"
    """What follows when the task before has not ended: leave this time out; submit when that one has ended, with one
    waiting; submit all the same; or cancel that one and submit."""
    catch_up: Literal["none", "latest", "all"] = "latest"
    """Which of the times count that were missed while the control plane was down."""
    catch_up_window_s: float = Field(default=86_400.0, ge=0, le=WINDOW_S_MAX, allow_inf_nan=False)
    """Only times that were missed for no longer than this are caught up."""
    service: str | None = None
    """The service that the tasks are for; the default service if there is one."""
    input: Any = ""
    """A string is passed as it is, any other JSON as its text (keyword arguments)."""
    session_id: str | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    """The tasks' labels; `schedule` and `due_at` are added to them."""
    options: TaskOptions | None = None
    """Deadlines, retries, priority of the tasks."""

    @field_validator("start_at", "end_at", mode="before")
    @classmethod
    def _read_time(cls, value: Any) -> Any:
        """ISO text and datetimes as seconds since the epoch. Raises `ValueError` for a time without its zone."""
        return TaskOptions.read_time(value)

    @model_validator(mode="after")
    def _check(self) -> Schedule:
        if (self.cron is None) == (self.every_s is None):
            raise ValueError("give one of cron and every_s")
        if self.every_s is not None and self.time_zone != "UTC":
            raise ValueError("time_zone belongs to cron; every_s counts seconds")
        if self.start_at is not None and self.end_at is not None and self.end_at < self.start_at:
            raise ValueError("end_at is before start_at")
        if self.catch_up == "all" and self.overlap not in ("queue", "allow"):
            raise ValueError("catch_up all needs overlap queue (one after the other) or allow (all at once)")
        if self.options is not None and (self.options.run_at is not None or self.options.origin is not None):
            raise ValueError("options.run_at and options.origin are the schedule's to say")
        return self

    @property
    def timing(self) -> tuple[Any, ...]:
        """All that says when: where it changes, what was missed before does not count any more."""
        return (self.cron, self.time_zone, self.every_s, self.start_at)


class ScheduleView(BaseModel):
    """How a schedule stands. Times are seconds since the epoch."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    name: str
    schedule: Schedule
    from_file: bool = False
    """It stands in the deployment file, and is changed there."""
    paused: bool = False
    paused_because: str = ""
    """Who paused it and why."""
    next_at: float | None = None
    """When the next task is submitted, `jitter_s` included; None while it is paused and after its end."""
    last_due_at: float | None = None
    """The latest time for which a task was submitted."""
    last_task_id: str | None = None
    """The latest task that it submitted."""
    running: bool = False
    """Whether that task has not ended."""
    waiting: list[float] = Field(default_factory=list)
    """Times whose tasks wait for the end of the one before."""
    submitted: int = 0
    """Tasks that it has submitted."""
    skipped: int = 0
    """Times that were left out because the task before had not ended."""
    missed: int = 0
    """Times that were missed and not caught up."""
    last_error: str = ""
    """Why the latest task could not be submitted; empty where it could."""
    created_at: float = 0.0
    updated_at: float = 0.0


class SchedulePage(BaseModel):
    """All schedules; `next` is always None, there is one page."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    items: list[ScheduleView]
    next: str | None = None


class ScheduleTimes(BaseModel):
    """The next times of a schedule."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    items: list[datetime]
    """In the schedule's time zone."""


class ScheduleTask(BaseModel):
    """The task that was submitted when somebody asked for it."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    task_id: str
