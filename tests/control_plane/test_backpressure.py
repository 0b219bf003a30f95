"""A full control plane refuses submissions by the name of the setting, says when to come again, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from tests.control_plane.harness import FakeInstance, World, history, outcome, recorded, submit, until, world
from tests.support import DEADLINE_S

from llama_deploy import Deployment, service
from llama_deploy.client import Client
from llama_deploy.control_plane import EngineSettings
from llama_deploy.control_plane.backpressure import DrainRate
from llama_deploy.control_plane.http.app import build_app
from llama_deploy.errors import LimitExceededError, LlamaDeployError, QueueFullError
from llama_deploy.messages import QueueMessage
from llama_deploy.messages.frames import Deliver, Refused
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.testing import ManualClock
from llama_deploy.types import Origin, ServiceLimits, TaskDefinition, TaskOptions, TaskResult


async def refusal(made: World, **fields: Any) -> QueueFullError:
    with pytest.raises(QueueFullError) as caught:
        await submit(made.plane, **fields)
    assert caught.value.details["setting"] in str(caught.value)
    return caught.value


async def test_unfinished_tasks_and_a_known_one_is_found_all_the_same() -> None:
    async with world(settings=EngineSettings(tasks_unfinished_max=2)) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        first = await submit(made.plane, task_id="t0")
        await submit(made.plane, task_id="t1")
        error = await refusal(made, task_id="t2")
        assert (error.details["setting"], error.details["limit"]) == ("tasks_unfinished_max", 2)
        assert await submit(made.plane, task_id="t0") is first
        instance.answer(await instance.delivery(1))
        await outcome(made.plane, "t0")
        await submit(made.plane, task_id="t2")


async def test_unfinished_tasks_of_a_session() -> None:
    async with world(settings=EngineSettings(tasks_unfinished_per_session_max=1)) as made:
        await FakeInstance().connect(made.plane)
        await submit(made.plane, session_id="s")
        assert (await refusal(made, session_id="s")).details["setting"] == "tasks_unfinished_per_session_max"
        await submit(made.plane, session_id="other")
        await submit(made.plane)


async def test_steps_that_wait_for_a_service_in_the_queue_and_at_the_gate() -> None:
    async with world(settings=EngineSettings(queue_depth_max=2)) as made:
        instance = FakeInstance(concurrency=1, limits=ServiceLimits(running_max=2))
        await instance.connect(made.plane)
        for _ in range(4):  # one runs, one stands in the queue, ... and one waits at the gate
            if made.plane.queue.depth("echo") + len(made.plane.engine.admission.gates["echo"].room) < 2:
                await submit(made.plane)
        error = await refusal(made)
        assert (error.details["setting"], error.what) == ("queue_depth_max", "2 steps wait for echo")
        assert len(made.plane.engine.cache.tasks) == 3


async def test_changes_that_wait_to_be_written() -> None:
    async with world(settings=EngineSettings(store_backlog_max=3)) as made:
        await FakeInstance().connect(made.plane)
        results = await asyncio.gather(*[submit(made.plane) for _ in range(5)], return_exceptions=True)
        refused = [found for found in results if isinstance(found, QueueFullError)]
        assert len(refused) == 2
        assert {error.details["setting"] for error in refused} == {"store_backlog_max"}
        await submit(made.plane)


class Fan(BaseOrchestrator):
    """Five steps at once."""

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        if task_def.task_id in state:
            return [], state
        state[task_def.task_id] = {}
        return [QueueMessage(type="first")], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        return state


class FanLater(Fan):
    """One step, then five at once for a service whose queue is full."""

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        mine = state.setdefault(task_def.task_id, {"asked": 0, "done": 0})
        if mine["asked"] == 0:
            mine["asked"] = 1
            return [QueueMessage(type="first")], state
        if mine["asked"] == 1 and mine["done"] == 1:
            mine["asked"] = 2
            return [QueueMessage(type="echo") for _ in range(5)], state
        return [], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        state[result.task_id]["done"] += 1
        return state


async def test_what_an_orchestrator_decides_for_a_running_task_is_never_refused() -> None:
    async with world(settings=EngineSettings(queue_depth_max=2), orchestrator=FanLater()) as made:
        instance = FakeInstance(["first", "echo"], concurrency=1)
        await instance.connect(made.plane)
        entry = await submit(made.plane, None)
        instance.answer(await instance.delivery(1))
        await recorded(entry, 2)
        assert made.plane.queue.depth("echo") == 4
        for number in range(2, 7):
            instance.answer(await instance.delivery(number))
        await outcome(made.plane, entry)


async def test_the_child_of_a_running_step_is_never_refused() -> None:
    async with world(settings=EngineSettings(tasks_unfinished_max=1, queue_depth_max=1)) as made:
        await FakeInstance(concurrency=1).connect(made.plane)
        await submit(made.plane)
        child = TaskOptions(origin=Origin(kind="child", task_id="t"))
        for _ in range(3):
            await submit(made.plane, options=child)
        await refusal(made)


async def test_when_to_come_again_is_taken_from_how_fast_work_is_done() -> None:
    async with world(clock=ManualClock(), settings=EngineSettings(tasks_unfinished_max=100, lease_s=1e9)) as made:
        instance = FakeInstance(concurrency=200)
        await instance.connect(made.plane)
        for _ in range(100):
            await submit(made.plane)
        assert (await refusal(made)).details["retry_after_s"] == 1.0
        made.manual.advance(30.0)
        assert (await refusal(made)).details["retry_after_s"] == 60.0
        for number in range(1, 21):
            instance.answer(await instance.delivery(number))
        await until(lambda: made.plane.engine.cache.unfinished == 80)
        for _ in range(20):
            await submit(made.plane)
        made.manual.advance(10.0)
        assert 0.4 <= (await refusal(made)).details["retry_after_s"] <= 2.0


def test_a_drain_rate_forgets_what_was_long_ago() -> None:
    rate = DrainRate(0.0, 0)
    assert rate.per_s(1.0, 100) == 100.0
    assert rate.per_s(10.0, 100) == 10.0
    assert rate.per_s(20.0, 100) == 0.0


# --- over HTTP, and the client that waits -----------------------------------------------------------------------------


async def test_over_http_it_is_429_with_retry_after() -> None:
    async with world(clock=ManualClock(), settings=EngineSettings(tasks_unfinished_max=1)) as made:
        await FakeInstance().connect(made.plane)
        await submit(made.plane)
        transport = httpx2.ASGITransport(app=build_app(made.plane))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test", timeout=DEADLINE_S) as http:
            answer = await http.post("/v1/tasks", json={"service": "echo", "input": "x"})
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
            assert answer.json()["details"]["setting"] == "tasks_unfinished_max"
            batch = await http.post("/v1/tasks/batch", json={"tasks": [{"service": "echo", "input": "x"}]})
            assert batch.json()["items"][0]["problem"]["details"]["retry_after_s"] == 1.0


async def test_a_client_waits_until_there_is_room() -> None:
    opened = asyncio.Event()

    @service
    async def wait() -> None:
        await opened.wait()

    settings = EngineSettings(tasks_unfinished_max=1)
    async with Deployment([wait], store=":memory:", settings=settings) as deployment:
        await deployment.submit("wait")
        second = asyncio.create_task(deployment.client.submit("wait", timeout_s=DEADLINE_S))
        third = asyncio.create_task(deployment.client.run("wait", timeout_s=DEADLINE_S))
        await asyncio.wait([second, third], timeout=0.05)
        assert not second.done()
        opened.set()
        assert await second
        assert await third is None


@pytest.mark.parametrize(("wait_when_full", "timeout_s"), [(False, 30.0), (True, 0.5)])
async def test_a_client_does_not_wait_longer_than_it_may(*, wait_when_full: bool, timeout_s: float) -> None:
    @service
    async def wait() -> None:
        await asyncio.Event().wait()

    settings = EngineSettings(tasks_unfinished_max=1)
    async with Deployment([wait], store=":memory:", settings=settings, drain_timeout_s=0.0) as deployment:
        await deployment.submit("wait")
        transport = deployment._transport()
        client = Client(transport=transport, wait_when_full=wait_when_full)
        with pytest.raises(QueueFullError):
            await client.submit("wait", timeout_s=timeout_s)
        await client.close()


# --- limits that are no backpressure ----------------------------------------------------------------------------------


async def test_a_history_is_as_long_as_it_may_be_and_its_end_finds_room() -> None:
    async with world(settings=EngineSettings(history_entries_per_task_max=3)) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        step = await instance.delivery()
        await made.plane.pauses.pause(entry.row.task_id)
        await made.plane.pauses.resume(entry.row.task_id)
        with pytest.raises(LimitExceededError, match="history of the task has 3 entries") as caught:
            await made.plane.pauses.pause(entry.row.task_id)
        assert caught.value.details == {"setting": "history_entries_per_task_max", "limit": 3}
        instance.answer(step)
        assert (await outcome(made.plane, entry)).status == "completed"
        assert len(await history(made.plane, entry)) == 4


class Endless(BaseOrchestrator):
    """One step after the other."""

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        mine = state.setdefault(task_def.task_id, {"open": False})
        if mine["open"]:
            return [], state
        mine["open"] = True
        return [QueueMessage(type="echo")], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        state[result.task_id]["open"] = False
        return state


async def test_a_task_that_would_have_too_long_a_history_fails() -> None:
    async with world(settings=EngineSettings(history_entries_per_task_max=3), orchestrator=Endless()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, None)
        for number in (1, 2, 3):
            instance.answer(await instance.delivery(number))
        result = await outcome(made.plane, entry)
        assert result.status == "failed"
        assert "history_entries_per_task_max is 3" in result.result
        assert len(instance.all(Deliver)) == 3


@pytest.mark.parametrize(
    ("settings", "second", "setting"),
    [
        ({"instances_max": 1}, {"instance_id": "two"}, "instances_max"),
        ({"services_max": 1}, {"services": ["other"]}, "services_max"),
        ({"steps_per_instance_max": 5}, {"concurrency": 6}, "steps_per_instance_max"),
    ],
)
async def test_instances_beyond_a_limit_are_refused_by_its_name(
    settings: dict[str, int], second: dict[str, Any], setting: str
) -> None:
    async with world(settings=EngineSettings(**settings)) as made:
        first = FakeInstance(concurrency=1)
        await first.connect(made.plane)
        await first.connect(made.plane)  # the same one again is not one more
        other = FakeInstance(**{"concurrency": 1, **second})
        other.attach(made.plane)
        other.hello()
        refused = await other.got(Refused)
        assert setting in refused.problem.decode()
        assert other.closed


async def test_streams_of_one_client_beyond_the_limit_are_refused_by_its_name() -> None:
    settings = EngineSettings(streams_per_client_max=1)

    @service
    async def wait() -> None:
        await asyncio.Event().wait()

    async with Deployment([wait], store=":memory:", settings=settings, drain_timeout_s=0.0) as deployment:
        task_id = await deployment.submit("wait")
        readings = [asyncio.ensure_future(anext(deployment.client.stream(task_id))) for _ in range(2)]
        refused, waiting = await asyncio.wait(readings, return_when=asyncio.FIRST_COMPLETED)
        with pytest.raises(LlamaDeployError, match="streams_per_client_max"):
            await refused.pop()
        for reading in waiting:
            reading.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
