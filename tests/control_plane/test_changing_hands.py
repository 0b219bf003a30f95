"""What becomes of steps when control planes on one store take sessions from each other, and give them back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.control_plane.harness import FakeInstance, outcome, stream, submit, until
from tests.control_plane.planes import SETTINGS, planes
from tests.support.postgres import database_url, empty

from llama_deploy.message_queues import SimpleMessageQueue
from llama_deploy.messages.frames import Deliver, EventsCommitted, HeldStep
from llama_deploy.messages.mesh import Adopted, NotLed, Offer


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with database_url() as url:
        yield url


@pytest.fixture
async def url(database: str) -> str:
    await empty(database, "hands")
    return f"{database}?schema=hands"


async def test_who_leads_a_session_again_takes_no_attempt_back_that_was_given_to_another(url: str) -> None:
    async with planes(url, "a") as made:
        a = made["a"]
        first = FakeInstance(instance_id="first", concurrency=100, mesh=True)
        await first.connect(a)
        task_ids = [(await submit(a)).row.task_id for _ in range(40)]
        await first.delivery(40)
        b = await made.start("b")
        second = FakeInstance(instance_id="second", concurrency=100, mesh=True)
        await second.connect(b)
        await made.shared_out()
        moved = [task_id for task_id in task_ids if b.leadership.leads(task_id)]
        assert moved
        await first.got(NotLed)  # and it cannot reach b
        await second.delivery(len(moved))
        steps = {step.task_id: step for step in second.all(Deliver)}
        assert sorted(steps) == sorted(moved)
        assert {step.attempt for step in steps.values()} == {1}
        for step in steps.values():
            second.stream(step, 0, ["of the second"])
        await second.got(EventsCommitted, len(moved))
        await made.stop("b")
        await made.shared_out()
        held = [HeldStep(step.step_id, 1) for step in steps.values()]
        first.send(Offer(held))
        answer = await first.got(Adopted)
        assert (answer.step_ids, sorted(answer.disowned)) == ([], sorted(step.step_id for step in held))
        for step in steps.values():  # what it had said before it heard that
            first.stream(step, 0, ["of the first", "and more"])
        welcome = await second.connect(a, [(step.step_id, 1) for step in steps.values()])
        assert welcome.disowned == []
        assert sorted(welcome.adopted or ()) == sorted(step.step_id for step in held)
        for task_id, step in steps.items():
            second.answer(step)
            await outcome(a, task_id)
            assert await stream(a, task_id) == ["of the second"]


class Unknowing(SimpleMessageQueue):
    """It does not know its steps by name, as a broker does not: where anything waits, it may be anything."""

    def may_hold(self, topic: str, step_id: str, since: float) -> bool:
        return self.depth(topic) > 0


async def test_what_stood_in_the_queue_of_another_is_not_taken_for_standing_in_ones_own(url: str) -> None:
    patient = replace(SETTINGS, overdue_s=3600.0)
    async with planes(url, "a", "b", queue=Unknowing, settings=patient) as made:
        for name in ("a", "b"):
            leadership = made[name].leadership
            for _ in range(10):
                await submit(made[name], task_id=leadership.own_id(), wait_for_service=True)
        b = made["b"]
        assert b.queue.depth("echo") == 10
        await made.stop("a")
        await made.shared_out()
        await until(lambda: b.queue.depth("echo") == 20)
        instance = FakeInstance(concurrency=100)
        await instance.connect(b)
        await instance.delivery(20)
