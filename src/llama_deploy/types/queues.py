"""What the API shows of queues: what waits for a service, in which order, and what holds it back.

A queue is what waits for one service and has its name. Views made for reading, never stored; times are seconds since
the epoch, UTC.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from llama_deploy.types.limits import ServiceLimits
from llama_deploy.types.planes import MissingPlane


class _View(BaseModel):
    """Base of the views: fields of later versions are ignored."""

    model_config = ConfigDict(extra="ignore", defer_build=True)


class PauseView(_View):
    """That a service is paused: since when, by whom and why."""

    at: float
    by: str = ""
    reason: str = ""


class LimitsView(_View):
    """The limits that an operator has set in the place of those that a service has by its definition."""

    limits: ServiceLimits
    at: float
    by: str = ""


class QueueView(_View):
    """What waits for one service."""

    name: str
    """The service's name."""
    state: str = "down"
    """That of the service: `up`, `paused`, `draining`, `returning`, `down`."""
    waiting: int = 0
    """Steps that are due and that no instance has taken yet."""
    oldest_waiting_s: float | None = None
    """Age in seconds of the step that waits longest."""
    running: int = 0
    """Steps that instances hold now."""
    instances: int = 0
    """Instances that are connected."""
    answered: int = 0
    """Answers that have come since the control plane was started; how fast they come tells when the queue is empty."""
    paused: PauseView | None = None
    """Set while nothing is handed out."""
    limits: ServiceLimits | None = None
    """The limits that count now; None where there are none."""
    held_back: dict[str, int] = {}
    """Of those that wait, how many wait for something else than a free instance: for the service to go on (`paused`),
    for a limit (`running_max`, `running_max_per_session`, `running_max_per_key`, `rate`), or for instances of an
    earlier run to come back with what they hold (`recovery`)."""
    missing: list[MissingPlane] = []
    """Control planes that did not answer; what they know is not counted here."""


class QueuePage(_View):
    """All queues; `next` is always None, there is one page."""

    items: list[QueueView]
    next: str | None = None
    missing: list[MissingPlane] = []
    """Control planes that did not answer."""


class WaitingStep(_View):
    """A step that waits in a queue."""

    place: int
    """Its place in the order in which what waits would go if nothing changed, from 1."""
    step_id: str
    task_id: str
    session_id: str
    attempt: int = 1
    priority: int = 5
    key: str | None = None
    waiting_s: float = 0.0
    """Seconds since it was due."""
    reason: str | None = None
    """What it waits for, in words."""
    control_plane: str = ""
    """The name of the control plane in whose queue it waits; empty where there is one."""


class WaitingPage(_View):
    """A page of what waits in a queue. `next` is the place that the next page begins after, None on the last one."""

    items: list[WaitingStep]
    next: int | None = None
    total: int = 0
    """How many there are on all pages. What a carrier holds that cannot be listed is not among them."""
    missing: list[MissingPlane] = []
    """Control planes that did not answer."""
