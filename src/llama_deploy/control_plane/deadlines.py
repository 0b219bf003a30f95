"""Every deadline of a step and of a task, worked out from what is on record; nothing here changes anything.

What a message says of its step comes first, then what the task's options say, then the service's definition. All of
it can be worked out again after a crash: options stand in the history, and so does the time from which each counts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_deploy.control_plane.tasks import OpenStep, TaskEntry
    from llama_deploy.types import ServiceDefinition, TaskOptions

RUN_TIMEOUT_S = 600.0
"""Deadline of an attempt of a service whose definition is not known."""


def run_timeout_s(
    entry: TaskEntry, step: OpenStep, definition: ServiceDefinition | None, *, unknown_s: float = RUN_TIMEOUT_S
) -> float:
    """Deadline of one attempt in seconds; `unknown_s` where only the instance that will take it can know."""
    if step.options is not None or (entry.definition.options is not None and not step.notification):
        asked: float | None = entry.option(step, "run_timeout_s")
        if asked is not None:
            return asked
    return definition.run_timeout_s if definition is not None else unknown_s


def heartbeat_timeout_s(entry: TaskEntry, step: OpenStep) -> float:
    """Seconds that an attempt may go without a sign of life from the service's code; 0 for no such deadline."""
    if step.options is None and entry.definition.options is None:
        return 0.0
    return entry.option(step, "heartbeat_timeout_s") or 0.0


def queue_ends_at(entry: TaskEntry, step: OpenStep) -> float:
    """When a step fails unless an instance has taken it by then; never for one that tells of an end."""
    if (step.options is None and entry.definition.options is None) or step.notification:
        return math.inf
    asked: float | None = entry.option(step, "queue_timeout_s")
    return math.inf if asked is None else step.due_since + asked


def look_again_at(entry: TaskEntry, step: OpenStep, now: float, pause_s: float, grace_s: float = 0.0) -> float:
    """When to look at a step again that may be taken now: after a pause, or when it has waited too long.

    One that has waited too long already, as it may be found after a restart, is given `grace_s` seconds more.
    """
    ends_at = queue_ends_at(entry, step)
    return min(now + pause_s, ends_at if ends_at > now else now + grace_s)


def begins_at(options: TaskOptions | None, submitted_at: float) -> float:
    """When a task begins: the later of what its options ask for, and not before it was submitted."""
    if options is None:
        return submitted_at
    return max(submitted_at, options.run_at or 0.0, submitted_at + (options.delay_s or 0.0))


def ends_at(options: TaskOptions | None, submitted_at: float) -> float:
    """When a task fails unless it has ended by then, 0 where it may take for ever."""
    if options is None or options.total_timeout_s is None:
        return 0.0
    return begins_at(options, submitted_at) + options.total_timeout_s


DEADLINE_INDEX = -1
"""The `index` of the delivery that stands for a task's deadline: no message belongs to it."""


def deadline_id(task_id: str) -> str:
    """The id of the delivery that stands for a task's deadline; no step has it."""
    return f"{task_id}:0"
