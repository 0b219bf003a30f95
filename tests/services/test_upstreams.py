"""Whose each step is: an instance at two control planes, which take over from each other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.support import eventually

from llama_deploy.messages import frames
from llama_deploy.messages.mesh import Adopted, Claimed, NotLed, Offer, Queued
from llama_deploy.services import Runner, service
from llama_deploy.services.upstream import Upstream
from llama_deploy.state_stores.shards import shard_of


class Work:
    def __init__(self) -> None:
        self.open = asyncio.Event()

        @service(concurrency=1)
        async def work(text: str = "") -> str:
            """Ends when it may."""
            await self.open.wait()
            return text

        self.service = work


class Plane:
    """What one control plane hears from the instance, and says to it."""

    def __init__(self, runner: Runner) -> None:
        self.heard: list[Any] = []
        self.runner = runner
        self.upstream = Upstream(self.heard.extend)
        runner.upstreams.attach(self.upstream)

    def say(self, *operations: Any) -> None:
        self.runner.receive(operations, self.upstream)

    def welcome(self, *adopted: str) -> None:
        self.say(frames.Welcome(2.0, 10.0, [], 4.0, list(adopted), ["http://a", "http://b"], "http://a"))

    def deliver(self, task_id: str, attempt: int = 1) -> None:
        self.say(frames.Deliver(f"{task_id}:1", attempt, "work", "run", task_id, task_id, b"{}", 60.0))

    def all(self, kind: type[Any]) -> list[Any]:
        return [operation for operation in self.heard if isinstance(operation, kind)]


@pytest.fixture
async def work() -> Work:
    return Work()


@pytest.fixture
async def runner(work: Work) -> Runner:
    made = Runner([work.service])
    await made.start()
    return made


async def test_an_answer_that_is_not_acknowledged_goes_to_who_adopts_the_step(runner: Runner, work: Work) -> None:
    a, b = Plane(runner), Plane(runner)
    a.welcome()
    b.welcome()
    a.deliver("t")
    work.open.set()
    await eventually(lambda: a.all(frames.Answer))
    runner.disconnected(a.upstream)
    b.say(Claimed([shard_of("t", 64)], 64))
    await eventually(lambda: b.all(Offer))
    assert [step.step_id for step in b.all(Offer)[0].held] == ["t:1"]
    assert b.all(frames.Answer) == []
    b.say(Adopted(["t:1"], []))
    await eventually(lambda: b.all(frames.Answer))
    b.say(frames.Acknowledged(["t:1"]))
    assert runner.steps == {}


async def test_what_is_not_of_the_shards_is_not_offered(runner: Runner) -> None:
    a, b = Plane(runner), Plane(runner)
    a.welcome()
    b.welcome()
    a.deliver("t")
    other = (shard_of("t", 64) + 1) % 64
    b.say(Claimed([other], 64))
    a.say(NotLed([], [other], 64))
    a.say(NotLed([], [shard_of("t", 64)], 64))
    await eventually(lambda: b.all(Offer))
    assert len(b.all(Offer)) == 1


async def test_only_who_a_step_belongs_to_may_stop_it(runner: Runner) -> None:
    a, b = Plane(runner), Plane(runner)
    a.welcome()
    b.welcome()
    a.deliver("t")
    b.say(Adopted(["t:1"], []))
    a.say(frames.CancelStep("t:1", "an old word"), frames.Disowned(["t:1"]))
    assert list(runner.steps) == ["t:1"]
    assert runner.held(b.upstream)[0].step_id == "t:1"
    assert runner.held(a.upstream) == []
    b.say(frames.CancelStep("t:1", "enough"))
    assert runner.steps == {}


async def test_a_welcome_that_does_not_name_a_step_sends_it_to_the_others(runner: Runner) -> None:
    a, b = Plane(runner), Plane(runner)
    a.welcome()
    b.welcome()
    a.deliver("t")
    a.welcome()  # connected again; another one leads the task by now
    await eventually(lambda: b.all(Offer))
    b.say(Adopted([], ["t:1"]))
    assert runner.steps == {}


async def test_what_waits_for_its_turn_says_so_to_whoever_it_belongs_to(runner: Runner, work: Work) -> None:
    a, b = Plane(runner), Plane(runner)
    a.welcome()
    b.welcome()
    a.deliver("one")
    b.deliver("two")
    await eventually(lambda: b.all(Queued))
    a.say(Adopted(["two:1"], []))
    await eventually(lambda: a.all(Queued))
    work.open.set()
    await eventually(lambda: len(a.all(frames.Answer)) == 2)
    assert b.all(frames.Answer) == []


async def test_a_step_that_is_said_to_be_led_elsewhere_is_offered_to_who_says_so_too(runner: Runner) -> None:
    """The word may be an old one: it leads the task again, and has said that before."""
    a, b = Plane(runner), Plane(runner)
    a.welcome()
    b.welcome()
    a.deliver("t")
    a.say(Claimed([shard_of("t", 64)], 64))  # it is its own already
    a.say(NotLed(["t:1"]))
    await eventually(lambda: a.all(Offer) and b.all(Offer))
    a.say(Adopted(["t:1"], []))
    assert [step.step_id for step in runner.held(a.upstream)] == ["t:1"]
