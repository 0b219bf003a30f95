"""The in-memory system: what the product does under it, and each thing that a test may do to it."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.support import eventually

from llama_deploy.control_plane import EngineSettings
from llama_deploy.errors import CannotReachError, StoreUnavailableError, TaskFailed
from llama_deploy.runtime import failpoints
from llama_deploy.services import ServiceContext, service
from llama_deploy.testing import FaultyStore, InMemorySystem
from llama_deploy.types import RetryPolicy

DAY_S = 86_400.0
runs: list[str] = []


@service
async def shout(text: str) -> str:
    """Upper case."""
    return text.upper()


@service(retry=RetryPolicy(max_retries=2, initial_s=DAY_S, cap_s=10 * DAY_S, jitter=0.0))
async def slow_to_mend(context: ServiceContext) -> int:
    """Fails twice."""
    if context.attempt < 3:
        raise RuntimeError("not yet")
    return context.attempt


@service(concurrency=4)
async def gated(context: ServiceContext, text: str) -> str:
    """Waits at a gate."""
    runs.append(f"{context.step_id} {context.attempt}")
    context.stream({"text": text})
    await GATE[0].wait()
    return text


GATE: list[asyncio.Event] = []


@pytest.fixture(autouse=True)
async def _gate() -> None:
    runs.clear()
    GATE[:] = [asyncio.Event()]


async def test_a_task_runs_and_the_client_knows() -> None:
    async with InMemorySystem([shout]) as system:
        assert await system.client.run("shout", text="hello") == "HELLO"
        views = [view async for view in system.client.list_tasks()]
        assert [view.state for view in views] == ["completed"]
    assert not system.plane.engine.cache.unfinished


async def test_days_pass_in_milliseconds() -> None:
    async with InMemorySystem([slow_to_mend], settings=EngineSettings(attempts_max=5)) as system:
        started = time.monotonic()
        task_id = await system.client.submit("slow_to_mend")
        await system.advance(DAY_S)
        assert (await system.client.get_task(task_id)).state == "working"
        await system.advance(2 * DAY_S)
        assert await system.client.result(task_id) == 3
        assert time.monotonic() - started < DAY_S


async def test_the_control_plane_crashes_and_goes_on_with_what_was_committed() -> None:
    async with InMemorySystem([gated]) as system:
        task_id = await system.client.submit("gated", text="x")
        result = asyncio.ensure_future(system.client.result(task_id))
        await system.settle()
        await system.crash()
        assert not system.running
        with pytest.raises(CannotReachError):
            _ = system.plane
        GATE[0].set()
        await system.restart()
        assert await result == "x"
        assert runs == [f"{task_id}:1 1"], "its instance lived on, and brought its answer"
        assert [event.data async for event in system.client.stream(task_id)] == [{"text": "x"}]


@pytest.mark.parametrize("name", ["store.before_commit", "store.after_commit", "engine.before_publish"])
async def test_it_crashes_at_a_failpoint(name: str) -> None:
    async with InMemorySystem([shout]) as system:
        system.crash_at(name)
        running = asyncio.ensure_future(system.client.run("shout", text="hello", task_id="t"))
        await eventually(lambda: not system.running)
        await system.restart()
        await system.advance(2.0)
        assert await running == "HELLO"
    with pytest.raises(KeyError):
        InMemorySystem().crash_at("nowhere")
    assert not failpoints._armed


async def test_an_instance_crashes_and_another_one_takes_over() -> None:
    async with InMemorySystem([gated]) as system:
        task_id = await system.client.submit("gated", text="x")
        await system.settle()
        system.instances["first"].crash()
        await system.start_instance([gated], instance_id="second")
        GATE[0].set()
        await system.advance(1.0)
        assert await system.client.result(task_id) == "x"
        assert runs == [f"{task_id}:1 1", f"{task_id}:1 2"]
        events = [event.data async for event in system.client.stream(task_id)]
        assert [event for event in events if "llama_deploy" not in event] == [{"text": "x"}] * 2


async def test_a_connection_breaks_and_is_held_up() -> None:
    async with InMemorySystem([gated]) as system:
        first = system.instances["first"]
        task_id = await system.client.submit("gated", text="x")
        await system.settle()
        first.hold()
        GATE[0].set()
        await system.settle()
        assert (await system.client.get_task(task_id)).state == "working", "its answer is held up"
        first.drop()
        await first.connect()
        first.release()
        assert await system.client.result(task_id) == "x"
        assert runs == [f"{task_id}:1 1"]


async def test_the_queue_misbehaves() -> None:
    async with InMemorySystem([shout], seed=3, settings=EngineSettings(overdue_s=5.0)) as system:
        system.queue.loss_share = 1.0
        task_id = await system.client.submit("shout", text="a")
        await system.settle()
        assert system.queue.lost == 1
        system.queue.loss_share, system.queue.repeat_share, system.queue.delay_s_max = 0.0, 1.0, 0.0
        await system.advance(6.0)
        assert await system.client.result(task_id) == "A"
        assert system.queue.repeated == 1
        system.queue.repeat_share = 0.0
        system.instances["first"].crash()
        waiting = await system.client.submit("shout", text="b")
        assert system.queue.wipe() == 1
        await system.start_instance([shout], instance_id="second")
        await system.advance(6.0)
        assert await system.client.result(waiting) == "B"


async def test_commits_fail_take_long_and_are_refused() -> None:
    async with InMemorySystem([shout]) as system:
        system.store.fail("disk full")
        with pytest.raises(StoreUnavailableError, match="disk full"):
            await system.client.submit("shout", text="x")
        system.store.mend()
        system.store.hold()
        running = asyncio.ensure_future(system.client.run("shout", text="x"))
        await system.settle()
        assert system.store.backlog == 1
        assert not running.done()
        system.store.release()
        assert await running == "X"
        system.store.refuse(2)
        running = asyncio.ensure_future(system.client.run("shout", text="y"))
        await system.advance(1.0)
        assert await running == "Y"
        assert system.store.refused == 2


async def test_what_is_recorded_outlives_the_system() -> None:
    store = FaultyStore()
    async with InMemorySystem(store=store) as system:
        task_id = await system.client.submit("shout", text="later", wait_for_service=True)
    async with InMemorySystem([shout], store=store) as system:
        await system.advance(2.0)
        assert await system.client.result(task_id) == "LATER"


async def test_a_task_that_fails_says_so() -> None:
    @service(retry=RetryPolicy(max_retries=0))
    async def broken() -> str:
        raise ValueError("no")

    async with InMemorySystem([broken]) as system:
        running = asyncio.ensure_future(system.client.run("broken"))
        await system.advance(60.0)
        with pytest.raises(TaskFailed, match="no"):
            await running
