"""How code is made to stop, what becomes of code that does not, and signs of life."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import msgspec
import pytest
from tests.control_plane.harness import (
    NO_JITTER,
    FakeInstance,
    LinkedRunner,
    World,
    history,
    outcome,
    submit,
    until,
    world,
)
from tests.support import DEADLINE_S
from tests.support.passing import time_passes

from llama_deploy.control_plane import EngineSettings
from llama_deploy.errors import LlamaDeployError
from llama_deploy.messages import frames
from llama_deploy.services import ServiceContext, service
from llama_deploy.types import ServiceLimits, TaskOptions

AGAIN = NO_JITTER.model_copy(update={"initial_s": 0.0})
QUICK = EngineSettings(cancel_grace_s=0.1)


def left(made: World, name: str) -> int:
    return made.plane.views.service(name).instances[0].left_behind


async def test_the_place_of_a_canceled_step_is_free_when_its_code_has_ended() -> None:
    async with world() as made:
        instance = FakeInstance(concurrency=1)
        instance.stops_at_once = False
        await instance.connect(made.plane)
        entry, _ = await submit(made.plane), await submit(made.plane)
        step = await instance.delivery()
        await made.plane.signals.cancel(entry.row.task_id)
        await instance.got(frames.CancelStep)
        assert made.plane.views.service("echo").running == 1
        assert len(instance.all(frames.Deliver)) == 1
        instance.send(frames.Stopped(step.step_id, 1), frames.Stopped(step.step_id, 1))
        await instance.delivery(2)
        assert made.plane.views.service("echo").running == 1


@pytest.mark.parametrize("says", ["answer", "park"])
async def test_what_a_canceled_step_says_meanwhile_frees_its_place(says: str) -> None:
    async with world() as made:
        instance = FakeInstance(concurrency=1)
        instance.stops_at_once = False  # its code has ended before it is asked to stop: there is nothing to stop
        await instance.connect(made.plane)
        entry, _ = await submit(made.plane), await submit(made.plane)
        step = await instance.delivery()
        await made.plane.signals.cancel(entry.row.task_id)
        if says == "answer":
            instance.answer(step)
        else:
            instance.park(step)
        await instance.delivery(2)
        assert made.plane.views.service("echo").running == 1


async def test_a_runner_says_that_a_step_has_stopped_whose_answer_was_on_its_way() -> None:
    @service
    async def quick() -> str:
        return "done"

    async with world() as made:
        local = LinkedRunner([quick])
        await local.connect(made.plane)
        sent: list[Any] = []
        local.runner.send = sent.extend
        entry = await submit(made.plane, "quick", "{}")
        await until(lambda: [one for one in sent if isinstance(one, frames.Answer)])
        local.runner.receive([frames.CancelStep(f"{entry.row.task_id}:1", "for a test")])
        await until(lambda: frames.Stopped(f"{entry.row.task_id}:1", 1) in sent)
        await local.stop()


async def test_an_instance_that_does_not_say_so_gets_its_place_back_all_the_same() -> None:
    async with world(settings=EngineSettings(cancel_grace_s=0.01, heartbeat_s=0.02)) as made:
        instance = FakeInstance(concurrency=1)
        instance.stops_at_once = False
        await instance.connect(made.plane)
        entry, _ = await submit(made.plane), await submit(made.plane)
        await instance.delivery()
        await made.plane.signals.cancel(entry.row.task_id)
        await instance.delivery(2)


async def test_a_thread_sees_that_it_should_stop_and_who_sleeps_wakes() -> None:
    seen: list[str] = []
    begun = threading.Event()

    @service
    def sleeps(context: ServiceContext) -> None:
        begun.set()
        try:
            context.blocking.sleep(60)
        except LlamaDeployError as error:
            seen.append(error.code)
        seen.append(str(context.canceled))
        context.raise_if_canceled()

    async with world() as made:
        local = LinkedRunner([sleeps])
        await local.connect(made.plane)
        entry = await submit(made.plane, "sleeps", "{}")
        await until(begun.is_set)
        await made.plane.signals.cancel(entry.row.task_id)
        await until(lambda: seen == ["LD540", "True"])
        await until(lambda: made.plane.views.service("sleeps").running == 0)
        assert left(made, "sleeps") == 0
        await local.stop()


async def test_a_thread_that_does_not_stop_is_left_behind_and_shown_until_it_ends() -> None:
    begun, let_go = threading.Event(), threading.Event()

    @service(concurrency=1)
    def stubborn(number: int) -> int:
        if number == 0:
            begun.set()
            let_go.wait(DEADLINE_S)
        return number

    async with world(settings=QUICK) as made:
        local = LinkedRunner([stubborn])
        await local.connect(made.plane)
        entry = await submit(made.plane, "stubborn", '{"number": 0}')
        await until(begun.is_set)
        other = await submit(made.plane, "stubborn", '{"number": 7}')
        await made.plane.signals.cancel(entry.row.task_id)
        assert (await outcome(made.plane, other)).value == 7
        await until(lambda: left(made, "stubborn") == 1)
        local.drop()
        await local.connect(made.plane)
        await until(lambda: left(made, "stubborn") == 1)
        let_go.set()
        await until(lambda: left(made, "stubborn") == 0)
        await local.stop()


@pytest.mark.parametrize("why", ["canceled", "deadline"])
async def test_a_coroutine_that_swallows_its_cancellation_is_left_behind(why: str) -> None:
    let_go = asyncio.Event()
    running: list[int] = []

    @service(concurrency=1, run_timeout_s=60, retry=AGAIN)
    async def stubborn(context: ServiceContext) -> str:
        if context.attempt > 1:
            return "second"
        running.append(1)
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        running.append(2)
        return "first"

    async with world(settings=QUICK) as made:
        local = LinkedRunner([stubborn])
        await local.connect(made.plane)
        entry = await submit(made.plane, "stubborn", "{}")
        await until(lambda: running)
        if why == "canceled":
            await made.plane.signals.cancel(entry.row.task_id)
        else:
            await time_passes(60.0)
            assert (await outcome(made.plane, entry)).result == "second"
            (failed,) = [one for one in await history(made.plane, entry) if one.kind == "retrying"]
            assert failed.error is not None
            assert failed.error.code == "LD503"
        await until(lambda: left(made, "stubborn") == 1)
        assert made.plane.views.service("stubborn").running == 0
        let_go.set()
        await until(lambda: left(made, "stubborn") == 0)
        assert running == [1, 2]
        await local.stop()


async def test_a_thread_that_ends_within_the_grace_of_its_deadline_is_not_left_behind() -> None:
    begun = threading.Event()

    @service(run_timeout_s=60)
    def slow(context: ServiceContext) -> str:
        begun.set()
        while not context.canceled:
            pass
        return "stopped"

    async with world(settings=EngineSettings(cancel_grace_s=600.0)) as made:
        local = LinkedRunner([slow])
        await local.connect(made.plane)
        entry = await submit(
            made.plane, "slow", "{}", options=TaskOptions.model_validate({"retry": {"max_retries": 0}})
        )
        await until(begun.is_set)
        await time_passes(60.0)
        result = await outcome(made.plane, entry)
        assert result.error is not None
        assert result.error.code == "LD503"
        assert left(made, "slow") == 0
        await local.stop()


# --- signs of life ----------------------------------------------------------------------------------------------------


def silent_after(seconds: float) -> TaskOptions:
    return TaskOptions.model_validate({"heartbeat_timeout_s": seconds})


async def test_an_attempt_without_signs_of_life_fails_and_the_next_one_knows_how_far_it_was() -> None:
    begun = asyncio.Event()

    @service(retry=AGAIN)
    async def copies(context: ServiceContext) -> Any:
        if context.attempt == 1:
            for page in range(3):
                context.heartbeat({"page": page})
            begun.set()
            await asyncio.Event().wait()
        return context.last_heartbeat

    async with world() as made:
        local = LinkedRunner([copies])
        await local.connect(made.plane)
        entry = await submit(made.plane, "copies", "{}", options=silent_after(60.0))
        await begun.wait()
        await time_passes(61.0)
        assert (await outcome(made.plane, entry)).value == {"page": 2}
        (failed,) = [one for one in await history(made.plane, entry) if one.kind == "retrying"]
        assert failed.error is not None
        assert (failed.error.code, failed.heartbeat) == ("LD542", {"page": 2})
        await local.stop()


async def test_a_silent_attempt_keeps_its_places_until_its_code_has_ended() -> None:
    """The next attempt neither begins beside it at the same limit, nor in its place at the instance."""
    begun, let_go = threading.Event(), threading.Event()
    at_once: list[int] = []
    running = 0

    @service(retry=AGAIN, concurrency=8, limits=ServiceLimits(running_max=1))
    def silent(context: ServiceContext) -> int:
        nonlocal running
        running += 1
        at_once.append(running)
        if context.attempt == 1:
            begun.set()
            let_go.wait(60)
        running -= 1
        return context.attempt

    async with world(settings=EngineSettings(cancel_grace_s=60.0)) as made:
        local = LinkedRunner([silent])
        await local.connect(made.plane)
        entry = await submit(made.plane, "silent", "{}", options=silent_after(0.05))
        await until(begun.is_set)
        await until(lambda: made.plane.engine.admission.waits(f"{entry.row.task_id}:1"))
        assert (made.plane.views.queue("silent").running, at_once) == (1, [1])
        let_go.set()
        assert (await outcome(made.plane, entry)).value == 2
        assert at_once == [1, 1]
        assert made.plane.engine.admission._where == {}
        await local.stop()


async def test_what_is_said_again_says_whether_its_code_runs_on() -> None:
    begun, let_go = threading.Event(), threading.Event()

    @service(retry=AGAIN)
    def silent() -> None:
        begun.set()
        let_go.wait(60)

    async with world(settings=EngineSettings(cancel_grace_s=60.0)) as made:
        local = LinkedRunner([silent])
        await local.connect(made.plane)
        sent: list[Any] = []
        local.runner.send = sent.extend
        entry = await submit(made.plane, "silent", "{}", options=silent_after(0.05))
        await until(lambda: [one for one in sent if isinstance(one, frames.Answer)])
        (step,) = local.runner.steps.values()
        local.runner._repeat(step)
        let_go.set()
        await until(lambda: frames.Stopped(f"{entry.row.task_id}:1", 1) in sent)
        local.runner._repeat(step)
        await until(lambda: len([one for one in sent if isinstance(one, frames.Answer)]) == 3)
        assert [one.runs_on for one in sent if isinstance(one, frames.Answer)] == [True, True, False]
        await local.stop()


async def test_signs_of_life_keep_an_attempt_alive_and_cost_no_commit() -> None:
    beaten, on = asyncio.Event(), asyncio.Event()

    @service
    async def copies(context: ServiceContext) -> str:
        for page in range(10):
            context.heartbeat(page)
            beaten.set()
            await on.wait()
            on.clear()
        return "done"

    async with world() as made:
        local = LinkedRunner([copies])
        await local.connect(made.plane)
        before = made.plane.store.statistics.transitions
        entry = await submit(made.plane, "copies", "{}", options=silent_after(50.0))
        for _ in range(10):
            await beaten.wait()
            beaten.clear()
            await time_passes(30.0)
            on.set()
        assert (await outcome(made.plane, entry)).result == "done"
        assert made.plane.store.statistics.transitions - before == 2
        await local.stop()


async def test_the_last_details_are_shown_and_survive_the_loss_of_the_instance(tmp_path: Any) -> None:
    made = World(tmp_path / "s.db", settings=EngineSettings(recovery_grace_s=0.05))
    one, two = FakeInstance(), FakeInstance(instance_id="two")
    await one.connect(await made.start())
    entry = await submit(made.plane)
    step = await one.delivery()
    one.send(frames.Heartbeat([frames.HeldStep(step.step_id, 1, b'{"page":5}')]))
    shown = made.plane.views.task(entry).heartbeat
    assert shown is not None
    assert (shown["step_id"], shown["details"]) == (step.step_id, {"page": 5})
    one.drop()
    await until(lambda: entry.settled_seq == 2)
    await made.crash()
    await two.connect(await made.start())
    again = await two.delivery()
    assert (again.attempt, again.last_heartbeat) == (2, b'{"page":5}')
    await made.stop()


async def test_waiting_for_a_called_task_is_no_silence() -> None:
    go_on = asyncio.Event()

    @service
    async def calls(context: ServiceContext) -> int:
        await context.call("slow")
        return context.attempt

    @service
    async def slow() -> None:
        await go_on.wait()

    async with world() as made:
        local = LinkedRunner([calls, slow])
        await local.connect(made.plane)
        entry = await submit(made.plane, "calls", "{}", options=silent_after(60.0))
        await until(lambda: len(local.runner.steps) == 2)
        await time_passes(600.0)
        go_on.set()
        assert (await outcome(made.plane, entry)).value == 1
        await local.stop()


async def test_details_have_a_limit_and_a_json_form() -> None:
    codes: list[str] = []

    @service
    async def says(context: ServiceContext) -> None:
        for details in ("x" * 20_000, b"bytes"):
            try:
                context.heartbeat(details)
            except LlamaDeployError as error:
                codes.append(error.code)

    async with world() as made:
        local = LinkedRunner([says])
        await local.connect(made.plane)
        await outcome(made.plane, await submit(made.plane, "says", "{}"))
        assert codes == ["LD208", "LD504"]
        await local.stop()


async def test_details_reach_the_control_plane_with_the_ordinary_heartbeat() -> None:
    go_on = asyncio.Event()

    @service
    async def says(context: ServiceContext) -> None:
        context.heartbeat({"page": 1})
        await go_on.wait()

    async with world(settings=EngineSettings(heartbeat_s=0.05)) as made:
        local = LinkedRunner([says])
        await local.connect(made.plane)
        entry = await submit(made.plane, "says", "{}")
        await until(lambda: (made.plane.views.task(entry).heartbeat or {}).get("details") == {"page": 1})
        go_on.set()
        await outcome(made.plane, entry)
        await local.stop()


def test_a_held_step_of_an_earlier_version_is_read() -> None:
    old = msgspec.msgpack.encode([["Heartbeat", [["t:1", 1]]]])
    (heartbeat,) = frames.decode_instance_frame(old)
    assert isinstance(heartbeat, frames.Heartbeat)
    assert heartbeat.held == [frames.HeldStep("t:1", 1)]
