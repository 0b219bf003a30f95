"""Paused tasks: nothing of them is handed out, what runs finishes, and a restart forgets no pause."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.control_plane.harness import FakeInstance, history, outcome, recorded, state_of, submit, until, world

from llama_deploy.control_plane import EngineSettings
from llama_deploy.errors import TaskEndedError, TaskNotFoundError
from llama_deploy.messages import QueueMessage
from llama_deploy.messages.frames import Deliver, EventsCommitted
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.testing import ManualClock
from llama_deploy.types import ActionTypes, RetryPolicy, TaskDefinition, TaskResult

PATIENT = EngineSettings(lease_s=1e9)


class Chain(BaseOrchestrator):
    """Two hops, one after the other."""

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        mine = state.setdefault(task_def.task_id, {"done": 0})
        if mine["done"] == 2:
            return [QueueMessage(type="nobody", action=ActionTypes.COMPLETED_TASK, data={"result": "end"})], state
        return [QueueMessage(type="echo", data={"number": mine["done"]})], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        state[result.task_id]["done"] += 1
        return state


async def test_what_runs_finishes_and_what_follows_waits(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", clock=ManualClock(), orchestrator=Chain(), settings=PATIENT) as made:

        async def extended() -> bool:
            return (await made.plane.store.next_due() or 0.0) > made.manual.now()

        def taken_up() -> bool:
            made.manual.advance(0.1)
            return "t" in made.plane.engine.cache.tasks

        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        step = await instance.delivery()
        await made.plane.pauses.pause("t", reason="the disk is full", by="ann")
        await made.plane.pauses.pause("t", reason="again")
        assert made.plane.views.task(entry).waiting_for == "somebody to resume it (paused by ann: the disk is full)"
        instance.answer(step)
        await instance.acknowledged(step)
        assert entry.row.steps == 2, "its answer is folded"
        for _ in range(3):
            made.manual.advance(700.0)
            await made.plane.sweeper.sweep()  # beside its own, which the clock has woken: one of them extends it
            await until(extended)
            assert len(instance.all(Deliver)) == 1, "not handed out"
        await made.crash()
        await made.start()
        await instance.connect(made.plane)
        made.manual.advance(2.0)
        await until(taken_up)
        entry = made.plane.engine.cache.tasks["t"]
        view = made.plane.views.task(entry)
        assert (view.paused, view.waiting_for) == (True, "somebody to resume it (paused by ann: the disk is full)")
        made.manual.advance(3600.0)
        await made.plane.sweeper.sweep()
        assert len(instance.all(Deliver)) == 1
        await made.plane.pauses.resume("t", by="bob", reason="a new disk")
        await made.plane.pauses.resume("t")
        instance.answer(await instance.delivery(2))
        assert (await outcome(made.plane, "t")).result == "end"
        said = [(e.kind, e.by, e.reason) for e in await history(made.plane, "t") if e.kind in {"paused", "resumed"}]
        assert said == [("paused", "ann", "the disk is full"), ("resumed", "bob", "a new disk")]


async def test_what_waits_in_the_queue_is_taken_back_and_handed_out_later() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        held = await submit(made.plane, wait_for_service=True)
        other = await submit(made.plane, wait_for_service=True)
        await made.plane.pauses.pause(held.row.task_id)
        assert await state_of(made.plane, held) == "submitted", "it has not begun"
        assert made.plane.queue.statistics("echo").waiting == 1
        instance = FakeInstance()
        await instance.connect(made.plane)
        step = await instance.delivery()
        assert step.task_id == other.row.task_id
        instance.answer(step)
        await outcome(made.plane, other)
        await made.plane.pauses.resume(held.row.task_id)
        instance.answer(await instance.delivery(2))
        await outcome(made.plane, held)


async def test_a_delivery_that_a_queue_carries_all_the_same_is_dropped() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        entry = await submit(made.plane, wait_for_service=True)
        made.plane.queue.withdraw = lambda step_ids: 0  # type: ignore[method-assign]
        await made.plane.pauses.pause(entry.row.task_id)
        instance = FakeInstance(concurrency=1)
        await instance.connect(made.plane)
        await until(lambda: made.plane.queue.statistics("echo").waiting == 0)
        assert instance.all(Deliver) == []
        await made.plane.pauses.resume(entry.row.task_id)
        instance.answer(await instance.delivery())
        await outcome(made.plane, entry)


async def test_an_instance_keeps_what_it_holds_of_a_paused_task_over_a_restart(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, task_id="t")
        step = await instance.delivery()
        await made.plane.pauses.pause("t")
        await made.crash()
        await made.start()
        welcome = await instance.connect(made.plane, held=[(step.step_id, step.attempt)])
        assert welcome.disowned == []
        instance.answer(step)
        assert (await outcome(made.plane, "t")).attempt == 1


async def test_a_retry_that_falls_due_waits_for_the_end_of_the_pause() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        instance = FakeInstance(retry=RetryPolicy(initial_s=5.0, jitter=0.0))
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        instance.fail(await instance.delivery())
        await recorded(entry, 2)
        await made.plane.pauses.pause(entry.row.task_id)
        made.manual.advance(60.0)
        await made.plane.sweeper.sweep()
        assert len(instance.all(Deliver)) == 1
        await made.plane.pauses.resume(entry.row.task_id)
        instance.answer(await instance.delivery(2))
        await outcome(made.plane, entry)


async def test_a_paused_task_can_be_canceled_and_answered() -> None:
    async with world() as made:
        instance = FakeInstance(["human"])
        await instance.connect(made.plane)
        asked = await submit(made.plane, "human")
        instance.park(await instance.delivery(), "well?", resume="redeliver")
        await recorded(asked, 2)
        await made.plane.pauses.pause(asked.row.task_id)
        await made.plane.signals.send_input(asked.row.task_id, "yes")
        assert len(instance.all(Deliver)) == 1
        await made.plane.pauses.resume(asked.row.task_id)
        again = await instance.delivery(2)
        assert again.inputs == [b'"yes"']
        await made.plane.pauses.pause(asked.row.task_id)
        await made.plane.signals.cancel(asked.row.task_id)
        assert (await outcome(made.plane, asked)).status == "canceled"
        assert not made.plane.views.task(asked).paused


async def test_what_cannot_be_paused_says_so() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        instance.answer(await instance.delivery())
        await outcome(made.plane, entry)
        for change in (made.plane.pauses.pause, made.plane.pauses.resume):
            with pytest.raises(TaskEndedError):
                await change(entry.row.task_id)
            with pytest.raises(TaskNotFoundError):
                await change("never")


async def test_pauses_and_ends_at_once_leave_one_outcome(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        instance = FakeInstance(concurrency=50)
        await instance.connect(made.plane)
        entries = [await submit(made.plane) for _ in range(20)]

        async def shake(task_id: str) -> None:
            try:
                for _ in range(5):
                    await made.plane.pauses.pause(task_id)
                    await made.plane.pauses.resume(task_id)
            except TaskEndedError:
                return

        shaking = [asyncio.ensure_future(shake(entry.row.task_id)) for entry in entries]
        for number in range(20):
            instance.answer(await instance.delivery(number + 1))
        await asyncio.gather(*shaking)
        for entry in entries:
            assert (await outcome(made.plane, entry)).status == "completed"
        assert made.plane.engine.statistics.conflicts == 0


async def test_what_was_begun_before_a_crash_goes_on_as_the_next_attempt() -> None:
    """Resumed before the sweeper has seen that nobody has come back with it."""
    async with world(clock=ManualClock(), settings=EngineSettings(lease_s=1e9)) as made:
        first = FakeInstance(instance_id="first")
        await first.connect(made.plane)
        await submit(made.plane, task_id="t")
        begun = await first.delivery()
        first.stream(begun, 0, ["a"])
        await first.got(EventsCommitted)
        await made.plane.pauses.pause("t")
        await made.crash()
        second = FakeInstance(instance_id="second")
        await second.connect(await made.start())
        await made.plane.pauses.resume("t")
        assert not made.plane.engine.claim("second", begun.step_id, 1), "a queue that outlives a crash brings it again"
        made.manual.advance(2.0)
        again = await second.delivery_in_time(made)
        assert (again.step_id, again.attempt) == (begun.step_id, 2)
        second.answer(again)
        await outcome(made.plane, "t")
        assert [entry.kind for entry in await history(made.plane, "t") if entry.kind in {"resumed", "lost"}] == [
            "resumed",
            "lost",
        ]
