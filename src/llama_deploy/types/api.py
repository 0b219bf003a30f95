"""What the API shows of tasks, sessions and services: views made for reading, never stored.

Views leave out what is large or secret (inputs, results and state have routes of their own). Times are seconds since
the epoch, UTC. What happens inside a task is in `llama_deploy.types.history`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from llama_deploy.types.core import ServiceDefinition, TaskResult
from llama_deploy.types.limits import ServiceLimits
from llama_deploy.types.planes import MissingPlane
from llama_deploy.types.queues import LimitsView, PauseView
from llama_deploy.types.state import TaskState
from llama_deploy.types.webhooks import WebhookView


class _View(BaseModel):
    """Base of the views: fields of later versions are ignored."""

    model_config = ConfigDict(extra="ignore", defer_build=True)


class TaskView(_View):
    """Where a task stands."""

    task_id: str
    session_id: str
    service: str | None = None
    """The service that the task was submitted for."""
    state: TaskState
    created_at: float
    updated_at: float
    ended_at: float | None = None
    hops: int = 0
    """Steps sent so far. Further attempts of a step are not hops."""
    waiting_for: str | None = None
    """Why the task waits, in words; None while it works and when it has ended."""
    paused: bool = False
    """Whether its steps are held back until somebody has it go on."""
    origin: str | None = None
    """What it came from: `child:<task id>`, `retry:<task id>`, `schedule:<name>`; None for what a client submitted."""
    error: str | None = None
    """The code of the error that it ended with."""
    release: str | None = None
    """The release that its steps go to (`ReleaseView`), as far as it is in memory; None where it is bound to none."""
    webhook: WebhookView | None = None
    """Who is told of the end of the task, and how that gets on; only where one task is asked for."""
    heartbeat: dict[str, Any] | None = None
    """The newest sign of life with details that a running step has shown: `step_id`, `at` (0 where it is of an attempt
    before the control plane's last start) and `details`."""
    prompt: Any | None = None
    """What a person is asked, while the state is `input_required`."""
    result: TaskResult | None = None
    """Only in the answer to a submission that waited, when the task ended in time."""


class TaskPage(_View):
    """A page of tasks. `next` is the cursor of the next page, None on the last one."""

    items: list[TaskView]
    next: str | None = None
    missing: list[MissingPlane] = Field(default_factory=list)
    """Control planes that lead some of these tasks and did not say what those wait for."""


class TaskResultView(_View):
    """A task's outcome, or None while it has none."""

    task_id: str
    state: TaskState
    result: TaskResult | None = None


class SessionView(_View):
    """A session and how many tasks it has; the tasks are listed by the tasks route."""

    session_id: str
    created_at: float
    updated_at: float | None = None
    task_count: int = 0
    open_task_count: int = 0
    """Tasks that have not ended."""
    current_task_id: str | None = None
    """The task submitted last."""


class SessionPage(_View):
    """A page of sessions. `next` is the cursor of the next page, None on the last one."""

    items: list[SessionView]
    next: str | None = None


class InstanceView(_View):
    """One live instance of a service."""

    instance_id: str
    host: str = ""
    pid: int | None = None
    release: str | None = None
    """The release that it says it runs."""
    connected_at: float | None = None
    last_seen_at: float | None = None
    capacity: int = 0
    """Steps that it takes at the same time; 0 while it drains."""
    running: int = 0
    """Steps that it works on now."""
    waiting: int = 0
    """Steps that it holds and that wait for tasks they have called; they take no place."""
    left_behind: int = 0
    """Pieces of code that were asked to stop, did not, and run on without being waited for."""
    draining: bool = False
    control_planes: list[str] = Field(default_factory=list)
    """The names of the control planes that it is connected to; empty where there is one."""


class ServiceView(_View):
    """A service that was registered, with its live instances."""

    definition: ServiceDefinition
    instances: list[InstanceView] = Field(default_factory=list)
    waiting: int = 0
    """Steps that no instance has taken yet."""
    running: int = 0
    """Steps that instances hold now."""
    oldest_waiting_s: float | None = None
    """Age in seconds of the step that waits longest."""
    answered: int = 0
    """Answers that have come since the control planes were started."""
    paused: PauseView | None = None
    """Set while nothing is handed out."""
    limits: ServiceLimits | None = None
    """The limits that count now; None where there are none."""
    limits_set: LimitsView | None = None
    """What an operator has set in the place of the definition's limits."""
    held_back: dict[str, int] = Field(default_factory=dict)
    """Of those that wait, how many wait for something else than a free instance, by what it is (`QueueView`)."""
    state: str = "down"
    """`up` while an instance is connected, `paused` where nothing is handed to it, `draining` while all of them drain,
    `returning` while one is expected back, else `down`."""
    missing: list[MissingPlane] = Field(default_factory=list)
    """Control planes that did not answer; what they know is not counted here."""


class ServicePage(_View):
    """All services; `next` is always None, there is one page."""

    items: list[ServiceView]
    next: str | None = None
    missing: list[MissingPlane] = Field(default_factory=list)
    """Control planes that did not answer."""
