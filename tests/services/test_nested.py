"""Workflows inside of workflows that are services of their own: their runs are tasks, found again after a crash."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.support.waiting import eventually
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from llama_deploy import TaskFailed
from llama_deploy.services import WorkflowService
from llama_deploy.services.nested import CalledWorkflow
from llama_deploy.state_stores.base import Condition, TaskFilter
from llama_deploy.testing import InMemorySystem

RAN: list[str] = []


class Inner(Workflow):
    """Says a text in upper case."""

    go: asyncio.Event | None = None

    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        RAN.append(ev.text)
        if self.go is not None:
            await self.go.wait()
        return StopEvent(result=ev.text.upper())


class Part(Event):
    text: str


class Outer(Workflow):
    """Has each of its texts said by another workflow, in steps that run in any order."""

    def __init__(self, inner: Any, **options: Any) -> None:
        super().__init__(**options)
        self.inner = inner

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> Part | None:
        for text in ev.texts:
            ctx.send_event(Part(text=text))
        await ctx.store.set("count", len(ev.texts))
        return None

    @step(num_workers=4)
    async def say(self, ev: Part) -> StopEvent | Event:
        said = await self.inner.run(text=ev.text)
        return Event(said=said)

    @step
    async def join(self, ctx: Context, ev: Event) -> StopEvent | None:
        found = ctx.collect_events(ev, [Event] * await ctx.store.get("count"))
        return None if found is None else StopEvent(result=sorted(one.said for one in found))


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()


async def children(made: InMemorySystem, task_id: str) -> list[str]:
    """The services of the tasks that a task has called."""
    where = TaskFilter(conditions=(Condition(column="origin", values=(f"child:{task_id}",)),))
    return [row.service for row in (await made.store.list_tasks(where, limit=100)).rows]


async def test_the_run_of_a_workflow_inside_is_a_task_of_its_service() -> None:
    inner = Inner()
    async with InMemorySystem(
        [WorkflowService(Outer(inner), name="outer"), WorkflowService(inner, name="inner")]
    ) as made:
        task_id = await made.client.submit("outer", texts=["a", "b", "a"])
        assert await made.client.result(task_id) == ["A", "A", "B"]
        assert await children(made, task_id) == ["inner"] * 3  # the same request twice is two calls
    assert await Outer(inner).run(texts=["c"]) == ["C"]  # outside of the service all is as it was


@pytest.mark.parametrize("dies", ["the outer one", "everything"])
async def test_a_crash_in_the_middle_runs_nothing_inside_again(dies: str) -> None:
    inner = Inner()
    inner.go = asyncio.Event()
    outer = WorkflowService(Outer(inner), name="outer", nested={"inner": "inner"})
    async with InMemorySystem() as made:
        await made.start_instance([WorkflowService(inner, name="inner")], instance_id="inside")
        first = await made.start_instance([outer], instance_id="outside")
        task_id = await made.client.submit("outer", texts=["a", "b"])
        await eventually(lambda: len(RAN) == 2)
        if dies == "everything":
            await made.crash()
        first.crash()
        await made.restart()
        await made.start_instance([outer], instance_id="another")
        await made.advance(40)
        inner.go.set()
        assert await made.client.result(task_id) == ["A", "B"]
        assert sorted(RAN) == ["a", "b"]
        assert len(await children(made, task_id)) == 2


async def test_a_failure_inside_is_a_failure_outside() -> None:
    class Broken(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            raise ValueError("no such thing")

    inner = Broken()
    services = [WorkflowService(Outer(inner), name="outer"), WorkflowService(inner, name="inner")]
    async with InMemorySystem(services) as made:
        task = asyncio.create_task(made.client.run("outer", texts=["a"], options={"retry": {"max_retries": 0}}))
        await made.settle()
        await made.advance(30)
        with pytest.raises(TaskFailed, match="no such thing"):
            await task


async def test_what_is_not_to_be_called_stays_in_its_process() -> None:
    inner = Inner()
    services = [WorkflowService(Outer(inner), name="outer", nested={}), WorkflowService(inner, name="inner")]
    async with InMemorySystem(services) as made:
        task_id = await made.client.submit("outer", texts=["a"])
        assert await made.client.result(task_id) == ["A"]
        assert await children(made, task_id) == []


class Wrong(Workflow):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.inner: Any = CalledWorkflow("inner")
        self.what = what

    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        if self.what == "context":
            return StopEvent(result=await self.inner.run(ctx=ctx, text="a"))
        return StopEvent(result=[one async for one in self.inner.run(text="a").stream_events()])


@pytest.mark.parametrize(("what", "says"), [("context", "cannot be given a context"), ("stream", "its own task")])
async def test_what_a_call_cannot_do_is_said(what: str, says: str) -> None:
    async with InMemorySystem(
        [WorkflowService(Wrong(what), name="wrong"), WorkflowService(Inner(), name="inner")]
    ) as made:
        with pytest.raises(TaskFailed, match=says):
            await made.client.run("wrong")
