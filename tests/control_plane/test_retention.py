"""What is kept for how long: ended tasks go after their time, everything that is still needed stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.control_plane.harness import FakeInstance, LinkedRunner, World, outcome, recorded, submit, until, world

from llama_deploy.control_plane import EngineSettings
from llama_deploy.errors import TaskNotFoundError
from llama_deploy.services import service
from llama_deploy.state_stores.base import SessionRow, SharedWrite, TaskFilter
from llama_deploy.testing import ManualClock
from llama_deploy.testing.recording import dead, record

DAY_S = 86_400.0
SETTINGS = EngineSettings(retention_s=10 * DAY_S, ended_tasks_max=0, retention_batch_max=3)


@service(concurrency=100)
async def echo(text: str) -> str:
    """The text."""
    return text


@asynccontextmanager
async def by_hand(store: Path | None, **options: Any) -> AsyncIterator[World]:
    """A world in which nothing is removed unless the test says so."""
    async with world(store, **options) as made:
        await made.plane.retention.stop()
        yield made


async def applied(made: World) -> int:
    """Let everything that is to go be removed; returns how many tasks that were."""
    work = asyncio.ensure_future(made.plane.retention.apply())

    def ended() -> bool:
        made.manual.advance(0.02)
        return work.done()

    await until(ended)
    return work.result()


async def kept(made: World) -> list[str]:
    rows = (await made.plane.store.list_tasks(TaskFilter(oldest_first=True), limit=1_000)).rows
    return [row.task_id for row in rows]


async def finish(made: World, *task_ids: str, **fields: Any) -> None:
    """Submit tasks and let them end."""
    local = LinkedRunner([echo])
    await local.connect(made.plane)
    for task_id in task_ids:
        await outcome(made.plane, await submit(made.plane, text="x", task_id=task_id, **fields))
    await local.stop()


@pytest.fixture(params=["memory", "sqlite"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "s.db" if request.param == "sqlite" else None


async def test_ended_tasks_go_after_their_time(where: Path | None) -> None:
    async with by_hand(where, settings=SETTINGS, clock=ManualClock()) as made:
        await finish(made, *[f"old-{number}" for number in range(8)])
        open_task = await submit(made.plane, "other", task_id="waiting", wait_for_service=True)
        await recorded(open_task, 1)
        made.manual.advance(6 * DAY_S)
        await finish(made, "young")
        assert await applied(made) == 0
        made.manual.advance(5 * DAY_S)
        assert await applied(made) == 8
        assert await kept(made) == ["waiting", "young"]
        assert await made.plane.store.count_tasks() == {"submitted": 1, "completed": 1}
        assert made.plane.engine.statistics.removed == 8
        with pytest.raises(TaskNotFoundError):
            await made.plane.engine.cache.get("old-0")
        made.manual.advance(100 * DAY_S)
        assert await applied(made) == 1
        assert await kept(made) == ["waiting"]


async def test_it_looks_by_itself(where: Path | None) -> None:
    async with world(where, settings=SETTINGS, clock=ManualClock()) as made:
        await finish(made, "old")
        made.manual.advance(10 * DAY_S + SETTINGS.retention_look_s)

        async def gone() -> bool:
            made.manual.advance(0.02)
            return await kept(made) == []

        await until(gone)


async def test_an_id_and_a_key_are_free_again_with_their_task(where: Path | None) -> None:
    async with by_hand(where, settings=SETTINGS, clock=ManualClock()) as made:
        await finish(made, "t", idempotency_key="once")
        made.manual.advance(11 * DAY_S)
        assert (await submit(made.plane, text="x", idempotency_key="once")).row.task_id == "t"
        assert await applied(made) == 1
        again = await submit(made.plane, text="y", idempotency_key="once", wait_for_service=True)
        await recorded(again, 1)
        assert again.row.task_id != "t"
        other = await submit(made.plane, text="other", task_id="t", wait_for_service=True)
        await recorded(other, 1)
        assert other.row.created_at == made.manual.now()


async def test_the_oldest_go_where_there_are_too_many(where: Path | None) -> None:
    settings = EngineSettings(ended_tasks_max=4, retention_batch_max=3)
    async with by_hand(where, settings=settings, clock=ManualClock()) as made:
        await finish(made, *[f"t{number}" for number in range(11)])
        assert await applied(made) == 7
        assert await kept(made) == ["t7", "t8", "t9", "t10"]
        assert await applied(made) == 0


async def test_zero_keeps_everything(where: Path | None) -> None:
    settings = EngineSettings(retention_s=0, ended_tasks_max=0, dead_letter_retention_s=0, session_retention_s=0)
    async with by_hand(where, settings=settings, clock=ManualClock()) as made:
        await finish(made, "t", session_id="s")
        await record(made.plane.store, dead=[dead("t")])
        made.manual.advance(10_000 * DAY_S)
        assert await applied(made) == 0
        assert await kept(made) == ["t"]
        assert await made.plane.store.count_dead() == {"echo": 1}
        assert await made.plane.store.load_session("s") is not None


async def test_a_dead_letter_keeps_its_task_for_a_time_of_its_own(where: Path | None) -> None:
    async with by_hand(where, settings=SETTINGS, clock=ManualClock()) as made:
        await finish(made, "t")
        await record(made.plane.store, dead=[dead("t", at=made.manual.now())])
        made.manual.advance(80 * DAY_S)
        assert await applied(made) == 0
        made.manual.advance(11 * DAY_S)
        assert await applied(made) == 1
        assert await made.plane.store.count_dead() == {}


async def test_a_session_goes_when_none_of_its_tasks_is_left(where: Path | None) -> None:
    async with by_hand(where, settings=SETTINGS, clock=ManualClock()) as made:
        await finish(made, "t", session_id="used")
        await record(made.plane.store, session=SessionRow("empty", made.manual.now()))
        await record(made.plane.store, shared=[SharedWrite("empty", "k", 0, b"1")])
        waiting = await submit(made.plane, task_id="waiting", session_id="open", wait_for_service=True)
        await recorded(waiting, 1)
        made.manual.advance(91 * DAY_S)
        assert await applied(made) == 1
        sessions = [row.session_id for row in (await made.plane.store.list_sessions(limit=9)).rows]
        assert sessions == ["open"]
        assert await made.plane.store.load_shared("empty") == []
        again = await submit(made.plane, task_id="again", session_id="used", wait_for_service=True)
        await recorded(again, 1)
        assert await made.plane.store.load_session("used") == SessionRow("used", made.manual.now())


async def test_contents_that_nobody_uses_go(where: Path | None) -> None:
    async with by_hand(where, settings=SETTINGS, clock=ManualClock()) as made:
        store = made.plane.store
        await finish(made, "t")
        for name in ("aa", "bb"):
            await store.put_blob_part(name, 0, b"12", at=made.manual.now())
            await store.finish_blob(name, 2, made.manual.now())
        await store.use_blob("aa", "t")
        made.manual.advance(DAY_S)
        await applied(made)
        assert [await store.blob_bytes(name) for name in ("aa", "bb")] == [2, None]
        made.manual.advance(10 * DAY_S)
        await applied(made)
        assert await store.blob_bytes("aa") is None


async def test_whoever_follows_a_task_that_goes_is_told(where: Path | None) -> None:
    async with by_hand(where, settings=SETTINGS, clock=ManualClock()) as made:
        await finish(made, "t")
        entry = await made.plane.engine.cache.get("t")
        rows = made.plane.engine.streams.follow_history(entry)
        assert (await anext(rows)).seq == 1
        made.manual.advance(11 * DAY_S)
        assert await applied(made) == 1
        entry.settled_seq += 1
        with pytest.raises(TaskNotFoundError):
            async for _ in rows:
                pass


async def test_work_goes_on_between_two_pieces(tmp_path: Path) -> None:
    """Removing many tasks takes many small commits, and what is submitted meanwhile gets its turn between them."""
    async with by_hand(tmp_path / "s.db", settings=SETTINGS, clock=ManualClock()) as made:
        await finish(made, *[f"old-{number}" for number in range(30)])
        made.manual.advance(11 * DAY_S)
        work = asyncio.ensure_future(made.plane.retention.apply())
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="new")
        instance.answer(await instance.delivery())
        await until(lambda: entry.ended)
        assert not work.done(), "it waits for the clock between two pieces"
        removed = made.plane.engine.statistics.removed
        assert removed <= 2 * SETTINGS.retention_batch_max
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        assert len(await kept(made)) == 31 - removed
        assert await applied(made) == 30 - removed
