"""The orchestrators of the two-hop and the fan-out job: as a user would write them, with nothing left out for speed."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from llama_deploy import (
    ActionTypes,
    BaseOrchestrator,
    NewTask,
    QueueMessage,
    TaskDefinition,
    TaskResult,
    get_result_key,
)

State = dict[str, Any]


def step(task: TaskDefinition, service: str, text: str, *, tag: str) -> QueueMessage:
    """One message that asks `service` to work on `text`."""
    work = task.model_copy(update={"input": json.dumps({"text": text}), "agent_id": service})
    return QueueMessage(type=service, action=ActionTypes.NEW_TASK, data=NewTask(task=work).model_dump(), tag=tag)


class TwoHop(BaseOrchestrator):
    """`echo`, then `exclaim` with its answer."""

    synchronous: ClassVar[bool] = True

    async def get_next_messages(self, task_def: TaskDefinition, state: State) -> tuple[list[QueueMessage], State]:
        """The step that is due; none once there is a result."""
        if get_result_key(task_def.task_id) in state:
            return [], state
        own = state.get(task_def.task_id)
        if not own:
            text = json.loads(task_def.input)["text"]
            return [step(task_def, "echo", text, tag="first")], {**state, task_def.task_id: {"stage": "first"}}
        return [step(task_def, "exclaim", own["text"], tag="second")], {**state, task_def.task_id: {"stage": "second"}}

    async def add_result_to_state(self, result: TaskResult, state: State) -> State:
        """The first answer is kept for the second step; the second is the result."""
        if result.tag == "first":
            return {**state, result.task_id: {"stage": "first", "text": result.output}}
        return {**state, get_result_key(result.task_id): result}


class FanOut(BaseOrchestrator):
    """As many `echo` steps at once as the task's text says; their answers in order are the result."""

    synchronous: ClassVar[bool] = True

    async def get_next_messages(self, task_def: TaskDefinition, state: State) -> tuple[list[QueueMessage], State]:
        """All steps at the start, then none."""
        if state.get(task_def.task_id):
            return [], state
        count = int(json.loads(task_def.input)["text"])
        steps = [step(task_def, "echo", f"step {index}", tag=str(index)) for index in range(count)]
        return steps, {**state, task_def.task_id: {"count": count, "answers": {}}}

    async def add_result_to_state(self, result: TaskResult, state: State) -> State:
        """Keep the answer; the last one makes the result."""
        own = state[result.task_id]
        own["answers"][result.tag] = result.output
        if len(own["answers"]) == own["count"]:
            answers = [own["answers"][str(index)] for index in range(own["count"])]
            state[get_result_key(result.task_id)] = TaskResult(
                task_id=result.task_id, history=[], result=json.dumps(answers), kind="json", value=answers
            )
        return state
