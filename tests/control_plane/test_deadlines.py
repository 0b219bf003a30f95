"""Deadlines of steps and tasks: whose word counts, what follows when one passes, and that a restart forgets none."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.control_plane.harness import (
    FakeInstance,
    LinkedRunner,
    history,
    outcome,
    recorded,
    state_of,
    submit,
    until,
    world,
)

from llama_deploy.control_plane import EngineSettings
from llama_deploy.errors import InvalidRequestError
from llama_deploy.messages import QueueMessage
from llama_deploy.messages.frames import CancelStep, Deliver
from llama_deploy.orchestrators import BaseOrchestrator, get_result_key
from llama_deploy.services import ServiceContext, service
from llama_deploy.testing import ManualClock
from llama_deploy.types import (
    ActionTypes,
    RetryPolicy,
    ServiceLimits,
    StepOptions,
    TaskDefinition,
    TaskOptions,
    TaskResult,
)

PATIENT = EngineSettings(lease_s=1e9)


class WithOptions(BaseOrchestrator):
    """One message for `echo`, with these options."""

    def __init__(self, options: StepOptions | None) -> None:
        self.options = options

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        if get_result_key(task_def.task_id) in state:
            return [], state
        return [QueueMessage(type="echo", data={"text": "x"}, options=self.options)], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, get_result_key(result.task_id): result}


@pytest.mark.parametrize(
    ("of_step", "of_task", "expected"),
    [
        (None, None, (600.0, 0.0)),
        (None, TaskOptions(run_timeout_s=70.0, heartbeat_timeout_s=7.0), (70.0, 7.0)),
        (StepOptions(run_timeout_s=3.0), TaskOptions(run_timeout_s=70.0, heartbeat_timeout_s=7.0), (3.0, 7.0)),
        (StepOptions(heartbeat_timeout_s=2.0), None, (600.0, 2.0)),
    ],
)
async def test_the_most_specific_deadline_of_an_attempt_counts(
    of_step: StepOptions | None, of_task: TaskOptions | None, expected: tuple[float, float]
) -> None:
    async with world(orchestrator=WithOptions(of_step)) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, options=of_task)
        step = await instance.delivery()
        assert (step.run_timeout_s, step.heartbeat_timeout_s) == expected


async def test_a_step_that_waited_for_its_service_has_the_deadline_of_that_service() -> None:
    """It was published when nobody knew the service: the instance itself does."""

    @service(run_timeout_s=7.0)
    async def echo(context: ServiceContext) -> float:
        return context.run_timeout_s

    async with world() as made:
        entry = await submit(made.plane, "echo", "{}", wait_for_service=True)
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        assert (await outcome(made.plane, entry)).output == 7.0
        await local.stop()


async def test_a_hung_attempt_is_taken_away_at_the_deadline_of_its_task() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        hung = FakeInstance(run_timeout_s=3600.0)
        await hung.connect(made.plane)
        entry = await submit(made.plane, options=TaskOptions(run_timeout_s=10.0))
        step = await hung.delivery()
        made.manual.advance(60.0)
        assert (await hung.got(CancelStep)).step_id == step.step_id
        hung.answer(await hung.delivery(2))
        await outcome(made.plane, entry)
        assert (await history(made.plane, entry))[1].reason == "its run deadline is over"


# --- waiting for an instance ----------------------------------------------------------------------------------------


async def test_a_step_that_nobody_takes_in_time_fails_and_is_not_tried_again(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", clock=ManualClock(), settings=PATIENT) as made:
        entry = await submit(made.plane, options=TaskOptions(queue_timeout_s=100.0), wait_for_service=True)
        made.manual.advance(99.0)
        await made.plane.sweeper.sweep()
        assert not entry.final
        made.manual.advance(1.0)
        result = await outcome(made.plane, entry)
        assert result.error is not None
        assert (result.status, result.error.code, result.error.retryable) == ("failed", "LD512", False)
        assert made.plane.queue.statistics("echo").waiting == 0, "nobody is given it any more"
        assert [e.kind for e in await history(made.plane, entry)] == ["submitted", "answered"]
        assert entry.row.error == "LD512"


async def test_the_waiting_time_is_known_after_a_restart(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", clock=ManualClock(), settings=PATIENT) as made:
        await submit(made.plane, options=TaskOptions(queue_timeout_s=1000.0), wait_for_service=True, task_id="t")
        made.manual.advance(600.0)
        await made.crash()
        made.manual.advance(300.0)
        await made.start()
        made.manual.advance(90.0)
        await made.plane.sweeper.sweep()
        assert not (await made.plane.engine.cache.get("t")).final
        made.manual.advance(11.0)
        assert (await outcome(made.plane, "t")).status == "failed"


async def test_what_was_waited_for_during_a_downtime_has_a_moment_to_be_taken(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", clock=ManualClock(), settings=PATIENT) as made:
        for task_id in ("taken", "left"):
            await submit(made.plane, options=TaskOptions(queue_timeout_s=10.0), wait_for_service=True, task_id=task_id)
        await made.crash()
        made.manual.advance(1000.0)
        await made.start()
        instance = FakeInstance(concurrency=1)
        await instance.connect(made.plane)
        made.manual.advance(1.0)
        step = await instance.delivery()
        made.manual.advance(5.0)
        left = "left" if step.task_id == "taken" else "taken"
        assert (await outcome(made.plane, left)).status == "failed"
        instance.answer(step)
        assert (await outcome(made.plane, step.task_id)).status == "completed"


async def test_each_attempt_waits_anew_and_one_that_is_taken_does_not_wait() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        instance = FakeInstance(concurrency=1, retry=RetryPolicy(initial_s=50.0, jitter=0.0))
        await instance.connect(made.plane)
        entry = await submit(made.plane, options=TaskOptions(queue_timeout_s=20.0))
        made.manual.advance(100.0)
        await made.plane.sweeper.sweep()
        instance.fail(await instance.delivery())
        await recorded(entry, 2)
        blocking = await submit(made.plane)
        await instance.delivery(2)
        made.manual.advance(69.0)
        await made.plane.sweeper.sweep()
        assert not entry.final, "due for 19 s"
        made.manual.advance(1.0)
        assert (await outcome(made.plane, entry)).attempt == 2
        assert not blocking.final


async def test_waiting_for_a_paused_service_or_for_a_limit_counts() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        instance = FakeInstance(run_timeout_s=1e6)
        await instance.connect(made.plane)
        await made.plane.engine.admission.pause("echo", reason="closed")
        patience = TaskOptions(queue_timeout_s=100.0)
        held = await submit(made.plane, options=patience)
        made.manual.advance(100.0)
        assert (await outcome(made.plane, held)).status == "failed"
        await made.plane.engine.admission.resume("echo")
        await made.plane.engine.admission.set_limits("echo", ServiceLimits(running_max=1))
        running, waiting, paused = [await submit(made.plane, options=patience) for _ in range(3)]
        step = await instance.delivery()
        await made.plane.pauses.pause(paused.row.task_id)
        made.manual.advance(100.0)
        assert (await outcome(made.plane, waiting)).status == "failed"
        await made.plane.pauses.resume(paused.row.task_id)
        instance.answer(step)
        assert (await outcome(made.plane, running)).status == "completed"
        instance.answer(await instance.delivery(2))
        assert (await outcome(made.plane, paused)).status == "completed"
        assert len(instance.all(Deliver)) == 2


async def test_while_a_task_is_paused_no_step_of_it_waits_too_long(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", clock=ManualClock(), settings=PATIENT) as made:
        await submit(made.plane, options=TaskOptions(queue_timeout_s=100.0), wait_for_service=True, task_id="t")
        made.manual.advance(90.0)
        await made.plane.pauses.pause("t")
        made.manual.advance(1000.0)
        await made.plane.sweeper.sweep()
        await made.plane.pauses.resume("t")
        made.manual.advance(60.0)
        await made.crash()
        await made.start()
        made.manual.advance(39.0)
        await made.plane.sweeper.sweep()
        entry = await made.plane.engine.cache.get("t")
        assert not entry.final, "the time begins anew with the end of the pause"
        made.manual.advance(2.0)
        assert (await outcome(made.plane, "t")).status == "failed"


# --- the whole task -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
async def test_a_task_ends_at_its_deadline_whatever_it_does(tmp_path: Path, *, restart: bool) -> None:
    async with world(tmp_path / "s.db", clock=ManualClock(), settings=PATIENT) as made:
        instance = FakeInstance(["echo", "human"], run_timeout_s=1e6)
        await instance.connect(made.plane)
        limit = TaskOptions(total_timeout_s=1000.0)
        await submit(made.plane, options=limit, task_id="runs")
        running = await instance.delivery()
        await submit(made.plane, "human", options=limit, task_id="asks")
        instance.park(await instance.delivery(2))
        await submit(made.plane, "nobody", options=limit, wait_for_service=True, task_id="waits")
        await submit(made.plane, options=limit, task_id="paused")
        await made.plane.pauses.pause("paused")
        await recorded(await made.plane.engine.cache.get("asks"), 2)
        made.manual.advance(990.0)
        if restart:
            await made.crash()
            await made.start()
            await instance.connect(made.plane, held=[(running.step_id, running.attempt)])
        made.manual.advance(9.0)
        await made.plane.sweeper.sweep()
        assert (await made.plane.store.count_tasks()).get("failed", 0) == 0
        made.manual.advance(1.0)
        for task_id in ("runs", "asks", "waits", "paused"):
            result = await outcome(made.plane, task_id)
            assert result.error is not None
            assert (result.status, result.error.code) == ("failed", "LD513")
            entries = await history(made.plane, task_id)
            assert (entries[-1].kind, entries[-1].outcome is not None) == ("timed_out", True)
        await until(lambda: running.step_id in {op.step_id for op in instance.all(CancelStep)})
        assert await made.plane.store.next_due() is None, "nothing is left"


async def test_a_task_that_ends_in_time_leaves_nothing_behind(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", clock=ManualClock(), settings=PATIENT) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        limit = TaskOptions(total_timeout_s=10.0)
        done = await submit(made.plane, options=limit)
        instance.answer(await instance.delivery())
        await outcome(made.plane, done)
        stopped = await submit(made.plane, options=limit)
        await made.plane.signals.cancel(stopped.row.task_id)
        assert await made.plane.store.next_due() is None
        made.manual.advance(100.0)
        assert await made.plane.sweeper.sweep() == 0


async def test_a_task_that_ends_with_its_first_decision_has_no_deadline(tmp_path: Path) -> None:
    class AtOnce(WithOptions):
        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            return [], {**state, get_result_key(task_def.task_id): {"result": "at once"}}

    async with world(tmp_path / "s.db", orchestrator=AtOnce(None)) as made:
        entry = await submit(made.plane, options=TaskOptions(total_timeout_s=10.0))
        assert (await outcome(made.plane, entry)).result == "at once"
        assert await made.plane.store.next_due() is None


async def test_the_end_at_a_deadline_meets_a_policy_that_thinks() -> None:
    class Slow(WithOptions):
        answered = asyncio.Event()
        go_on = asyncio.Event()

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            self.answered.set()
            await self.go_on.wait()
            return {**state, get_result_key(result.task_id): result}

    async with world(clock=ManualClock(), orchestrator=Slow(None), settings=PATIENT) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, options=TaskOptions(total_timeout_s=10.0))
        step = await instance.delivery()
        instance.answer(step)
        await Slow.answered.wait()
        made.manual.advance(10.0)
        assert (await outcome(made.plane, entry)).status == "failed"
        Slow.go_on.set()
        await instance.acknowledged(step)
        assert (await outcome(made.plane, entry)).status == "failed"


# --- a later beginning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("option", ["run_at", "delay_s"])
async def test_a_task_begins_when_it_was_asked_to(tmp_path: Path, option: str, *, restart: bool) -> None:
    async with world(tmp_path / "s.db", clock=ManualClock(), settings=PATIENT) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        when = 3600.0 + (made.manual.now() if option == "run_at" else 0)
        options = TaskOptions.model_validate({option: when, "total_timeout_s": 100.0})
        await submit(made.plane, options=options, task_id="t")
        made.manual.advance(1800.0)
        if restart:
            await made.crash()
            await made.start()
            await instance.connect(made.plane)
        made.manual.advance(1799.0)
        await made.plane.sweeper.sweep()
        entry = await made.plane.engine.cache.get("t")
        view = made.plane.views.task(entry)
        assert (view.state.value, view.waiting_for) == ("submitted", "its beginning, in 1.0 s")
        assert instance.all(Deliver) == []
        made.manual.advance(1.0)
        step = await instance.delivery()
        made.manual.advance(2.0)
        await until(lambda: entry.row.state == "working")
        assert made.plane.views.task(entry).waiting_for is None
        made.manual.advance(97.0)
        await made.plane.sweeper.sweep()
        assert not entry.final, "its deadline counts from its beginning"
        instance.answer(step)
        assert (await outcome(made.plane, "t")).status == "completed"
        assert [e.kind for e in await history(made.plane, "t")] == ["submitted", "begun", "answered"]


async def test_a_time_that_is_past_is_now() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, options=TaskOptions(run_at=made.manual.now() - 5.0))
        await instance.delivery()
        assert await state_of(made.plane, entry) == "working"


async def test_a_task_can_be_canceled_and_paused_before_it_begins() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        canceled, paused = [await submit(made.plane, options=TaskOptions(delay_s=10.0)) for _ in range(2)]
        await made.plane.signals.cancel(canceled.row.task_id)
        await made.plane.pauses.pause(paused.row.task_id)
        made.manual.advance(100.0)
        await made.plane.sweeper.sweep()
        assert instance.all(Deliver) == []
        await made.plane.pauses.resume(paused.row.task_id)
        assert (await instance.delivery()).task_id == paused.row.task_id


async def test_a_beginning_that_nobody_will_wait_for_is_refused() -> None:
    async with world(clock=ManualClock()) as made:
        with pytest.raises(InvalidRequestError, match="run_at") as refused:
            await submit(made.plane, options=TaskOptions(run_at=made.manual.now() * 1000))
        assert "milliseconds" in refused.value.fix


# --- timers of orchestrators ----------------------------------------------------------------------------------------


class OrTimeout(BaseOrchestrator):
    """A step and a timer: whichever answers first is the outcome, by its tag."""

    def __init__(self, delay_s: float = 100.0) -> None:
        self.delay_s = delay_s

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        if get_result_key(task_def.task_id) in state:
            data = {"result": state[get_result_key(task_def.task_id)]}
            return [QueueMessage(type="nobody", action=ActionTypes.COMPLETED_TASK, data=data)], state
        step = QueueMessage(type="echo", data={"text": "x"}, tag="step")
        return [step, QueueMessage(type="__timer__", delay_s=self.delay_s, tag="time")], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, get_result_key(result.task_id): f"{result.tag} {result.status}"}


@pytest.mark.parametrize("restart", [False, True])
async def test_a_timer_is_answered_when_it_is_due(tmp_path: Path, *, restart: bool) -> None:
    async with world(tmp_path / "s.db", clock=ManualClock(), orchestrator=OrTimeout(), settings=PATIENT) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        began_at = made.manual.now()
        await submit(made.plane, task_id="t")
        step = await instance.delivery()
        made.manual.advance(60.0)
        if restart:
            await made.crash()
            await made.start()
            await instance.connect(made.plane, held=[(step.step_id, step.attempt)])
        made.manual.advance(39.0)
        await made.plane.sweeper.sweep()
        assert not (await made.plane.engine.cache.get("t")).final
        made.manual.advance(1.0)
        assert (await outcome(made.plane, "t")).result == "time completed"
        answered = (await history(made.plane, "t"))[-1]
        assert answered.result is not None
        assert answered.result["data"] == {"due_at": began_at + 100.0}
        assert (await instance.got(CancelStep)).step_id == step.step_id
        assert made.plane.queue.statistics("__timer__").waiting == 0
        assert await made.plane.store.next_due() is None


async def test_an_answer_in_time_takes_the_timer_along() -> None:
    async with world(clock=ManualClock(), orchestrator=OrTimeout(), settings=PATIENT) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        instance.answer(await instance.delivery())
        assert (await outcome(made.plane, entry)).result == "step completed"
        assert await made.plane.store.next_due() is None


async def test_a_timer_says_what_it_waits_for_and_goes_off_at_once_where_it_has_no_delay() -> None:
    async with world(clock=ManualClock(), orchestrator=OrTimeout(50.0), settings=PATIENT) as made:
        entry = await submit(made.plane, wait_for_service=True, options=TaskOptions(queue_timeout_s=1e6))
        assert "a timer, due in 50.0 s (time)" in (made.plane.views.task(entry).waiting_for or "")
        assert "__timer__" not in (made.plane.views.task(entry).waiting_for or "")
    async with world(clock=ManualClock(), orchestrator=OrTimeout(0.0), settings=PATIENT) as made:
        entry = await submit(made.plane, wait_for_service=True)
        made.manual.advance(0.001)
        assert (await outcome(made.plane, entry)).result == "time completed"


async def test_a_timer_goes_off_once_while_the_policy_thinks() -> None:
    class Thinks(OrTimeout):
        go_on = asyncio.Event()
        asked: ClassVar[list[str | None]] = []

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            self.asked.append(result.tag)
            await self.go_on.wait()
            return {**state, "seen": [*state.get("seen", []), result.tag]}

        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            if len(state.get("seen", [])) == 2:
                state[get_result_key(task_def.task_id)] = str(state["seen"])
                return [], state
            return ([], state) if "seen" in state else await super().get_next_messages(task_def, state)

    async with world(clock=ManualClock(), orchestrator=Thinks(5.0), settings=PATIENT) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        instance.answer(await instance.delivery())
        await until(lambda: Thinks.asked == ["step"])
        for _ in range(5):
            made.manual.advance(10.0)
            await made.plane.sweeper.sweep()
        Thinks.go_on.set()
        assert (await outcome(made.plane, entry)).result == "['step', 'time']"
        assert Thinks.asked == ["step", "time"]
