"""The contract of an orchestrator: decisions as values.

An orchestrator says what to send next and folds answers into the state; it sends nothing and keeps nothing itself.
The control plane records each decision before anybody acts on it, delivers the messages, and hands the answers back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from llama_deploy.messages.base import QueueMessage
from llama_deploy.types.core import TaskDefinition, TaskResult


class BaseOrchestrator(ABC):
    """Manages the flow of messages between services.

    `state` is the session's: the keys `<task_id>`, `result_<task_id>` and `stream_<task_id>` belong to their task,
    every other key is shared by the session's tasks and durable. Both methods get a copy that they may change and
    return. They may be called again with the same arguments (after a crash, or when another decision was recorded
    first); only one decision of each kind is ever recorded. What they raise is recorded nowhere in the state.
    """

    handles_failures: ClassVar[bool] = False
    """True: failed results are folded into this orchestrator, and it decides on retries. False: the control plane
    applies the service's retry policy, and a failure with no retry left ends the task."""

    decides_retries: ClassVar[bool] = True
    """False, with `handles_failures`: the control plane tries a failed step again as `RetryPolicy()` or whoever knows
    better says, and this orchestrator is told of the last failure alone."""

    synchronous: ClassVar[bool] = False
    """True promises that neither method ever really waits, so that both may be driven without an event loop."""

    state_on_demand: ClassVar[bool] = False
    """True: `state[task_id]` is a mapping (not a `dict`) that decodes each of its keys when it is looked at, so that
    a task with thousands of answers costs no more per answer. Do not put that mapping itself into messages."""

    @abstractmethod
    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        """The messages to send next for this task, and the new state.

        Asked when the task is submitted and after each fold. A message with the action `COMPLETED_TASK` ends the
        task with its data as the outcome. No message means to wait for open steps, and ends the task when there are
        none: with what stands under `get_result_key(task_id)`, or as failed for lack of progress.
        """

    def migrate_task(self, task_def: TaskDefinition, state: dict[str, Any], *, version: int) -> dict[str, Any]:
        """The state of a task that an earlier `version` of this orchestrator began, as this one goes on with it.

        Asked when somebody moves the task on purpose; what it returns is recorded as one decision. Raises `ValueError`
        unless a subclass says how.
        """
        del state
        raise ValueError(
            f"{type(self).__name__} does not say how it reads the state of {task_def.task_id}, from version {version}"
        )

    @abstractmethod
    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        """Fold the answer to one step into the state; returns the new state."""
