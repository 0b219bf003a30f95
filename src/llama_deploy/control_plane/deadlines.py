"""Every deadline of a step and of a task, worked out from what is on record; nothing here changes anything.

What a message says of its step comes first, then what the task's options say, then the service's definition. All of
it can be worked out again after a crash: options stand in the history, and so does the time from which each counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_deploy.control_plane.tasks import OpenStep, TaskEntry

if TYPE_CHECKING:
    from llama_deploy.types import ServiceDefinition

RUN_TIMEOUT_S = 600.0
"""Deadline of an attempt of a service whose definition is not known."""


def run_timeout_s(entry: TaskEntry, step: OpenStep, definition: ServiceDefinition | None) -> float:
    """Deadline of one attempt in seconds."""
    if step.options is not None or entry.definition.options is not None:
        asked: float | None = entry.option(step, "run_timeout_s")
        if asked is not None:
            return asked
    return definition.run_timeout_s if definition is not None else RUN_TIMEOUT_S


def heartbeat_timeout_s(entry: TaskEntry, step: OpenStep) -> float:
    """Seconds that an attempt may go without a sign of life from the service's code; 0 for no such deadline."""
    if step.options is None and entry.definition.options is None:
        return 0.0
    return entry.option(step, "heartbeat_timeout_s") or 0.0
