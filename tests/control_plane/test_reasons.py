"""Why something waits: every reason there is, of a task, and of a step where the queue is looked into."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from tests.control_plane.harness import FakeInstance, recorded, submit, until, world

from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.errors import ServiceNotFoundError
from llama_deploy.messages import QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.testing import ManualClock
from llama_deploy.types import RateLimit, RetryPolicy, ServiceLimits, TaskDefinition, TaskOptions, TaskResult

PATIENT = EngineSettings(lease_s=1e9)


def why(plane: ControlPlane, task_id: str) -> str | None:
    return plane.views.task(plane.engine.cache.tasks[task_id]).waiting_for


def peeked(plane: ControlPlane) -> list[tuple[str, str | None]]:
    page = plane.views.waiting("echo", first=0, limit=100)
    assert [step.place for step in page.items] == list(range(1, len(page.items) + 1))
    return [(step.task_id, step.reason) for step in page.items]


async def test_no_instance_a_free_instance_a_person_a_pause_and_a_due_time() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        plane = made.plane
        await submit(plane, task_id="t0", wait_for_service=True)
        assert why(plane, "t0") == 'nobody serves "echo" (it was never registered)'
        instance = FakeInstance(concurrency=1, retry=RetryPolicy(initial_s=5.0, jitter=0.0))
        await instance.connect(plane)
        first = await instance.delivery()
        assert why(plane, "t0") is None
        for name, options in (("t1", None), ("t2", TaskOptions(priority=1, key="k"))):
            await submit(plane, task_id=name, options=options)
        assert why(plane, "t1") == "a free instance of echo (none ahead of it)"
        assert why(plane, "t2") == "a free instance of echo (1 ahead of it, priority 1, key k)"
        assert peeked(plane) == [("t1", "a free instance of echo"), ("t2", "a free instance of echo")]
        await plane.pauses.pause("t2", reason="not now")
        assert why(plane, "t2") == "somebody to resume it (paused: not now)"
        assert peeked(plane) == [("t1", "a free instance of echo")]
        instance.fail(first)
        await recorded(plane.engine.cache.tasks["t0"], 2)
        assert why(plane, "t0") == "attempt 2 of echo, due in 5.0 s (1 failed)"
        instance.park(await instance.delivery(2), "which?")
        await recorded(plane.engine.cache.tasks["t1"], 2)
        assert why(plane, "t1") == "a person's input for echo: which?"
        instance.drop()
        made.manual.advance(5.0)
        await until(lambda: plane.engine.registry.instances == {})
        await submit(plane, task_id="t3", wait_for_service=True)
        assert why(plane, "t3") == 'nobody serves "echo" now (its instances are expected back)'
        made.manual.advance(plane.engine.settings.service_return_s)
        assert why(plane, "t3") == 'nobody serves "echo" (no instance of it is connected)'


@pytest.mark.parametrize(
    ("limits", "reason", "by"),
    [
        ({"running_max": 1}, "running_max of echo is 1: 1 run (none ahead of it, key k)", "running_max"),
        (
            {"running_max_per_session": 1},
            "running_max_per_session of echo is 1: 1 of session s run (none ahead of it, key k)",
            "running_max_per_session",
        ),
        (
            {"running_max_per_key": 1},
            "running_max_per_key of echo is 1: 1 of k run (none ahead of it, key k)",
            "running_max_per_key",
        ),
        (
            {"rate": RateLimit(count=1, seconds=60.0)},
            "rate of echo is 1 in 60 s: the next one in 60.0 s (none ahead of it, key k)",
            "rate",
        ),
    ],
)
async def test_which_limit(limits: dict[str, Any], reason: str, by: str) -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        plane = made.plane
        await FakeInstance(limits=ServiceLimits(**limits)).connect(plane)
        for name in ("t0", "t1", "t2"):
            await submit(plane, task_id=name, session_id="s", options=TaskOptions(key="k"))
        assert why(plane, "t1") == reason
        assert why(plane, "t2") == reason.replace("none ahead", "1 ahead")
        assert peeked(plane) == [("t1", reason.partition(" (")[0]), ("t2", reason.partition(" (")[0])]
        assert plane.views.queue("echo").held_back == {by: 2}


async def test_a_paused_service_and_the_recovery_after_a_restart() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        instance = FakeInstance(limits=ServiceLimits(running_max=5))
        await instance.connect(made.plane)
        await made.plane.engine.admission.pause("echo", reason="the disk is full", by="me")
        await submit(made.plane, task_id="t0")
        assert why(made.plane, "t0") == "echo is paused by me: the disk is full"
        view = made.plane.views.service("echo")
        assert (view.state, view.waiting, view.held_back) == ("paused", 1, {"paused": 1})
        assert view.paused is not None
        assert (view.paused.by, view.paused.reason) == ("me", "the disk is full")
        await made.plane.engine.admission.resume("echo")
        await instance.delivery()
        await made.crash()
        plane = await made.start()
        await FakeInstance(instance_id="two", limits=ServiceLimits(running_max=5)).connect(plane)
        await submit(plane, task_id="t1")
        reason = why(plane, "t1")
        assert reason is not None
        assert reason.startswith("instances of echo that come back with what they hold, 1.0 s")
        assert plane.views.queue("echo").held_back == {"recovery": 1}
        made.manual.advance(1.1)
        await until(lambda: why(plane, "t1") is None)


class Slow(BaseOrchestrator):
    """Thinks until it is told to go on."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        if task_def.task_id in state:
            await self.go_on.wait()
            return [], state
        return [QueueMessage(type="echo")], {**state, task_def.task_id: {}}

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        return state


async def test_a_decision_and_a_later_beginning() -> None:
    policy = Slow()
    async with world(orchestrator=policy) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, None, task_id="t0")
        instance.answer(await instance.delivery())
        await until(lambda: why(made.plane, "t0") == "a decision of the orchestrator")
        policy.go_on.set()
        await submit(made.plane, None, task_id="t1", options=TaskOptions(delay_s=60.0))
        assert re.fullmatch(r"its beginning, in (60\.0|59\.\d) s", why(made.plane, "t1") or "")


async def test_what_waits_is_shown_in_pages() -> None:
    async with world() as made:
        await FakeInstance(concurrency=1, limits=ServiceLimits(running_max=3)).connect(made.plane)
        for number in range(8):
            await submit(made.plane, task_id=f"t{number}")
        names: list[str] = []
        after: int | None = 0
        while after is not None:
            page = made.plane.views.waiting("echo", first=after, limit=3)
            names += [step.task_id for step in page.items]
            after = page.next
        assert names == [f"t{number}" for number in range(1, 8)]
        with pytest.raises(ServiceNotFoundError):
            made.plane.views.waiting("nobody", first=0, limit=3)
