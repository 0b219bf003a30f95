"""A llama-index workflow, served as it is: its events are the task's stream, its result is the task's outcome.

Run it: python examples/workflow.py
"""

from __future__ import annotations

import asyncio

from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from llama_deploy import Deployment, WorkflowService


class Question(StartEvent):
    """What the workflow is asked; the task's arguments are its fields."""

    topic: str


class Found(Event):
    """Something was found out."""

    fact: str


class Research(Workflow):
    """Looks into a topic and sums up what it found."""

    @step
    async def look(self, context: Context, question: Question) -> Found:
        """Where a search or a model would be asked."""
        for angle in ("history", "causes"):
            context.write_event_to_stream(Found(fact=f"the {angle} of {question.topic}"))
        return Found(fact=f"two facts about {question.topic}")

    @step
    async def sum_up(self, found: Found) -> StopEvent:
        """The outcome."""
        return StopEvent(result=f"there are {found.fact}")


async def main() -> None:
    """Run it once, and show its events as they come."""
    async with Deployment(services=[WorkflowService(Research, name="research")], name="workflow") as deployment:
        task_id = await deployment.submit("research", topic="tides")
        async for event in deployment.client.stream(task_id):
            print(event.data["$type"].rpartition(".")[2], {k: v for k, v in event.data.items() if k != "$type"})
        print(await deployment.client.result(task_id))


asyncio.run(main())
