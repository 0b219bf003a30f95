"""The workflow of this deployment. `llamactl dev` starts it again when this file changes."""

from __future__ import annotations

import asyncio

from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent


class Request(StartEvent):
    """What a task is given: its arguments, checked and shown as a schema."""

    topic: str
    ask_first: bool = False


class Outline(Event):
    """What the report is to have."""

    topic: str
    points: list[str]


class Question(InputRequiredEvent):
    """What a person is asked."""

    prefix: str


class Report(Workflow):
    """Writes a report on a topic; asks a person about the outline first, if it is to."""

    @step
    async def outline(self, context: Context, event: Request) -> Outline | Question:
        """Think of what to say."""
        points = [f"what {event.topic} are", f"why {event.topic} matter"]
        await context.store.set("outline", {"topic": event.topic, "points": points})
        if event.ask_first:
            return Question(prefix=f"Add a point to {points}: ")
        return Outline(topic=event.topic, points=points)

    @step
    async def answered(self, context: Context, event: HumanResponseEvent) -> Outline:
        """Go on with what the person said, also days later and in another process."""
        outline = await context.store.get("outline")
        return Outline(topic=outline["topic"], points=[*outline["points"], str(event.response)])

    @step
    async def write(self, context: Context, event: Outline) -> StopEvent:
        """Write it, and tell on the way what is done."""
        for point in event.points:
            context.write_event_to_stream(Event(writing=point))
            await asyncio.sleep(0.1)  # where a model would be asked
        return StopEvent(result=f"{event.topic}: {'; '.join(event.points)}")
