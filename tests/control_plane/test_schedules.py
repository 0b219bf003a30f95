"""Schedules: each time is submitted once, whatever overlaps, is missed or crashes; nothing drifts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.control_plane.harness import FakeInstance, World, abandon, cut, outcome, submit, until, world
from tests.support import DEADLINE_S

from llama_deploy.control_plane import EngineSettings
from llama_deploy.errors import (
    InvalidRequestError,
    LimitExceededError,
    ScheduleNotFoundError,
    ScheduleOfFileError,
    ShardLostError,
    StoreUnavailableError,
)
from llama_deploy.messages.frames import Deliver
from llama_deploy.runtime.failpoints import arm, disarm
from llama_deploy.state_stores.base import TaskFilter
from llama_deploy.testing import ManualClock
from llama_deploy.types import TaskOptions
from llama_deploy.types.redaction import Redaction
from llama_deploy.types.schedules import Schedule, ScheduleView

PATIENT = EngineSettings(lease_s=1e9)
BEGIN = datetime(2026, 1, 1, 0, 30, tzinfo=UTC).timestamp()
HOUR = 3600.0


def hourly(**fields: Any) -> Schedule:
    return Schedule.model_validate({"cron": "0 * * * *", "service": "echo", "input": {"text": "x"}, **fields})


def clock() -> ManualClock:
    return ManualClock(BEGIN)


async def settled(made: World) -> None:
    """Wait until the schedules have done what they were woken for."""
    schedules = made.plane.schedules
    for _ in range(50):
        await asyncio.sleep(0)
    await until(lambda: not schedules._wake.is_set() and not schedules._changing.locked())
    await until(lambda: made.plane.store.backlog == 0)


async def advance(made: World, seconds: float) -> None:
    """Move time, and let what comes on the way be submitted when it comes."""
    target = made.manual.now() + seconds
    while True:
        views = [view.next_at for view in await made.plane.schedules.list() if view.next_at is not None]
        coming = min((when for when in views if when > made.manual.now()), default=target)
        made.manual.advance(min(coming, target) - made.manual.now())
        await settled(made)
        if made.manual.now() >= target:
            return


async def tasks(made: World) -> list[str]:
    """The ids of all tasks, oldest first."""
    rows = (await made.plane.store.list_tasks(TaskFilter(oldest_first=True), limit=1000)).rows
    return sorted(row.task_id for row in rows)


async def view_of(made: World, name: str = "s") -> ScheduleView:
    return await made.plane.schedules.get(name)


async def answer_all(made: World, instance: FakeInstance) -> None:
    """Answer whatever the instance was given."""
    held = instance.port.held if instance.port is not None else {}
    for step in [step for step in instance.all(Deliver) if step.step_id in held]:
        instance.answer(step)
        await outcome(made.plane, step.task_id)


async def test_each_time_is_submitted_once_with_its_own_id(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", clock=clock(), settings=PATIENT) as made:
        instance = FakeInstance(run_timeout_s=1e6)
        await instance.connect(made.plane)
        await made.plane.schedules.put("s", hourly(metadata={"team": "a"}, options={"priority": 8}))
        assert (await view_of(made)).next_at == BEGIN + HOUR / 2
        for hour in range(1, 4):
            await advance(made, HOUR)
            step = await instance.delivery(hour)
            assert step.task_id == f"s@2026-01-01T0{hour}:00:00Z"
            instance.answer(step)
            await outcome(made.plane, step.task_id)
        entry = await made.plane.engine.cache.get("s@2026-01-01T02:00:00Z")
        assert entry.row.origin == "schedule:s"
        assert entry.definition.metadata == {"team": "a", "schedule": "s", "due_at": "2026-01-01T02:00:00Z"}
        assert entry.definition.input == '{"text": "x"}'
        assert entry.definition.options is not None
        assert entry.definition.options.priority == 8
        view = await view_of(made)
        assert (view.submitted, view.skipped, view.missed, view.running) == (3, 0, 0, False)
        assert view.last_task_id == "s@2026-01-01T03:00:00Z"


async def test_months_pass_and_nothing_drifts(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", clock=clock(), settings=PATIENT) as made:
        await made.plane.schedules.put("daily", hourly(cron="30 3 * * *", time_zone="Europe/Berlin", overlap="allow"))
        await made.plane.schedules.put("every", hourly(cron=None, every_s=86_400, overlap="allow"))
        for _ in range(3):
            await advance(made, 40 * 86_400.0)
            await made.crash()
            await made.start()
        found = await tasks(made)
        assert len(found) == 240
        daily = [task_id for task_id in found if task_id.startswith("daily")]
        assert daily[0] == "daily@2026-01-01T02:30:00Z"
        assert daily[-1] == "daily@2026-04-30T01:30:00Z", "summer time"
        assert [task_id for task_id in found if task_id.startswith("every")][-1] == "every@2026-05-01T00:30:00Z"


async def test_a_time_while_the_task_before_runs_is_left_out() -> None:
    async with world(clock=clock(), settings=PATIENT) as made:
        instance = FakeInstance(run_timeout_s=1e6)
        await instance.connect(made.plane)
        await made.plane.schedules.put("s", hourly())
        await advance(made, 3 * HOUR)
        view = await view_of(made)
        assert (view.submitted, view.skipped, view.running) == (1, 2, True)
        await answer_all(made, instance)
        await advance(made, HOUR)
        assert await tasks(made) == ["s@2026-01-01T01:00:00Z", "s@2026-01-01T04:00:00Z"]


@pytest.mark.parametrize("restart", [False, True])
async def test_one_time_waits_for_the_task_before(tmp_path: Path, *, restart: bool) -> None:
    async with world(tmp_path / "s.db", clock=clock(), settings=PATIENT) as made:
        instance = FakeInstance(run_timeout_s=1e6)
        await instance.connect(made.plane)
        await made.plane.schedules.put("s", hourly(overlap="queue"))
        await advance(made, 3 * HOUR)
        view = await view_of(made)
        assert (view.submitted, view.skipped, view.waiting) == (1, 1, [BEGIN + 1.5 * HOUR])
        if restart:
            step = await instance.delivery()
            await made.crash()
            await made.start()
            await instance.connect(made.plane, held=[(step.step_id, step.attempt)])
        await answer_all(made, instance)
        assert (await instance.delivery(2)).task_id == "s@2026-01-01T02:00:00Z"
        await settled(made)
        assert (await view_of(made)).waiting == []
        assert await tasks(made) == ["s@2026-01-01T01:00:00Z", "s@2026-01-01T02:00:00Z"]


async def test_all_run_at_once_or_the_newest_alone() -> None:
    async with world(clock=clock(), settings=PATIENT) as made:
        instance = FakeInstance(run_timeout_s=1e6)
        await instance.connect(made.plane)
        await made.plane.schedules.put("all", hourly(overlap="allow"))
        await made.plane.schedules.put("newest", hourly(overlap="cancel"))
        await advance(made, 3 * HOUR)
        states = {task_id: (await made.plane.engine.cache.get(task_id)).row.state for task_id in await tasks(made)}
        assert states == {
            "all@2026-01-01T01:00:00Z": "working",
            "all@2026-01-01T02:00:00Z": "working",
            "all@2026-01-01T03:00:00Z": "working",
            "newest@2026-01-01T01:00:00Z": "canceled",
            "newest@2026-01-01T02:00:00Z": "canceled",
            "newest@2026-01-01T03:00:00Z": "working",
        }


@pytest.mark.parametrize(
    ("fields", "expected", "missed"),
    [
        ({"catch_up": "none"}, [], 5),
        ({"catch_up": "latest"}, ["06"], 4),
        ({"catch_up": "all", "overlap": "allow"}, ["02", "03", "04", "05", "06"], 0),
        ({"catch_up": "all", "overlap": "allow", "catch_up_window_s": 2 * HOUR}, ["05", "06"], 1),
        ({"catch_up": "all", "overlap": "queue"}, ["02"], 0),
    ],
)
async def test_what_a_downtime_missed(tmp_path: Path, fields: dict[str, Any], expected: list[str], missed: int) -> None:
    async with world(tmp_path / "s.db", clock=clock(), settings=PATIENT) as made:
        instance = FakeInstance(run_timeout_s=1e6)
        await instance.connect(made.plane)
        await made.plane.schedules.put("s", hourly(**fields))
        await advance(made, HOUR)
        await answer_all(made, instance)
        await made.crash()
        made.manual.advance(5 * HOUR)
        await made.start()
        await instance.connect(made.plane)
        await settled(made)
        assert await tasks(made) == [f"s@2026-01-01T{hour}:00:00Z" for hour in ("01", *expected)]
        view = await view_of(made)
        assert (view.missed > 0) == (missed > 0)
        assert view.next_at == BEGIN + 6.5 * HOUR
        if fields.get("overlap") == "queue":
            for number in range(2, 7):
                instance.answer(await instance.delivery(number))
            await until(lambda: made.plane.schedules._standing["s"].submitted == 6)
            order = [step.task_id for step in instance.all(Deliver)]
            assert order == [f"s@2026-01-01T0{hour}:00:00Z" for hour in range(1, 7)], "one after the other"


async def test_a_paused_schedule_submits_nothing_and_goes_on_with_the_next_time(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", clock=clock(), settings=PATIENT) as made:
        await made.plane.schedules.put("s", hourly(catch_up="latest"))
        await made.plane.schedules.pause("s", reason="holidays", by="ann")
        view = await made.plane.schedules.pause("s", reason="again")
        assert (view.paused, view.paused_because, view.next_at) == (True, "by ann: holidays", None)
        await advance(made, 5 * HOUR)
        await made.crash()
        await made.start()
        await advance(made, 5 * HOUR)
        assert (await view_of(made)).paused
        view = await made.plane.schedules.resume("s")
        assert view.next_at == BEGIN + 10.5 * HOUR
        await settled(made)
        assert await tasks(made) == []
        await advance(made, HOUR)
        assert await tasks(made) == ["s@2026-01-01T11:00:00Z"]


async def test_a_replaced_schedule_goes_on_where_it_is_and_new_times_begin_now(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", clock=clock(), settings=PATIENT) as made:
        schedules = made.plane.schedules
        await schedules.put("s", hourly())
        await advance(made, HOUR)
        await schedules.pause("s")
        view = await schedules.put("s", hourly(input="other"))
        assert (view.paused, view.submitted, view.schedule.input) == (True, 1, "other")
        await schedules.resume("s")
        made.manual.advance(0.2 * HOUR)
        view = await schedules.put("s", hourly(cron="*/5 * * * *"))
        assert view.next_at is not None
        assert view.next_at > made.manual.now()
        await settled(made)
        assert len(await tasks(made)) == 1, "nothing of the past"


async def test_a_schedule_can_be_triggered_and_forgotten() -> None:
    async with world(clock=clock(), settings=PATIENT) as made:
        schedules = made.plane.schedules
        await schedules.put("s", hourly())
        await schedules.pause("s")
        first, second = await schedules.trigger("s"), await schedules.trigger("s")
        assert first == second == "s@2026-01-01T00:30:00.001Z", "the same moment is the same task"
        made.manual.advance(1.5)
        await schedules.trigger("s")
        assert len(await tasks(made)) == 2
        await schedules.delete("s")
        for use in (schedules.get, schedules.pause, schedules.resume, schedules.trigger, schedules.delete):
            with pytest.raises(ScheduleNotFoundError):
                await use("s")
        assert await schedules.list() == []
        assert len(await tasks(made)) == 2
        await made.crash()
        await made.start()
        assert await made.plane.schedules.list() == []


async def test_jitter_delays_the_task_and_keeps_its_name() -> None:
    async with world(clock=clock(), settings=PATIENT) as made:
        view = await made.plane.schedules.put("s", hourly(jitter_s=600))
        assert view.next_at is not None
        delay_s = view.next_at - (BEGIN + HOUR / 2)
        assert 0 < delay_s < 600
        made.manual.advance(HOUR / 2 + delay_s - 1)
        await settled(made)
        assert await tasks(made) == []
        made.manual.advance(1)
        await settled(made)
        assert await tasks(made) == ["s@2026-01-01T01:00:00Z"]


async def test_the_end_of_a_schedule() -> None:
    async with world(clock=clock(), settings=PATIENT) as made:
        await made.plane.schedules.put("s", hourly(end_at=BEGIN + 1.5 * HOUR, overlap="allow"))
        await advance(made, 10 * HOUR)
        assert len(await tasks(made)) == 2
        view = await view_of(made)
        assert view.next_at is None
        assert await made.plane.schedules.next_times("s", 5) == []


async def test_the_next_times_are_in_the_schedules_own_zone() -> None:
    async with world(clock=clock()) as made:
        await made.plane.schedules.put("s", hourly(cron="30 9 * * MON", time_zone="America/New_York"))
        times = await made.plane.schedules.next_times("s", 2)
        assert [time.isoformat() for time in times] == ["2026-01-05T09:30:00-05:00", "2026-01-12T09:30:00-05:00"]


async def test_what_can_never_be_recorded_is_told_and_what_cannot_now_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(clock=clock(), settings=PATIENT) as made:
        await made.plane.schedules.put("s", hourly(service=None))  # there is no default service
        await made.plane.schedules.put("t", hourly())
        await advance(made, HOUR / 2)
        view = await view_of(made)
        assert view.submitted == 0
        assert "SimpleOrchestrator" in view.last_error
        assert await tasks(made) == ["t@2026-01-01T01:00:00Z"]
        await made.plane.schedules.delete("s")
        await made.plane.schedules.put("t", hourly(overlap="allow"))

        async def refuse(_: Any) -> Any:
            raise StoreUnavailableError("not now")

        with monkeypatch.context() as patch:
            patch.setattr(made.plane.engine.submissions, "submit_and_wait", refuse)
            made.manual.advance(HOUR)
            await settled(made)
            assert len(await tasks(made)) == 1
        made.manual.advance(1.0)
        await settled(made)
        assert (await tasks(made))[1:] == ["t@2026-01-01T02:00:00Z"]


@pytest.mark.parametrize(
    ("name", "fields", "error", "said"),
    [
        ("no/slash", {}, InvalidRequestError, "cannot be named"),
        ("", {}, InvalidRequestError, "cannot be named"),
        ("s", {"cron": "0 25 * * *"}, InvalidRequestError, "cron"),
        ("s", {"time_zone": "Nowhere"}, InvalidRequestError, "time zone"),
        ("s", {"service": "__timer__"}, InvalidRequestError, "takes no tasks"),
        ("s", {"service": "a/b"}, InvalidRequestError, "service"),
        ("s", {"session_id": ""}, InvalidRequestError, "session_id"),
        ("s", {"input": "\ud800"}, InvalidRequestError, "not valid text"),
        ("s", {"input": "x" * 5_000_000}, LimitExceededError, "schedule has"),
    ],
)
async def test_what_means_nothing_is_refused_and_changes_nothing(
    name: str, fields: dict[str, Any], error: type[Exception], said: str
) -> None:
    async with world(clock=clock()) as made:
        with pytest.raises(error, match=said):
            await made.plane.schedules.put(name, hourly(**fields))
        assert await made.plane.schedules.list() == []
        assert await made.plane.store.load_documents("schedule") == {}


async def test_what_people_do_not_get_to_see_reaches_the_task_all_the_same() -> None:
    async with world(clock=clock(), settings=PATIENT) as made:
        made.plane.engine.redact = Redaction(["*password*"])
        webhook = {"url": "https://hooks.example.com/x?key=hidden"}
        given = {"text": "x", "password": "hidden"}
        view = await made.plane.schedules.put("s", hourly(input=given, options={"webhook": webhook}))
        assert "hidden" not in view.model_dump_json()
        assert "hooks.example.com" in view.model_dump_json()
        await advance(made, HOUR / 2)
        entry = await made.plane.engine.cache.get("s@2026-01-01T01:00:00Z")
        assert "hidden" in entry.definition.input
        assert entry.definition.options is not None
        assert entry.definition.options.webhook is not None
        assert entry.definition.options.webhook.url == webhook["url"]


async def test_schedules_of_a_file_come_and_go_with_it(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", clock=clock(), settings=PATIENT) as made:
        await made.plane.schedules.put("own", hourly())
        await made.plane.schedules.start({"one": hourly(), "two": hourly()})
        assert [(v.name, v.from_file) for v in await made.plane.schedules.list()] == [
            ("one", True), ("own", False), ("two", True),
        ]  # fmt: skip
        for change in (made.plane.schedules.delete("one"), made.plane.schedules.put("one", hourly())):
            with pytest.raises(ScheduleOfFileError):
                await change
        await made.plane.schedules.pause("one")
        await made.stop()
        await made.start()
        await made.plane.schedules.stop()
        await made.plane.schedules.start({"one": hourly(input="new")})
        views = {view.name: view for view in await made.plane.schedules.list()}
        assert sorted(views) == ["one", "own"]
        assert (views["one"].paused, views["one"].schedule.input) == (True, "new")


# --- crashes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["schedules.before_submit", "schedules.submitted", "schedules.recorded"])
@pytest.mark.parametrize("catch_up", ["none", "latest", "all"])
@pytest.mark.parametrize("down_s", [1.0, 500.0])
async def test_a_crash_neither_loses_a_time_nor_submits_it_twice(
    tmp_path: Path, point: str, catch_up: str, down_s: float
) -> None:
    async with world(tmp_path / "s.db", clock=clock(), settings=PATIENT) as made:
        instance = FakeInstance(run_timeout_s=1e6)
        await instance.connect(made.plane)
        await made.plane.schedules.put("s", hourly(overlap="allow", catch_up=catch_up))
        await crash_at(made, point, lambda: made.manual.advance(HOUR / 2))
        made.manual.advance(down_s)
        await made.start()
        await settled(made)
        view = await view_of(made)
        lost = point == "schedules.before_submit" and catch_up == "none" and down_s > 60
        assert await tasks(made) == ([] if lost else ["s@2026-01-01T01:00:00Z"])
        assert (view.submitted, view.last_task_id) == ((0, None) if lost else (1, "s@2026-01-01T01:00:00Z"))
        await advance(made, HOUR)
        assert len(await tasks(made)) == (1 if lost else 2)


async def test_a_crash_between_canceling_and_submitting(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", clock=clock(), settings=PATIENT) as made:
        await made.plane.schedules.put("s", hourly(overlap="cancel"))
        await advance(made, HOUR / 2)
        await crash_at(made, "schedules.before_submit", lambda: made.manual.advance(HOUR))
        await made.start()
        await settled(made)
        states = {task_id: (await made.plane.engine.cache.get(task_id)).row.state for task_id in await tasks(made)}
        assert states == {"s@2026-01-01T01:00:00Z": "canceled", "s@2026-01-01T02:00:00Z": "submitted"}


async def test_a_crash_while_a_time_waits(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", clock=clock(), settings=PATIENT) as made:
        await made.plane.schedules.put("s", hourly(overlap="queue"))
        await advance(made, 2 * HOUR)
        first = "s@2026-01-01T01:00:00Z"

        def end() -> None:
            made.plane.engine.spawn(cancel())

        async def cancel() -> None:
            await made.plane.signals.cancel(first)

        await crash_at(made, "schedules.submitted", end)
        await made.start()
        await settled(made)
        assert await tasks(made) == [first, "s@2026-01-01T02:00:00Z"]
        view = await view_of(made)
        assert (view.waiting, view.last_task_id) == ([], "s@2026-01-01T02:00:00Z")


async def crash_at(made: World, point: str, cause: Callable[[], None]) -> None:
    """Do what leads to a failpoint, and crash there."""
    happened = asyncio.Event()

    def crash() -> None:
        if not happened.is_set():
            happened.set()
            cut(made.plane)

    arm(point, crash)
    try:
        cause()
        async with asyncio.timeout(DEADLINE_S):
            await happened.wait()
    finally:
        disarm(point)
    plane, made.running = made.running, None
    assert plane is not None
    await abandon(plane)


async def test_a_task_of_a_schedule_with_the_id_of_another_request_counts_as_submitted() -> None:
    async with world(clock=clock(), settings=PATIENT) as made:
        await made.plane.schedules.put("s", hourly())
        options = TaskOptions()
        await submit(made.plane, task_id="s@2026-01-01T01:00:00Z", wait_for_service=True, options=options)
        await advance(made, HOUR / 2)
        assert (await view_of(made)).submitted == 1
        assert len(await tasks(made)) == 1


async def test_a_task_that_ends_while_the_next_time_is_recorded_is_followed_by_that_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(clock=clock(), settings=PATIENT) as made:
        instance = FakeInstance(run_timeout_s=1e6)
        await instance.connect(made.plane)
        await made.plane.schedules.put("s", hourly(overlap="queue"))
        await advance(made, HOUR)
        first = await instance.delivery()
        recording, go_on = asyncio.Event(), asyncio.Event()
        put_document = made.plane.store.put_document

        async def put_slowly(kind: str, name: str, data: bytes) -> None:
            recording.set()
            await go_on.wait()
            await put_document(kind, name, data)

        monkeypatch.setattr(made.plane.store, "put_document", put_slowly)
        made.manual.advance(HOUR)
        await asyncio.wait_for(recording.wait(), DEADLINE_S)
        instance.answer(first)
        await outcome(made.plane, first.task_id)
        await until(lambda: not made.plane.schedules._watched)
        go_on.set()
        assert (await instance.delivery(2)).task_id == "s@2026-01-01T02:00:00Z"


async def test_the_end_of_a_task_wakes_nobody_for_a_schedule_that_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(clock=clock(), settings=PATIENT) as made:
        schedules, instance = made.plane.schedules, FakeInstance(run_timeout_s=1e6)
        await instance.connect(made.plane)
        await schedules.put("s", hourly(overlap="queue"))
        await advance(made, 2 * HOUR)
        await schedules.delete("s")
        looks = 0
        see_who_leads = schedules._see_who_leads

        async def look() -> None:
            nonlocal looks
            looks += 1
            await see_who_leads()

        monkeypatch.setattr(schedules, "_see_who_leads", look)
        await answer_all(made, instance)
        for _ in range(200):
            await asyncio.sleep(0)
        assert looks <= 1


async def test_who_looks_after_schedules_no_more_writes_nothing_over_what_another_has_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(clock=clock(), settings=PATIENT) as made:
        schedules, instance = made.plane.schedules, FakeInstance(run_timeout_s=1e6)
        await instance.connect(made.plane)
        await schedules.put("s", hourly())
        submitting, go_on = asyncio.Event(), asyncio.Event()

        async def submit_slowly(definition: Any) -> str:
            submitting.set()
            await go_on.wait()
            return (await made.plane.engine.submissions.submit_and_wait(definition)).row.task_id

        monkeypatch.setattr(schedules._forwarder, "submit", submit_slowly)
        made.manual.advance(HOUR)
        await asyncio.wait_for(submitting.wait(), DEADLINE_S)
        monkeypatch.setattr(made.plane.routing, "leads", lambda _: False)
        theirs = schedules._standing["s"].model_copy(update={"paused": True, "handled_at": BEGIN + HOUR / 2})
        await made.plane.store.put_document("schedule", "s", theirs.model_dump_json().encode())
        go_on.set()
        await settled(made)
        assert (await schedules.list())[0].paused


async def test_schedules_that_cannot_be_read_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(clock=clock(), settings=PATIENT) as made:
        schedules, store = made.plane.schedules, made.plane.store
        await FakeInstance().connect(made.plane)
        await schedules.put("s", hourly())
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(made.plane.routing, "leads", lambda _: False)
            schedules._wake.set()
            await until(lambda: not schedules.in_charge)
        readable = (await store.load_documents("schedule"))["s"]
        await store.put_document("schedule", "s", b'{"of": "another version"}')
        schedules._wake.set()
        await settled(made)
        await store.put_document("schedule", "s", readable)
        made.manual.advance(1.0)
        await until(lambda: schedules.in_charge)
        await advance(made, HOUR)
        assert await tasks(made) == ["s@2026-01-01T01:00:00Z"]


async def test_a_schedule_that_another_one_has_paused_between_two_times_in_charge_stays_paused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(clock=clock(), settings=PATIENT) as made:
        schedules, leadership = made.plane.schedules, made.plane.leadership
        await FakeInstance().connect(made.plane)
        await schedules.put("s", hourly())
        theirs = schedules._standing["s"].model_copy(update={"paused": True})
        await made.plane.store.put_document("schedule", "s", theirs.model_dump_json().encode())
        monkeypatch.setattr(leadership, "epoch_of", lambda _: 7)  # lost and led again, both since the last look
        await advance(made, 2 * HOUR)
        assert await tasks(made) == []
        assert (await schedules.get("s")).paused


async def test_who_loses_charge_while_it_reads_the_schedules_submits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(clock=clock(), settings=PATIENT) as made:
        schedules, routing = made.plane.schedules, made.plane.routing
        await FakeInstance().connect(made.plane)
        for name in ("a", "b"):
            await schedules.put(name, hourly())
        leads, load = True, made.plane.store.load_task

        async def load_and_lose(task_id: str) -> Any:
            nonlocal leads
            if task_id.startswith("b@"):
                leads = False
                raise ShardLostError("another control plane leads the session")
            return await load(task_id)

        with monkeypatch.context() as patched:
            patched.setattr(routing, "leads", lambda _: leads)
            leads = False
            schedules._wake.set()
            await until(lambda: not schedules.in_charge)
            patched.setattr(made.plane.store, "load_task", load_and_lose)
            made.manual.advance(HOUR)
            leads = True
            schedules._wake.set()
            await until(lambda: not leads)
            for _ in range(5):
                await advance(made, HOUR)
            assert await tasks(made) == []
        await advance(made, 1.0)
        await until(lambda: schedules.in_charge)
