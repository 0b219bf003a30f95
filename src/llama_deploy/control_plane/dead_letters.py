"""Dead letters: steps that were given up, kept until somebody sends them again or removes them.

A letter is recorded with the failure that it is about. Its message stands in the task's history. What the input caused
(arguments that do not fit, a tool that there is not) is no dead letter: sent again it would fail again.
"""

from __future__ import annotations

import msgspec

from llama_deploy.control_plane.tasks import OpenStep, TaskEntry
from llama_deploy.errors import ArgumentsError, TaskCanceledError, ToolUnknownError
from llama_deploy.state_stores.base import DeadLetterRow
from llama_deploy.types import TaskResult

MESSAGE_CHARACTERS_MAX = 1_000
"""How much of an error's message a letter says; all of it stands in the history."""

_NEVER = frozenset({ArgumentsError.code, ToolUnknownError.code, TaskCanceledError.code})


def dead_letters(entry: TaskEntry, step: OpenStep, result: TaskResult, now: float) -> tuple[DeadLetterRow, ...]:
    """The letter of a step whose last failure this is, none where another attempt could only fail in the same way."""
    error = result.error
    if error is not None and error.code in _NEVER:
        return ()
    code, message = (error.code, f"{error.type}: {error.message}") if error is not None else ("", result.result)
    where = (step.step_id, entry.row.task_id, step.service, step.attempt, now)
    return (DeadLetterRow(*where, code, message[:MESSAGE_CHARACTERS_MAX]),)


class DeadFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which dead letters are meant: those that fit all that is given."""

    service: str | None = None
    task_id: str | None = None
    code: str | None = None
    """The code of the last error."""
    older_than_s: float | None = None

    def fits(self, row: DeadLetterRow, now: float) -> bool:
        """Whether a letter is one of them; its service and task are looked at by the store."""
        return (self.code is None or row.code == self.code) and (
            self.older_than_s is None or row.at <= now - self.older_than_s
        )
