"""Retries that somebody asked for: whose policy counts, what is final, and what follows the last attempt."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.control_plane.harness import FakeInstance, World, history, outcome, recorded, submit, until, world

from llama_deploy.control_plane import EngineSettings
from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.messages import QueueMessage
from llama_deploy.messages.frames import Deliver
from llama_deploy.orchestrators import BaseOrchestrator, get_result_key
from llama_deploy.testing import ManualClock
from llama_deploy.types import RetryPolicy, StepOptions, TaskDefinition, TaskOptions, TaskResult

PATIENT = EngineSettings(lease_s=1e9)
NEVER = RetryPolicy(max_retries=0)


def twice(when_exhausted: str = "fail", **changes: Any) -> RetryPolicy:
    """Two retries, a second and then three seconds later."""
    fields = {"max_retries": 2, "initial_s": 1.0, "multiplier": 3.0, "jitter": 0.0, "when_exhausted": when_exhausted}
    return RetryPolicy.model_validate({**fields, **changes})


class OneStep(BaseOrchestrator):
    """One message for `echo` with these options; it never sees a failure."""

    def __init__(self, options: StepOptions | None = None) -> None:
        self.options = options

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        if get_result_key(task_def.task_id) in state:
            return [], state
        return [QueueMessage(type="echo", data={"text": "x"}, options=self.options)], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, get_result_key(result.task_id): result}


async def fail_all(made: World, instance: FakeInstance, entry: TaskEntry, **error: Any) -> list[Deliver]:
    """Fail what comes, moving the clock, until the task ends or pauses; the deliveries that there were."""
    number = 0
    while not entry.final:
        number += 1
        step = await instance.delivery(number)
        before = entry.row.version
        instance.fail(step, f"attempt {step.attempt}", **error)
        await recorded(entry, before + 1)
        if entry.row.paused:
            break
        made.manual.advance(30.0)
    return list(instance.all(Deliver))


@pytest.mark.parametrize(
    ("of_step", "of_task", "of_service", "attempts"),
    [
        (None, None, twice(), 3),
        (None, twice(), NEVER, 3),
        (twice(), NEVER, NEVER, 3),
        (NEVER, twice(), twice(), 1),
        (None, NEVER, twice(), 1),
    ],
)
async def test_the_most_specific_retry_policy_counts(
    of_step: RetryPolicy | None, of_task: RetryPolicy | None, of_service: RetryPolicy, attempts: int
) -> None:
    orchestrator = OneStep(StepOptions(retry=of_step) if of_step else None)
    async with world(clock=ManualClock(), orchestrator=orchestrator, settings=PATIENT) as made:
        instance = FakeInstance(retry=of_service)
        await instance.connect(made.plane)
        entry = await submit(made.plane, options=TaskOptions(retry=of_task) if of_task else None)
        assert len(await fail_all(made, instance, entry)) == attempts
        assert (await outcome(made.plane, entry)).status == "failed"


async def test_a_policy_of_the_task_counts_where_the_orchestrator_handles_failures_too() -> None:
    async with world(clock=ManualClock(), settings=PATIENT) as made:  # SimpleOrchestrator would try it four times
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, options=TaskOptions(retry=twice(max_retries=1)))
        assert len(await fail_all(made, instance, entry)) == 2


@pytest.mark.parametrize("error", [{"type": "ValueError"}, {"code": "LD777"}, {"retryable": False}])
async def test_what_is_final_is_not_tried_again_and_does_not_pause(error: dict[str, Any]) -> None:
    async with world(clock=ManualClock(), orchestrator=OneStep(), settings=PATIENT) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        policy = twice("pause", non_retryable=("ValueError", "LD777"))
        entry = await submit(made.plane, options=TaskOptions(retry=policy))
        assert len(await fail_all(made, instance, entry, **error)) == 1
        assert (await outcome(made.plane, entry)).status == "failed"


async def test_a_task_whose_attempts_are_used_up_pauses_and_a_person_has_it_go_on(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", clock=ManualClock(), settings=PATIENT) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, options=TaskOptions(retry=twice("pause")), task_id="t")
        assert [d.attempt for d in await fail_all(made, instance, entry, type="OddError")] == [1, 2, 3]
        view = made.plane.views.task(entry)
        because = "attempt 3 of echo failed and was the last: OddError: attempt 3"
        assert (view.state.value, view.paused) == ("working", True)
        assert view.waiting_for is not None
        assert view.waiting_for.startswith("somebody to resume it (paused: ")
        assert because in view.waiting_for
        await made.crash()
        instance.received.clear()
        await made.start()
        await instance.connect(made.plane)
        made.manual.advance(3600.0)
        entry = await made.plane.engine.cache.get("t")
        assert because in (made.plane.views.task(entry).waiting_for or "")
        assert instance.all(Deliver) == []
        await made.plane.pauses.resume("t", by="ann")
        assert [d.attempt for d in await fail_all(made, instance, entry)] == [4, 5, 6], "counted anew"
        await made.plane.pauses.resume("t")
        instance.answer(await instance.delivery(4))
        assert (await outcome(made.plane, "t")).attempt == 7
        entries = await history(made.plane, "t")
        kinds = ["submitted", "retrying", "retrying", "paused", "resumed", "retrying", "retrying", "paused", "resumed"]
        assert [e.kind for e in entries] == [*kinds, "answered"]
        assert (entries[3].step_id, entries[3].attempt) == ("t:1", 3)
        assert entries[3].error is not None
        assert entries[3].error.type == "OddError"
        assert entries[4].by == "ann"


@pytest.mark.parametrize("policy", [None, twice(jitter=1.0), RetryPolicy(jitter=0.5)])
async def test_a_service_is_left_alone_as_long_as_it_has_asked(policy: RetryPolicy | None) -> None:
    """Without a policy of anybody's it is the orchestrator that asks for the step again."""
    async with world(clock=ManualClock(), settings=PATIENT) as made:
        for number in range(20):
            instance = FakeInstance(retry=policy, concurrency=50)
            await instance.connect(made.plane)
            entry = await submit(made.plane, task_id=f"t{number}")
            failed_at = made.manual.now()
            instance.fail(await instance.delivery(), retry_after_s=100.0)
            await recorded(entry, 2)
            [step] = entry.open.values()
            assert failed_at + 100.0 <= step.due_at <= failed_at + 220.0
            instance.drop()


async def test_losses_are_counted_apart_and_pause_a_task_as_well() -> None:
    settings = EngineSettings(lease_s=1e9, attempts_max=4)
    async with world(clock=ManualClock(), orchestrator=OneStep(), settings=settings) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, options=TaskOptions(retry=twice("pause", max_retries=9)))
        step_id = (await instance.delivery()).step_id
        instance.fail(await instance.delivery())
        await recorded(entry, 2)
        made.manual.advance(1.0)
        await instance.delivery(2)
        for number in (2, 3):
            made.plane.signals.lost([step_id], instance.instance_id, "it fell over")
            await instance.delivery(number + 1)
        assert (entry.open[step_id].failures, entry.open[step_id].losses) == (1, 2)
        made.plane.signals.lost([step_id], instance.instance_id, "it fell over")
        await until(lambda: entry.settled_seq == 5)
        assert entry.row.paused
        assert "attempt 4 of echo was lost and was the last: it fell over" in (
            made.plane.views.task(entry).waiting_for or ""
        )
        await made.plane.pauses.resume(entry.row.task_id)
        assert (await instance.delivery(5)).attempt == 5
        assert [e.kind for e in await history(made.plane, entry)][1:] == [
            "retrying", "lost", "lost", "paused", "resumed",
        ]  # fmt: skip


async def test_what_is_handed_back_on_purpose_counts_as_nothing(tmp_path: Path) -> None:
    settings = EngineSettings(lease_s=1e9, attempts_max=2)
    async with world(tmp_path / "s.db", clock=ManualClock(), settings=settings) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, task_id="t")
        for number in range(1, 4):
            await instance.delivery(number)
            made.plane.signals.lost(["t:1"], instance.instance_id, "handed back", on_purpose=True)
        await instance.delivery(4)
        await made.crash()
        await made.start()
        entry = await made.plane.engine.cache.get("t")
        step = entry.open["t:1"]
        assert (step.attempt, step.failures, step.losses) == (4, 0, 0)


class Rewording(BaseOrchestrator):
    """Tries a failed step again with other data and options; the third time it names the step and says no more."""

    handles_failures: ClassVar[bool] = True

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        mine = state.get(task_def.task_id) or {}
        if get_result_key(task_def.task_id) in state:
            return [], state
        failed = mine.get("failed", 0)
        if not failed:
            return [QueueMessage(type="echo", data={"text": "first"})], state
        if failed == 1:
            options = StepOptions(run_timeout_s=5.0)
            return [QueueMessage(type="echo", data={"text": "second"}, step_id=mine["step"], options=options)], state
        return [QueueMessage(type="echo", step_id=mine["step"])], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        if result.status == "completed":
            return {**state, get_result_key(result.task_id): result}
        mine = state.get(result.task_id) or {}
        return {**state, result.task_id: {"failed": mine.get("failed", 0) + 1, "step": result.step_id}}


async def test_an_orchestrator_may_try_a_step_again_with_other_data(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", orchestrator=Rewording()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, task_id="t")
        first = await instance.delivery()
        instance.fail(first)
        second = await instance.delivery(2)
        assert (first.message, second.message) == (b'{"text":"first"}', b'{"text":"second"}')
        assert (second.step_id, second.attempt, second.run_timeout_s) == ("t:1", 2, 5.0)
        instance.drop()
        await made.crash()
        instance.received.clear()
        await made.start()
        await instance.connect(made.plane)
        third = await instance.delivery()
        assert (third.message, third.run_timeout_s) == (b'{"text":"second"}', 5.0), "known after a restart"
        instance.fail(third)
        fourth = await instance.delivery(2)
        assert fourth.message == b'{"text":"second"}', "no data: what was sent before stays"
        instance.answer(fourth)
        await outcome(made.plane, "t")
        entries = await history(made.plane, "t")
        assert [m["data"] for e in entries for m in e.messages] == [{"text": "first"}, {"text": "second"}]
        assert [m["step_id"] for e in entries for m in e.messages] == ["t:1", "t:1"]
