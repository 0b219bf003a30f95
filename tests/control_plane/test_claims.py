"""What a control plane knows after a crash of everything: which attempts were lost with it, and which never began."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.control_plane.harness import FakeInstance, World, history, outcome, stream, submit, until, world

from llama_deploy.control_plane import EngineSettings
from llama_deploy.messages.frames import Deliver
from llama_deploy.testing import ManualClock

PATIENT = EngineSettings(lease_s=1e9, attempts_max=3)


async def restart_alone(made: World) -> None:
    """Everything dies; a new control plane comes up, and its grace for instances to come back passes."""
    await made.crash()
    await made.start()
    made.manual.advance(PATIENT.recovery_grace_s)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "store.db" if request.param == "sqlite" else None


async def test_a_step_that_was_held_becomes_the_next_attempt(store: Path | None) -> None:
    async with world(store, clock=ManualClock(), settings=PATIENT) as made:
        first = FakeInstance()
        await first.connect(made.plane)
        entry = await submit(made.plane)
        await first.delivery()
        transitions = made.plane.store.statistics.transitions
        made.manual.advance(PATIENT.claim_recorded_after_s)
        await until(lambda: made.plane.store.statistics.transitions == transitions + 1)
        await restart_alone(made)
        second = FakeInstance(instance_id="two")
        await second.connect(made.plane)
        delivery = await second.delivery()
        assert (delivery.step_id, delivery.attempt) == (f"{entry.row.task_id}:1", 2)
        second.answer(delivery, "done")
        assert (await outcome(made.plane, entry.row.task_id)).attempt == 2
        kinds = [item.kind for item in await history(made.plane, entry.row.task_id)]
        assert kinds == ["submitted", "lost", "answered"]


async def test_a_step_that_nobody_had_taken_is_still_in_its_first_attempt(store: Path | None) -> None:
    async with world(store, clock=ManualClock(), settings=PATIENT) as made:
        entry = await submit(made.plane, wait_for_service=True)
        made.manual.advance(PATIENT.claim_recorded_after_s * 3)
        await restart_alone(made)
        instance = FakeInstance()
        await instance.connect(made.plane)
        delivery = await instance.delivery()
        assert (delivery.step_id, delivery.attempt) == (f"{entry.row.task_id}:1", 1)


async def test_a_step_that_is_answered_soon_costs_no_further_transition() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        instance.answer(await instance.delivery())
        await outcome(made.plane, entry)
        transitions = made.plane.store.statistics.transitions
        made.manual.advance(PATIENT.claim_recorded_after_s * 2)
        await submit(made.plane)
        assert made.plane.store.statistics.transitions == transitions + 1, "that of the second submission"


async def test_an_attempt_that_has_streamed_is_known_to_have_begun(store: Path | None) -> None:
    async with world(store, clock=ManualClock(), settings=PATIENT) as made:
        first = FakeInstance()
        await first.connect(made.plane)
        entry = await submit(made.plane)
        task_id = entry.row.task_id
        first.stream(await first.delivery(), 0, ["a", "b"])
        await until(lambda: entry.stream is not None and entry.stream.committed == 2)
        await restart_alone(made)
        second = FakeInstance(instance_id="two")
        await second.connect(made.plane)
        delivery = await second.delivery()
        assert delivery.attempt == 2
        second.stream(delivery, 0, ["a", "c"])
        second.answer(delivery)
        await outcome(made.plane, task_id)
        marker = {"llama_deploy": "attempt", "step_id": delivery.step_id, "attempt": 2}
        assert await stream(made.plane, task_id) == ["a", "b", marker, "a", "c"]


async def test_an_instance_that_comes_back_in_time_keeps_its_attempt(store: Path | None) -> None:
    async with world(store, clock=ManualClock(), settings=PATIENT) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        delivery = await instance.delivery()
        made.manual.advance(PATIENT.claim_recorded_after_s)
        await made.crash()
        await made.start()
        welcome = await instance.connect(made.plane, held=[(delivery.step_id, 1)])
        assert welcome.disowned == []
        made.manual.advance(PATIENT.recovery_grace_s)
        instance.answer(delivery)
        assert (await outcome(made.plane, entry.row.task_id)).attempt == 1
        assert len(instance.all(Deliver)) == 1


async def test_a_step_that_takes_everything_along_does_not_go_on_for_ever(store: Path | None) -> None:
    async with world(store, clock=ManualClock(), settings=PATIENT) as made:
        entry = await submit(made.plane, wait_for_service=True)
        for attempt in (1, 2, 3):
            instance = FakeInstance(instance_id=str(attempt))
            await instance.connect(made.plane)
            assert (await instance.delivery()).attempt == attempt
            made.manual.advance(PATIENT.claim_recorded_after_s)
            await until(lambda: made.plane.store.backlog == 0)
            await restart_alone(made)
        result = await outcome(made.plane, entry.row.task_id)
        assert result.error is not None
        assert result.error.code == "LD506"


async def test_a_step_is_taken_away_when_its_run_deadline_and_the_grace_are_over() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        first = FakeInstance(run_timeout_s=2.0)
        await first.connect(made.plane)
        entry = await submit(made.plane)
        delivery = await first.delivery()
        transitions = made.plane.store.statistics.transitions
        made.manual.advance(PATIENT.claim_recorded_after_s)
        await until(lambda: made.plane.store.statistics.transitions == transitions + 1)
        made.manual.advance(2.0 + PATIENT.run_timeout_grace_s - PATIENT.claim_recorded_after_s - 0.1)
        assert entry.open[delivery.step_id].attempt == 1
        made.manual.advance(0.1)
        again = await first.delivery(2)
        assert (again.step_id, again.attempt) == (delivery.step_id, 2)
        assert (await history(made.plane, entry))[-1].reason == "its run deadline is over"
