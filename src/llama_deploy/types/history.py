"""One entry of a task's history, as the API shows it.

The history of a task is append-only: an entry never changes, and the numbers of the entries have no gap. How entries
are stored is the state store's affair.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from llama_deploy.types.core import TaskError
from llama_deploy.types.state import TaskState


class HistoryEntry(BaseModel):
    """What happened to a task at one moment, and what was decided on it, recorded in one commit.

    Which fields are set depends on `kind`; a field that says nothing about that kind is None or empty.
    """

    model_config = ConfigDict(extra="ignore", defer_build=True)

    seq: int
    """Number of the entry within its task, from 1, without a gap."""
    at: float
    """When it was recorded, in seconds since the epoch."""
    kind: str
    """`submitted`, `forked`, `answered`, `retrying`, `lost`, `input_requested`, `input`, `remembered`, `called`,
    `begun`, `paused`, `resumed`, `migrated`, `moved` (to another release), `timed_out` or `canceled`. Kinds may be
    added. A `paused` entry that names a step is about an attempt that failed or was lost and was the last. `begun`
    stands only where a task had to wait for its beginning."""
    origin: dict[str, Any] | None = None
    """What the task came from: `kind`, `task_id`, and where it began there; on the first entry."""
    step_id: str | None = None
    service: str | None = None
    attempt: int | None = None
    """The attempt of the step that this is about, counted from 1."""
    result: dict[str, Any] | None = None
    """The `TaskResult` that answered the step."""
    error: TaskError | None = None
    """Why an attempt failed or was lost."""
    messages: list[dict[str, Any]] = Field(default_factory=list)
    """What was decided: each with `step_id`, `service`, `action`, `tag`, `delay_s` and `data`."""
    taken_back: list[str] = Field(default_factory=list)
    """Ids of open steps that the decision took back."""
    outcome: dict[str, Any] | None = None
    """The final `TaskResult`; set on the entry that ended the task and on no other."""
    state: TaskState
    """The task's state after this entry."""
    state_changes: dict[str, Any] | None = None
    """The keys of the shared state that the decision changed, with their new values."""
    started_at: float | None = None
    """When the attempt began, by the instance's clock, in seconds since the epoch; of a lost attempt, when it was
    handed to the instance."""
    finished_at: float | None = None
    """When the attempt ended, by the instance's clock, in seconds since the epoch."""
    due_at: float | None = None
    """When the next attempt of the step may begin, in seconds since the epoch; on `retrying` entries."""
    by: str | None = None
    """Who caused the entry, where that is known: an instance, a client, a person."""
    reason: str | None = None
    """Why, in words."""
    input: Any = None
    """What a person answered."""
    prompt: Any = None
    """What a person was asked."""
    key: str | None = None
    """What the service's code named it: a value that it had remembered, or a call."""
    value: Any = None
    """What is remembered under `key`."""
    heartbeat: Any = None
    """What the service's code said with its last sign of life, before the attempt failed or was lost."""
    child: str | None = None
    """The id of the task that the step has called."""
    called: str | None = None
    """The service that was called; None where the orchestrator of the called task chooses."""
    release: str | None = None
    """The release that the task's steps go to from here on: of the first entry, and of a `moved` one."""


class HistoryPage(BaseModel):
    """Entries of one task in order. `next` is what to pass as `after` for the next page, None after the last one."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    items: list[HistoryEntry]
    next: int | None = None
