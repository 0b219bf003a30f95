"""A schedule and how far it has come, as one document in the store, and what its tasks are named and given."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from llama_deploy.control_plane.refusals import check_id, too_large
from llama_deploy.control_plane.registry import is_reserved
from llama_deploy.control_plane.schedule_times import stamp
from llama_deploy.errors import InvalidRequestError
from llama_deploy.types.redaction import Redaction
from llama_deploy.types.schedules import Schedule
from llama_deploy.types.webhooks import redacted

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine


class Standing(BaseModel):
    """A schedule and how far it has come, as recorded."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    schedule: Schedule
    from_file: bool = False
    anchor: float
    """Where `every_s` counts from."""
    handled_at: float
    """Every time up to this one is over."""
    paused: bool = False
    paused_because: str = ""
    last_due_at: float | None = None
    last_task_id: str | None = None
    waiting: list[float] = Field(default_factory=list)
    submitted: int = 0
    skipped: int = 0
    missed: int = 0
    last_error: str = ""
    created_at: float
    updated_at: float


KEPT = frozenset(Standing.model_fields)
"""What a view of a schedule takes from its document."""


def task_id_of(name: str, due_at: float) -> str:
    """The id of the task of one time of a schedule."""
    return f"{name}@{stamp(due_at)}"


def shown(schedule: Schedule, redact: Redaction) -> Schedule:
    """A schedule as people see it: without the values of keys that are left out, and without secrets in a URL."""
    changes: dict[str, Any] = {}
    if redact:
        changes = {"input": redact.value(schedule.input), "metadata": redact.value(schedule.metadata)}
    webhook = schedule.options.webhook if schedule.options is not None else None
    if schedule.options is not None and webhook is not None:
        told = webhook.model_copy(update={"url": redacted(webhook.url)})
        changes["options"] = schedule.options.model_copy(update={"webhook": told})
    return schedule.model_copy(update=changes) if changes else schedule


def input_of(schedule: Schedule) -> str:
    """What the tasks of a schedule are given: text as it is, any other JSON as its text."""
    given = schedule.input
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def check_task(schedule: Schedule, engine: Engine) -> None:
    """Raise for a schedule whose tasks would all be refused."""
    settings = engine.settings
    try:
        size = len(schedule.model_dump_json().encode())
    except ValueError as error:
        raise InvalidRequestError("the schedule is not valid text", why=str(error)) from error
    if size > settings.payload_bytes_max:
        raise too_large("schedule", size, settings.payload_bytes_max)
    check_id("service", schedule.service, settings.id_length_max)
    check_id("session_id", schedule.session_id, settings.id_length_max)
    if schedule.service is not None and is_reserved(schedule.service):
        raise InvalidRequestError(f"{schedule.service!r} takes no tasks", fix="name another service")
    if schedule.options is not None and schedule.options.webhook is not None:
        engine.webhooks.check(schedule.options.webhook)
