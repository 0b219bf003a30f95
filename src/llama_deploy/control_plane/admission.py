"""Whose turn it is: the priority and the key that a step waits with."""

from __future__ import annotations

from llama_deploy.control_plane.tasks import OpenStep, TaskEntry
from llama_deploy.types.options import PRIORITY_DEFAULT


def turn_of(entry: TaskEntry, step: OpenStep) -> tuple[int, str]:
    """The priority and the key of a step: its own, else its task's."""
    if step.options is None and entry.definition.options is None:
        return PRIORITY_DEFAULT, ""
    priority = entry.option(step, "priority")
    return PRIORITY_DEFAULT if priority is None else priority, entry.option(step, "key") or ""
