"""What is asked and answered about many tasks at once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llama_deploy.types.api import TaskView

BulkAction = Literal["cancel", "pause", "resume", "retry", "replay", "delete", "redrive"]


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
