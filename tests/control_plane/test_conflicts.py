"""Commits that the store refuses: memory is corrected, and whatever was refused starts over, once and completely."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.control_plane.harness import (
    FakeInstance,
    history,
    outcome,
    state_of,
    stream,
    submit,
    until,
    world,
)
from tests.support import DEADLINE_S

from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.control_plane.records import Record, encode_record
from llama_deploy.errors import LlamaDeployError, TaskNotFoundError
from llama_deploy.message_queues import Envelope
from llama_deploy.messages import QueueMessage
from llama_deploy.messages.frames import Answer, CancelStep, Deliver, Events, EventsCommitted, encode_op
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.state_stores.base import HistoryRow, SharedWrite, StreamChunk, TaskRow, Transition
from llama_deploy.testing import ManualClock
from llama_deploy.types import ActionTypes, RetryPolicy, TaskDefinition, TaskResult
from llama_deploy.types.reserved import TIMER_SERVICE


async def hand_over(plane: ControlPlane, **changes: Any) -> None:
    """Record something behind the engine's back, as no one should; the next thing that it records is refused."""
    settled: asyncio.Future[LlamaDeployError | None] = asyncio.get_running_loop().create_future()
    plane.store.record(Transition(settled=settled.set_result, **changes))
    assert await settled is None


async def move_on(plane: ControlPlane, task_id: str) -> None:
    """Give a task one more history entry that the engine knows nothing of."""
    await until(lambda: plane.store.backlog == 0)
    row = await plane.store.load_task(task_id)
    assert row is not None
    newer = TaskRow(
        row.task_id,
        row.session_id,
        row.service,
        row.state,
        row.version + 1,
        row.steps,
        row.created_at,
        row.updated_at,
    )
    entry = HistoryRow(task_id, newer.version, row.updated_at, "noted", encode_record(Record(state=row.state)))
    await hand_over(plane, task=newer, expected_version=row.version, entry=entry)


async def test_an_answer_starts_over_and_counts_once() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        step = await instance.delivery()
        waiting = asyncio.ensure_future(made.plane.engine.wait_ended(entry, DEADLINE_S))
        reader = asyncio.ensure_future(stream(made.plane, "t"))
        instance.stream(step, 0, ["a"])
        await move_on(made.plane, "t")
        instance.answer(step, "once", events_from=1, events=[b'"b"'])
        await instance.acknowledged(step)
        assert (await outcome(made.plane, "t")).result == "once"
        assert [e.kind for e in await history(made.plane, "t")] == ["submitted", "noted", "answered"]
        assert made.plane.engine.statistics.conflicts == 1
        assert await waiting, "who waited for the entry in memory is told by the one that took its place"
        assert await reader == ["a", "b"]
        assert len(instance.all(Deliver)) == 1


async def test_a_failed_attempt_starts_over_and_is_tried_again() -> None:
    async with world(clock=ManualClock()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, task_id="t")
        step = await instance.delivery()
        await move_on(made.plane, "t")
        instance.fail(step)
        await instance.acknowledged(step)
        made.manual.advance(1.0)
        again = await instance.delivery(2)
        assert again.attempt == 2
        instance.answer(again)
        await outcome(made.plane, "t")


async def test_a_step_that_runs_meanwhile_is_left_alone() -> None:
    class Two(BaseOrchestrator):
        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            answers = state.setdefault("answers", [])
            if len(answers) == 2:
                data = {"result": "".join(answers)}
                return [QueueMessage(type="x", action=ActionTypes.COMPLETED_TASK, data=data)], state
            return ([] if answers else [QueueMessage(type="echo"), QueueMessage(type="echo")]), state

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            state["answers"].append(result.result)
            return state

    async with world(orchestrator=Two()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, None, task_id="t")
        first, second = await instance.delivery(1), await instance.delivery(2)
        await move_on(made.plane, "t")
        instance.answer(first, "1")
        await instance.acknowledged(first)
        instance.answer(second, "2")
        assert (await outcome(made.plane, "t")).result == "12"
        assert len(instance.all(Deliver)) == 2


@pytest.mark.parametrize("slow", [False, True], ids=["simple", "slow"])
async def test_a_refused_change_of_a_session_takes_those_that_build_on_it_along(slow: bool) -> None:
    class Counting(BaseOrchestrator):
        synchronous = not slow

        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            return (
                [] if f"result_{task_def.task_id}" in state else [QueueMessage(type="echo", data={"text": "x"})]
            ), state

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            if slow:
                await asyncio.sleep(0)
            state["count"] = state.get("count", 0) + 1
            state[f"result_{result.task_id}"] = result
            return state

    async with world(orchestrator=Counting()) as made:
        instance = FakeInstance(concurrency=100)
        await instance.connect(made.plane)
        await asyncio.gather(*[submit(made.plane, task_id=f"t{n}", session_id="s") for n in range(20)])
        steps = [await instance.delivery(number) for number in range(1, 21)]
        for task_id in ("t0", "t7"):
            await move_on(made.plane, task_id)
        for step in steps:
            instance.answer(step)
        for step in steps:
            assert (await outcome(made.plane, step.task_id)).status == "completed"
            await instance.acknowledged(step)
        assert await made.plane.views.session_state("s") == {"count": 20}
        assert made.plane.engine.statistics.conflicts >= (2 if slow else 20)
        await outcome(made.plane, await submit_and_answer(made.plane, instance))
        assert await made.plane.views.session_state("s") == {"count": 21}


async def submit_and_answer(plane: ControlPlane, instance: FakeInstance) -> str:
    number = len(instance.all(Deliver)) + 1
    entry = await submit(plane, session_id="s")
    instance.answer(await instance.delivery(number))
    return entry.row.task_id


async def test_a_submission_that_met_a_changed_session_is_decided_again() -> None:
    class AtOnce(BaseOrchestrator):
        synchronous = True

        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            state["count"] = state.get("count", 0) + 1
            return [QueueMessage(type="echo", data={"text": str(state["count"])})], state

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            return state

    async with world(orchestrator=AtOnce()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, session_id="s")
        await hand_over(made.plane, shared=[SharedWrite("s", "count", 1, b"100")])
        await submit(made.plane, session_id="s", idempotency_key="k")
        assert (await instance.delivery(2)).message == b'{"text":"101"}'
        await until(lambda: not made.plane.engine.submissions._keys_in_flight)


async def test_inputs_and_cancels_start_over() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        for number, resume in enumerate(["answer", "redeliver"], start=1):
            await submit(made.plane, task_id=resume)
            instance.park(await instance.delivery(number), resume=resume)
            await until_state(made.plane, resume, "input_required")
            await move_on(made.plane, resume)
            assert await made.plane.signals.send_input(resume, "given") == f"{resume}:1"
        assert (await outcome(made.plane, "answer")).result == "given"
        assert (await instance.delivery(3)).inputs == [b'"given"']
        await move_on(made.plane, "redeliver")
        await made.plane.signals.cancel("redeliver")
        assert await state_of(made.plane, "redeliver") == "canceled"


async def until_state(plane: ControlPlane, task_id: str, state: str) -> None:
    async def reached() -> bool:
        return await state_of(plane, task_id) == state

    await until(reached)


@pytest.mark.parametrize("kind", ["park", "ask"])
async def test_questions_start_over(kind: str) -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, task_id="t")
        step = await instance.delivery()
        await move_on(made.plane, "t")
        if kind == "park":
            instance.park(step)
            await instance.acknowledged(step)
        else:
            instance.ask(step)
        await until_state(made.plane, "t", "input_required")
        await made.plane.signals.send_input("t", "given")
        if kind == "ask":
            instance.answer(step, "given")
        assert (await outcome(made.plane, "t")).result == "given"


async def test_a_loss_starts_over() -> None:
    async with world(clock=ManualClock()) as made:
        first, second = FakeInstance(instance_id="a"), FakeInstance(instance_id="b")
        await first.connect(made.plane)
        await submit(made.plane, task_id="t")
        await first.delivery()
        await second.connect(made.plane)
        await move_on(made.plane, "t")
        first.drop()
        made.manual.advance(1.0)
        again = await second.delivery()
        assert again.attempt == 2
        second.answer(again)
        await outcome(made.plane, "t")
        assert [e.kind for e in await history(made.plane, "t")] == ["submitted", "noted", "lost", "answered"]


async def test_events_come_again_with_the_answer() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        step = await instance.delivery()
        chunk = StreamChunk("t", 0, 1, "t:1", 1, 0, 0.0, b'["a"]')
        await hand_over(made.plane, chunks=[chunk])
        reader = asyncio.ensure_future(stream(made.plane, "t"))
        instance.stream(step, 0, ["a", "b"])
        await until(lambda: entry.stale)
        instance.answer(step, events_from=0, events=[b'"a"', b'"b"', b'"c"'])
        await outcome(made.plane, "t")
        assert await reader == ["a", "b", "c"]


async def test_work_that_waited_for_a_decision_starts_over_too() -> None:
    gate = asyncio.Event()

    class Gated(BaseOrchestrator):
        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            own = state.setdefault(task_def.task_id, {"answers": []})
            if len(own["answers"]) == 3:
                data = {"result": ",".join(sorted(own["answers"]))}
                return [QueueMessage(type="x", action=ActionTypes.COMPLETED_TASK, data=data)], state
            return ([] if own["answers"] else [QueueMessage(type="echo") for _ in range(3)]), state

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            await gate.wait()
            state[result.task_id]["answers"].append(result.result)
            return state

    async with world(orchestrator=Gated()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, None, task_id="t")
        for number in (1, 2, 3):
            instance.answer(await instance.delivery(number), str(number))
        await until(lambda: len(entry.mailbox) == 2)
        await move_on(made.plane, "t")
        gate.set()
        assert (await outcome(made.plane, "t")).result == "1,2,3"
        for number in (1, 2, 3):
            await instance.acknowledged(f"t:{number}")


async def test_what_can_never_be_recorded_does_not_turn_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that refuses one task's every commit: the others go on, and nothing spins."""
    async with world(clock=ManualClock(), settings=EngineSettings(lease_s=1e9)) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, task_id="t")
        step = await instance.delivery()
        refusals = 0
        store: Any = made.plane.store
        refuse = store._refusals

        def always(transition: Transition) -> Any:
            nonlocal refusals
            if transition.task is not None and transition.task.task_id == "t":
                refusals += 1
                yield "never"
            yield from refuse(transition)

        monkeypatch.setattr(store, "_refusals", always)
        instance.answer(step)
        for _ in range(100):
            made.manual.advance(0.1)
            await asyncio.sleep(0)
        assert 2 <= refusals <= 6
        deliveries = len(instance.all(Deliver))
        other = await submit(made.plane, task_id="other")
        instance.answer(await instance.delivery(deliveries + 1), "fine")
        assert (await outcome(made.plane, other)).result == "fine"
        monkeypatch.undo()
        instance.answer(step, "in the end")
        assert (await outcome(made.plane, "t")).result == "in the end"


async def test_attempts_that_never_were_are_not_wanted() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        step = await instance.delivery()
        instance.send(
            Events("t:1", 2**63, 0, [b"1"]), Answer("t:1", 2**63, b"{}", 0.0, 0.0), Answer("t:1", 7, b"{}", 0.0, 0.0)
        )
        await until(lambda: made.plane.engine.statistics.answers_late == 2)
        assert not entry.final
        instance.answer(step, "mine")
        assert (await outcome(made.plane, entry)).result == "mine"
        assert await stream(made.plane, "t") == []


async def test_a_failure_that_waits_to_be_said_again_keeps_its_step_from_others() -> None:
    """The attempt has run, and streamed: nobody else may be given it while its failure is on the way to the store."""
    async with world(clock=ManualClock()) as made:
        first, second = FakeInstance(instance_id="first", concurrency=1), FakeInstance(instance_id="second")
        await first.connect(made.plane)
        await submit(made.plane, task_id="t")
        step = await first.delivery()
        first.stream(step, 0, ["a"])
        await second.connect(made.plane)
        store = made.plane.store
        record, refusals = store.record, 2

        def refuse(transition: Transition) -> None:
            nonlocal refusals
            if refusals and transition.moved and transition.task is not None:
                refusals -= 1
                transition.expected_version += 100
            record(transition)

        store.record = refuse  # type: ignore[method-assign]
        first.fail(step)
        await until(lambda: made.plane.engine.statistics.conflicts == 2 and "t" in made.plane.engine.cache.tasks)
        await until(lambda: made.manual.timers_waiting)
        made.plane.queue.publish([Envelope(step.step_id, 1, "echo", encode_op(step))])  # carried twice
        await until(lambda: not made.plane.queue.statistics("echo").waiting)
        assert [s.attempt for s in second.all(Deliver)] == []
        made.manual.advance(1.0)
        await first.acknowledged(step)
        made.manual.advance(1.0)
        await until(lambda: len(first.all(Deliver)) + len(second.all(Deliver)) == 2)
        again = (first.all(Deliver)[1:] + second.all(Deliver))[0]
        assert again.attempt == 2


async def test_what_was_not_wanted_because_of_an_end_is_wanted_when_that_end_is_refused() -> None:
    """One step ends the task by its failure, and the store refuses that: the other step's answer and events stand."""

    class Two(BaseOrchestrator):
        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            return ([] if "sent" in state else [QueueMessage(type="echo") for _ in range(2)]), {**state, "sent": True}

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            return state

    async with world(orchestrator=Two(), clock=ManualClock()) as made:
        instance = FakeInstance(retry=RetryPolicy(max_retries=0))
        await instance.connect(made.plane)
        await submit(made.plane, None, task_id="t")
        first, second = await instance.delivery(1), await instance.delivery(2)
        record, refusals = made.plane.store.record, 2

        def refuse(transition: Transition) -> None:
            nonlocal refusals
            if refusals and transition.task is not None and transition.task.state == "failed":
                refusals -= 1
                transition.expected_version += 100
            record(transition)

        made.plane.store.record = refuse  # type: ignore[method-assign]
        instance.fail(first)
        instance.stream(second, 0, ["a"])
        instance.answer(second, "good", events_from=1, events=[b'"b"'])
        await instance.acknowledged(second)
        assert [(e.step_id, e.kind) for e in await history(made.plane, "t")][1:] == [("t:2", "answered")]
        made.manual.advance(1.0)
        await instance.acknowledged(first)
        assert (await outcome(made.plane, "t")).step_id == "t:1"
        assert await stream(made.plane, "t") == ["a", "b"]
        assert len(instance.all(Deliver)) == 2


async def test_who_holds_a_step_is_told_of_the_end_although_the_task_was_loaded_again() -> None:
    """The end takes its steps away from memory, then is refused: who held them is found by the connections."""
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, task_id="t")
        step = await instance.delivery()
        await move_on(made.plane, "t")
        await made.plane.signals.cancel("t")
        assert made.plane.engine.statistics.conflicts == 1
        assert (await instance.got(CancelStep)).step_id == step.step_id
        assert instance.port is not None
        assert not instance.port.held


async def test_what_was_begun_before_a_crash_does_not_begin_again_under_its_number() -> None:
    """The commit of another step is refused before the sweeper has looked at what was begun."""

    class Two(BaseOrchestrator):
        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            return ([] if "sent" in state else [QueueMessage(type="echo") for _ in range(2)]), {**state, "sent": True}

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            return state

    async with world(orchestrator=Two(), clock=ManualClock(), settings=EngineSettings(lease_s=1e9)) as made:
        first = FakeInstance(instance_id="first")
        await first.connect(made.plane)
        await submit(made.plane, None, task_id="t")
        begun, other = await first.delivery(1), await first.delivery(2)
        first.stream(begun, 0, ["a"])
        await first.got(EventsCommitted)
        await made.crash()
        second = FakeInstance(instance_id="second")
        await second.connect(await made.start(), held=[(other.step_id, 1)])
        record, refusals = made.plane.store.record, 2

        def refuse(transition: Transition) -> None:
            nonlocal refusals
            if refusals and transition.answered:
                refusals -= 1
                transition.expected_version += 100
            record(transition)

        made.plane.store.record = refuse  # type: ignore[method-assign]
        second.answer(other)
        await until(lambda: made.plane.engine.statistics.conflicts == 2 and "t" in made.plane.engine.cache.tasks)
        made.manual.advance(2.0)
        await second.acknowledged(other)
        made.manual.advance(40.0)
        assert (await second.delivery()).attempt == 2


async def test_a_timer_that_waited_for_a_decision_when_its_task_was_loaded_again_is_answered() -> None:
    decides, may_decide = asyncio.Event(), asyncio.Event()

    class Both(BaseOrchestrator):
        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            if state.get("answers") == 2:
                return [QueueMessage(type="nobody", action=ActionTypes.COMPLETED_TASK, data={"result": "end"})], state
            messages = [QueueMessage(type="echo"), QueueMessage(type=TIMER_SERVICE, delay_s=5.0)]
            return ([] if "sent" in state else messages), {**state, "sent": True}

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            decides.set()
            await may_decide.wait()
            return {**state, "answers": state.get("answers", 0) + 1}

    async with world(orchestrator=Both(), clock=ManualClock(), settings=EngineSettings(lease_s=1e9)) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, None, task_id="t")
        instance.answer(await instance.delivery())
        await decides.wait()
        made.manual.advance(6.0)
        await until(lambda: entry.mailbox)  # the timer
        made.plane.engine.recording.refused(entry)  # as after the commit of whatever else is said about the task
        assert entry.stale
        may_decide.set()
        await until(lambda: "t" in made.plane.engine.cache.tasks)
        made.manual.advance(60.0)
        await until(lambda: made.plane.engine.statistics.ended == 1)


async def test_who_waits_for_a_task_that_was_loaded_again_is_told_when_it_changes_hands() -> None:
    async with world(clock=ManualClock()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        step = await instance.delivery()
        waiting = asyncio.create_task(made.plane.engine.wait_ended(entry, None))
        await until(lambda: entry.ended_callbacks)
        await move_on(made.plane, "t")
        instance.fail(step)
        await instance.acknowledged(step)
        assert entry.stale
        made.plane.takeover.lost([made.plane.leadership.shard("t")])
        with pytest.raises(TaskNotFoundError):  # nobody else leads it here
            await asyncio.wait_for(waiting, DEADLINE_S)


async def test_a_step_whose_task_changed_hands_while_its_answer_was_decided_on_can_be_taken_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thinking, go_on = asyncio.Event(), asyncio.Event()

    class Slow(BaseOrchestrator):
        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            return [QueueMessage(type="echo")], state

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            thinking.set()
            await go_on.wait()
            return state

    async with world(orchestrator=Slow()) as made:
        engine, instance = made.plane.engine, FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, None, task_id="t")
        instance.answer(await instance.delivery())
        await asyncio.wait_for(thinking.wait(), DEADLINE_S)
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(engine.leadership, "epoch_of", lambda _: None)
            elsewhere.setattr(engine.leadership, "keeps", lambda _: False)
            made.plane.takeover.lost([engine.leadership.shard("t")])
            go_on.set()
            await until(lambda: not engine._background)
        entry = await engine.cache.load("t")  # it is led here again
        assert entry is not None
        engine.publish(entry, list(entry.open.values()))
        assert (await instance.delivery(2)).step_id == "t:1"
