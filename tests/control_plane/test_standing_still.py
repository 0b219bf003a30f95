"""A control plane that stood still takes nobody for lost who has gone on meanwhile: what was said is read first."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.control_plane.harness import FakeInstance, World, history, outcome, submit, until, world

from llama_deploy.control_plane import EngineSettings
from llama_deploy.messages.frames import Heartbeat
from llama_deploy.state_stores import MemoryStore
from llama_deploy.testing import ManualClock
from llama_deploy.types import TaskOptions

LONG_S = 3_600.0


async def kinds(made: World, task_id: str) -> list[str]:
    return [entry.kind for entry in await history(made.plane, task_id)]


async def test_an_instance_that_came_back_meanwhile_keeps_what_it_holds() -> None:
    async with world(clock=ManualClock()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, task_id="t")
        step = await instance.delivery()
        instance.drop()
        made.manual.stand_still(LONG_S)
        await instance.connect(made.plane, held=[(step.step_id, step.attempt)])
        made.manual.advance(1.0)
        instance.answer(step)
        assert (await outcome(made.plane, "t")).result == "done"
        assert await kinds(made, "t") == ["submitted", "answered"]


async def test_an_instance_that_does_not_come_back_is_lost_all_the_same() -> None:
    async with world(clock=ManualClock()) as made:
        gone, other = FakeInstance(instance_id="gone"), FakeInstance(instance_id="other")
        await gone.connect(made.plane)
        await submit(made.plane, task_id="t")
        await gone.delivery()
        await other.connect(made.plane)
        gone.drop()
        made.manual.stand_still(LONG_S)
        other.send(Heartbeat([]))
        other.answer(await other.delivery_in_time(made))
        await outcome(made.plane, "t")
        assert await kinds(made, "t") == ["submitted", "lost", "answered"]


async def test_an_instance_whose_signs_of_life_are_unread_is_not_silent() -> None:
    async with world(clock=ManualClock()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, task_id="t")
        step = await instance.delivery()
        made.manual.stand_still(30.0)
        instance.send(Heartbeat([]))
        made.manual.advance(5.0)
        assert not instance.closed
        instance.answer(step)
        await outcome(made.plane, "t")
        assert await kinds(made, "t") == ["submitted", "answered"]


async def test_an_answer_that_came_in_time_and_is_unread_counts() -> None:
    async with world(clock=ManualClock(), settings=EngineSettings(lease_s=1e9)) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, task_id="t", options=TaskOptions(run_timeout_s=10.0))
        step = await instance.delivery()
        made.manual.stand_still(LONG_S)
        await until(lambda: not made.plane.sweeper._wake.is_set())
        instance.answer(step)
        assert (await outcome(made.plane, "t")).result == "done"
        assert await kinds(made, "t") == ["submitted", "answered"]


@pytest.mark.parametrize("stored", [False, True])
async def test_who_comes_back_after_a_start_has_time_to_although_it_stood_still(stored: bool, tmp_path: Path) -> None:
    settings = EngineSettings(lease_s=1e9, claim_recorded_after_s=0.0)
    async with world(tmp_path / "s.db" if stored else MemoryStore(), clock=ManualClock(), settings=settings) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        step = await instance.delivery()
        made.manual.advance(1.0)
        await until(lambda: made.plane.store.backlog == 0 and entry.was_begun(entry.open[step.step_id]))
        await made.crash()
        await made.start()
        made.manual.stand_still(LONG_S)
        await instance.connect(made.plane, held=[(step.step_id, step.attempt)])
        made.manual.advance(10.0)
        instance.answer(step)
        assert (await outcome(made.plane, "t")).result == "done"
        assert "lost" not in await kinds(made, "t")
