"""Who leads which sessions: parts, joining, leaving, and what is refused to whom."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.control_plane.harness import FakeInstance, outcome, submit, until, world
from tests.control_plane.planes import SETTINGS, planes
from tests.support.postgres import database_url, empty

from llama_deploy.control_plane import ControlPlane
from llama_deploy.control_plane.leadership import Sharing
from llama_deploy.control_plane.registrations import deregister, register
from llama_deploy.errors import ShardLostError, SharedStoreError, StoreLockedError, StoreUnavailableError
from llama_deploy.messages import frames
from llama_deploy.state_stores import MemoryStore, PostgresStore
from llama_deploy.types import ServiceDefinition, ServiceLimits


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with database_url() as url:
        yield url


@pytest.fixture
async def url(database: str) -> str:
    await empty(database, "shared")
    return f"{database}?schema=shared"


def _session_led_by(plane: ControlPlane) -> str:
    return next(name for name in map("s{}".format, range(1000)) if plane.leadership.leads(name))


async def test_the_shards_are_shared_out_when_one_joins_and_when_one_leaves(url: str) -> None:
    async with planes(url, "a") as made:
        assert made.parts() == [64]
        assert made["a"].leadership.seat == 0
        await made.start("b")
        await made.shared_out()
        assert made.parts() == [32, 32]
        await made.start("c")
        await made.shared_out()
        assert sorted(made.parts()) == [20, 22, 22]
        assert [member.seat for member in made["a"].leadership.members()] == [0, 1, 2]
        await made.stop("b")
        await made.shared_out()
        assert made.parts() == [32, 32]
        assert {plane.leadership.statistics.takeovers for plane in made.running.values()} == {0}
        assert (await made.start("d")).leadership.seat == 1


async def test_everybody_knows_who_leads_a_session_and_nobody_else_decides_about_it(url: str) -> None:
    async with planes(url, "a", "b") as made:
        a, b = made["a"], made["b"]
        session = _session_led_by(a)
        assert not b.leadership.leads(session)
        leader = b.leadership.leader_of(session)
        assert leader is not None
        assert (leader.member.name, leader.member.url) == ("a", "http://a")
        assert leader.epoch == a.leadership.shards[leader.shard]
        assert b.leadership.leads(b.leadership.own_id())
        instance = FakeInstance()
        await instance.connect(a)
        entry = await submit(a, session_id=session)
        with pytest.raises(ShardLostError) as refused:
            await b.engine.cache.get(entry.row.task_id)
        assert refused.value.details["leader"] == "http://a"
        with pytest.raises(ShardLostError):
            await b.signals.cancel(entry.row.task_id)
        with pytest.raises(ShardLostError):
            await submit(b, session_id=session, wait_for_service=True)
        with pytest.raises(ShardLostError):
            await b.signals.create_session(session)
        instance.answer(await instance.delivery())
        assert (await outcome(a, entry)).result == "done"


async def test_whoever_waits_for_a_task_that_changes_hands_is_told(url: str) -> None:
    async with planes(url, "a") as made:
        instance = FakeInstance()
        await instance.connect(made["a"])
        entries = [await submit(made["a"]) for _ in range(8)]
        assert made["a"].engine.cache.unfinished == 8
        await made.start("b")
        await made.shared_out()
        moved = [entry for entry in entries if entry.moved]
        assert 0 < len(moved) < 8 or made["a"].engine.cache.unfinished in (0, 8)
        assert made["a"].engine.cache.unfinished == 8 - len(moved)
        for entry in moved:
            with pytest.raises(ShardLostError):
                await made["a"].engine.wait_ended(entry, 5.0)
            found = await made["b"].engine.cache.get(entry.row.task_id)
            assert found.row.state == "working"


async def test_a_store_of_one_shard_cannot_be_shared() -> None:
    plane = ControlPlane(store=MemoryStore(), sharing=Sharing(name="a"))
    with pytest.raises(SharedStoreError, match="cannot be shared"):
        await plane.start()
    await plane.store.close()


async def test_who_shares_a_store_refuses_one_that_is_led_alone_and_the_other_way_round(url: str) -> None:
    async with world(PostgresStore(url)):
        plane = ControlPlane(store=PostgresStore(url, claims=False), sharing=Sharing(name="a"))
        with pytest.raises(StoreLockedError, match="does not share it"):
            await plane.start()
        await plane.store.close()
    async with planes(url, "a"):
        with pytest.raises(StoreLockedError):
            await PostgresStore(url).open()


@pytest.mark.slow
async def test_nobody_looks_often_while_nothing_happens(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with planes(url, "a", "b", lease_s=2.0) as made:
        a = made["a"]
        asked: list[PostgresStore] = []
        ask = PostgresStore._with_connection

        async def counted(self: PostgresStore, *args: Any, **options: Any) -> Any:
            asked.append(self)
            return await ask(self, *args, **options)

        await until(lambda: a.engine.common.reads >= 1)
        monkeypatch.setattr(PostgresStore, "_with_connection", counted)
        statistics, loop = a.leadership.statistics, asyncio.get_running_loop()
        before, began = statistics.looks, loop.time()
        await until(lambda: statistics.looks == before + 4)
        assert loop.time() - began > 3 * 0.8 * 2.0 / 4  # at most five in a lease
        of_a = sum(store is a.store for store in asked)
        assert of_a <= 4 + 3  # one statement each; and perhaps once what all have in common


async def test_what_one_says_about_services_holds_for_all(url: str) -> None:
    async with planes(url, "a", "b") as made:
        a, b = made["a"], made["b"]
        await register(a.engine, ServiceDefinition(service_name="echo", description=""))
        await until(lambda: b.engine.registry.definition("echo"))
        await a.engine.admission.pause("echo", reason="rest", by="somebody")
        await until(lambda: "echo" in b.engine.admission.pauses)
        assert b.engine.admission.gates["echo"].paused is not None
        await b.engine.admission.set_limits("echo", ServiceLimits(running_max=3))
        await until(lambda: a.engine.admission.limits_of("echo").running_max == 3)
        await b.engine.admission.resume("echo")
        await b.engine.admission.reset_limits("echo")
        await until(lambda: not (a.engine.admission.pauses or a.engine.admission.overrides))
        await deregister(b.engine, "echo")
        await until(lambda: a.engine.registry.definition("echo") is None)


async def test_what_all_have_in_common_is_read_again_where_it_could_not_be_understood(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def of_another_version() -> dict[str, bytes]:
        return {"echo": b"{}"}

    async with planes(url, "a") as made:
        common = made["a"].engine.common

        async def is_read() -> None:
            reads = common.reads
            common._heard("")
            await until(lambda: common.reads > reads and not common._reading.locked())

        with monkeypatch.context() as broken:
            broken.setattr(made["a"].store, "load_services", of_another_version)
            await is_read()
        await is_read()


async def test_old_tasks_are_removed_by_one_and_shown_by_nobody(url: str) -> None:
    settings = replace(SETTINGS, ended_tasks_max=1)
    async with planes(url, "a", "b", settings=settings) as made:
        ended = {}
        for name, plane in made.running.items():
            instance = FakeInstance(instance_id=name)
            await instance.connect(plane)
            entry = await submit(plane, task_id=plane.leadership.own_id())
            instance.answer(await instance.delivery())
            await outcome(plane, entry)
            ended[name] = entry.row.task_id
        first, other = sorted(made.running.values(), key=lambda plane: not plane.leadership.first)
        assert not other.leadership.first
        assert await other.retention.apply() == 0
        assert await first.retention.apply() == 1
        await until(lambda: sum(len(plane.engine.cache.tasks) for plane in made.running.values()) == 1)


async def test_an_instance_that_knows_one_control_plane_only_is_told_to_stop_what_others_lead(url: str) -> None:
    async with planes(url, "a") as made:
        a = made["a"]
        instance = FakeInstance()
        await instance.connect(a)
        steps = []
        for number in range(8):
            await submit(a)
            steps.append(await instance.delivery(number + 1))
        await made.start("b")
        await made.shared_out()
        moved = {step.step_id for step in steps if not a.leadership.leads(step.task_id)}
        assert moved
        await until(lambda: {one for op in instance.all(frames.Disowned) for one in op.step_ids} == moved)
        late = next(step for step in steps if step.step_id in moved)
        before = len(instance.all(frames.Disowned))
        instance.answer(late)
        await until(lambda: len(instance.all(frames.Disowned)) > before)
        assert not any(late.step_id in op.step_ids for op in instance.all(frames.Acknowledged))
        again = FakeInstance(instance_id="two")
        await again.connect(made["b"])
        await until(lambda: {step.step_id for step in again.all(frames.Deliver)} == moved)


@pytest.mark.slow
async def test_nobody_takes_anything_over_because_the_database_was_away(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with planes(url, "a", "b") as made:
        led = {name: dict(plane.leadership.shards) for name, plane in made.running.items()}
        with monkeypatch.context() as away:

            async def unavailable(*_: object, **__: object) -> Any:
                raise StoreUnavailableError("away")

            away.setattr(PostgresStore, "members", unavailable)
            await until(lambda: not any(plane.leadership.certain for plane in made.running.values()))
            assert not made["a"].leadership.leads(made["a"].leadership.own_id())
        looks = [plane.leadership.statistics.looks for plane in made.running.values()]
        await until(
            lambda: all(
                plane.leadership.statistics.looks > before + 3
                for plane, before in zip(made.running.values(), looks, strict=True)
            )
        )
        assert {name: dict(plane.leadership.shards) for name, plane in made.running.items()} == led


async def test_what_was_taken_over_while_it_was_claimed_is_not_led(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with planes(url, "a", "b", lease_s=5.0) as made:
        a, b = made["a"], made["b"]
        rows = PostgresStore._rows
        taken: list[int] = []

        async def late(self: PostgresStore, name: str, *parameters: Any) -> list[Any]:
            if name == "held_shards" and self is a.store and not taken:  # the claim is made, and its answer takes long
                taken.extend(sorted(a.leadership.shards)[:3])
                changed = (
                    f"UPDATE shared.shards SET owner = '{b.store.owner}', epoch = epoch + 1 WHERE shard = ANY ($1)"
                )
                await b.store._with_connection(lambda connection: connection.execute(changed, taken))  # type: ignore[attr-defined]
            return await rows(self, name, *parameters)

        monkeypatch.setattr(PostgresStore, "_rows", late)
        assert await a.store.claim_shards([]) == {}
        assert taken
        assert not a.leadership.shards.keys() & set(taken)
        assert dict(a.store.held) == dict(a.leadership.shards)
        assert a.leadership.statistics.lost == 3
