"""An orchestrator of one's own: a writer and a critic take turns until the critic is content.

What it puts into the state is recorded with each decision. Run it: python examples/own_orchestrator.py
"""

from __future__ import annotations

import asyncio
from typing import Any

from llama_deploy import BaseOrchestrator, Deployment, QueueMessage, TaskDefinition, TaskResult, get_result_key, service

State = dict[str, Any]


@service
async def writer(text: str, remark: str = "") -> str:
    """Do what the critic says. A model would do better."""
    return text.replace(remark, "").replace("  ", " ") if remark else text


@service
async def critic(text: str) -> str:
    """The first superfluous word; nothing when there is none."""
    return next((word for word in ("really ", "very ", "quite ") if word in text), "")


class TakeTurns(BaseOrchestrator):
    """`state[task_id]` holds the draft, and the critic's remark while the writer has it."""

    async def get_next_messages(self, task_def: TaskDefinition, state: State) -> tuple[list[QueueMessage], State]:
        """Whoever's turn it is gets the draft; once there is a result, nobody."""
        if get_result_key(task_def.task_id) in state:
            return [], state
        mine = state.setdefault(task_def.task_id, {"text": task_def.input})
        return [QueueMessage(type="writer" if "remark" in mine else "critic", data=mine)], state

    async def add_result_to_state(self, result: TaskResult, state: State) -> State:
        """A remark goes to the writer, a draft to the critic; without a remark the draft is the outcome."""
        task_id, mine = result.task_id, state[result.task_id]
        if result.service == "writer":
            state[task_id] = {"text": result.output}
        elif result.output:
            state[task_id] = {**mine, "remark": result.output}
        else:
            state[get_result_key(task_id)] = TaskResult(task_id=task_id, history=[], result=mine["text"])
        return state


async def main() -> None:
    """One text, as many turns as it takes."""
    async with Deployment(services=[writer, critic], orchestrator=TakeTurns(), name="turns") as deployment:
        task_id = await deployment.submit("article", input="The tide is really very high.")
        print(await deployment.client.result(task_id))
        async for entry in deployment.client.history(task_id, after=1):
            print(f"  {entry.service}: {entry.result and entry.result['result']!r}")


asyncio.run(main())
