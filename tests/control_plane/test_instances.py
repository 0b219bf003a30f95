"""Instances at their ports: credits, competition, loss and return, late and repeated answers, and rubbish."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.control_plane.harness import (
    FakeInstance,
    history,
    outcome,
    recorded,
    stream,
    submit,
    until,
    world,
)

from llama_deploy.control_plane import EngineSettings
from llama_deploy.message_queues import Envelope
from llama_deploy.messages.frames import (
    Acknowledged,
    Answer,
    AskInput,
    CancelStep,
    Credits,
    Deliver,
    Disowned,
    Drain,
    Events,
    Goodbye,
    Heartbeat,
    HeldStep,
    Hello,
    Park,
    Refused,
    Welcome,
    encode_op,
)
from llama_deploy.orchestrators import SimpleOrchestrator
from llama_deploy.testing import ManualClock
from llama_deploy.types import RetryPolicy, ServiceDefinition


async def quiet(made: Any) -> None:
    """Wait until everything that was handed over is committed, and its consequences have been posted."""
    await until(lambda: made.plane.store.backlog == 0)
    for _ in range(5):
        await asyncio.sleep(0)


# --- credits and competition ----------------------------------------------------------------------------------------


async def test_an_instance_gets_as_many_steps_as_it_takes_and_the_next_with_each_answer() -> None:
    async with world() as made:
        instance = FakeInstance(concurrency=2)
        await instance.connect(made.plane)
        entries = await asyncio.gather(*[submit(made.plane) for _ in range(5)])
        await instance.delivery(2)
        await quiet(made)
        assert len(instance.all(Deliver)) == 2
        assert made.plane.views.service("echo").waiting == 3
        for number in range(1, 6):
            instance.answer(await instance.delivery(number))
            await quiet(made)
            assert len(instance.all(Deliver)) == min(5, number + 2)
        for entry in entries:
            await outcome(made.plane, entry)


async def test_instances_compete_and_share_evenly() -> None:
    async with world() as made:
        instances = [FakeInstance(instance_id=name, concurrency=10) for name in "abc"]
        for instance in instances:
            await instance.connect(made.plane)
        await asyncio.gather(*[submit(made.plane) for _ in range(30)])
        await until(lambda: sum(len(i.all(Deliver)) for i in instances) == 30)
        assert [len(i.all(Deliver)) for i in instances] == [10, 10, 10]
        assert len({d.step_id for i in instances for d in i.all(Deliver)}) == 30


async def test_what_waits_is_taken_by_an_instance_that_comes_later() -> None:
    async with world() as made:
        first = FakeInstance(instance_id="a", concurrency=1)
        await first.connect(made.plane)
        await asyncio.gather(*[submit(made.plane) for _ in range(3)])
        second = FakeInstance(instance_id="b", concurrency=5)
        await second.connect(made.plane)
        await second.delivery(2)
        await quiet(made)
        assert (len(first.all(Deliver)), len(second.all(Deliver))) == (1, 2)


async def test_a_draining_instance_takes_nothing_and_a_wider_one_more() -> None:
    async with world() as made:
        instance = FakeInstance(concurrency=2)
        await instance.connect(made.plane)
        await asyncio.gather(*[submit(made.plane) for _ in range(6)])
        await instance.delivery(2)
        instance.send(Credits("echo", 0))
        assert made.plane.views.service("echo").state == "draining"
        instance.answer(instance.all(Deliver)[0])
        await quiet(made)
        assert len(instance.all(Deliver)) == 2
        instance.send(Credits("echo", 4))
        await instance.delivery(5)
        await quiet(made)
        assert len(instance.all(Deliver)) == 5
        assert made.plane.views.service("echo").running == 4


async def test_one_instance_serves_several_services_each_with_its_credits() -> None:
    async with world() as made:
        definitions = [
            ServiceDefinition(service_name=n, description="", concurrency=c) for n, c in (("a", 1), ("b", 3))
        ]
        instance = FakeInstance(definitions)
        await instance.connect(made.plane)
        await asyncio.gather(*[submit(made.plane, name) for name in "ab" * 5])
        await instance.delivery(4)
        await quiet(made)
        assert sorted(d.service for d in instance.all(Deliver)) == ["a", "b", "b", "b"]


async def test_instances_are_told_to_drain() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        made.plane.gateway.drain_instances()
        await instance.got(Drain)


# --- loss and return ------------------------------------------------------------------------------------------------


async def test_a_dropped_connection_gives_its_steps_to_others_after_the_grace() -> None:
    async with world(clock=ManualClock()) as made:
        first, second = FakeInstance(instance_id="a"), FakeInstance(instance_id="b")
        await first.connect(made.plane)
        entry = await submit(made.plane)
        step = await first.delivery()
        await second.connect(made.plane)
        first.drop()
        made.manual.advance(made.plane.engine.settings.reconnect_grace_s - 0.01)
        await quiet(made)
        assert second.all(Deliver) == []
        made.manual.advance(0.01)
        again = await second.delivery()
        assert (again.step_id, again.attempt) == (step.step_id, 2)
        second.answer(again, "by the second")
        assert (await outcome(made.plane, entry)).result == "by the second"
        lost = (await history(made.plane, entry))[1]
        assert (lost.kind, lost.attempt, lost.by, lost.state.value) == ("lost", 1, "a", "working")
        assert lost.reason is not None
        assert "lost" in lost.reason


async def test_an_instance_that_returns_in_time_keeps_what_it_holds() -> None:
    async with world(clock=ManualClock()) as made:
        first, second = FakeInstance(instance_id="a"), FakeInstance(instance_id="b")
        await first.connect(made.plane)
        entry = await submit(made.plane)
        step = await first.delivery()
        await second.connect(made.plane)
        first.drop()
        welcome = await first.connect(made.plane, [(step.step_id, 1)])
        assert welcome.disowned == []
        made.manual.advance(5.0)
        await quiet(made)
        assert second.all(Deliver) == []
        first.answer(step, "kept")
        assert (await outcome(made.plane, entry)).attempt == 1
        assert made.plane.engine.statistics.lost == 0


async def test_an_instance_that_returns_too_late_is_told_that_its_step_went_on() -> None:
    async with world(clock=ManualClock()) as made:
        first, second = FakeInstance(instance_id="a"), FakeInstance(instance_id="b")
        await first.connect(made.plane)
        await submit(made.plane)
        step = await first.delivery()
        await second.connect(made.plane)
        first.drop()
        made.manual.advance(1.0)
        await second.delivery()
        welcome = await first.connect(made.plane, [(step.step_id, 1)])
        assert welcome.disowned == [step.step_id]


async def test_a_delivery_that_was_lost_with_a_connection_is_made_again_at_once() -> None:
    async with world(clock=ManualClock()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        await instance.delivery()
        instance.drop()
        await instance.connect(made.plane)  # it holds nothing: it never got the delivery
        again = await instance.delivery(2)
        assert again.attempt == 2
        instance.answer(again)
        await outcome(made.plane, entry)


async def test_a_newer_connection_of_an_instance_replaces_the_older() -> None:
    async with world() as made:
        instance = FakeInstance(concurrency=1)
        await instance.connect(made.plane)
        first = await submit(made.plane)
        step = await instance.delivery()
        older = instance.port
        assert older is not None
        await instance.connect(made.plane, [(step.step_id, 1)])
        assert instance.port is not older
        assert older not in made.plane.gateway.ports
        older.receive([Goodbye()])  # what the old connection still says counts for nothing
        await submit(made.plane)
        await quiet(made)
        assert len(instance.all(Deliver)) == 1, "its one place is taken"
        instance.answer(step)
        await outcome(made.plane, first)
        await instance.delivery(2)


async def test_a_silent_instance_is_lost_when_its_lease_is_over() -> None:
    async with world(clock=ManualClock()) as made:
        silent, lively = FakeInstance(instance_id="a"), FakeInstance(instance_id="b")
        await silent.connect(made.plane)
        entry = await submit(made.plane)
        step = await silent.delivery()
        await lively.connect(made.plane)
        for _ in range(3):
            made.manual.advance(2.5)
            lively.send(Heartbeat([]))
        await quiet(made)
        assert [instance.closed for instance in (silent, lively)] == [False, False]
        made.manual.advance(2.5)
        assert [instance.closed for instance in (silent, lively)] == [True, False]
        again = await lively.delivery()
        assert (again.step_id, again.attempt) == (step.step_id, 2)
        lively.answer(again)
        await outcome(made.plane, entry)
        made.manual.advance(2.5)
        lively.send(Heartbeat([]))
        made.manual.advance(7.6)
        assert made.plane.views.service("echo").state == "up"
        made.manual.advance(2.5)
        assert made.plane.views.service("echo").state == "returning"


async def test_a_connection_that_never_says_hello_is_closed_too() -> None:
    async with world(clock=ManualClock()) as made:
        instance = FakeInstance()
        instance.attach(made.plane)
        made.manual.advance(9.0)
        assert len(made.plane.gateway.ports) == 1
        made.manual.advance(1.5)
        assert instance.closed
        assert not made.plane.gateway.ports


async def test_a_goodbye_hands_back_at_once() -> None:
    async with world(clock=ManualClock()) as made:
        first, second = FakeInstance(instance_id="a"), FakeInstance(instance_id="b")
        await first.connect(made.plane)
        entry = await submit(made.plane)
        step = await first.delivery()
        await second.connect(made.plane)
        first.send(Goodbye())
        again = await second.delivery()
        assert (again.step_id, again.attempt) == (step.step_id, 2)
        assert first.closed
        second.answer(again)
        await outcome(made.plane, entry)
        lost = (await history(made.plane, entry))[1]
        assert "handed it back" in (lost.reason or "")


async def test_what_is_handed_back_on_purpose_never_ends_a_task() -> None:
    async with world(settings=EngineSettings(attempts_max=3)) as made:
        entry = await submit(made.plane, wait_for_service=True)
        for number in range(5):
            instance = FakeInstance(instance_id=str(number))
            await instance.connect(made.plane)
            assert (await instance.delivery()).attempt == number + 1
            instance.send(Goodbye())
        last = FakeInstance(instance_id="last")
        await last.connect(made.plane)
        last.answer(await last.delivery())
        assert (await outcome(made.plane, entry)).attempt == 6


async def test_a_step_that_is_lost_again_and_again_has_a_limit() -> None:
    settings = EngineSettings(attempts_max=3)
    async with world(clock=ManualClock(), settings=settings, orchestrator=SimpleOrchestrator(99)) as made:
        entry = await submit(made.plane, wait_for_service=True)
        for number in range(3):
            instance = FakeInstance(instance_id=str(number))
            await instance.connect(made.plane)
            assert (await instance.delivery()).attempt == number + 1
            instance.drop()
            made.manual.advance(1.0)
        result = await outcome(made.plane, entry)
        assert result.error is not None
        assert (result.status, result.error.code, result.attempt) == ("failed", "LD506", 3)
        assert "attempts_max" in (result.error.message + str((await history(made.plane, entry))[-1]))


async def test_a_service_whose_last_instance_was_lost_is_expected_back_for_a_while() -> None:
    async with world(clock=ManualClock()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        instance.drop()
        made.manual.advance(1.0)
        assert made.plane.views.service("echo").state == "returning"
        entry = await submit(made.plane)
        waits_for = made.plane.views.task(entry).waiting_for
        assert waits_for == 'nobody serves "echo" now (its instances are expected back)'
        made.manual.advance(made.plane.engine.settings.service_return_s)
        assert made.plane.views.service("echo").state == "down"
        again = FakeInstance(instance_id="two")
        await again.connect(made.plane)
        again.answer(await again.delivery())
        await outcome(made.plane, entry)


# --- answers --------------------------------------------------------------------------------------------------------


async def two_attempts(made: Any) -> tuple[FakeInstance, FakeInstance, Any, Deliver, Deliver]:
    """Two instances that both work on one step: the first was thought lost and has come back."""
    first, second = FakeInstance(instance_id="a"), FakeInstance(instance_id="b")
    await first.connect(made.plane)
    entry = await submit(made.plane, task_id="t")
    older = await first.delivery()
    await second.connect(made.plane)
    first.drop()
    made.manual.advance(1.0)
    newer = await second.delivery()
    await first.connect(made.plane)
    return first, second, entry, older, newer


async def test_a_late_success_of_an_earlier_attempt_wins_when_it_is_first() -> None:
    async with world(clock=ManualClock()) as made:
        first, second, entry, older, newer = await two_attempts(made)
        first.answer(older, "from the first")
        await first.acknowledged(older)
        result = await outcome(made.plane, entry)
        assert (result.result, result.attempt) == ("from the first", 1)
        second.answer(newer, "from the second")
        await second.acknowledged(newer)
        assert made.plane.engine.statistics.answers_late == 1
        assert (await outcome(made.plane, entry)).result == "from the first"
        assert [e.kind for e in await history(made.plane, entry)] == ["submitted", "lost", "answered"]


async def test_a_late_failure_of_an_earlier_attempt_is_dropped() -> None:
    async with world(clock=ManualClock()) as made:
        first, second, entry, older, newer = await two_attempts(made)
        first.fail(older)
        await first.acknowledged(older)
        assert not entry.final
        second.answer(newer, "from the second")
        assert (await outcome(made.plane, entry)).attempt == 2
        assert made.plane.engine.statistics.answers_late == 1


async def test_an_answer_given_twice_counts_once() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        step = await instance.delivery()
        instance.answer(step, "first")
        instance.answer(step, "second")
        assert (await outcome(made.plane, entry)).result == "first"
        await until(lambda: sum(op.step_ids.count(step.step_id) for op in instance.all(Acknowledged)) == 2)
        assert made.plane.engine.statistics.answers == 1
        assert made.plane.engine.statistics.answers_late == 1
        instance.answer(step, "third")
        await until(lambda: made.plane.engine.statistics.answers_late == 2)


async def test_no_answer_is_acknowledged_before_it_is_recorded(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane)
        step = await instance.delivery()
        instance.answer(step)
        instance.answer(step)
        for _ in range(3):
            await asyncio.sleep(0)
            assert bool(instance.all(Acknowledged)) <= (made.plane.store.backlog == 0)
        await instance.acknowledged(step)


async def test_a_reconnect_during_the_commit_of_an_answer_forgets_nothing(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        step = await instance.delivery()
        instance.answer(step)
        instance.drop()
        welcome = await instance.connect(made.plane, [(step.step_id, 1)])
        assert made.plane.store.backlog == 0, "told before it is recorded"
        assert welcome.disowned == [step.step_id]
        assert entry.ended


async def test_an_answer_of_an_unknown_step_is_not_wanted() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        for number, step_id in enumerate(["nothing:1", "nothing", "", ":", "a:b:c"], 1):
            instance.send(Answer(step_id, 1, b"{}", 0.0, 0.0))
            await instance.acknowledged(step_id)
            assert made.plane.engine.statistics.answers_late == number


async def test_an_attempt_that_is_taken_away_gives_its_place_back_once() -> None:
    async with world() as made:
        instance = FakeInstance(concurrency=1)
        await instance.connect(made.plane)
        await submit(made.plane)
        await submit(made.plane)
        older = await instance.delivery()
        made.plane.signals.lost([older.step_id], instance.instance_id, "a test says so")
        assert (await instance.got(CancelStep)).step_id == older.step_id
        other = await instance.delivery(2)
        assert other.step_id != older.step_id
        instance.fail(older)  # it was on its way
        await quiet(made)
        assert len(instance.all(Deliver)) == 2
        assert made.plane.views.service("echo").running == 1
        instance.answer(other)
        newer = await instance.delivery(3)
        assert (newer.step_id, newer.attempt) == (older.step_id, 2)
        instance.fail(older)
        await quiet(made)
        assert made.plane.views.service("echo").running == 1


async def test_an_envelope_that_is_carried_twice_is_delivered_once() -> None:
    async with world() as made:
        first, second = FakeInstance(instance_id="a", concurrency=2), FakeInstance(instance_id="b", concurrency=2)
        await first.connect(made.plane)
        entry = await submit(made.plane)
        step = await first.delivery()
        await second.connect(made.plane)
        for _ in range(4):
            made.plane.engine.queue.publish([Envelope(step.step_id, 1, "echo", encode_op(step))])
        await quiet(made)
        assert (len(first.all(Deliver)), len(second.all(Deliver))) == (1, 0)
        await asyncio.gather(*[submit(made.plane) for _ in range(5)])
        await quiet(made)
        assert (len(first.all(Deliver)), len(second.all(Deliver))) == (2, 2), "no place was lost"
        first.answer(step)
        await outcome(made.plane, entry)


# --- cancelling -----------------------------------------------------------------------------------------------------


async def test_a_cancel_reaches_exactly_the_holder() -> None:
    async with world() as made:
        instances = {name: FakeInstance(instance_id=name, concurrency=1) for name in "ab"}
        for instance in instances.values():
            await instance.connect(made.plane)
        entries = await asyncio.gather(*[submit(made.plane) for _ in range(3)])
        for instance in instances.values():
            await instance.delivery()
        step = instances["a"].all(Deliver)[0]
        await made.plane.signals.cancel(step.task_id, reason="enough")
        told = await instances["a"].got(CancelStep)
        assert told.step_id == step.step_id
        assert instances["b"].all(CancelStep) == []
        assert (await instances["a"].delivery(2)).task_id in {entry.row.task_id for entry in entries}
        waiting = await submit(made.plane)
        await made.plane.signals.cancel(waiting.row.task_id)
        assert made.plane.queue.statistics("echo").waiting == 0


async def test_a_heartbeat_during_the_commit_of_an_answer_disowns_nothing(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane)
        step = await instance.delivery()
        instance.answer(step)
        instance.send(Heartbeat([HeldStep(step.step_id, 1)]))
        assert (await instance.got(Disowned)).step_ids == []
        await instance.acknowledged(step)
        instance.send(Heartbeat([HeldStep(step.step_id, 1)]))
        assert (await instance.got(Disowned, 2)).step_ids == [step.step_id]


async def test_a_heartbeat_that_has_been_overtaken_disowns_no_newer_attempt_of_the_same_instance() -> None:
    """It names the attempt before: the next one is on its way to this very instance, which would stop it."""
    async with world(clock=ManualClock()) as made:
        instance = FakeInstance(retry=RetryPolicy(initial_s=0.0, jitter=0.0))
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        first = await instance.delivery()
        instance.fail(first)
        second = await instance.delivery(2)
        assert second.attempt == 2
        instance.send(Heartbeat([HeldStep(first.step_id, 1)]))
        assert (await instance.got(Disowned)).step_ids == []
        instance.answer(second)
        await outcome(made.plane, entry)


async def test_a_heartbeat_is_answered_with_what_is_not_the_instances_any_more() -> None:
    async with world(clock=ManualClock()) as made:
        first, second, _, older, newer = await two_attempts(made)
        first.send(Heartbeat([HeldStep(older.step_id, 1), HeldStep("unknown:1", 1)]))
        assert (await first.got(Disowned)).step_ids == [older.step_id]
        second.send(Heartbeat([HeldStep(newer.step_id, 2)]))
        assert (await second.got(Disowned)).step_ids == []


# --- a restart of the control plane ---------------------------------------------------------------------------------


async def test_what_an_instance_holds_is_its_own_after_a_restart_of_the_control_plane() -> None:
    async with world(clock=ManualClock()) as made:
        instance, other = FakeInstance(concurrency=2), FakeInstance(instance_id="other")
        await instance.connect(made.plane)
        entries = [await submit(made.plane, task_id=f"t{n}") for n in range(3)]
        held = [await instance.delivery(n) for n in (1, 2)]
        await made.stop()
        assert all(not entry.ended for entry in entries)

        plane = await made.start()
        welcome = await instance.connect(plane, [(step.step_id, 1) for step in held] + [("gone:1", 1)])
        assert welcome.disowned == ["gone:1"]
        await other.connect(plane)
        assert plane.views.service("echo").running == 2
        made.manual.advance(plane.engine.settings.recovery_grace_s)
        waited = await other.delivery()
        assert waited.step_id == "t2:1"
        await quiet(made)
        assert len(other.all(Deliver)) == 1
        assert len(instance.all(Deliver)) == 2
        for step in held:
            instance.answer(step, "held over")
            assert (await outcome(plane, step.task_id)).attempt == 1


async def test_what_nobody_reclaims_after_a_restart_goes_to_others_after_the_grace() -> None:
    async with world(clock=ManualClock()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, task_id="t")
        await instance.delivery()
        await made.crash()
        plane = await made.start()
        other = FakeInstance(instance_id="other")
        await other.connect(plane)
        made.manual.advance(plane.engine.settings.recovery_grace_s - 0.1)
        await quiet(made)
        assert other.all(Deliver) == []
        made.manual.advance(0.2)
        other.answer(await other.delivery())
        await outcome(plane, "t")
        late = await instance.connect(plane, [("t:1", 1)])
        assert late.disowned == ["t:1"]


# --- rubbish --------------------------------------------------------------------------------------------------------


async def refused(instance: FakeInstance) -> dict[str, Any]:
    told = await instance.got(Refused)
    assert instance.closed
    problem: dict[str, Any] = msgspec.json.decode(told.problem)
    return problem


async def test_the_first_word_must_be_hello() -> None:
    async with world() as made:
        instance = FakeInstance()
        instance.attach(made.plane)
        instance.send(Heartbeat([]), Heartbeat([]))
        assert (await refused(instance))["code"] == "LD304"
        assert len(instance.all(Refused)) == 1


async def test_hello_is_said_once() -> None:
    async with world() as made:
        instance = FakeInstance(concurrency=1)
        await instance.connect(made.plane)
        await submit(made.plane)
        await instance.delivery()
        instance.hello()
        assert (await refused(instance))["code"] == "LD304"
        assert made.plane.queue.statistics("echo").consumers == 0


async def test_another_protocol_is_refused_with_the_fix() -> None:
    async with world() as made:
        instance = FakeInstance()
        instance.attach(made.plane)
        instance.hello(protocol=99)
        problem = await refused(instance)
        assert problem["code"] == "LD304"
        assert "same version" in problem["fix"]
        assert made.plane.engine.registry.services == {}


@pytest.mark.parametrize("instance_id", ["", "x" * 300, "a\nb"], ids=repr)
async def test_an_instance_id_that_cannot_be_used(instance_id: str) -> None:
    async with world() as made:
        instance = FakeInstance(instance_id=instance_id)
        instance.attach(made.plane)
        instance.hello()
        assert (await refused(instance))["code"] == "LD201"


@pytest.mark.parametrize("name", ["", "x" * 300, "a\nb"], ids=repr)
async def test_a_service_name_that_cannot_be_used(name: str) -> None:
    async with world() as made:
        instance = FakeInstance([name])
        instance.attach(made.plane)
        instance.hello()
        assert (await refused(instance))["code"] == "LD201"
        assert made.plane.engine.registry.services == {}


@pytest.mark.parametrize(
    "services",
    [
        b"",
        b"{",
        b"null",
        b"[1]",
        b'[{"service_name": 1}]',
        b"\xff",
        b'[{"service_name": "x", "description": "", "concurrency": -5}]',
    ],
)
async def test_definitions_that_are_none(services: bytes) -> None:
    async with world() as made:
        instance = FakeInstance()
        instance.attach(made.plane)
        instance.send(Hello(1, "one", services, [], 1, "host"))
        assert (await refused(instance))["code"] == "LD201"


async def test_operations_about_steps_that_are_none_change_nothing() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        instance.send(
            Credits("never heard of", 5),
            Credits("echo", -3),
            Events("none:1", 1, 0, [b"1"]),
            Park("none:1", 1, b"{}", "answer", None, 0),
            AskInput("none:1", 1, b"{}"),
            Heartbeat([HeldStep("none:1", 1)]),
        )
        await quiet(made)
        assert not instance.closed
        assert await made.plane.store.count_tasks() == {}


@pytest.mark.parametrize("prompt", [b"", b"{", b"\xff", b"1 2", b'{"prompt": "' + b"x" * 3000 + b'"}'], ids=repr)
@pytest.mark.parametrize("kind", ["ask", "park"])
async def test_a_prompt_that_cannot_be_recorded_fails_the_step(kind: str, prompt: bytes) -> None:
    settings = EngineSettings(payload_bytes_max=2000)
    async with world(settings=settings) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        step = await instance.delivery()
        if kind == "ask":
            instance.send(AskInput(step.step_id, 1, prompt))
        else:
            instance.send(Park(step.step_id, 1, prompt, "answer", None, 0))
        assert (await outcome(made.plane, entry)).status == "failed"
        assert instance.port is not None
        assert instance.port.held == {}
        await made.stop()
        plane = await made.start()
        assert (await outcome(plane, "t")).status == "failed"
        await history(plane, "t")


@pytest.mark.parametrize("event", [b"", b"{", b"1,2", b"\xff", b'"' + b"x" * 3000 + b'"'], ids=repr)
@pytest.mark.parametrize("kind", ["events", "answer", "park"])
async def test_an_event_that_cannot_be_recorded_fails_the_step(kind: str, event: bytes) -> None:
    settings = EngineSettings(payload_bytes_max=2000)
    async with world(settings=settings) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        step = await instance.delivery()
        instance.stream(step, 0, ["good"])
        if kind == "events":
            instance.send(Events(step.step_id, 1, 1, [event]))
        elif kind == "answer":
            instance.answer(step, events_from=1, events=[event])
        else:
            instance.park(step, events_from=1, events=[event])
        assert (await outcome(made.plane, entry)).status == "failed"
        assert await stream(made.plane, "t") == ["good"]
        assert instance.port is not None
        assert instance.port.held == {}


async def test_a_rubbish_resume_is_answered_like_any_other() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        step = await instance.delivery()
        instance.park(step, resume="nonsense")
        assert (await outcome(made.plane, entry)).status == "failed"


async def test_welcome_says_the_times() -> None:
    async with world(clock=ManualClock()) as made:
        welcome: Welcome = await FakeInstance().connect(made.plane)
        assert (welcome.heartbeat_s, welcome.lease_s) == (2.5, 10.0)
        assert await recorded_nothing(made)


async def recorded_nothing(made: Any) -> bool:
    await quiet(made)
    counts: dict[str, int] = await made.plane.store.count_tasks()
    return counts == {}


async def test_a_lost_attempt_of_a_session_task_leaves_the_session_alone() -> None:
    async with world(clock=ManualClock()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, session_id="s")
        await instance.delivery()
        instance.drop()
        made.manual.advance(1.0)
        await recorded(entry, 2)
        assert await made.plane.views.session_state("s") == {}


async def test_what_an_instance_comes_back_with_is_lost_with_it_where_it_goes_before_it_is_welcomed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(clock=ManualClock(), settings=EngineSettings(lease_s=1e9)) as made:
        one, two = FakeInstance(instance_id="one"), FakeInstance(instance_id="two")
        await one.connect(made.plane)
        await submit(made.plane, task_id="t")
        step = await one.delivery()
        one.drop()
        looked_at = asyncio.Event()
        with monkeypatch.context() as slow:
            slow.setattr(made.plane.leadership, "certainty", looked_at.wait)
            one.attach(made.plane)
            one.hello([(step.step_id, step.attempt)])
            await until(lambda: made.plane.engine.adopting)
            one.drop()
            made.manual.advance(1.0)
            looked_at.set()
            await until(lambda: not made.plane.engine.adopting)
        await two.connect(made.plane)
        assert (await two.delivery()).attempt == 2
