"""Dead letters: which steps become one, and what sending them again and removing them does."""

from __future__ import annotations

import pytest
from tests.control_plane.harness import FakeInstance, outcome, submit, until, world
from tests.control_plane.test_repeats import Fan, Works, failed_fan

from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.control_plane.dead_letters import DeadFilter
from llama_deploy.errors import DeadLetterNotFoundError, NotRepeatableError
from llama_deploy.orchestrators import SimpleOrchestrator
from llama_deploy.testing import ManualClock
from llama_deploy.types import RetryPolicy, TaskOptions
from llama_deploy.types.control import DeadLetterView


async def letters(plane: ControlPlane) -> list[DeadLetterView]:
    return (await plane.dead_letters.page(service=None, task_id=None, limit=100, cursor=None)).items


async def test_a_step_whose_retries_ran_out_is_one_with_its_last_error() -> None:
    async with world(orchestrator=SimpleOrchestrator(max_retries=1)) as made:
        works = Works()
        await works.connect(made.plane)
        task = await submit(made.plane)
        works.fail(await works.delivery(1), "first")
        step = await works.delivery(2)
        assert await letters(made.plane) == []
        works.fail(step, "second", code="LD502", type="OSError")
        await outcome(made.plane, task)
        (letter,) = await letters(made.plane)
        assert (letter.step_id, letter.attempt, letter.code) == (step.step_id, 2, "LD502")
        assert letter.error == "OSError: second"
        assert (await made.plane.status())["dead_letters"] == {"echo": 1}
        detail = await made.plane.dead_letters.detail(letter.step_id)
        assert detail.message["task"]["input"] == "hello"
        assert [entry["error"]["message"] for entry in detail.attempts] == ["first", "second"]


async def test_a_step_that_was_lost_too_often_is_one_and_bad_arguments_are_none() -> None:
    async with world(settings=EngineSettings(attempts_max=1, reconnect_grace_s=0.0)) as made:
        one = FakeInstance(["echo"])
        await one.connect(made.plane)
        lost = await submit(made.plane)
        await one.delivery()
        one.drop()
        await outcome(made.plane, lost)
        assert [letter.code for letter in await letters(made.plane)] == ["LD506"]
        two = FakeInstance(["echo"], instance_id="two")
        await two.connect(made.plane)
        wrong = await submit(made.plane)
        two.fail(await two.delivery(), code="LD505", retryable=False)
        await outcome(made.plane, wrong)
        assert len(await letters(made.plane)) == 1


async def test_redriving_makes_one_new_task_and_says_where() -> None:
    async with world(orchestrator=Fan()) as made:
        works = Works()
        await works.connect(made.plane)
        old = (await failed_fan(made.plane, works)).row.task_id
        dead = made.plane.dead_letters
        new = await dead.redrive(f"{old}:1")
        assert await dead.redrive(f"{old}:1") == new
        await works.finish(new, a="A")
        assert (await works.joined(new))["got"] == {"a": "A", "b": "B", "c": "C"}
        entry = await made.plane.engine.cache.get(new)
        assert entry.row.origin == f"redrive:{old}"
        assert [letter.redriven for letter in await letters(made.plane)] == [new]
        assert (await made.plane.status())["dead_letters"] == {}
        with pytest.raises(DeadLetterNotFoundError):
            await dead.redrive("nobody:1")


async def test_a_task_that_paused_because_of_it_goes_on_itself() -> None:
    async with world() as made:
        works = Works()
        await works.connect(made.plane)
        retry = RetryPolicy(max_retries=0, when_exhausted="pause")
        task = await submit(made.plane, options=TaskOptions(retry=retry))
        works.fail(await works.delivery(), "down")
        await until(lambda: task.settled_seq == 2)
        step_id = f"{task.row.task_id}:1"
        assert [letter.step_id for letter in await letters(made.plane)] == [step_id]
        assert await made.plane.dead_letters.redrive(step_id) == task.row.task_id
        works.answer(await works.delivery(2))
        assert (await outcome(made.plane, task)).status == "completed"
        assert [letter.redriven for letter in await letters(made.plane)] == [task.row.task_id]


async def test_a_message_about_an_end_is_sent_again_by_itself() -> None:
    async with world(orchestrator=SimpleOrchestrator(final_message_type="human")) as made:
        works = FakeInstance(["echo", "human"], retry=RetryPolicy(max_retries=0))
        await works.connect(made.plane)
        task = await submit(made.plane)
        works.answer(await works.delivery(1))
        told = await works.delivery(2)
        works.fail(told, "not now")
        await works.acknowledged(told)
        (letter,) = await letters(made.plane)
        assert await made.plane.dead_letters.redrive(letter.step_id) == task.row.task_id
        again = await works.delivery(3)
        assert (again.step_id, again.message) == (told.step_id, told.message)
        works.answer(again)
        await until(lambda: not task.open)
        assert [one.redriven for one in await letters(made.plane)] == [task.row.task_id]


async def test_a_task_that_went_on_without_the_step_is_left_alone() -> None:
    async with world(orchestrator=Fan()) as made:
        works = Works()
        await works.connect(made.plane)
        task = await submit(made.plane, None, "a b")
        step = await works.step(task.row.task_id, "a")
        works.fail(step, retryable=False)
        await works.acknowledged(step)
        with pytest.raises(NotRepeatableError, match="goes on without"):
            await made.plane.dead_letters.redrive(step.step_id)
        assert [letter.redriven for letter in await letters(made.plane)] == [None]


async def test_letters_are_chosen_by_service_code_and_age() -> None:
    clock = ManualClock(1_000.0)
    async with world(clock=clock) as made:
        works = Works()
        await works.connect(made.plane)
        ids = []
        for code in ("LD502", "LD503"):
            task = await submit(made.plane)
            works.fail(await works.step(task.row.task_id, service="echo"), code=code, retryable=False)
            await outcome(made.plane, task)
            ids.append(f"{task.row.task_id}:1")
            clock.advance(3.0)
        dead = made.plane.dead_letters
        for where, count in (
            (DeadFilter(service="echo"), 2),
            (DeadFilter(service="work"), 0),
            (DeadFilter(code="LD503"), 1),
            (DeadFilter(older_than_s=5.0), 1),
            (DeadFilter(older_than_s=0.0), 2),
        ):
            assert (await dead.redrive_all(where, limit=10, dry_run=True)).matched == count
        redriven = await dead.redrive_all(DeadFilter(code="LD502"), limit=10)
        assert [item.step_id for item in redriven.items] == ids[:1]
        assert (await dead.redrive_all(DeadFilter(code="LD502"), limit=10)).matched == 0
        assert (await dead.purge_all(DeadFilter(older_than_s=0.0), limit=1)).more
        assert (await dead.purge_all(DeadFilter(older_than_s=0.0), limit=10)).matched == 1
        assert await letters(made.plane) == []


async def test_what_runs_again_by_a_retry_is_not_sent_again_by_its_letter() -> None:
    async with world(orchestrator=Fan()) as made:
        works = Works()
        await works.connect(made.plane)
        for from_start in (False, True):
            old = (await failed_fan(made.plane, works)).row.task_id
            again, _ = await made.plane.repeats.retry(old, from_start=from_start)
            assert await made.plane.dead_letters.redrive(f"{old}:1") == again.row.task_id
        assert (await made.plane.status())["dead_letters"] == {}
