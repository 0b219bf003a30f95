"""An attempt is one instance's: also where control planes died in between, and two instances were given the same one.

A control plane cannot know of an instance that was silent for too long: it gives the attempt to another one. Whatever
is on record of the attempt is of one of them, however often the lead changes and whoever comes back first.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.control_plane.harness import FakeInstance, World, outcome, stream, submit, until, world

from llama_deploy.control_plane import EngineSettings
from llama_deploy.control_plane.open_steps import SOMEBODY, holder_mark
from llama_deploy.messages.frames import Acknowledged, Deliver, Disowned, EventsCommitted, Heartbeat, HeldStep
from llama_deploy.state_stores import MemoryStore
from llama_deploy.state_stores.base import DeliveryMove, Transition

SOON = EngineSettings(recovery_grace_s=0.0, claim_recorded_after_s=3600.0)


async def given_twice(made: World) -> tuple[FakeInstance, FakeInstance, Deliver]:
    """The same attempt at two instances: the first one was silent while another control plane had begun to lead."""
    first, second = FakeInstance(instance_id="first"), FakeInstance(instance_id="second")
    await first.connect(made.plane)
    await submit(made.plane, task_id="task")
    step = await first.delivery()
    await made.crash()
    await made.start()
    await second.connect(made.plane)
    assert (await second.delivery()).attempt == step.attempt == 1
    return first, second, step


async def streamed(instance: FakeInstance, step: Deliver, first: int, *names: str) -> None:
    """Stream events of an attempt, and wait until they are recorded."""
    instance.stream(step, first, [{"by": instance.instance_id, "says": name} for name in names])
    wanted = first + len(names)
    await until(lambda: any(op.count == wanted for op in instance.all(EventsCommitted)))


async def says(made: World) -> list[tuple[str, str]]:
    """Who has said what in the stream of the task."""
    return [(event["by"], event["says"]) for event in await stream(made.plane, "task")]


async def test_what_has_streamed_since_is_its_own_and_nobody_elses() -> None:
    async with world(settings=SOON) as made:
        first, second, step = await given_twice(made)
        await streamed(second, step, 0, "a", "b")
        await made.crash()
        await made.start()
        welcome = await first.connect(made.plane, [(step.step_id, 1)])
        assert welcome.disowned == [step.step_id]
        first.stream(step, 0, [{"by": "first", "says": name} for name in "xyz"])
        welcome = await second.connect(made.plane, [(step.step_id, 1)])
        assert welcome.disowned == []
        await streamed(second, step, 2, "c")
        second.answer(step)
        await outcome(made.plane, "task")
        assert await says(made) == [("second", "a"), ("second", "b"), ("second", "c")]


async def test_who_is_recorded_to_have_begun_is_the_one() -> None:
    settings = EngineSettings(recovery_grace_s=0.0, claim_recorded_after_s=0.0)
    async with world(settings=settings) as made:
        first, second = FakeInstance(instance_id="first"), FakeInstance(instance_id="second")
        await first.connect(made.plane)
        await submit(made.plane, task_id="task")
        step = await first.delivery()

        async def begun_by() -> int:
            return (await made.plane.store.load_deliveries("task"))[0].started

        async def is_first() -> bool:
            return await begun_by() == holder_mark("first")

        await until(is_first)
        await made.crash()
        await made.start()
        welcome = await second.connect(made.plane, [(step.step_id, 1)])
        assert welcome.disowned == [step.step_id]
        assert (await first.connect(made.plane, [(step.step_id, 1)])).disowned == []
        first.answer(step, "of the first")
        assert (await outcome(made.plane, "task")).result == "of the first"


async def test_where_nobody_was_heard_of_the_first_to_come_back_has_it_and_the_other_is_not_listened_to() -> None:
    async with world(settings=SOON) as made:
        first, second, step = await given_twice(made)
        await made.crash()
        await made.start()
        assert (await first.connect(made.plane, [(step.step_id, 1)])).disowned == []
        await streamed(first, step, 0, "x")
        assert (await second.connect(made.plane, [(step.step_id, 1)])).disowned == [step.step_id]
        second.stream(step, 0, [{"by": "second", "says": "a"}, {"by": "second", "says": "b"}])
        second.send(Heartbeat([HeldStep(step.step_id, 1)]))
        assert (await second.got(Disowned)).step_ids == [step.step_id]
        second.answer(step, "of the second")
        await second.got(Acknowledged)  # it may forget it; nothing was recorded
        second.park(step)
        assert (await second.got(Disowned, 2)).step_ids == [step.step_id]
        await streamed(first, step, 1, "y")
        first.answer(step, "of the first")
        assert (await outcome(made.plane, "task")).result == "of the first"
        assert await says(made) == [("first", "x"), ("first", "y")]


async def test_what_was_streamed_in_the_first_life_is_followed_by_nobody_else() -> None:
    """Nothing says whose it was, and nothing needs to: an attempt that was heard of is given to nobody again."""
    async with world(settings=SOON) as made:
        first, second = FakeInstance(instance_id="first"), FakeInstance(instance_id="second")
        await first.connect(made.plane)
        await submit(made.plane, task_id="task")
        step = await first.delivery()
        await streamed(first, step, 0, "x")
        transitions = made.plane.store.statistics.transitions
        await streamed(first, step, 1, "y")
        assert made.plane.store.statistics.transitions == transitions + 1, "an attempt of this life costs nothing"
        await made.crash()
        await made.start()
        await second.connect(made.plane)
        again = await second.delivery()
        assert again.attempt == 2
        assert (await first.connect(made.plane, [(step.step_id, 1)])).disowned == [step.step_id]
        second.answer(again)
        await outcome(made.plane, "task")


async def test_what_was_begun_is_handed_out_again_by_nobody_under_its_number() -> None:
    """Neither because somebody left while it was loaded, nor because a queue still has it, or has lost it."""
    settings = EngineSettings(recovery_grace_s=3600.0, claim_recorded_after_s=3600.0)
    async with world(settings=settings) as made:
        first, second = FakeInstance(instance_id="first"), FakeInstance(instance_id="second")
        await first.connect(made.plane)
        await submit(made.plane, task_id="task")
        step = await first.delivery()
        await streamed(first, step, 0, "x")
        await made.crash()
        plane = await made.start()
        entry = await plane.engine.cache.get("task")
        plane.engine.publish_again(step.step_id, 1, entry)
        assert plane.queue.depth("echo") == 0
        plane.engine.publish(entry, [entry.open[step.step_id]])  # whatever may have it handed out
        await second.connect(plane)
        await until(lambda: plane.queue.depth("echo") == 0)
        assert second.all(Deliver) == []
        assert not entry.open[step.step_id].published
        entry.open[step.step_id].published = True
        plane.sweeper.queue_returned(True)
        await asyncio.sleep(0)
        assert plane.queue.depth("echo") == 0
        assert (await first.connect(plane, [(step.step_id, 1)])).disowned == []
        await streamed(first, step, 1, "y")
        first.answer(step)
        await outcome(plane, "task")
        assert await says(made) == [("first", "x"), ("first", "y")]


async def test_who_goes_on_after_a_person_has_answered_is_told_from_who_has_asked() -> None:
    async with world(settings=SOON) as made:
        first, second = FakeInstance(instance_id="first"), FakeInstance(instance_id="second")
        await first.connect(made.plane)
        await submit(made.plane, task_id="task")
        step = await first.delivery()
        first.park(step, resume="redeliver")
        await first.acknowledged(step)
        first.drop()
        await second.connect(made.plane)
        await made.plane.signals.send_input("task", "yes")
        assert (await second.delivery()).attempt == 1
        await streamed(second, step, 0, "a")
        await made.crash()
        await made.start()
        assert (await first.connect(made.plane, [(step.step_id, 1)])).disowned == [step.step_id]
        assert (await second.connect(made.plane, [(step.step_id, 1)])).disowned == []
        await streamed(second, step, 1, "b")
        second.answer(step)
        await outcome(made.plane, "task")
        assert await says(made) == [("second", "a"), ("second", "b")]


async def test_a_record_that_does_not_say_who_has_begun_is_followed_by_whoever_comes() -> None:
    store = MemoryStore()
    async with world(store, settings=SOON) as made:
        first = FakeInstance(instance_id="first")
        await first.connect(made.plane)
        await submit(made.plane, task_id="task")
        step = await first.delivery()
        settled: list[Any] = []
        move = DeliveryMove(step.step_id, 1, 1, 1e12, started=SOMEBODY)
        made.plane.store.record(Transition(settled=settled.append, shard_key="task", moved=(move,)))
        await until(lambda: settled == [None])
        await made.crash()
        await made.start()
        assert (await first.connect(made.plane, [(step.step_id, 1)])).disowned == []
        first.answer(step, "done")
        assert (await outcome(made.plane, "task")).result == "done"


@pytest.mark.parametrize("name", ["", "one", "an instance", "\ud800", "x" * 1000])
def test_the_mark_of_an_instance_fits_where_it_is_kept(name: str) -> None:
    assert holder_mark(name) == holder_mark(name)
    assert -(2**15) <= holder_mark(name) < 2**15
    assert holder_mark(name) not in (0, SOMEBODY)


def test_marks_use_all_there_is() -> None:
    marks = {holder_mark(f"instance-{number}") for number in range(400_000)}
    assert min(marks) == -(2**15)
    assert max(marks) == 2**15 - 1
    assert not marks & {0, SOMEBODY}
