"""The simplest orchestrator: one task is one step for the service that the task names.

It sends the task to its service, has a failed step tried again, and forwards the result, or the last failure, as the
final message. It neither waits nor looks at a clock: a backoff is a number of seconds on the message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from llama_deploy._lazy import lazy_names
from llama_deploy.messages.base import QueueMessage
from llama_deploy.orchestrators.base import BaseOrchestrator
from llama_deploy.orchestrators.utils import get_result_key
from llama_deploy.types.core import ActionTypes, TaskDefinition, TaskResult
from llama_deploy.types.retry import RetryPolicy

if TYPE_CHECKING:
    from llama_deploy.orchestrators.config import SimpleOrchestratorConfig
else:
    __getattr__, __dir__ = lazy_names(__name__, {"SimpleOrchestratorConfig": "llama_deploy.orchestrators.config"})

__all__ = ["SimpleOrchestrator", "SimpleOrchestratorConfig", "get_result_key"]

_FAILURES = "failures"
_RETRY = "retry"


class SimpleOrchestrator(BaseOrchestrator):
    """Sends each task to the service named by its `agent_id`, and its result to `final_message_type`.

    A step that fails with a retryable error is tried again `max_retries` times with growing delay; how often it
    failed is counted in `state[task_id]["failures"]`. A `final_message_type` of None sends no final message: the task
    then ends with its result all the same.
    """

    handles_failures: ClassVar[bool] = True
    synchronous: ClassVar[bool] = True

    def __init__(self, max_retries: int = 3, final_message_type: str | None = "human") -> None:
        self.max_retries = max_retries
        self.final_message_type = final_message_type

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        """The final message when there is a result, else the task for its service; never more than one message.

        A retry that is due is asked for once: the message names the failed step and the delay, and the returned
        state does not hold the request any more. Raises `ValueError` when the task names no service, or when what
        stands under the result's key is no result.
        """
        if task_def.agent_id is None:
            raise ValueError(f"task {task_def.task_id} names no service: set agent_id (or service_id) on it")
        task_state = state.setdefault(task_def.task_id, {})
        stored = state.get(get_result_key(task_def.task_id))
        if stored is not None:
            result = _read_result(stored)
            return ([] if self.final_message_type is None else [_final_message(self.final_message_type, result)]), state
        retry = task_state.get(_RETRY)
        if retry is None:
            return [_new_task_message(task_def, task_state)], state
        # The step runs again under its own id, so asking a second time would be a second request for the same retry.
        task_state = {key: value for key, value in task_state.items() if key != _RETRY}
        message = _new_task_message(task_def, task_state)
        message.step_id = retry["step_id"]
        message.delay_s = retry["delay_s"]
        return [message], {**state, task_def.task_id: task_state}

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        """Store the result, or note that the failed step is to be tried again while that is allowed.

        `state["retries"]` counts all results from 0, for readers of the published state; nothing here depends on it.
        """
        results_before = state.get("retries")
        state["retries"] = results_before + 1 if isinstance(results_before, int) else 0
        if result.status != "failed":
            state[get_result_key(result.task_id)] = result
            return state
        task_state = state.get(result.task_id) or {}
        failures = task_state.get(_FAILURES, 0) + 1
        delay_s = RetryPolicy(max_retries=max(0, self.max_retries)).delay_for(result.error, failures)
        task_state = {**task_state, _FAILURES: failures}
        if delay_s is None:
            state[get_result_key(result.task_id)] = result
        else:
            task_state[_RETRY] = {"step_id": result.step_id, "delay_s": delay_s}
        state[result.task_id] = task_state
        return state


def _new_task_message(task_def: TaskDefinition, task_state: dict[str, Any]) -> QueueMessage:
    data = {"task": task_def.dumped(), "state": task_state}  # a `NewTask`, without making one
    return QueueMessage(type=task_def.agent_id or "", action=ActionTypes.NEW_TASK, data=data)


def _final_message(service: str, result: TaskResult) -> QueueMessage:
    return QueueMessage(type=service, action=ActionTypes.COMPLETED_TASK, data=result.dumped())


def _read_result(stored: Any) -> TaskResult:
    """The result from any of the forms in which a state may hold it."""
    if isinstance(stored, TaskResult):
        return stored
    if isinstance(stored, dict):
        return TaskResult.model_validate(stored)
    if isinstance(stored, str):
        return TaskResult.model_validate_json(stored)
    raise ValueError(f"the stored result is a {type(stored).__name__}: it must be a TaskResult, a dict, or JSON text")
