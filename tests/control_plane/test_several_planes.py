"""Control planes over one store with real connections: instances at all of them, steps that change hands."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import Any

import pytest
from tests.control_plane.harness import outcome, submit, until
from tests.support.postgres import database_url, empty

from llama_deploy import Deployment
from llama_deploy.control_plane import EngineSettings
from llama_deploy.errors import InvalidRequestError
from llama_deploy.services import ServiceContext, serve_services, service

pytestmark = pytest.mark.slow

SETTINGS = EngineSettings(recovery_grace_s=0.5, overdue_s=5.0, leader_wait_s=60.0, shard_lease_s=20.0)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with database_url() as url:
        yield url


@pytest.fixture
async def url(database: str) -> str:
    await empty(database, "shared")
    return f"{database}?schema=shared"


class Work:
    """What the service of these tests does, and what became of it."""

    def __init__(self) -> None:
        self.effects: Counter[str] = Counter()
        self.running = self.most = 0
        self.open = asyncio.Event()

        @service(concurrency=2)
        async def work(context: ServiceContext, text: str = "") -> str:
            """Works until it may end."""
            self.effects[context.step_id] += 1
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                await self.open.wait()
            finally:
                self.running -= 1
            return text.upper()

        @service(concurrency=200)
        async def wide(context: ServiceContext, text: str = "") -> str:
            """Works until it may end, many at a time."""
            self.effects[context.step_id] += 1
            context.stream({"begun": text})
            await self.open.wait()
            context.stream({"ended": text})
            return text.upper()

        self.services = [work, wide]


@asynccontextmanager
async def served(work: Work, url: str) -> AsyncIterator[None]:
    """An instance that was told of one control plane."""
    stop = asyncio.Event()
    task = asyncio.create_task(
        serve_services(work.services, control_plane_url=url, stop=stop, handle_signals=False, drain_timeout_s=5.0)
    )
    try:
        yield
    finally:
        stop.set()
        await task


def plane_on(url: str, **options: Any) -> Deployment:
    """One more control plane on the store."""
    return Deployment([], store=url, shared=True, port=0, settings=SETTINGS, quiet=True, **options)


async def shared_out(*made: Deployment) -> None:
    part = -(-64 // len(made))

    def done() -> bool:
        parts = [len(one.plane.leadership.shards) for one in made]
        return sum(parts) == 64 and max(parts) <= part

    await until(done)


async def give(made: Deployment, count: int, service: str = "wide", **fields: Any) -> list[str]:
    """Tasks that a control plane leads by their own ids."""
    entries = [
        await submit(made.plane, service, str(number), task_id=made.plane.leadership.own_id(), **fields)
        for number in range(count)
    ]
    return [entry.row.task_id for entry in entries]


async def test_an_instance_serves_every_control_plane_and_works_on_no_more_than_it_has_room_for(url: str) -> None:
    work = Work()
    async with plane_on(url) as a, plane_on(url) as b:
        await shared_out(a, b)
        async with served(work, a.url):
            await until(lambda: b.plane.engine.registry.has_instance("work"))
            tasks = [(one, await give(one, 4, "work")) for one in (a, b)]
            await until(lambda: work.running == 2)
            held = [step for one in (a, b) for port in one.plane.gateway.ports for step in port.held]
            await until(
                lambda: (
                    sum(
                        step.queued
                        for one in (a, b)
                        for entry in one.plane.engine.cache.tasks.values()
                        for step in entry.open.values()
                    )
                    == 2
                )
            )
            assert len(held) == 4
            work.open.set()
            for made, task_ids in tasks:
                for number, task_id in enumerate(task_ids):
                    assert (await outcome(made.plane, task_id)).result == str(number)
            assert work.most == 2
            assert set(work.effects.values()) == {1}


async def test_what_lives_in_the_process_of_a_control_plane_is_not_asked_to_leave_by_any_of_them(url: str) -> None:
    work = Work()
    async with (
        Deployment(work.services, store=url, shared=True, port=0, settings=SETTINGS, quiet=True) as a,
        plane_on(url) as b,
    ):
        await shared_out(a, b)
        await until(lambda: b.plane.engine.registry.has_instance("work"))
        (instance,) = (await b.client.get_service("work")).instances
        assert len(instance.control_planes) == 2
        for one in (a, b):
            with pytest.raises(InvalidRequestError, match="own process"):
                await one.client.drain_instance("work", instance.instance_id)
        assert (await a.client.get_service("work")).state == "up"


async def test_what_runs_goes_on_when_its_task_changes_hands(url: str) -> None:
    work = Work()
    async with plane_on(url) as a, served(work, a.url):
        await shared_out(a)
        await until(lambda: a.plane.engine.registry.has_instance("wide"))
        task_ids = await give(a, 40)
        await until(lambda: len(work.effects) == 40)
        async with plane_on(url) as b:
            await shared_out(a, b)
            moved = [name for name in task_ids if b.plane.leadership.leads(name)]
            kept = [name for name in task_ids if name not in moved]
            assert moved
            assert kept
            await until(
                lambda: sum(len(port.held) for port in b.plane.gateway.ports if not port.in_process) == len(moved)
            )
            work.open.set()
            for made, names in ((a, kept), (b, moved)):
                for name in names:
                    assert (await outcome(made.plane, name)).status == "completed"
            assert set(work.effects.values()) == {1}
            assert b.plane.engine.statistics.lost == a.plane.engine.statistics.lost == 0


async def test_answers_reach_whoever_leads_after_a_clean_stop(url: str) -> None:
    work = Work()
    async with plane_on(url) as b, plane_on(url) as a:
        await shared_out(a, b)
        async with served(work, a.url):
            await until(lambda: b.plane.engine.registry.has_instance("wide"))
            task_ids = [*await give(a, 20), *await give(b, 20)]
            await until(lambda: len(work.effects) == 40)
            await a.__aexit__(None, None, None)
            await shared_out(b)
            assert b.plane.leadership.statistics.takeovers == 0  # handed over, without waiting for a lease
            work.open.set()
            for name in task_ids:
                assert (await outcome(b.plane, name)).status == "completed"
            assert set(work.effects.values()) == {1}


async def test_each_fetches_from_a_broker_what_it_has_published_and_drops_what_others_lead(
    url: str, database: str
) -> None:
    work = Work()
    work.open.set()
    carrier = {"url": database, "namespace": token_hex(4)}
    async with plane_on(url, message_queue=carrier) as a, plane_on(url, message_queue=carrier) as b:
        await shared_out(a, b)
        assert sorted(one.plane.queue.health().namespace for one in (a, b)) == [
            carrier["namespace"],
            f"{carrier['namespace']}.1",
        ]
        left = [await give(one, 3, wait_for_service=True) for one in (a, b)]  # they stand in the broker
        foreign = [made.plane.engine.cache.tasks[left[0][0]] for made in (a,)]
        b.plane.queue.publish([a.plane.engine._envelope(foreign[0], foreign[0].open[f"{left[0][0]}:1"])])
        async with served(work, a.url):
            for made, task_ids in ((a, left[0]), (b, left[1])):
                for task_id in [*task_ids, *await give(made, 10, wait_for_service=True)]:
                    assert (await outcome(made.plane, task_id)).status == "completed"
        assert set(work.effects.values()) == {1}
