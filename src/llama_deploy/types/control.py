"""What is asked and answered about many tasks at once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llama_deploy.types.api import TaskView

BulkAction = Literal["cancel", "pause", "resume", "migrate", "retry", "replay", "redrive", "export", "delete"]


class BulkItem(BaseModel):
    """What became of one task."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    task_id: str
    new_task_id: str | None = None
    """The task that was made of it, by what makes one."""
    problem: dict[str, Any] | None = None
    """Why nothing was done to it, as problem+json; None where it was done."""


class BulkAnswer(BaseModel):
    """What an action on many tasks has done, or would do."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    action: str
    dry_run: bool
    matched: int
    """How many tasks the action is possible for and fit the filter; counted before anything was done."""
    first: list[TaskView] = Field(default_factory=list)
    """The newest of them, a few; only in the answer to a dry run."""
    items: list[BulkItem] = Field(default_factory=list)
    """What became of each that was taken up, newest first."""
    next: str | None = None
    """The cursor to go on with, None when all are done."""

    @property
    def done(self) -> list[BulkItem]:
        """Those that it was done to."""
        return [item for item in self.items if item.problem is None]

    @property
    def refused(self) -> list[BulkItem]:
        """Those that it was not done to."""
        return [item for item in self.items if item.problem is not None]


class DeadLetterView(BaseModel):
    """A step that was given up. Times are seconds since the epoch."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    step_id: str
    task_id: str
    service: str
    attempt: int
    """The attempt that was the last."""
    at: float
    code: str
    """The code of the last error."""
    error: str
    redriven: str | None = None
    """The task in which it was sent again; None while it was not."""


class DeadLetterPage(BaseModel):
    """A page of dead letters, newest first. `next` is the cursor of the next page, None on the last one."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    items: list[DeadLetterView]
    next: str | None = None


class DeadLetterDetail(BaseModel):
    """A dead letter with what it was about."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    letter: DeadLetterView
    task_state: str
    message: dict[str, Any]
    """The message that the step was sent."""
    attempts: list[dict[str, Any]] = Field(default_factory=list)
    """The history entries that tell of its attempts, oldest first."""


class DeadLetterItem(BaseModel):
    """What became of one dead letter."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    step_id: str
    task_id: str | None = None
    """The task in which it was sent again."""
    problem: dict[str, Any] | None = None
    """Why nothing was done, as problem+json; None where it was done."""


class DeadLetterAnswer(BaseModel):
    """What was done about many dead letters, or would be."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    matched: int
    """How many were looked at and fit."""
    items: list[DeadLetterItem] = Field(default_factory=list)
    """What became of each; empty in a dry run."""
    more: bool = False
    """Whether there may be further ones: ask again."""
