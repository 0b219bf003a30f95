"""Limits of a service over several control planes: exact, fair, and whatever becomes of whoever counts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from random import Random
from secrets import token_hex
from typing import Any

import pytest
from tests.control_plane.harness import FakeInstance, submit, until
from tests.control_plane.planes import Planes, planes
from tests.control_plane.served_planes import SETTINGS, SOON, ServedPlanes, served_planes
from tests.support import DEADLINE_S

from llama_deploy.client import Client
from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.control_plane.gate import Gate
from llama_deploy.errors import TaskEndedError
from llama_deploy.messages.frames import Deliver
from llama_deploy.services import ServiceContext, service
from llama_deploy.services.link import serve_services
from llama_deploy.types import RateLimit, ServiceLimits, TaskOptions, generate_id

pytestmark = pytest.mark.slow
STEADY = EngineSettings(recovery_grace_s=0.2, overdue_s=600.0, lease_s=600.0)
STEADY_S = 600.0
"""A lease that does not end within a test."""


@pytest.fixture
def store_url(database: str) -> str:
    """A store of its own for each test: what is left of one would count in the next one."""
    return f"{database}?schema=s_{token_hex(4)}"


class Fleet:
    """One instance at each of several control planes, and what all of them hold together."""

    def __init__(self, made: Planes, **limits: Any) -> None:
        self.made = made
        self.instances = {
            name: FakeInstance(["limited"], instance_id="one", concurrency=100, limits=ServiceLimits(**limits))
            for name in made.running
        }
        self.answered: set[str] = set()

    async def connect(self) -> None:
        for name, instance in self.instances.items():
            await instance.connect(self.made[name])
        await until(lambda: all("limited" in plane.engine.admission.gates for plane in self.made.running.values()))

    def gate(self, name: str) -> Gate:
        return self.made[name].engine.admission.gates["limited"]

    @property
    def counting(self) -> str:
        """The name of the one that counts, `nobody` while there is none."""
        running = self.made.running.items()
        found = (name for name, plane in running if plane.counting and "limited" in plane.counting.counters)
        return next(found, "nobody")

    @property
    def others(self) -> list[str]:
        return [name for name in self.made.running if name != self.counting]

    async def submit(self, name: str, count: int, **options: Any) -> list[str]:
        """Tasks that one of them leads."""
        plane, ids = self.made[name], []
        for _ in range(count):
            task_id = next(made for _ in range(10_000) if plane.leadership.leads(made := generate_id()))
            await submit(plane, "limited", task_id=task_id, options=TaskOptions(**options) if options else None)
            ids.append(task_id)
        return ids

    def delivered(self, name: str | None = None) -> list[Deliver]:
        names = [name] if name is not None else list(self.instances)
        return [step for one in names for step in self.instances[one].all(Deliver)]

    @property
    def working(self) -> list[Deliver]:
        """What was handed out and not answered."""
        return [step for step in self.delivered() if step.step_id not in self.answered]

    def holds(self, count: int) -> bool:
        return len(self.working) >= count

    async def answer(self, step: Deliver) -> None:
        """Answer a step where it was handed out, and wait until that is recorded."""
        name = next(n for n in self.instances if step in self.instances[n].all(Deliver))
        self.answered.add(step.step_id)
        self.instances[name].answer(step)
        await self.instances[name].acknowledged(step)

    async def quiet(self) -> None:
        """Until nothing more is said between control planes by itself."""
        before = -1
        while before != self.made.wires.sent:
            before = self.made.wires.sent
            for _ in range(20):
                await asyncio.sleep(0)
            await until(lambda: all(plane.store.backlog == 0 for plane in self.made.running.values()))


@asynccontextmanager
async def fleet(store_url: str, *names: str, **limits: Any) -> AsyncIterator[Fleet]:
    async with planes(store_url, *names, lease_s=STEADY_S, settings=STEADY) as made:
        found = Fleet(made, **limits)
        await found.connect()
        yield found


async def test_running_max_holds_over_all_and_everybody_has_turns(store_url: str) -> None:
    async with fleet(store_url, "a", "b", "c", running_max=3) as made:
        ids = [task_id for _ in range(4) for name in "abc" for task_id in await made.submit(name, 1)]
        await until(lambda: len(made.working) == 3)
        begun = made.made.wires.sent
        order: list[str] = []
        while len(made.answered) < len(ids):
            most = min(3, len(ids) - len(made.answered))
            await until(partial(made.holds, most))
            await made.quiet()
            assert len(made.working) == most, "never more, and never less"
            for name in "abc":
                assert made.gate(name).running <= 3
            step = made.working[0]
            order.append(step.task_id)
            await made.answer(step)
        assert sorted(order) == sorted(ids)
        await made.quiet()
        assert {name: made.gate(name).places for name in "abc"} == {"a": {}, "b": {}, "c": {}}
        assert made.made.wires.sent - begun < 5 * len(ids), "some words for each step"


async def test_of_one_at_a_time_the_first_goes_first_whoever_leads_it(store_url: str) -> None:
    async with fleet(store_url, "a", "b", running_max=1) as made:
        await made.submit("a", 1)
        await until(lambda: len(made.working) == 1)
        ids = [task_id for _ in range(5) for name in "ab" for task_id in await made.submit(name, 1)]
        urgent = await made.submit(made.others[0], 1, priority=9)
        await made.quiet()
        order = []
        for _ in range(12):
            await until(lambda: len(made.working) == 1)
            order.append(made.working[0].task_id)
            await made.answer(made.working[0])
        assert order[1:] == [*urgent, *ids]


async def test_the_limit_of_a_key_holds_over_all(store_url: str) -> None:
    async with fleet(store_url, "a", "b", running_max_per_key=1) as made:
        for name in "ab":
            for key in ("x", "y"):
                await made.submit(name, 2, key=key)
            await made.submit(name, 1)  # without a key it is not limited
        seen = 0
        while seen < 10:
            await until(lambda: bool(made.working))
            await made.quiet()
            gates = [made.gate(name) for name in "ab"]
            keys = [place.key for gate in gates if gate.asking is None for place in gate.places.values() if place.key]
            assert len(keys) == len(set(keys))
            await made.answer(made.working[0])
            seen += 1
        assert made.working == []


async def test_a_rate_holds_over_all_also_when_another_one_counts(store_url: str) -> None:
    async with fleet(store_url, "a", "b", rate=RateLimit(count=5, seconds=1_000)) as made:
        for name in "ab":
            await made.submit(name, 4)
        await until(lambda: len(made.delivered()) == 5)
        await made.quiet()
        assert len(made.delivered()) == 5
        for step in made.delivered():
            await made.answer(step)
        await made.quiet()
        assert len(made.delivered()) == 5, "what has ended has begun"
        gates = [made.gate(name) for name in "ab"]
        now = made.made["a"].engine.clock.now()
        assert sum(gate.held_back(now).get("rate", 0) for gate in gates) == 3
        before, left = made.counting, made.others[0]
        steps = len(made.delivered(before))
        await made.made.stop(before)
        await until(lambda: made.counting == left and not made.gate(left).closed)
        await made.quiet()
        assert len(made.delivered(left)) >= 5 - steps
        rate = made.gate(left).rate
        assert rate is not None
        assert len(rate.begun) >= 5 - steps, "it remembers what has begun at its own gate"


async def test_what_waits_says_for_what_and_is_counted_where_it_is_led(store_url: str) -> None:
    async with fleet(store_url, "a", "b", running_max=1) as made:
        other = made.others[0]
        await made.submit(made.counting, 1)
        await until(lambda: len(made.working) == 1)
        (waiting,) = await made.submit(other, 1)
        await made.quiet()
        plane: ControlPlane = made.made[other]
        assert plane.views.task(plane.engine.cache.tasks[waiting]).waiting_for == (
            "running_max of limited is 1: 1 run (none ahead of it at its control plane)"
        )
        assert [made.made[name].views.queue("limited").waiting for name in (made.counting, other)] == [0, 1]
        assert plane.views.queue("limited").held_back == {"running_max": 1}
        assert len(plane.views.waiting("limited", first=0, limit=10).items) == 1
        assert made.made[made.counting].views.waiting("limited", first=0, limit=10).items == []


async def test_who_is_cut_off_keeps_what_runs_and_begins_nothing(store_url: str) -> None:
    async with fleet(store_url, "a", "b", running_max=2) as made:
        here, other = made.counting, made.others[0]
        await made.submit(other, 3)
        await until(lambda: len(made.delivered(other)) == 2)
        made.made.wires.cut_off(other)
        await made.submit(here, 2)
        await made.quiet()
        assert made.delivered(here) == [], "what runs there counts, whether it is reached or not"
        await made.answer(made.delivered(other)[0])
        await made.quiet()
        assert len(made.delivered()) == 2, "it cannot say that there is room, and takes none for itself"
        plane = made.made[other]
        (waiting,) = plane.views.waiting("limited", first=0, limit=10).items
        assert "all control planes" in str(waiting.reason)
        made.made.wires.mend(other)
        await until(lambda: len(made.working) == 2)
        while len(made.answered) < 5:
            await until(lambda: bool(made.working))
            await made.quiet()
            assert len(made.working) <= 2
            await made.answer(made.working[0])


async def test_one_that_stands_still_lets_nothing_go_once_another_may_count(store_url: str) -> None:
    async with planes(store_url, "a", "b", lease_s=2.0, settings=STEADY) as running:
        made = Fleet(running, running_max=1)
        await made.connect()
        here, other = made.counting, made.others[0]
        await made.submit(here, 2)
        await until(lambda: len(made.working) == 1)
        leadership = running[here].leadership
        leadership._leaving = True  # it does not look any more, and does not know
        assert leadership._task is not None
        leadership._task.cancel()
        await until(lambda: not leadership.certain)
        running.wires.cut_off(here)
        running[here].engine.admission.release(made.working[0].step_id)
        await made.quiet()
        assert made.gate(here).places == {}
        assert len(made.delivered(here)) == 1, "it is not certain that nobody else counts"
        counting = running[other].counting
        assert counting is not None
        await until(lambda: "limited" in counting.counters and not made.gate(other).closed)
        assert len(made.delivered(here)) == 1


async def test_a_counting_that_begins_waits_for_everybody_who_lives(store_url: str) -> None:
    async with fleet(store_url, "a", "b", running_max=1) as made:
        here, other = made.counting, made.others[0]
        plane = made.made[here]
        await made.submit(other, 1)
        await until(lambda: len(made.working) == 1)
        made.made.wires.cut_off(other)
        for limits in (ServiceLimits(), ServiceLimits(running_max=1)):
            await plane.engine.admission.set_limits("limited", limits)
        await made.submit(here, 1)
        await made.quiet()
        assert len(made.delivered(here)) == 0, "nobody knows what runs at the other one"
        (waiting,) = plane.views.waiting("limited", first=0, limit=10).items
        assert waiting.reason == f"all control planes to have said what runs of limited ({other} did not yet)"
        made.made.wires.mend(other)
        await until(lambda: not made.gate(here).closed)
        await made.quiet()
        assert len(made.delivered(here)) == 0, "now it is known"
        await made.answer(made.working[0])
        await until(lambda: len(made.delivered(here)) == 1)


async def test_what_is_canceled_or_paused_gives_its_turn_away(store_url: str) -> None:
    async with fleet(store_url, "a", "b", running_max=1) as made:
        here, other = made.counting, made.others[0]
        await made.submit(here, 1)
        await until(lambda: len(made.working) == 1)
        canceled, goes = await made.submit(other, 2)
        await made.quiet()
        await made.made[other].signals.cancel(canceled, reason="", by="")
        await made.made[other].engine.admission.pause("limited")
        await made.answer(made.working[0])
        await made.quiet()
        assert len(made.delivered()) == 1
        assert made.gate(other).places == {}
        await made.made[here].engine.admission.resume("limited")
        await until(lambda: [step.task_id for step in made.delivered(other)] == [goes])


async def test_limits_that_change_hold_at_once(store_url: str) -> None:
    async with fleet(store_url, "a", "b", running_max=1) as made:
        here, other = made.counting, made.others[0]
        for name in (here, other):
            await made.submit(name, 4)
        await until(lambda: len(made.working) == 1)
        await made.made[other].engine.admission.set_limits("limited", ServiceLimits(running_max=5))
        await until(lambda: len(made.working) == 5)
        await made.quiet()
        assert len(made.working) == 5
        await made.made[here].engine.admission.set_limits("limited", ServiceLimits())
        await until(lambda: len(made.working) == 8)
        await until(lambda: all("limited" not in plane.engine.admission.gates for plane in made.made.running.values()))
        assert all(plane.counting and plane.counting.counters == {} for plane in made.made.running.values())


async def test_one_alone_and_services_without_limits_say_nothing(store_url: str) -> None:
    async with fleet(store_url, "a", "b", running_max_per_session=1) as made:
        for name in "ab":
            await made.submit(name, 3)
        await until(lambda: len(made.working) == 6)
        assert made.made.wires.sent == 0, "whoever leads a session counts what runs of it"
    async with fleet(f"{store_url}_alone", "a", running_max=1) as made:
        await made.submit("a", 2)
        await until(lambda: len(made.working) == 1)
        assert made.made.wires.sent == 0


class Disorder:
    """What may happen to a fleet, in an order that a seed decides."""

    def __init__(self, made: Fleet, seed: int) -> None:
        self.made = made
        self.random = Random(seed)
        self.keys: dict[str, str] = {}
        self.led: dict[str, str] = {}
        self.canceled: set[str] = set()

    @property
    def working(self) -> list[Deliver]:
        return [step for step in self.made.working if step.task_id not in self.canceled]

    @property
    def waiting(self) -> int:
        return sum(self.made.gate(name).waiting for name in self.made.made.running)

    def check(self) -> None:
        keys = Counter(key for step in self.working if (key := self.keys[step.task_id]))
        assert len(self.working) <= 4
        assert max(keys.values(), default=0) <= 2

    async def submit(self, name: str) -> None:
        key = self.random.choice(["", "x", "y"])
        options: dict[str, Any] = {"priority": self.random.randint(0, 9)} | ({"key": key} if key else {})
        (task_id,) = await self.made.submit(name, 1, **options)
        self.keys[task_id], self.led[task_id] = key, name

    async def answer(self, _: str) -> None:
        if self.working:
            await self.made.answer(self.random.choice(self.working))

    async def cancel(self, _: str) -> None:
        if self.led:
            task_id, name = self.random.choice(list(self.led.items()))
            with suppress(TaskEndedError):
                await self.made.made[name].signals.cancel(task_id, reason="", by="")
                self.canceled.add(task_id)

    async def pause(self, name: str) -> None:
        await self.made.made[name].engine.admission.pause("limited")

    async def resume(self, name: str) -> None:
        await self.made.made[name].engine.admission.resume("limited")

    async def cut(self, name: str) -> None:
        self.made.made.wires.cut_off(name)

    async def mend(self, name: str) -> None:
        self.made.made.wires.mend(name)

    async def something(self) -> None:
        (what,) = self.random.choices(
            [self.submit, self.answer, self.cancel, self.pause, self.resume, self.cut, self.mend],
            [8, 8, 1, 1, 2, 1, 2],
        )
        await what(self.random.choice("abc"))
        for _ in range(self.random.randint(0, 8)):
            await asyncio.sleep(0)
        self.check()

    async def to_the_end(self) -> None:
        """With everything mended, all that waits has its turn."""
        for name in "abc":
            await self.mend(name)
        await self.resume("a")
        for plane in self.made.made.running.values():
            await plane.engine.common.read()
        while self.waiting or self.working:
            await until(lambda: self.working or not self.waiting)
            self.check()
            await self.answer("")


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_whatever_happens_no_more_is_handed_out_than_may(store_url: str, seed: int) -> None:
    """Tasks, answers, cancellations, pauses and cut wires in any order: never more, and in the end nothing waits."""
    async with fleet(store_url, "a", "b", "c", running_max=4, running_max_per_key=2) as made:
        disorder = Disorder(made, seed)
        for _ in range(150):
            await disorder.something()
        await disorder.to_the_end()
        assert len(made.delivered()) > 30
        await made.quiet()
        assert {name: made.gate(name).places for name in "abc"} == {"a": {}, "b": {}, "c": {}}


# --- real instances, real connections ---------------------------------------------------------------------------------


class Load:
    """A service that counts how much of it runs."""

    def __init__(self, **limits: Any) -> None:
        self.running = self.most = self.done = 0

        @service(name="limited", concurrency=50, limits=ServiceLimits(**limits))
        async def limited(number: int) -> int:
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                await asyncio.sleep(0.005)
            finally:
                self.running -= 1
            self.done += 1
            return number

        self.service = limited


@asynccontextmanager
async def loaded(made: ServedPlanes, limited: Any) -> AsyncIterator[Client]:
    """An instance at each control plane, and a client of any of them."""
    stop = asyncio.Event()
    urls = ",".join(served.url for served in made.planes.values())
    serving = asyncio.create_task(serve_services([limited], control_plane_url=urls, stop=stop, handle_signals=False))
    registries = [served.plane.engine.registry for served in made.planes.values()]
    await until(lambda: all(registry.has_instance("limited") for registry in registries))
    async with Client(urls, timeout_s=DEADLINE_S) as client:
        yield client
    stop.set()
    await serving


async def test_no_more_run_than_may_while_control_planes_come_and_go(store_url: str) -> None:
    load = Load(running_max=3)
    async with served_planes(store_url, "a", "b", settings=SETTINGS) as made, loaded(made, load.service) as client:
        running = [asyncio.create_task(client.run("limited", number=number)) for number in range(300)]
        await until(lambda: load.done > 40)
        await made.start("c")
        await until(lambda: load.done > 120)
        await made.stop_one("a")
        await until(lambda: load.done > 200)
        assert await asyncio.gather(*running) == list(range(300))
    assert load.most == 3


async def test_no_more_run_than_may_when_whoever_counts_is_killed(store_url: str) -> None:
    load = Load(running_max=3)
    async with served_planes(store_url, "a", "b", "c", settings=SOON) as made, loaded(made, load.service) as client:
        running = [asyncio.create_task(client.run("limited", number=number)) for number in range(200)]
        await until(lambda: load.done > 50)
        counts = next(s for s in made.planes.values() if s.plane.counting and "limited" in s.plane.counting.counters)
        counts.cut_off()
        assert await asyncio.gather(*running) == list(range(200))
    assert load.most == 3


async def test_steps_that_call_their_own_service_and_steps_that_are_canceled_give_and_take_places(
    store_url: str,
) -> None:
    """A caller gives its place away while it waits, and has one again before it goes on; what stops still counts."""
    running, most = 0, 0
    never = asyncio.Event()

    async def section(*, ends: bool) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await (asyncio.sleep(0.002) if ends else never.wait())
        finally:
            try:
                await asyncio.sleep(0.002)  # it takes a moment to stop
            finally:
                running -= 1

    @service(name="limited", concurrency=50, limits=ServiceLimits(running_max=1))
    async def limited(context: ServiceContext, depth: int) -> int:
        await section(ends=depth >= 0)
        below = 0 if depth == 0 else 1 + await context.call("limited", depth=depth - 1)
        await section(ends=True)
        return below

    async with served_planes(store_url, "a", "b", settings=SETTINGS) as made, loaded(made, limited) as client:
        first = made["a"].led()
        await client.submit("limited", depth=-1, task_id=first)
        await until(lambda: running == 1)
        ids = [served.led() for _ in range(6) for served in made.planes.values()]
        for task_id in ids:
            await client.submit("limited", depth=3, task_id=task_id)
        for task_id in (*ids[:4], first):  # those that wait, and the one that runs
            await client.cancel(task_id)
        assert [await client.result(task_id) for task_id in ids[4:]] == [3] * 8
        gates = [served.plane.engine.admission.gates["limited"] for served in made.planes.values()]
        await until(lambda: [gate.places for gate in gates] == [{}, {}])
        await until(lambda: running == 0)
    assert most == 1
