"""Crashes at every failpoint: whatever was acknowledged reaches exactly one outcome on the next control plane."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.control_plane.harness import (
    FakeInstance,
    LinkedRunner,
    World,
    cut,
    history,
    outcome,
    recorded,
    state_of,
    stream,
    submit,
    until,
    world,
)
from tests.support import DEADLINE_S, eventually

from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.errors import NonRetryableError, ServiceUnknownError
from llama_deploy.runtime import failpoints
from llama_deploy.services import HumanService, ServiceContext, service
from llama_deploy.state_stores import SQLiteStore
from llama_deploy.testing import ManualClock
from llama_deploy.types import RetryPolicy, TaskState

AT_ONCE = EngineSettings(recovery_grace_s=0.0)
QUICKLY = RetryPolicy(initial_s=0.001, cap_s=0.001, max_retries=3)
RUNS: Counter[str] = Counter()


PASSED = (
    "engine.after_record",
    "engine.before_publish",
    "gateway.before_ack",
    "gateway.before_answer",
    "recording.outcome_recorded",
    "runner.after_answer",
    "runner.before_answer",
    "store.after_commit",
    "store.before_commit",
    "streams.recorded",
    "submissions.recorded",
)
"""Failpoints that `everything` passes many times. Real processes crash at all there are: `tests/processes`."""


class CrashError(Exception):
    """What an armed failpoint raises; nobody hears of it."""


@service(concurrency=100, retry=QUICKLY)
async def echo(context: ServiceContext, text: str) -> str:
    """The text."""
    RUNS[context.step_id] += 1
    return text


@service(concurrency=100, retry=QUICKLY)
async def tell(context: ServiceContext, text: str) -> str:
    """Streams its letters."""
    for letter in text:
        context.stream({"letter": letter, "attempt": context.attempt})
        await asyncio.sleep(0)
    return text


@service(concurrency=100, retry=QUICKLY)
async def flaky(context: ServiceContext, text: str) -> str:
    """Fails twice, and for good where it is told to."""
    if text == "never":
        raise NonRetryableError("no")
    if context.attempt < 3:
        raise ValueError("not yet")
    return text


SERVICES = [echo, tell, flaky, HumanService(notify=lambda _: None)]


def everything() -> dict[str, dict[str, Any]]:
    """The tasks of a run, by id."""
    tasks: dict[str, dict[str, Any]] = {}
    for number in range(8):
        tasks[f"echo{number}"] = {
            "service": "echo",
            "text": f"text {number}",
            "session_id": "s" if number % 2 else None,
        }
        tasks[f"tell{number}"] = {"service": "tell", "text": "abcdefgh"}
        tasks[f"flaky{number}"] = {"service": "flaky", "text": "never" if number == 0 else "good"}
    for number in range(3):
        tasks[f"human{number}"] = {"service": "human", "text": "yes or no?"}
    return tasks


@contextmanager
def crashes_unheard() -> Iterator[None]:
    """Let the event loop say nothing of `CrashError`."""
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), CrashError):
            (before or type(loop).call_exception_handler)(loop, context)

    loop.set_exception_handler(handle)
    try:
        yield
    finally:
        loop.set_exception_handler(before)


class Crash:
    """Makes a control plane, or its instance, die at the n-th passing of a failpoint."""

    def __init__(self, name: str, passing: int, plane: ControlPlane, local: LinkedRunner) -> None:
        self._left = passing
        self._plane = plane
        self._local = local
        self._name = name
        self._loop = asyncio.get_running_loop()
        self.happened = asyncio.Event()
        failpoints.arm(name, self._pass)

    def _pass(self) -> None:
        self._left -= 1
        if self._left:
            return
        failpoints.disarm(self._name)
        if self._name.startswith("runner."):
            self._local.die()
            self.happened.set()
        elif self._name.startswith("store."):
            self._in_store()
        else:
            cut(self._plane)
            self.happened.set()

    def _in_store(self) -> None:
        store = self._plane.store
        if isinstance(store, SQLiteStore):  # this is the writer's thread
            if self._name == "store.before_commit":
                store._connection.execute("ROLLBACK")
            store._settle = lambda *_: None  # type: ignore[method-assign]
            store._postpone = lambda *_: None  # type: ignore[method-assign]
            self._loop.call_soon_threadsafe(cut, self._plane)
            self._loop.call_soon_threadsafe(self.happened.set)
            return
        cut(self._plane)
        self.happened.set()
        raise CrashError


async def crash_and_recover(made: World, crash: Crash, local: LinkedRunner, *, same_instance: bool) -> None:
    """Submit everything, let the crash happen, start again, and give every client what it asks for again."""
    tasks = everything()
    asking = {task_id: asyncio.ensure_future(submit(made.plane, task_id=task_id, **t)) for task_id, t in tasks.items()}
    await asyncio.wait([asyncio.ensure_future(crash.happened.wait())], timeout=DEADLINE_S)
    assert crash.happened.is_set(), "the failpoint was not passed"
    if not crash._name.startswith("runner."):
        for _ in range(3):
            await asyncio.sleep(0)
        await made.crash()
        await made.start()
    for task in asking.values():
        task.cancel()
    await asyncio.gather(*asking.values(), return_exceptions=True)
    acknowledged = {i for i, task in asking.items() if not task.cancelled() and task.exception() is None}
    for task_id in acknowledged:
        await made.plane.engine.cache.get(task_id)  # it is there: nothing that was acknowledged is forgotten
    if not same_instance:
        local.die()
        local = LinkedRunner(SERVICES, instance_id="another")
    await local.connect(made.plane)
    await asyncio.gather(*[submit(made.plane, task_id=task_id, **task) for task_id, task in tasks.items()])
    await answer_the_people(made.plane)
    await check(made, tasks)
    await local.stop()


async def answer_the_people(plane: ControlPlane) -> None:
    for number in range(3):
        task_id = f"human{number}"
        entry = await plane.engine.cache.get(task_id)

        def asked() -> bool:
            return plane.views.task(entry).state is TaskState.INPUT_REQUIRED  # noqa: B023 - used before the next round

        await until(asked)
        await plane.signals.send_input(task_id, "yes")


async def check(made: World, tasks: dict[str, dict[str, Any]]) -> None:
    """Every task has its one outcome, and nothing is left over; the next control plane sees the same."""
    for again in (False, True):
        if again:
            await until(lambda: made.plane.store.backlog == 0)
            await made.crash()
            await made.start()
        for task_id, task in tasks.items():
            result = await outcome(made.plane, task_id)
            if task["text"] == "never":
                assert result.status == "failed"
            else:
                assert (result.status, result.result) == (
                    "completed",
                    "yes" if task["service"] == "human" else task["text"],
                )
            entries = await history(made.plane, task_id)
            assert [e.seq for e in entries] == list(range(1, len(entries) + 1))
            assert sum(e.outcome is not None for e in entries) == 1
            if task["service"] == "tell":
                await check_stream(made.plane, task_id)
        counts = await made.plane.store.count_tasks()
        assert counts == {"completed": len(tasks) - 1, "failed": 1}
        assert (await made.plane.views.session_state("s"))["retries"] == 3


async def check_stream(plane: ControlPlane, task_id: str) -> None:
    """The last attempt's events are complete, and each further attempt begins with its marker."""
    events = await stream(plane, task_id)
    attempts: list[list[str]] = [[]]
    for event in events:
        if "llama_deploy" in event:
            attempts.append([])
        else:
            attempts[-1].append(event["letter"])
    assert "".join(attempts[-1]) == "abcdefgh"
    assert all("abcdefgh".startswith("".join(letters)) for letters in attempts)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "store.db" if request.param == "sqlite" else None


CRASHES = [
    pytest.param(name, same_instance, id=f"{name}-instance {'lives' if same_instance else 'dies'}")
    for name in PASSED
    for same_instance in (True, False)
    if not (name.startswith("runner.") and same_instance)  # it is the instance that dies there
]


@pytest.mark.parametrize("passing", [1, 2, 5])
@pytest.mark.parametrize(("name", "same_instance"), CRASHES)
async def test_a_crash_at_a_failpoint(name: str, passing: int, same_instance: bool, store: Path | None) -> None:
    with crashes_unheard():
        async with world(store, settings=AT_ONCE) as made:
            local = LinkedRunner(SERVICES)
            await local.connect(made.plane)
            crash = Crash(name, passing, made.plane, local)
            await crash_and_recover(made, crash, local, same_instance=same_instance)


# --- people ---------------------------------------------------------------------------------------------------------


async def test_parked_steps_stay_parked_and_are_answered_after_the_restart(store: Path | None) -> None:
    async with world(store, clock=ManualClock()) as made:
        instance = FakeInstance(["human"])
        await instance.connect(made.plane)
        entry = await submit(made.plane, "human", task_id="t")
        instance.park(await instance.delivery(), "red or blue?")
        await recorded(entry, 2)
        await made.crash()
        plane = await made.start()
        made.manual.advance(1000.0)
        assert await plane.sweeper.sweep() == 0
        loaded = await plane.engine.cache.get("t")
        view = plane.views.task(loaded)
        assert (view.state.value, view.prompt) == ("input_required", {"step_id": "t:1", "prompt": "red or blue?"})
        await plane.signals.send_input("t", "blue")
        assert (await outcome(plane, "t")).result == "blue"


async def test_inputs_that_were_given_before_the_crash_are_delivered_after_it(store: Path | None) -> None:
    async with world(store, clock=ManualClock()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        instance.park(await instance.delivery(), resume="redeliver", snapshot=b"half done")
        await recorded(entry, 2)
        await made.plane.signals.send_input("t", {"answer": 1})
        await made.crash()
        plane = await made.start()
        made.manual.advance(2.0)
        other = FakeInstance(instance_id="other")
        await other.connect(plane)
        step = await other.delivery_in_time(made)
        assert (step.inputs, step.snapshot, step.step_id) == ([b'{"answer":1}'], b"half done", "t:1")
        other.answer(step, "done")
        await outcome(plane, "t")


async def test_a_second_restart_knows_all_inputs_in_order(store: Path | None) -> None:
    async with world(store, clock=ManualClock()) as made:
        await made.stop()
        for number in range(4):
            plane = await made.start()
            made.manual.advance(2.0)
            instance = FakeInstance(instance_id=str(number))
            await instance.connect(plane)
            entry = await submit(plane, task_id="t")
            step = await instance.delivery_in_time(made)
            assert step.inputs == [b"%d" % n for n in range(number)]
            instance.park(step, resume="redeliver", consumed=number, snapshot=b"%d" % number)
            await recorded(entry, 2 * number + 2)
            await plane.signals.send_input("t", number)
            await made.crash()


# --- what is known after a restart ----------------------------------------------------------------------------------


async def services_recorded(made: World, names: set[str]) -> None:
    """Wait until the store knows these services; that is beside the flow of tasks."""

    async def known() -> bool:
        return (await made.plane.store.load_services()).keys() >= names

    await eventually(known)


async def test_results_of_ended_tasks_and_services_are_known(store: Path | None) -> None:
    async with world(store) as made:
        instance = FakeInstance(["echo", "other"])
        await instance.connect(made.plane)
        await submit(made.plane, task_id="t")
        instance.answer(await instance.delivery(), "kept")
        await outcome(made.plane, "t")
        await services_recorded(made, {"echo", "other"})
        await made.crash()
        plane = await made.start()
        assert (await outcome(plane, "t")).result == "kept"
        assert [view.definition.service_name for view in plane.views.services()] == ["echo", "other"]
        assert {view.state for view in plane.views.services()} == {"returning"}


async def test_services_are_expected_back_for_a_while_after_a_restart() -> None:
    async with world(clock=ManualClock()) as made:
        await FakeInstance().connect(made.plane)
        await services_recorded(made, {"echo"})
        await made.stop()
        plane = await made.start()
        entry = await submit(plane)
        assert "its instances are expected back" in (plane.views.task(entry).waiting_for or "")
        made.manual.advance(plane.engine.settings.service_return_s)
        with pytest.raises(ServiceUnknownError):
            await submit(plane)
        again = FakeInstance()
        await again.connect(plane)
        again.answer(await again.delivery())
        await outcome(plane, entry)


async def test_a_backoff_is_kept_over_a_restart(store: Path | None) -> None:
    async with world(store, clock=ManualClock(), settings=EngineSettings(lease_s=1e9)) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        instance.fail(await instance.delivery(), retry_after_s=1000.0)
        given_up_at = made.manual.now()
        await recorded(entry, 2)
        await made.crash()
        plane = await made.start()
        again = FakeInstance()
        await again.connect(plane)
        made.manual.advance(5.0)
        await plane.sweeper.sweep()
        assert await state_of(plane, "t") == "working"
        assert "due in" in (plane.views.task(await plane.engine.cache.get("t")).waiting_for or "")
        assert again.received == again.all(type(again.received[0])), "nothing but the welcome"
        assert made.manual.now() < given_up_at + 1000.0
        step = await again.delivery_in_time(made, step_s=100.0)
        assert made.manual.now() >= given_up_at + 1000.0
        assert step.attempt == 2
        again.answer(step)
        await outcome(plane, "t")


async def test_many_unfinished_tasks_are_taken_up(store: Path | None) -> None:
    async with world(store, settings=EngineSettings(recovery_grace_s=0.0, sweep_batch_max=50)) as made:
        await FakeInstance(concurrency=10).connect(made.plane)
        await asyncio.gather(*[submit(made.plane, task_id=f"t{n}", text=f"{n}") for n in range(300)])
        await made.crash()
        plane = await made.start()
        assert plane.steps_carried_on == 300
        local = LinkedRunner([echo])
        await local.connect(plane)
        for number in range(300):
            assert (await outcome(plane, f"t{number}")).result == f"{number}"
        await local.stop()


async def test_a_clean_stop_records_what_was_being_answered(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await asyncio.gather(*[submit(made.plane, task_id=f"t{n}") for n in range(5)])
        for number in range(5):
            instance.answer(await instance.delivery(number + 1), "said")
        await made.stop()
        plane = await made.start()
        assert [(await outcome(plane, f"t{n}")).result for n in range(5)] == ["said"] * 5
