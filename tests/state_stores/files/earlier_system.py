"""The system whose tasks stand in the store files of earlier versions, and the script that has made the files.

To make one, run it with the code of that version and the path of the file:

    git worktree add ../earlier 5e0896d
    PYTHONPATH=../earlier/src:. python -m tests.state_stores.files.earlier_system schema_1.db

It uses nothing but what every version offers. `opened` says what it left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from llama_deploy import BaseOrchestrator, Deployment, QueueMessage, TaskDefinition, TaskResult, get_result_key, service
from llama_deploy.services import HumanService, ServiceContext

State = dict[str, Any]


class Tally(BaseOrchestrator):
    """One step per task; in a session it counts what was said."""

    async def get_next_messages(self, task_def: TaskDefinition, state: State) -> tuple[list[QueueMessage], State]:
        if get_result_key(task_def.task_id) in state or task_def.task_id in state:
            return [], state
        state[task_def.task_id] = {"begun": True}
        assert task_def.agent_id is not None
        return [QueueMessage(type=task_def.agent_id, data=json.loads(task_def.input))], state

    async def add_result_to_state(self, result: TaskResult, state: State) -> State:
        state[get_result_key(result.task_id)] = result
        state["said"] = [*state.get("said", []), result.output]
        return state


class Gate:
    """What `hold` waits at: shut in the system that wrote the file, open in the one that carries on."""

    def __init__(self, *, is_open: bool) -> None:
        self.event = asyncio.Event()
        if is_open:
            self.event.set()


def services(gate: Gate) -> list[Any]:
    """The services of the system."""

    @service
    async def echo(text: str) -> str:
        """Says it again."""
        return text

    @service
    async def fail(text: str) -> str:
        """Cannot do it."""
        raise ValueError(text)

    @service
    async def count(to: int, context: ServiceContext) -> int:
        """Streams as it counts."""
        for number in range(to):
            context.stream({"number": number})
        return to

    @service
    async def hold(text: str) -> str:
        """Waits at the gate."""
        await gate.event.wait()
        return text

    @service
    async def order(item: str, context: ServiceContext) -> str:
        """Asks for a number while it works."""
        return f"{await context.ask(f'How many {item}?')} {item}"

    return [echo, fail, count, hold, order, HumanService("approval", prompt="May this go out? {input}", answer=bool)]


async def make(path: Path) -> None:
    """Run the system until everything is in the state that `opened` tells of, and stop it."""
    async with Deployment(
        services(Gate(is_open=False)), store=path, orchestrator=Tally(), drain_timeout_s=0.0
    ) as deployment:
        client = deployment.client
        await client.run("echo", input={"text": "hello"}, task_id="done", idempotency_key="once")
        failing = await client.submit("fail", input={"text": "no"}, task_id="failed")
        with contextlib.suppress(Exception):
            await client.result(failing)
        await client.run("count", input={"to": 20}, task_id="streamed")
        await client.run("echo", input={"text": "one"}, task_id="said-1", session_id="room")
        await client.run("echo", input={"text": "two"}, task_id="said-2", session_id="room")
        await client.submit("hold", input={"text": "three"}, task_id="said-3", session_id="room")
        await client.submit("hold", input={"text": "kept"}, task_id="held")
        await client.submit("approval", input={"input": "the letter"}, task_id="parked")
        await client.submit("order", input={"item": "apples"}, task_id="asking")
        for task_id, kind in (("parked", "input_requested"), ("asking", "input_requested")):
            async for entry in client.history(task_id, follow=True):
                if entry.kind == kind:
                    break


if __name__ == "__main__":
    asyncio.run(make(Path(sys.argv[1])))
