"""The states of a task, and the one table of the moves between them that are legal.

The states are the eight of the A2A specification, version 1.0. Nothing here decides when a task moves; whoever
records a move asks `check_transition` first. A retry is no state of its own: it is `working` with a higher attempt.
"""

from __future__ import annotations

from enum import Enum

from llama_deploy.errors import LlamaDeployError, TaskEndedError


class TaskState(str, Enum):
    """Where a task stands. Every task ends in exactly one of `FINAL_STATES`, once."""

    SUBMITTED = "submitted"
    """Recorded; no service has taken a step of it up yet."""
    WORKING = "working"
    """A service has taken up a step of it, or a failed step waits to be tried again."""
    INPUT_REQUIRED = "input_required"
    """It waits for what a person has to say."""
    AUTH_REQUIRED = "auth_required"
    """It waits for a credential or a consent from outside."""
    COMPLETED = "completed"
    """Final: it has a result."""
    FAILED = "failed"
    """Final: its recorded outcome is an error."""
    CANCELED = "canceled"
    """Final: somebody asked for it to be stopped."""
    REJECTED = "rejected"
    """Final: it was refused by whoever should have done it."""


FINAL_STATES: frozenset[TaskState] = frozenset(
    {TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELED, TaskState.REJECTED}
)
"""The states that a task never leaves."""

_WAITING: frozenset[TaskState] = frozenset({TaskState.INPUT_REQUIRED, TaskState.AUTH_REQUIRED})
_STARTED: frozenset[TaskState] = frozenset({TaskState.WORKING}) | _WAITING

LEGAL_TRANSITIONS: dict[TaskState, frozenset[TaskState]] = {
    TaskState.SUBMITTED: _STARTED | FINAL_STATES,
    TaskState.WORKING: _WAITING | FINAL_STATES,
    TaskState.INPUT_REQUIRED: (_STARTED | FINAL_STATES) - {TaskState.INPUT_REQUIRED},
    TaskState.AUTH_REQUIRED: (_STARTED | FINAL_STATES) - {TaskState.AUTH_REQUIRED},
    TaskState.COMPLETED: frozenset(),
    TaskState.FAILED: frozenset(),
    TaskState.CANCELED: frozenset(),
    TaskState.REJECTED: frozenset(),
}
"""From each state, the states that a task may move to. Nothing returns to `submitted` or leaves a final state."""


def check_transition(old: TaskState, new: TaskState) -> None:
    """Raise unless a task may go from `old` to `new`. Staying in a state that is not final is always allowed.

    Raises `TaskEndedError` when `old` is final, also for `new == old`: a task ends once. Raises `LlamaDeployError`
    for any other illegal move, which only a defect of this program can ask for.
    """
    if old in FINAL_STATES:
        raise TaskEndedError(f"the task has ended as {old.value} and cannot become {new.value}", state=old.value)
    if new is not old and new not in LEGAL_TRANSITIONS[old]:
        raise LlamaDeployError(f"a task cannot go from {old.value} to {new.value}")
