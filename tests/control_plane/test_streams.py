"""Streams: dense numbers, no gap and no repetition whoever reads them and whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.control_plane.harness import (
    FakeInstance,
    LinkedRunner,
    history,
    outcome,
    recorded,
    stream,
    submit,
    until,
    world,
)
from tests.support import DEADLINE_S

from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.messages import QueueMessage
from llama_deploy.messages.frames import CancelStep, Events, EventsCommitted
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.services import ServiceContext, service
from llama_deploy.testing import ManualClock
from llama_deploy.types import ActionTypes, RetryPolicy, TaskDefinition, TaskResult


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "store.db" if request.param == "sqlite" else None


@service(run_timeout_s=60.0)
async def tell(context: ServiceContext, events: int, pause: int = 1) -> int:
    """Streams numbers, and lets others run after every `pause` of them."""
    for number in range(events):
        context.stream({"n": number})
        if number % pause == 0:
            await asyncio.sleep(0)
    return events


class Chorus(BaseOrchestrator):
    """As many steps at once as the input says."""

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        if "left" not in state:
            state["left"] = int(task_def.input)
            return [QueueMessage(type="echo", tag=str(n)) for n in range(state["left"])], state
        if state["left"]:
            return [], state
        return [QueueMessage(type="x", action=ActionTypes.COMPLETED_TASK, data={"result": "sung"})], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        state["left"] -= 1
        return state


async def committed(entry: TaskEntry, count: int) -> None:
    """Wait until this many events of a task are committed."""
    await until(lambda: entry.stream is not None and entry.stream.committed >= count)


async def follow(plane: ControlPlane, task_id: str, first: int = 0, *, slowly: bool = False) -> list[Any]:
    """Read a stream while it is written; the numbers must be dense."""
    entry = await plane.engine.cache.get(task_id)
    found: list[Any] = []
    async for number, events in plane.engine.streams.follow(entry, first):
        assert number == first + len(found)
        found += [msgspec.json.decode(event) for event in events]
        if slowly:
            for _ in range(5):
                await asyncio.sleep(0)
    return found


@pytest.mark.parametrize("pause", [10, 1_000, 100_000])
async def test_ten_thousand_events_are_numbered_densely(pause: int, store: Path | None) -> None:
    async with world(store) as made:
        local = LinkedRunner([tell])
        await local.connect(made.plane)
        text = f'{{"events": 10000, "pause": {pause}}}'
        entry = await submit(made.plane, "tell", text, task_id="t")
        readers = [asyncio.ensure_future(follow(made.plane, "t", slowly=n % 2 == 1)) for n in range(4)]
        late = [asyncio.ensure_future(follow(made.plane, "t", first)) for first in (1, 5000, 9999)]
        expected = [{"n": number} for number in range(10_000)]
        async with asyncio.timeout(DEADLINE_S):
            for reader in readers:
                assert await reader == expected
            for reader, first in zip(late, (1, 5000, 9999), strict=True):
                assert await reader == expected[first:]
        assert (await outcome(made.plane, entry)).value == 10_000
        assert await stream(made.plane, "t", 9_990) == expected[9_990:]
        assert await stream(made.plane, "t", 10_000) == []
        assert await stream(made.plane, "t", 20_000) == []
        await made.stop()
        plane = await made.start()
        assert await stream(plane, "t") == expected
        assert await stream(plane, "t", 1234) == expected[1234:]
        await local.stop()


async def test_a_stream_costs_a_few_commits_not_one_per_event(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        local = LinkedRunner([tell])
        await local.connect(made.plane)
        before = made.plane.store.statistics.commits
        await outcome(made.plane, await submit(made.plane, "tell", '{"events": 2000, "pause": 10000}'))
        assert made.plane.store.statistics.commits - before < 20
        await local.stop()


async def test_steps_of_one_task_stream_at_the_same_time(store: Path | None) -> None:
    async with world(store, orchestrator=Chorus()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, None, "3", task_id="t")
        steps = [await instance.delivery(number) for number in (1, 2, 3)]
        reader = asyncio.ensure_future(follow(made.plane, "t"))
        for number in range(100):
            for voice, step in enumerate(steps):
                instance.stream(step, number, [[voice, number]])
            if number % 10 == 0:
                await asyncio.sleep(0)
        for step in steps:
            instance.answer(step)
        await outcome(made.plane, entry)
        events = await reader
        assert len(events) == 300
        for voice in range(3):
            assert [n for v, n in events if v == voice] == list(range(100))
        assert await stream(made.plane, "t") == events


async def test_events_that_an_instance_repeats_are_taken_once() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        step = await instance.delivery()
        instance.stream(step, 0, ["a", "b"])
        instance.stream(step, 0, ["a", "b", "c"])
        instance.stream(step, 1, ["b"])
        instance.stream(step, 2, ["c", "d"])
        await committed(entry, 4)
        assert (await instance.got(EventsCommitted)).count <= 4
        instance.answer(step, events_from=3, events=[b'"d"', b'"e"'])
        await outcome(made.plane, entry)
        assert await stream(made.plane, "t") == ["a", "b", "c", "d", "e"]


async def test_a_gap_is_not_taken_and_is_filled_by_what_is_repeated() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        step = await instance.delivery()
        instance.stream(step, 0, ["a"])
        instance.stream(step, 2, ["c"])
        await committed(entry, 1)
        instance.answer(step, events_from=0, events=[b'"a"', b'"b"', b'"c"'])
        await outcome(made.plane, entry)
        assert await stream(made.plane, "t") == ["a", "b", "c"]


async def test_events_are_said_to_be_committed_when_they_are(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        step = await instance.delivery()
        for number in range(50):
            instance.stream(step, number, [number])
            await asyncio.sleep(0)
            told = max((op.count for op in instance.all(EventsCommitted)), default=0)
            stored = await made.plane.store.load_chunks("t", limit=1000)
            assert told <= sum(chunk.count for chunk in stored)
        await committed(entry, 50)
        await until(lambda: instance.all(EventsCommitted)[-1].count == 50)


async def test_events_in_line_when_the_answer_comes_are_not_said_to_be_committed_before_it() -> None:
    """A control plane that dies then finds them with the instance again."""
    gate = asyncio.Event()

    class Gated(BaseOrchestrator):
        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            return (
                [] if f"result_{task_def.task_id}" in state else [QueueMessage(type="tell", data={"events": 9})]
            ), state

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            await gate.wait()
            return {**state, f"result_{result.task_id}": result}

    async with world(orchestrator=Gated(), settings=EngineSettings(recovery_grace_s=0.5)) as made:
        local = LinkedRunner([tell])
        await local.connect(made.plane)
        entry = await submit(made.plane, None, task_id="t")
        await until(lambda: entry.busy)
        await made.crash()
        gate.set()
        await local.connect(await made.start())
        await outcome(made.plane, "t")
        assert await stream(made.plane, "t") == [{"n": number} for number in range(9)]
        await local.stop()


async def test_a_stream_goes_on_over_a_restart_of_the_control_plane(store: Path | None) -> None:
    async with world(store) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        step = await instance.delivery()
        instance.stream(step, 0, ["a", "b"])
        await committed(entry, 2)
        instance.stream(step, 2, ["c"])  # perhaps committed, and nobody was told
        await made.crash()
        plane = await made.start()
        await instance.connect(plane, [("t:1", 1)])
        reader = asyncio.ensure_future(follow(plane, "t", 1))
        instance.stream(step, 2, ["c", "d"])
        instance.answer(step)
        await outcome(plane, "t")
        assert await reader == ["b", "c", "d"]
        assert await stream(plane, "t") == ["a", "b", "c", "d"]


async def test_a_new_attempt_opens_with_a_marker_and_old_events_count_no_more(store: Path | None) -> None:
    async with world(store, clock=ManualClock()) as made:
        first, second = FakeInstance(instance_id="a"), FakeInstance(instance_id="b")
        await first.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        older = await first.delivery()
        first.stream(older, 0, ["a", "b"])
        await committed(entry, 2)
        await second.connect(made.plane)
        first.drop()
        made.manual.advance(1.0)
        newer = await second.delivery()
        await first.connect(made.plane)
        first.stream(older, 2, ["c"])
        assert (await first.got(EventsCommitted, 2)).count == 3, "not wanted, and not to be kept"
        second.stream(newer, 0, ["A"])
        await committed(entry, 4)
        second.answer(newer, events_from=1, events=[b'"B"'])
        await outcome(made.plane, entry)
        marker = {"llama_deploy": "attempt", "step_id": "t:1", "attempt": 2}
        assert await stream(made.plane, "t") == ["a", "b", marker, "A", "B"]
        await made.stop()
        assert await stream(await made.start(), "t") == ["a", "b", marker, "A", "B"]


async def test_a_failed_attempt_keeps_its_events_and_the_next_begins_anew() -> None:
    @service(retry=RetryPolicy(initial_s=0.0, jitter=0.0))
    async def echo(context: ServiceContext, text: str) -> str:
        """Fails once."""
        context.stream(f"begin {context.attempt}")
        if context.attempt == 1:
            raise ValueError(text)
        return text

    async with world() as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        await outcome(made.plane, await submit(made.plane, task_id="t"))
        marker = {"llama_deploy": "attempt", "step_id": "t:1", "attempt": 2}
        assert await stream(made.plane, "t") == ["begin 1", marker, "begin 2"]
        await local.stop()


@pytest.mark.parametrize("by", ["events", "answer"])
async def test_a_stream_has_a_limit_that_fails_the_step(by: str) -> None:
    settings = EngineSettings(stream_events_per_task_max=10)
    async with world(settings=settings) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        step = await instance.delivery()
        instance.stream(step, 0, list(range(8)))
        instance.stream(step, 4, list(range(4, 10)))
        await committed(entry, 10)
        if by == "events":
            instance.stream(step, 10, [10])
            assert (await instance.got(CancelStep)).step_id == "t:1"
        else:
            instance.answer(step, events_from=9, events=[b"9", b"10"])
        result = await outcome(made.plane, entry)
        assert result.error is not None
        assert (result.status, result.error.code) == ("failed", "LD208")
        assert "stream_events_per_task_max" in result.error.message
        assert await stream(made.plane, "t") == list(range(10))


async def test_the_first_answer_alone_is_limited_too() -> None:
    settings = EngineSettings(stream_events_per_task_max=2)
    async with world(settings=settings) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        instance.answer(await instance.delivery(), events=[b"1", b"2", b"3"])
        assert (await outcome(made.plane, entry)).status == "failed"


async def test_large_events_are_stored_in_bounded_chunks(store: Path | None) -> None:
    settings = EngineSettings(stream_chunk_bytes_max=1000)
    async with world(store, settings=settings) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        step = await instance.delivery()
        events = [f"{number:0300d}" for number in range(20)]
        instance.stream(step, 0, events)
        instance.answer(step)
        await outcome(made.plane, entry)
        assert await stream(made.plane, "t") == events
        assert await stream(made.plane, "t", 7) == events[7:]
        chunks = await made.plane.store.load_chunks("t")
        assert len(chunks) == 5
        assert [chunk.attempt_first for chunk in chunks] == [0, 4, 8, 12, 16]
        assert all(len(chunk.data) < 1300 for chunk in chunks)


async def test_a_follower_of_a_task_without_events_ends_with_the_task() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, task_id="t")
        reader = asyncio.ensure_future(follow(made.plane, "t"))
        instance.answer(await instance.delivery())
        async with asyncio.timeout(DEADLINE_S):
            assert await reader == []


async def test_a_follower_sees_all_events_before_the_end(store: Path | None) -> None:
    async with world(store) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, task_id="t")
        readers = [asyncio.ensure_future(follow(made.plane, "t")) for _ in range(3)]
        step = await instance.delivery()
        instance.stream(step, 0, [0, 1])
        instance.answer(step, events_from=1, events=[b"1", b"2"])
        async with asyncio.timeout(DEADLINE_S):
            assert [await reader for reader in readers] == [[0, 1, 2]] * 3


async def test_the_history_is_followed_to_its_end(store: Path | None) -> None:
    async with world(store, clock=ManualClock()) as made:
        instance = FakeInstance(retry=RetryPolicy(initial_s=1.0, jitter=0.0))
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")

        async def read() -> list[int]:
            return [row.seq async for row in made.plane.engine.streams.follow_history(entry)]

        reader = asyncio.ensure_future(read())
        instance.fail(await instance.delivery())
        await recorded(entry, 2)
        made.manual.advance(1.0)
        instance.answer(await instance.delivery(2))
        async with asyncio.timeout(DEADLINE_S):
            assert await reader == [1, 2, 3]
        assert [e.seq for e in await history(made.plane, "t")] == [1, 2, 3]


async def test_events_after_the_end_are_dropped() -> None:
    async with world() as made:
        instance = FakeInstance(["echo", "human"])
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        instance.answer(await instance.delivery())
        await outcome(made.plane, entry)
        told = await instance.delivery(2)
        instance.stream(told, 0, ["who hears this?"])
        assert (await instance.got(EventsCommitted)).count == 1
        instance.answer(told, events_from=0, events=[b'"and this?"'])
        await instance.acknowledged(told)
        assert await stream(made.plane, "t") == []


async def test_events_for_nothing_are_said_to_be_dealt_with() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        instance.send(Events("none:1", 1, 5, [b"1", b"2"]))
        assert (await instance.got(EventsCommitted)).count == 7


async def test_a_task_that_is_canceled_ends_with_what_was_taken_of_its_stream() -> None:
    """Events in line behind a commit would come after the end, where no reader sees them."""
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, task_id="t")
        step = await instance.delivery()
        reader = asyncio.ensure_future(stream(made.plane, "t"))
        instance.stream(step, 0, ["a", "b"])
        instance.stream(step, 2, ["c"])  # in line: the first two are on their way to the store
        await made.plane.signals.cancel("t")
        assert await reader == ["a", "b", "c"]
        assert await stream(made.plane, "t") == ["a", "b", "c"]
        end, _ = await made.plane.store.load_stream_end("t")
        assert end == 3
