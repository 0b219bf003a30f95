"""Limits of a service: never more at once than they say, never a place lost, and what waits goes in its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from tests.control_plane.harness import FakeInstance, World, outcome, submit, until, world

from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.control_plane.asking import Asking
from llama_deploy.control_plane.gate import Gate
from llama_deploy.control_plane.rates import RateWindow
from llama_deploy.errors import ServiceNotFoundError
from llama_deploy.messages.frames import Call, CancelStep, Deliver, DeliverInput, Returned, Stopped
from llama_deploy.testing import ManualClock
from llama_deploy.types import RateLimit, ServiceLimits, TaskOptions

PATIENT = EngineSettings(lease_s=1_000_000.0)


def limited(**limits: Any) -> FakeInstance:
    return FakeInstance(concurrency=50, limits=ServiceLimits(**limits))


def gate_of(plane: ControlPlane) -> Gate:
    return plane.engine.admission.gates["echo"]


def delivered(instance: FakeInstance) -> list[str]:
    return [step.task_id for step in instance.all(Deliver)]


async def settled(plane: ControlPlane) -> None:
    """Wait until what was handed over is committed, and instances have got what follows from it."""
    await until(lambda: plane.store.backlog == 0 and not any(port._flush_scheduled for port in plane.gateway.ports))


async def many(made: World, count: int, **options: Any) -> None:
    for number in range(count):
        name = f"{options.get('key') or options.get('session_id') or 't'}{number}"
        session = options.get("session_id")
        rest = {key: value for key, value in options.items() if key != "session_id"}
        await submit(made.plane, task_id=name, session_id=session, options=TaskOptions(**rest) if rest else None)
    await settled(made.plane)


async def test_no_more_at_once_than_running_max() -> None:
    async with world() as made:
        instance = limited(running_max=2)
        await instance.connect(made.plane)
        await many(made, 5)
        assert delivered(instance) == ["t0", "t1"]
        for number in range(1, 6):
            instance.answer(await instance.delivery(number))
            await settled(made.plane)
            assert len(delivered(instance)) == min(5, number + 2)
        assert delivered(instance) == ["t0", "t1", "t2", "t3", "t4"]
        assert gate_of(made.plane).places == {}
        assert made.plane.engine.admission._where == {}


async def test_the_limit_is_over_all_instances() -> None:
    async with world() as made:
        instances = [limited(running_max=3), limited(running_max=3)]
        instances[1].instance_id = "two"
        for instance in instances:
            await instance.connect(made.plane)
        await many(made, 10)
        assert sum(len(delivered(instance)) for instance in instances) == 3


async def test_a_session_at_its_limit_does_not_hold_up_others() -> None:
    async with world() as made:
        instance = limited(running_max_per_session=1)
        await instance.connect(made.plane)
        await many(made, 3, session_id="a")
        await many(made, 1, session_id="b")
        assert delivered(instance) == ["a0", "b0"]
        instance.answer(await instance.delivery(1))
        await settled(made.plane)
        assert delivered(instance) == ["a0", "b0", "a1"]


async def test_a_key_at_its_limit_does_not_hold_up_others_and_no_key_has_none() -> None:
    async with world() as made:
        instance = limited(running_max_per_key=1)
        await instance.connect(made.plane)
        await many(made, 3, key="a")
        await many(made, 1, key="b")
        await many(made, 3)
        assert delivered(instance) == ["a0", "b0", "t0", "t1", "t2"]
        instance.answer(await instance.delivery(1))
        await settled(made.plane)
        assert delivered(instance)[5:] == ["a1"]


async def test_what_waits_for_a_place_goes_by_priority() -> None:
    async with world() as made:
        instance = limited(running_max=1)
        await instance.connect(made.plane)
        await many(made, 1)
        for name, priority in (("low", 1), ("high", 9)):
            await submit(made.plane, task_id=name, options=TaskOptions(priority=priority))
        instance.answer(await instance.delivery(1))
        instance.answer(await instance.delivery(2))
        await instance.delivery(3)
        assert delivered(instance) == ["t0", "high", "low"]


async def test_a_failed_attempt_gives_its_place_away_until_the_next_one_is_due() -> None:
    async with world(clock=ManualClock()) as made:
        instance = limited(running_max=1)
        await instance.connect(made.plane)
        await many(made, 2)
        instance.fail(await instance.delivery(1))
        assert (await instance.delivery(2)).task_id == "t1"
        made.manual.advance(1.0)
        await until(lambda: len(gate_of(made.plane).room) == 1)
        instance.answer(await instance.delivery(2))
        third = await instance.delivery(3)
        assert (third.task_id, third.attempt) == ("t0", 2)


async def test_a_step_of_a_lost_instance_goes_ahead_of_what_came_after_it() -> None:
    async with world(settings=EngineSettings(reconnect_grace_s=0.01)) as made:
        instance, other = limited(running_max=1), limited(running_max=1)
        await instance.connect(made.plane)
        await many(made, 3)
        await instance.delivery()
        other.instance_id = "two"
        await other.connect(made.plane)
        assert delivered(other) == []
        instance.drop()
        again = await other.delivery(1)
        assert (again.task_id, again.attempt) == ("t0", 2)
        other.answer(again)
        assert (await other.delivery(2)).task_id == "t1"
        assert len(gate_of(made.plane).places) == 1


async def test_a_canceled_task_gives_back_its_place_or_leaves_the_room() -> None:
    async with world() as made:
        instance = limited(running_max=1)
        await instance.connect(made.plane)
        await many(made, 3)
        await made.plane.signals.cancel("t1")
        assert len(gate_of(made.plane).room) == 1
        await made.plane.signals.cancel("t0")
        await instance.got(CancelStep)
        assert (await instance.delivery(2)).task_id == "t2"


async def test_the_place_of_a_canceled_step_is_kept_until_its_code_has_stopped() -> None:
    async with world() as made:
        one, two = limited(running_max=1), limited(running_max=1)
        one.stops_at_once, two.instance_id = False, "two"
        await one.connect(made.plane)
        await many(made, 1)
        first = await one.delivery(1)
        await two.connect(made.plane)
        await many(made, 2, key="k")
        await made.plane.signals.cancel("t0")
        await one.got(CancelStep)
        await settled(made.plane)
        assert delivered(one) + delivered(two) == ["t0"]
        assert made.plane.views.queue("echo").running == 1
        one.send(Stopped(first.step_id, 1))
        await until(lambda: len(delivered(one) + delivered(two)) == 2)
        await settled(made.plane)
        assert len(gate_of(made.plane).places) == 1
        assert len(gate_of(made.plane).room) == 1


async def test_the_next_attempt_waits_until_the_code_of_the_one_before_has_stopped() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        instance = FakeInstance(concurrency=50, limits=ServiceLimits(running_max=1), run_timeout_s=5.0)
        instance.stops_at_once = False
        await instance.connect(made.plane)
        await many(made, 1)
        first = await instance.delivery(1)
        made.plane.signals.lost([first.step_id], "one", "for a test")
        await instance.got(CancelStep)
        await settled(made.plane)
        assert len(instance.all(Deliver)) == 1
        instance.send(Stopped(first.step_id, 1))
        again = await instance.delivery(2)
        assert (again.task_id, again.attempt) == ("t0", 2)
        instance.answer(again)
        await until(lambda: not gate_of(made.plane).places)
        assert made.plane.engine.admission._where == {}


@pytest.mark.parametrize("how", ["is lost", "does not say so"])
async def test_a_place_is_not_kept_for_an_instance_that(how: str) -> None:
    settings = EngineSettings(cancel_grace_s=1.0, heartbeat_s=1.0, reconnect_grace_s=0.5, lease_s=1_000_000.0)
    async with world(clock=ManualClock(), settings=settings) as made:
        one, two = limited(running_max=1), limited(running_max=1)
        one.stops_at_once, two.instance_id = False, "two"
        await one.connect(made.plane)
        await many(made, 2)
        await two.connect(made.plane)
        await made.plane.signals.cancel("t0")
        await one.got(CancelStep)
        if how == "is lost":
            one.drop()
            made.manual.advance(0.6)
        else:
            await settled(made.plane)
            assert delivered(one) + delivered(two) == ["t0"]
            made.manual.advance(3.1)
        await until(lambda: len(delivered(one) + delivered(two)) == 2)


async def test_who_returns_from_a_call_and_who_has_asked_a_person_do_not_wait_for_each_other() -> None:
    async with world() as made:
        instance = FakeInstance(concurrency=1, limits=ServiceLimits(running_max=1))
        other = FakeInstance(["other"], instance_id="two")
        await instance.connect(made.plane)
        await other.connect(made.plane)
        await many(made, 2)
        calls = await instance.delivery(1)
        instance.send(Call(calls.step_id, 1, "#1", b'{"agent_id":"other","input":"in"}'))
        asks = await instance.delivery(2)  # in both places of the first one
        other.answer(await other.delivery(1))
        await settled(made.plane)
        instance.ask(asks)  # it gives away its place at the limit, and keeps that at the instance
        await settled(made.plane)
        await made.plane.signals.send_input("t1", "yes")
        await instance.got(DeliverInput)
        instance.answer(asks)
        assert (await instance.got(Returned)).state == "completed"


async def test_a_parked_step_does_not_count_and_waits_for_its_turn_after_the_answer() -> None:
    async with world() as made:
        instance = limited(running_max=1)
        await instance.connect(made.plane)
        await many(made, 2)
        instance.park(await instance.delivery(1), resume="redeliver")
        second = await instance.delivery(2)
        assert second.task_id == "t1"
        await made.plane.signals.send_input("t0", "yes")
        assert len(gate_of(made.plane).room) == 1
        instance.answer(second)
        third = await instance.delivery(3)
        assert (third.task_id, third.attempt, third.inputs) == ("t0", 1, [b'"yes"'])


async def test_who_asks_a_person_and_goes_on_has_its_place_again_before_it_hears_the_answer() -> None:
    async with world() as made:
        instance = limited(running_max=1)
        await instance.connect(made.plane)
        await many(made, 2)
        instance.ask(await instance.delivery(1))
        second = await instance.delivery(2)
        await made.plane.signals.send_input("t0", "yes")
        await settled(made.plane)
        inputs = [op for op in instance.received if type(op).__name__ == "DeliverInput"]
        assert (inputs, len(gate_of(made.plane).room)) == ([], 1)
        instance.answer(second)
        await until(lambda: [op for op in instance.received if type(op).__name__ == "DeliverInput"])
        assert list(gate_of(made.plane).places) == ["t0:1"]
        instance.answer(await instance.delivery(1))
        await outcome(made.plane, "t0")
        assert gate_of(made.plane).places == {}


async def test_the_run_deadline_stands_still_while_a_step_waits_for_its_place_to_go_on() -> None:
    clock = ManualClock()
    async with world(clock=clock, settings=PATIENT) as made:
        instance = limited(running_max=1)
        await instance.connect(made.plane)
        await submit(made.plane, task_id="asks", options=TaskOptions(run_timeout_s=10.0))
        step = await instance.delivery(1)
        instance.ask(step)
        await submit(made.plane, task_id="long")
        second = await instance.delivery(2)
        await made.plane.signals.send_input("asks", "yes")
        clock.advance(500.0)
        await made.plane.sweeper.sweep()
        await settled(made.plane)
        assert instance.all(CancelStep) == []
        instance.answer(second)
        await until(lambda: list(gate_of(made.plane).places) == [step.step_id])
        clock.advance(5.0)
        await made.plane.sweeper.sweep()
        await settled(made.plane)
        assert instance.all(CancelStep) == []
        clock.advance(500.0)
        await instance.got(CancelStep)


async def test_who_goes_on_takes_the_place_of_who_has_not_begun() -> None:
    """The one place of the only instance is held by who asks, the place at the limit by who waits for the instance."""
    async with world() as made:
        instance = FakeInstance(concurrency=1, limits=ServiceLimits(running_max=1))
        await instance.connect(made.plane)
        await submit(made.plane, task_id="asks")
        step = await instance.delivery(1)
        instance.ask(step)
        await submit(made.plane, task_id="next")
        await until(lambda: list(gate_of(made.plane).places) == ["next:1"])
        await made.plane.signals.send_input("asks", "yes")
        await until(lambda: [op for op in instance.received if type(op).__name__ == "DeliverInput"])
        assert list(gate_of(made.plane).places) == [step.step_id]
        instance.answer(step)
        assert (await instance.delivery(2)).task_id == "next"


async def test_who_goes_on_comes_before_whoever_begins_whatever_their_priorities() -> None:
    """Else those of higher priority would wait for its place at the instance, and it for theirs at the limit."""
    async with world() as made:
        instance = FakeInstance(concurrency=1, limits=ServiceLimits(running_max=1))
        await instance.connect(made.plane)
        await submit(made.plane, task_id="asks", options=TaskOptions(priority=0))
        step = await instance.delivery(1)
        instance.ask(step)
        for number in range(20):
            await submit(made.plane, task_id=f"urgent-{number}", options=TaskOptions(priority=9 - number % 2))
        await until(lambda: len(gate_of(made.plane).room) == 19)
        await made.plane.signals.send_input("asks", "yes")
        await until(lambda: [op for op in instance.received if type(op).__name__ == "DeliverInput"])
        assert list(gate_of(made.plane).places) == [step.step_id]
        instance.answer(step)
        assert (await instance.delivery(2)).task_id.startswith("urgent")


async def test_after_a_restart_what_instances_come_back_with_counts() -> None:
    async with world(clock=ManualClock()) as made:
        instance, other = limited(running_max=1), limited(running_max=1)
        other.instance_id = "two"
        await instance.connect(made.plane)
        await many(made, 2)
        held = await instance.delivery()
        await made.crash()
        plane = await made.start()
        await other.connect(plane)
        await submit(plane, task_id="new")
        await settled(plane)
        assert delivered(other) == []  # somebody may still come back
        await instance.connect(plane, held=[(held.step_id, 1)])

        def after_a_while(happened: Callable[[], bool]) -> bool:
            made.manual.advance(0.1)
            return happened()

        await until(partial(after_a_while, lambda: len(gate_of(plane).room) == 2))
        assert list(gate_of(plane).places) == [held.step_id]
        instance.answer(held)
        await until(partial(after_a_while, lambda: len(delivered(other)) + len(delivered(instance)) == 2))


# --- the operator's word ----------------------------------------------------------------------------------------------


async def test_an_operators_limits_come_before_the_definitions_and_survive_a_restart() -> None:
    async with world() as made:
        instance = limited(running_max=1)
        await instance.connect(made.plane)
        await many(made, 5)
        await made.plane.engine.admission.set_limits("echo", ServiceLimits(running_max=3), by="me")
        await settled(made.plane)
        assert len(delivered(instance)) == 3
        await made.crash()
        plane = await made.start()
        assert plane.engine.admission.limits_of("echo") == ServiceLimits(running_max=3)
        assert plane.engine.admission.overrides["echo"].by == "me"
        await plane.engine.admission.reset_limits("echo")
        assert plane.engine.admission.limits_of("echo") == ServiceLimits(running_max=1)
        await plane.engine.admission.reset_limits("echo")


async def test_a_limit_set_at_run_time_counts_what_runs_already() -> None:
    async with world() as made:
        instance = FakeInstance(concurrency=50)
        await instance.connect(made.plane)
        await many(made, 4)
        assert made.plane.engine.admission.gates == {}
        await made.plane.engine.admission.set_limits("echo", ServiceLimits(running_max=2))
        await submit(made.plane, task_id="more")
        await settled(made.plane)
        for number in (1, 2):
            instance.answer(await instance.delivery(number))
        await settled(made.plane)
        assert "more" not in delivered(instance)
        instance.answer(await instance.delivery(3))
        await instance.delivery(5)
        await made.plane.engine.admission.reset_limits("echo")
        await settled(made.plane)
        assert made.plane.engine.admission.gates == {}
        assert made.plane.engine.admission._where == {}


async def test_other_limits_sort_anew_what_waits() -> None:
    async with world() as made:
        instance = limited(running_max=1)
        await instance.connect(made.plane)
        await many(made, 2, session_id="a")
        await many(made, 2, session_id="b")
        await made.plane.engine.admission.set_limits("echo", ServiceLimits(running_max_per_session=1))
        await settled(made.plane)
        assert delivered(instance) == ["a0", "b0"]
        await made.plane.engine.admission.set_limits("echo", ServiceLimits())
        await settled(made.plane)
        assert delivered(instance) == ["a0", "b0", "a1", "b1"]


async def test_an_unknown_service_cannot_be_limited_or_paused() -> None:
    async with world() as made:
        admission = made.plane.engine.admission
        for call in (admission.set_limits("no", ServiceLimits(running_max=1)), admission.pause("no")):
            with pytest.raises(ServiceNotFoundError):
                await call
        assert await made.plane.store.load_documents("limits") == {}


# --- pause ------------------------------------------------------------------------------------------------------------


async def test_a_paused_service_hands_out_nothing_and_finishes_what_runs() -> None:
    async with world() as made:
        instance = FakeInstance(concurrency=1)
        await instance.connect(made.plane)
        await many(made, 3)
        await made.plane.engine.admission.pause("echo", reason="the disk is full", by="me")
        assert made.plane.queue.depth("echo") == 0
        instance.answer(await instance.delivery(1))
        await outcome(made.plane, "t0")
        await submit(made.plane, task_id="late")
        await settled(made.plane)
        assert delivered(instance) == ["t0"]
        await made.plane.engine.admission.pause("echo", reason="again", by="you")
        assert made.plane.engine.admission.pauses["echo"].reason == "the disk is full"
        await made.plane.engine.admission.resume("echo")
        await made.plane.engine.admission.resume("echo")
        for number in (2, 3, 4):
            instance.answer(await instance.delivery(number))
        assert delivered(instance) == ["t0", "t1", "t2", "late"]
        assert made.plane.engine.admission.gates == {}


async def test_a_pause_survives_a_restart() -> None:
    async with world(settings=EngineSettings(recovery_grace_s=0.05)) as made:
        instance = FakeInstance(concurrency=1)
        await instance.connect(made.plane)
        await made.plane.engine.admission.pause("echo")
        await many(made, 2)
        await made.crash()
        plane = await made.start()
        await instance.connect(plane)
        await until(lambda: len(gate_of(plane).room) == 2)
        assert delivered(instance) == []
        await plane.engine.admission.resume("echo")
        await instance.delivery(1)


async def test_what_is_lost_while_its_service_is_paused_waits() -> None:
    async with world(settings=EngineSettings(reconnect_grace_s=0.01)) as made:
        instance = FakeInstance(concurrency=1)
        await instance.connect(made.plane)
        await many(made, 1)
        await instance.delivery()
        await made.plane.engine.admission.pause("echo")
        instance.drop()
        await until(lambda: len(gate_of(made.plane).room) == 1)
        await instance.connect(made.plane)
        assert len(delivered(instance)) == 1
        await made.plane.engine.admission.resume("echo")
        assert (await instance.delivery(2)).attempt == 2


# --- rates ------------------------------------------------------------------------------------------------------------


async def test_no_more_attempts_begin_than_the_rate_allows() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        instance = limited(rate=RateLimit(count=2, seconds=10.0))
        await instance.connect(made.plane)
        await many(made, 5)
        assert len(delivered(instance)) == 2
        made.manual.advance(9.9)
        assert len(delivered(instance)) == 2
        made.manual.advance(0.2)
        await until(lambda: len(delivered(instance)) == 4)
        made.manual.advance(10.1)
        await until(lambda: len(delivered(instance)) == 5)


async def test_a_further_attempt_counts_for_the_rate() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        instance = limited(rate=RateLimit(count=1, seconds=10.0))
        await instance.connect(made.plane)
        await many(made, 1)
        instance.fail(await instance.delivery())
        await settled(made.plane)
        made.manual.advance(2.0)
        await until(lambda: len(gate_of(made.plane).room) == 1)
        made.manual.advance(8.1)
        assert (await instance.delivery(2)).attempt == 2


@pytest.mark.parametrize(("count", "seconds", "burst"), [(3, 1.0, None), (10, 60.0, 1), (10, 60.0, 4), (1, 0.5, None)])
def test_a_rate_holds_over_every_window(count: int, seconds: float, burst: int | None) -> None:
    rate = RateWindow(RateLimit(count=count, seconds=seconds, burst=burst))
    now = 100.0
    begun: list[float] = []
    while len(begun) < 5 * count:
        free_at = rate.next_at(now)
        if free_at <= now:
            rate.begin(now)
            begun.append(now)
        else:
            now = free_at
    for first in begun:
        assert len([moment for moment in begun if first <= moment < first + seconds * 0.999]) <= count
    at_once = max(begun.count(moment) for moment in begun)
    assert at_once == (count if burst is None else burst)


async def test_a_limit_holds_also_for_what_stood_in_the_queue_before_it() -> None:
    async with world() as made:
        instance = FakeInstance(concurrency=50)
        await instance.connect(made.plane)
        instance.drop()
        await many(made, 4)
        await submit(made.plane, task_id="last", options=TaskOptions(priority=1))
        assert made.plane.queue.depth("echo") == 5
        await made.plane.engine.admission.set_limits("echo", ServiceLimits(running_max=2))
        assert made.plane.queue.depth("echo") == 2
        await instance.connect(made.plane)
        await settled(made.plane)
        assert delivered(instance) == ["t0", "t1"]
        for number in range(1, 6):
            instance.answer(await instance.delivery(number))
        assert delivered(instance) == ["t0", "t1", "t2", "t3", "last"]


async def test_what_was_taken_back_from_the_queue_has_not_begun_for_the_rate() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        instance = limited(rate=RateLimit(count=2, seconds=10.0))
        await instance.connect(made.plane)
        instance.drop()
        await many(made, 2)
        await made.plane.engine.admission.pause("echo")
        await made.plane.engine.admission.resume("echo")
        await instance.connect(made.plane)
        await settled(made.plane)
        assert delivered(instance) == ["t0", "t1"]


async def test_a_question_that_is_put_again_after_a_restart_gives_the_place_away() -> None:
    settings = EngineSettings(recovery_grace_s=0.05, claim_recorded_after_s=1e6)
    async with world(settings=settings) as made:
        instance = limited(running_max=1)
        await instance.connect(made.plane)
        await many(made, 1)
        instance.ask(await instance.delivery())
        await settled(made.plane)
        await made.crash()
        plane = await made.start()
        instance = limited(running_max=1)
        await instance.connect(plane)
        step = await instance.delivery()
        assert list(gate_of(plane).places) == [step.step_id]
        instance.ask(step)
        await until(lambda: gate_of(plane).places == {})


@pytest.mark.parametrize("word", ["pause", "resume", "set_limits", "reset_limits"])
async def test_a_word_that_is_on_record_counts_also_where_its_caller_has_given_up(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world() as made:
        await FakeInstance().connect(made.plane)
        admission, store = made.plane.engine.admission, made.plane.store
        if word == "resume":
            await admission.pause("echo")
        elif word == "reset_limits":
            await admission.set_limits("echo", ServiceLimits(running_max=1))
        name = "put_document" if word in ("pause", "set_limits") else "delete_document"
        recording, recorded, told = getattr(store, name), asyncio.Event(), asyncio.Event()

        async def record(*document: Any) -> Any:
            found = await recording(*document)
            recorded.set()
            await told.wait()
            return found

        monkeypatch.setattr(store, name, record)
        given = (ServiceLimits(running_max=2),) if word == "set_limits" else ()
        saying = asyncio.ensure_future(getattr(admission, word)("echo", *given))
        await recorded.wait()
        saying.cancel()
        await asyncio.gather(saying, return_exceptions=True)
        told.set()
        expected = {"pause": True, "resume": False, "set_limits": True, "reset_limits": False}[word]
        known = admission.pauses if word in ("pause", "resume") else admission.overrides
        await until(lambda: ("echo" in known) is expected and ("echo" in admission.gates) is expected)


async def test_nothing_is_looked_at_again_and_again_after_a_stop() -> None:
    """What was let go elsewhere while the lease was in doubt waits for certainty, which does not come any more."""
    async with world() as made:
        engine = made.plane.engine
        clock = ManualClock()
        instance = limited(running_max=1)
        await instance.connect(made.plane)
        await many(made, 2)
        gate = gate_of(made.plane)
        gate.asking = Asking(gate, "a", clock)
        gate.asking.tell(lambda _: None)
        uncertain: Any = SimpleNamespace(certain=False)
        looks: list[float] = []

        def call_at(when: float, then: Callable[[], None]) -> Any:
            looks.append(when)
            return clock.call_at(when, then)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(engine, "leadership", uncertain)
            patched.setattr(engine, "clock", SimpleNamespace(now=clock.now, call_at=call_at))
            (name,) = gate.room.by_name
            gate.asking._told[name] = (2, True)
            engine.admission.admitted(gate, [name])
            clock.advance(1.0)
            while_it_ran = len(looks)
            assert while_it_ran > 1
            patched.setattr(engine, "stopping", True)
            clock.advance(1.0)
            assert len(looks) == while_it_ran
        gate.asking = None
