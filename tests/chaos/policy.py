"""The orchestrator of a run: fan-outs with a join, single steps, and a count in the state that a session shares."""

from __future__ import annotations

import json
from typing import Any

from llama_deploy import QueueMessage, SimpleOrchestrator, TaskDefinition, TaskResult, get_result_key
from llama_deploy.types.reserved import TIMER_SERVICE

State = dict[str, Any]

COUNTED = "counted"
"""Key of a task's metadata, and of its state: its completion is counted in the session's state."""
COUNT = "count"


class ChaosOrchestrator(SimpleOrchestrator):
    """A task for `fan` becomes many steps for `part`, sometimes a timer, and one for `join`; any other is one step."""

    async def get_next_messages(self, task_def: TaskDefinition, state: State) -> tuple[list[QueueMessage], State]:
        if task_def.metadata.get(COUNTED):
            state.setdefault(task_def.task_id, {})[COUNTED] = True
        if task_def.agent_id != "fan":
            return await super().get_next_messages(task_def, state)
        if get_result_key(task_def.task_id) in state:
            return [], state
        own = state.setdefault(task_def.task_id, {})
        if "values" not in own:
            given = json.loads(task_def.input)
            own |= {"values": {}, "parts": given["parts"], "waiting": given["parts"] % 2 == 0, "joining": False}
            numbers = range(given["parts"])
            return [QueueMessage(type="part", tag=str(n), data={"number": given["number"] + n}) for n in numbers], state
        if len(own["values"]) < own["parts"] or own["joining"]:
            return [], state
        if own["waiting"]:
            return ([] if own["waiting"] == "for a timer" else self._timer(own)), state
        own["joining"] = True
        values = [own["values"][str(n)] for n in range(own["parts"])]
        return [QueueMessage(type="join", data={"values": values})], state

    def _timer(self, own: State) -> list[QueueMessage]:
        own["waiting"] = "for a timer"
        return [QueueMessage(type=TIMER_SERVICE, delay_s=0.3)]

    async def add_result_to_state(self, result: TaskResult, state: State) -> State:
        own = state.get(result.task_id, {})
        if own.get(COUNTED) and result.status == "completed":
            state[COUNT] = state.get(COUNT, 0) + 1
        if result.service == "part":
            assert result.tag is not None
            own["values"][result.tag] = result.output
            return state
        if result.service == TIMER_SERVICE:
            own["waiting"] = False
            return state
        if result.service == "join":
            state[get_result_key(result.task_id)] = result
            return state
        return await super().add_result_to_state(result, state)
