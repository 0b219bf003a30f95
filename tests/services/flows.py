"""Workflows that the tests serve; in a module of their own, so that another process can load them too."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent


class Again:
    """A retry policy of steps: always, after a while."""

    def __init__(self, *, delay_s: float) -> None:
        self._delay_s = delay_s

    def next(self, elapsed_time: float, attempts: int, error: Exception, **settings: Any) -> float | None:
        return self._delay_s


def question(**fields: Any) -> InputRequiredEvent:
    """The engine's own event for asking, which takes any fields."""
    return InputRequiredEvent(**fields)


class Progress(Event):
    percent: int


class Topic(StartEvent):
    topic: str


class Report(StopEvent):
    title: str
    pages: list[int]


class Between(Event):
    text: str


class Hello(Workflow):
    """Greets.

    Politely.
    """

    @step
    async def greet(self, ctx: Context, ev: StartEvent) -> Between:
        for percent in (0, 50, 100):
            ctx.write_event_to_stream(Progress(percent=percent))
        ctx.write_event_to_stream(Event(note="dynamic", n=1))
        return Between(text=f"hello {ev.name}")

    @step
    async def finish(self, ev: Between) -> StopEvent:
        return StopEvent(result=ev.text)


class Echo(Workflow):
    """Returns what `make` in its start event makes."""

    @step
    async def echo(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.get("value"))


class Writer(Workflow):
    @step
    async def write(self, ev: Topic) -> Report:
        return Report(title=ev.topic, pages=[1, 2])


class Name(Workflow):
    """Asks by returning the question; the answer goes to a step."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> InputRequiredEvent:
        await ctx.store.set("greeting", "hello")
        return question(prefix="your name?")

    @step
    async def answer(self, ctx: Context, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=f"{await ctx.store.get('greeting')} {ev.response}")


class FirstAnswer(Event):
    response: str


class SecondAnswer(Event):
    response: str


class Survey(Workflow):
    """Asks two things in one step, by waiting in it."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        first = await ctx.wait_for_event(FirstAnswer, waiter_event=question(prefix="one?"))
        second = await ctx.wait_for_event(SecondAnswer, waiter_event=question(prefix="two?"))
        return StopEvent(result=[first.response, second.response])


class Early(Workflow):
    """Writes the question to the stream itself, some time before it waits for the answer."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(question(prefix="early?"))
        for _ in range(200):
            await asyncio.sleep(0)
        answer = await ctx.wait_for_event(HumanResponseEvent)
        return StopEvent(result=answer.response)


class Quiet(Workflow):
    """Waits for an event without having said so."""

    @step
    async def wait(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(FirstAnswer)
        return StopEvent(result=answer.response)


class Approval(HumanResponseEvent):
    approved: bool
    by: str = "?"


class Approve(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return question(prompt="approve?")

    @step
    async def answer(self, ev: Approval) -> StopEvent:
        return StopEvent(result=f"{ev.approved} by {ev.by}")


class Notes(BaseModel):
    lines: list[str] = []


class Typed(Workflow):
    """Its context has a state of a type, with models in it."""

    @step
    async def ask(self, ctx: Context[Notes], ev: StartEvent) -> InputRequiredEvent:
        async with ctx.store.edit_state() as state:
            state.lines.append("asked")
        return question(prompt="?")

    @step
    async def answer(self, ctx: Context[Notes], ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=[*(await ctx.store.get_state()).lines, ev.response])


class Unsaved(Workflow):
    """Keeps something in its context that no JSON can hold."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> InputRequiredEvent:
        await ctx.store.set("lock", asyncio.Lock())
        return question(prompt="?")

    @step
    async def answer(self, ctx: Context, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=f"{type(await ctx.store.get('lock')).__name__} {ev.response}")


class Memory:
    """What an agent remembers; the engine leaves it out of a saved context, with a warning."""


class Agent(Workflow):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> InputRequiredEvent:
        await ctx.store.set("memory", Memory())
        return question(prompt="?")

    @step
    async def answer(self, ctx: Context, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=f"{type(await ctx.store.get('memory')).__name__} {ev.response}")


async def resume_here(path: str) -> dict[str, Any]:
    """Go on with a parked `Name` run that a file holds; what another process does."""
    from tests.services.attempts import Attempt

    from llama_deploy.services import WorkflowService

    saved = json.loads(Path(path).read_text(encoding="utf-8"))  # noqa: ASYNC240 - nothing else runs here
    attempt = Attempt(inputs=saved["inputs"], snapshot=saved["snapshot"].encode(), number=2)
    result = await WorkflowService(Name()).run(attempt)
    return {"result": getattr(result, "result", None), "events": attempt.events}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(resume_here(sys.argv[1]))))  # noqa: T201
