"""The sweeper: what is overdue is published again with growing pauses, what is held is extended, what hangs is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.control_plane.harness import FakeInstance, history, outcome, recorded, submit, until, world

from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.control_plane.sweeper import LOOK_AGAIN_S
from llama_deploy.errors import StoreUnavailableError
from llama_deploy.message_queues import Envelope, SimpleMessageQueue
from llama_deploy.messages.frames import CancelStep, Deliver, Heartbeat
from llama_deploy.testing import ManualClock
from llama_deploy.types import RetryPolicy

PATIENT = EngineSettings(lease_s=1e9)


async def swept(plane: ControlPlane) -> None:
    """Wait until the sweeper has done what it was woken for."""
    for _ in range(20):
        await asyncio.sleep(0)
    await until(lambda: plane.store.backlog == 0 and not plane.sweeper._wake.is_set())


class Losing:
    """Makes a queue lose what is published, as a broker may."""

    def __init__(self, plane: ControlPlane) -> None:
        self.lost = 0
        self.losing = True
        self._publish: Callable[[Any], Any] = plane.queue.publish
        plane.queue.publish = self._lose  # type: ignore[method-assign]

    def _lose(self, envelopes: Sequence[Envelope]) -> list[Envelope]:
        if not self.losing:
            found: list[Envelope] = self._publish(envelopes)
            return found
        self.lost += len(envelopes)
        return []


async def test_what_a_queue_lost_is_published_again_with_growing_pauses() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        queue = Losing(made.plane)
        entry = await submit(made.plane)
        assert queue.lost == 1
        for number, pause in enumerate([30.0, 30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0], start=2):
            made.manual.advance(pause - 0.5)
            await swept(made.plane)
            assert queue.lost == number - 1, f"too early, before {pause}"
            made.manual.advance(0.5)
            await swept(made.plane)
            assert queue.lost == number, f"not after {pause}"
        queue.losing = False
        made.manual.advance(600.0)
        step = await instance.delivery()
        assert step.attempt == 1, "it never began"
        instance.answer(step)
        await outcome(made.plane, entry)
        assert await made.plane.store.next_due() is None


async def test_what_waits_in_the_queue_is_not_doubled() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        entries = [await submit(made.plane, wait_for_service=True) for _ in range(10)]
        for _ in range(5):
            made.manual.advance(700.0)
            await swept(made.plane)
        assert made.plane.queue.statistics("echo").waiting == 10
        instance = FakeInstance(concurrency=100)
        await instance.connect(made.plane)
        await instance.delivery(10)
        await swept(made.plane)
        assert sorted(d.task_id for d in instance.all(Deliver)) == sorted(e.row.task_id for e in entries)


async def test_what_an_instance_holds_is_extended_and_not_delivered_again() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        first, second = FakeInstance(instance_id="a", run_timeout_s=3600.0), FakeInstance(instance_id="b")
        await first.connect(made.plane)
        await submit(made.plane)
        await first.delivery()
        await second.connect(made.plane)
        transitions = made.plane.store.statistics.transitions
        for _ in range(20):
            made.manual.advance(30.0)
            await swept(made.plane)
        assert second.all(Deliver) == []
        assert len(first.all(Deliver)) == 1
        assert made.plane.store.statistics.transitions - transitions <= 21, (
            "one small one per 30 s, and one for its start"
        )


async def test_a_step_that_overruns_its_deadline_without_a_word_is_lost() -> None:
    """The fallback: normally the instance itself ends what runs too long and says so."""
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        hung = FakeInstance(instance_id="a", run_timeout_s=60.0, concurrency=1)
        await hung.connect(made.plane)
        entry = await submit(made.plane)
        step = await hung.delivery()
        made.manual.advance(60.0)
        await swept(made.plane)
        assert hung.all(CancelStep) == []
        made.manual.advance(40.0)
        assert (await hung.got(CancelStep)).step_id == step.step_id
        again = await hung.delivery(2)
        assert again.attempt == 2
        hung.answer(again)
        await outcome(made.plane, entry)
        lost = (await history(made.plane, entry))[1]
        assert (lost.kind, lost.reason) == ("lost", "its run deadline is over")


async def test_a_step_that_waits_for_a_person_never_overruns() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        instance = FakeInstance(run_timeout_s=60.0)
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        instance.ask(await instance.delivery())
        await recorded(entry, 2)
        for _ in range(10):
            made.manual.advance(600.0)
            await swept(made.plane)
        assert made.plane.engine.statistics.lost == 0


async def test_parked_steps_are_never_overdue() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        instance.park(await instance.delivery())
        await recorded(entry, 2)
        made.manual.advance(1e6)
        await swept(made.plane)
        assert len(instance.all(Deliver)) == 1
        assert await made.plane.store.next_due() is None


async def test_a_backoff_that_is_over_before_its_commit_is_not_forgotten(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        instance = FakeInstance(retry=RetryPolicy(initial_s=0.0, jitter=0.0))
        await instance.connect(made.plane)
        for number in range(10):
            entry = await submit(made.plane)
            instance.fail(await instance.delivery(2 * number + 1))
            again = await instance.delivery(2 * number + 2)
            assert again.attempt == 2
            instance.answer(again)
            await outcome(made.plane, entry)


async def test_nothing_is_swept_while_an_answer_is_on_its_way(tmp_path: Path) -> None:
    """What is overdue in the store and answered in memory is left to the commit that is on its way."""
    async with world(tmp_path / "s.db", settings=EngineSettings(overdue_s=0.0)) as made:
        instance = FakeInstance(concurrency=100)
        await instance.connect(made.plane)
        entries = await asyncio.gather(*[submit(made.plane) for _ in range(50)])
        for number in range(50):
            instance.answer(await instance.delivery(number + 1))
        for entry in entries:
            assert (await outcome(made.plane, entry)).attempt == 1
        assert len(instance.all(Deliver)) == 50
        assert made.plane.engine.statistics.conflicts == 0


async def test_a_store_that_cannot_be_read_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        queue = Losing(made.plane)
        await FakeInstance().connect(made.plane)
        await submit(made.plane)
        failures = 0

        async def fail(*_: Any, **__: Any) -> Any:
            nonlocal failures
            failures += 1
            if failures == 2:
                raise ValueError("a defect")
            raise StoreUnavailableError("not now")

        with monkeypatch.context() as patch:
            patch.setattr(made.plane.store, "due_deliveries", fail)
            for number in range(1, 4):
                made.manual.advance(30.0 if number == 1 else 1.0)
                await until(lambda: failures >= 1)
                await swept(made.plane)
                assert failures == number
        made.manual.advance(1.0)
        await until(lambda: queue.lost == 2)


async def test_a_sweep_never_spins_on_what_it_cannot_take_care_of(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(clock=ManualClock(), settings=EngineSettings(lease_s=1e9, sweep_batch_max=1)) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        await instance.delivery()
        asked = 0
        look = made.plane.store.due_deliveries

        async def count(*args: Any, **options: Any) -> Any:
            nonlocal asked
            asked += 1
            return await look(*args, **options)

        monkeypatch.setattr(made.plane.store, "due_deliveries", count)
        step = entry.open.pop(f"{entry.row.task_id}:1")  # as if its answer were on its way to the store
        made.manual.advance(30.0)
        await swept(made.plane)
        assert asked == 1
        made.manual.advance(LOOK_AGAIN_S)
        await swept(made.plane)
        assert asked == 2
        entry.open[step.step_id] = step
        instance.send(Heartbeat([]))


async def test_retries_of_many_tasks_fall_due_together() -> None:
    settings = EngineSettings(lease_s=1e9, sweep_batch_max=7)
    async with world(clock=ManualClock(), settings=settings) as made:
        instance = FakeInstance(concurrency=100, retry=RetryPolicy(initial_s=10.0, jitter=0.0))
        await instance.connect(made.plane)
        entries = await asyncio.gather(*[submit(made.plane) for _ in range(50)])
        for number in range(50):
            instance.fail(await instance.delivery(number + 1))
        for entry in entries:
            await recorded(entry, 2)
        made.manual.advance(10.0)
        await instance.delivery(100)
        assert {d.attempt for d in instance.all(Deliver)[50:]} == {2}


async def test_a_full_queue_is_tried_again() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        small = SimpleMessageQueue(depth_max=2)
        made.plane.queue = made.plane.engine.queue = small
        for _ in range(5):
            await submit(made.plane, wait_for_service=True)
        assert small.statistics("echo").waiting == 2
        instance = FakeInstance(concurrency=100)
        await instance.connect(made.plane)
        assert len(instance.all(Deliver)) == 2
        made.manual.advance(30.0)
        await instance.delivery(4)
        made.manual.advance(60.0)
        await instance.delivery(5)
