"""People: steps that are parked or ask while they run, and what happens to every input that anybody gives."""

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
    stream,
    submit,
    until,
    world,
)
from tests.support.passing import time_passes

from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.errors import (
    InvalidRequestError,
    LimitExceededError,
    LlamaDeployError,
    NoInputExpectedError,
    TaskEndedError,
    TaskNotFoundError,
)
from llama_deploy.messages import QueueMessage
from llama_deploy.messages.frames import CancelStep, Deliver, DeliverInput, ParkRefused
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.services import HumanService, ServiceContext, service
from llama_deploy.services.base import Parked, Service, StepContext
from llama_deploy.testing import ManualClock
from llama_deploy.types import ActionTypes, RetryPolicy, ServiceDefinition, TaskDefinition, TaskResult


async def asked(plane: ControlPlane, task_id: str, prompt: str | None = None) -> dict[str, Any]:
    """Wait until a person is asked; the prompt as the API shows it."""
    entry = await plane.engine.cache.get(task_id)

    def found() -> dict[str, Any] | None:
        view = plane.views.task(entry)
        given: dict[str, Any] | None = view.prompt if view.state.value == "input_required" else None
        return given if given and prompt in (None, given["prompt"]) else None

    given: dict[str, Any] = await until(found)
    return given


# --- parked ---------------------------------------------------------------------------------------------------------


async def test_a_person_is_asked_and_the_answer_is_the_steps() -> None:
    async with world() as made:
        local = LinkedRunner([HumanService(prompt="Is {input} right?")])
        await local.connect(made.plane)
        entry = await submit(made.plane, "human", "two", task_id="t")
        assert await asked(made.plane, "t") == {"step_id": "t:1", "prompt": "Is two right?"}
        assert made.plane.views.task(entry).waiting_for == "a person's input for human: Is two right?"
        await until(lambda: not local.runner.steps)
        assert made.plane.views.service("human").running == 0, "a parked step takes no place"
        assert await made.plane.signals.send_input("t", "yes", by="somebody") == "t:1"
        result = await outcome(made.plane, entry)
        assert (result.result, result.kind, result.service) == ("yes", "text", "human")
        entries = await history(made.plane, entry)
        assert [(e.kind, e.state.value) for e in entries] == [
            ("submitted", "working"),
            ("input_requested", "input_required"),
            ("answered", "completed"),
        ]
        assert entries[1].prompt == {"prompt": "Is two right?"}
        assert entries[2].by == "somebody"
        await local.stop()


@pytest.mark.parametrize("value", [{"a": [1]}, 5, None, True, [], "", "text"])
async def test_an_answer_may_be_any_json_value(value: Any) -> None:
    async with world() as made:
        local = LinkedRunner([HumanService()])
        await local.connect(made.plane)
        await submit(made.plane, "human", task_id="t")
        await asked(made.plane, "t")
        await made.plane.signals.send_input("t", value)
        assert (await outcome(made.plane, "t")).output == value
        await local.stop()


async def test_answering_one_task_does_not_touch_the_other() -> None:
    async with world() as made:
        local = LinkedRunner([HumanService()])
        await local.connect(made.plane)
        for task_id in ("a", "b"):
            await submit(made.plane, "human", task_id=task_id, session_id="s")
            await asked(made.plane, task_id)
        await made.plane.signals.send_input("a", "for a")
        assert (await outcome(made.plane, "a")).result == "for a"
        assert await state_of(made.plane, "b") == "input_required"
        assert len(await history(made.plane, "b")) == 2
        await made.plane.signals.send_input("b", "for b")
        assert (await outcome(made.plane, "b")).result == "for b"
        await local.stop()


async def test_an_answer_of_another_type_is_asked_for_again_with_the_reason() -> None:
    async with world() as made:
        local = LinkedRunner([HumanService(answer=int)])
        await local.connect(made.plane)
        await submit(made.plane, "human", "how many?", task_id="t")
        assert (await asked(made.plane, "t"))["schema"] == {"type": "integer"}
        await made.plane.signals.send_input("t", "many")
        entry = await made.plane.engine.cache.get("t")
        await recorded(entry, 4)
        assert "problem" in await asked(made.plane, "t")
        await made.plane.signals.send_input("t", 3)
        assert (await outcome(made.plane, "t")).value == 3
        await local.stop()


async def test_what_cannot_be_input_is_refused() -> None:
    settings = EngineSettings(payload_bytes_max=1000)
    async with world(settings=settings) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        step = await instance.delivery()
        with pytest.raises(NoInputExpectedError, match="not waiting for input"):
            await made.plane.signals.send_input("t", "too early")
        instance.park(step)
        await asked(made.plane, "t")
        for unfit in (object(), "\ud800", b"\xff\xfe" and {"a": object()}):
            with pytest.raises(InvalidRequestError):
                await made.plane.signals.send_input("t", unfit)
        with pytest.raises(LimitExceededError, match="payload_bytes_max"):
            await made.plane.signals.send_input("t", "x" * 2000)
        with pytest.raises(NoInputExpectedError, match="is not open"):
            await made.plane.signals.send_input("t", "x", step_id="t:9")
        with pytest.raises(TaskNotFoundError):
            await made.plane.signals.send_input("nobody", "x")
        assert len(await history(made.plane, "t")) == 2
        await made.plane.signals.send_input("t", "x", step_id="t:1")
        await outcome(made.plane, entry)
        with pytest.raises(TaskEndedError):
            await made.plane.signals.send_input("t", "too late")


async def test_with_several_questions_the_step_must_be_named() -> None:
    class Two(BaseOrchestrator):
        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            answers = state.get("answers")
            if answers is None:
                return [QueueMessage(type="echo", tag="a"), QueueMessage(type="echo", tag="b")], {"answers": {}}
            if len(answers) < 2:
                return [], state
            data = {"result": answers["a"] + answers["b"]}
            return [QueueMessage(type="x", action=ActionTypes.COMPLETED_TASK, data=data)], state

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            state["answers"][result.tag] = result.result
            return state

    async with world(orchestrator=Two()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, None, task_id="t")
        instance.park(await instance.delivery(1), "first")
        instance.ask(await instance.delivery(2), "second")
        await recorded(entry, 3)
        with pytest.raises(NoInputExpectedError, match="several") as caught:
            await made.plane.signals.send_input("t", "x")
        assert caught.value.details["steps"] == ["t:1", "t:2"]
        await made.plane.signals.send_input("t", "A", step_id="t:1")
        assert await state_of(made.plane, "t") == "input_required"
        assert await made.plane.signals.send_input("t", "B") == "t:2"
        assert await state_of(made.plane, "t") == "working"
        given = await instance.got(DeliverInput)
        assert (given.step_id, given.number, given.value) == ("t:2", 1, b'"B"')
        instance.answer(instance.all(Deliver)[1], "b")
        assert (await outcome(made.plane, entry)).result == "Ab"


async def test_an_input_is_in_the_history_before_anybody_is_told_that_it_was_received(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        for resume in ("answer", "redeliver"):
            await submit(made.plane, task_id=resume)
            instance.park(await instance.delivery(len(instance.all(Deliver)) + 1), resume=resume)
            await asked(made.plane, resume)
            await made.plane.signals.send_input(resume, "x")
            assert len(await made.plane.store.load_history(resume)) == 3


async def test_a_parked_step_is_canceled() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        instance.park(await instance.delivery())
        await recorded(entry, 2)
        await made.plane.signals.cancel(entry.row.task_id)
        assert (await outcome(made.plane, entry)).status == "canceled"
        assert instance.all(CancelStep) == []
        assert await made.plane.store.load_deliveries(entry.row.task_id) == []


async def test_two_answers_at_once_one_counts() -> None:
    class Slow(BaseOrchestrator):
        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            return ([] if f"result_{task_def.task_id}" in state else [QueueMessage(type="echo")]), state

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            await asyncio.sleep(0)
            return {**state, f"result_{result.task_id}": result}

    async with world(orchestrator=Slow()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, None, task_id="t")
        instance.park(await instance.delivery())
        await recorded(entry, 2)
        told = await asyncio.gather(
            *[made.plane.signals.send_input("t", f"n{n}") for n in range(3)], return_exceptions=True
        )
        assert told[0] == "t:1"
        assert [type(one) for one in told[1:]] == [TaskEndedError, TaskEndedError]
        assert (await outcome(made.plane, entry)).result == "n0"


async def test_an_answer_that_meets_a_cancel_is_not_said_to_be_received() -> None:
    gate = asyncio.Event()

    class Gated(BaseOrchestrator):
        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            return [QueueMessage(type="echo")], state

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            await gate.wait()
            return state

    async with world(orchestrator=Gated()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, None, task_id="t")
        instance.park(await instance.delivery())
        await recorded(entry, 2)
        giving = asyncio.ensure_future(made.plane.signals.send_input("t", "x"))
        await until(lambda: entry.busy)
        await made.plane.signals.cancel("t")
        gate.set()
        with pytest.raises(TaskEndedError):
            await giving


async def test_a_policy_may_put_the_same_question_again() -> None:
    class Strict(BaseOrchestrator):
        handles_failures: ClassVar[bool] = True

        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            if state.get("given") == "yes":
                return [QueueMessage(type="x", action=ActionTypes.COMPLETED_TASK, data={"result": "agreed"})], state
            return [QueueMessage(type="human", step_id=state.get("again"), data={"text": "agree?"})], state

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            return {"given": result.result, "again": result.step_id}

    async with world(orchestrator=Strict()) as made:
        instance = FakeInstance(["human"])
        await instance.connect(made.plane)
        entry = await submit(made.plane, None, task_id="t")
        for attempt, answer in enumerate(["no", "never", "yes"], start=1):
            step = await instance.delivery(attempt)
            assert (step.step_id, step.attempt) == ("t:1", attempt)
            instance.park(step)
            await asked(made.plane, "t")
            await made.plane.signals.send_input("t", answer)
        assert (await outcome(made.plane, entry)).result == "agreed"


# --- parked, to go on -----------------------------------------------------------------------------------------------


class Interview(Service):
    """Asks for three words, letting go of its instance between them; streams what it hears."""

    def __init__(self) -> None:
        self.definition = ServiceDefinition(service_name="echo", description="", retry=RetryPolicy(max_retries=0))

    async def run(self, context: StepContext) -> TaskResult | Parked:
        given = [context.inputs.get_nowait() for _ in range(context.inputs.qsize())]
        known = int(context.snapshot or b"0")
        for word in given[known:]:
            context.stream(word)
        if len(given) == 3:
            return TaskResult(task_id="", history=[], result=" ".join(given))
        prompt = {"prompt": f"word {len(given) + 1}"}
        return Parked(prompt=prompt, resume="redeliver", snapshot=b"%d" % len(given), consumed=len(given))


async def test_a_step_that_is_parked_goes_on_with_its_snapshot_and_all_inputs() -> None:
    async with world() as made:
        local = LinkedRunner([Interview()])
        await local.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        for number, word in enumerate(["one", "two", "three"], start=1):
            await asked(made.plane, "t", f"word {number}")
            await made.plane.signals.send_input("t", word)
        result = await outcome(made.plane, entry)
        assert (result.result, result.attempt) == ("one two three", 1)
        assert await stream(made.plane, "t") == ["one", "two", "three"]
        await local.stop()


async def test_a_parked_step_goes_on_after_restarts_and_on_other_instances() -> None:
    async with world(settings=EngineSettings(recovery_grace_s=0.0)) as made:
        await submit(made.plane, task_id="t", wait_for_service=True)
        for number, word in enumerate(["one", "two", "three"], start=1):
            local = LinkedRunner([Interview()], instance_id=str(number))
            await local.connect(made.plane)
            await asked(made.plane, "t", f"word {number}")
            local.die()
            await made.crash()
            await made.start()
            await made.plane.signals.send_input("t", word)
        local = LinkedRunner([Interview()], instance_id="last")
        await local.connect(made.plane)
        assert (await outcome(made.plane, "t")).result == "one two three"
        events = [event for event in await stream(made.plane, "t") if "llama_deploy" not in event]
        assert events == ["one", "two", "three"]
        await local.stop()


async def test_parking_is_refused_when_a_newer_input_is_there() -> None:
    async with world() as made:
        instance = FakeInstance(kind="workflow")
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        step = await instance.delivery()
        await made.plane.signals.send_input("t", {"event": "early"})
        assert (await instance.got(DeliverInput)).value == b'{"event":"early"}'
        instance.park(step, resume="redeliver", consumed=0)
        assert (await instance.got(ParkRefused)).number == 1
        assert await state_of(made.plane, "t") == "working"
        instance.park(step, resume="redeliver", consumed=1)
        await asked(made.plane, "t")
        assert entry.open["t:1"].parked == 3


async def test_an_input_that_overtakes_the_parking_is_not_lost() -> None:
    """The runner parks while an input is on its way to it: it goes on with that input, here and at once."""
    parks = asyncio.Event()

    class Racing(Service):
        def __init__(self) -> None:
            self.definition = ServiceDefinition(service_name="echo", description="", kind="workflow")

        async def run(self, context: StepContext) -> TaskResult | Parked:
            if context.inputs.empty():
                await parks.wait()
                return Parked(prompt={"prompt": "?"}, resume="redeliver", consumed=0)
            return TaskResult(task_id="", history=[], result=str(await context.inputs.get()))

    async with world() as made:
        local = LinkedRunner([Racing()])
        await local.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        await until(lambda: "t:1" in local.runner.steps)
        parks.set()
        await made.plane.signals.send_input("t", {"event": "x"})
        assert (await outcome(made.plane, entry)).result == "{'event': 'x'}"
        await local.stop()


async def test_an_older_delivery_that_cannot_be_parked_is_given_the_inputs_that_it_lacks() -> None:
    """A queue may carry a delivery twice: the second one was made before the person answered."""
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await submit(made.plane, task_id="t")
        step = await instance.delivery()
        instance.park(step, resume="redeliver", consumed=0)
        await asked(made.plane, "t")
        await made.plane.signals.send_input("t", "yes")
        newer = await instance.delivery(2)
        assert (newer.inputs, instance.all(DeliverInput)) == ([b'"yes"'], [])
        instance.park(step, resume="redeliver", consumed=0)  # what the older delivery says
        assert (await instance.got(ParkRefused)).number == 1
        given = await instance.got(DeliverInput)
        assert (given.number, given.value) == (1, b'"yes"')


# --- asking while running -------------------------------------------------------------------------------------------


@service(concurrency=10, run_timeout_s=60, retry=RetryPolicy(max_retries=0))
async def interview(context: ServiceContext, text: str) -> str:
    """Asks two things, and holds its place meanwhile."""
    first = await context.ask("first?")
    second = await context.ask("second?", choices=["a", "b"])
    return f"{text}: {first}, {second} ({context.attempt})"


async def test_a_running_step_asks_and_its_deadline_stands_still() -> None:
    async with world() as made:
        local = LinkedRunner([interview])
        await local.connect(made.plane)
        entry = await submit(made.plane, "interview", "x", task_id="t")
        assert (await asked(made.plane, "t", "first?"))["step_id"] == "t:1"
        assert made.plane.views.service("interview").running == 1
        await time_passes(600.0)  # longer than its run deadline
        await made.plane.signals.send_input("t", 1)
        assert (await asked(made.plane, "t", "second?"))["choices"] == ["a", "b"]
        await made.plane.signals.send_input("t", 2)
        assert (await outcome(made.plane, entry)).result == "x: 1, 2 (1)"
        await local.stop()


async def test_recorded_answers_are_not_asked_for_again_after_a_crash() -> None:
    async with world(settings=EngineSettings(recovery_grace_s=0.0)) as made:
        local = LinkedRunner([interview], instance_id="first")
        await local.connect(made.plane)
        await submit(made.plane, "interview", "x", task_id="t")
        await asked(made.plane, "t", "first?")
        await made.plane.signals.send_input("t", 1)
        await asked(made.plane, "t", "second?")
        local.die()
        await made.crash()
        await made.start()
        local = LinkedRunner([interview], instance_id="second")
        await local.connect(made.plane)
        await asked(made.plane, "t", "second?")
        await made.plane.signals.send_input("t", 2)
        assert (await outcome(made.plane, "t")).result.startswith("x: 1, 2")
        await local.stop()


# --- in a thread ------------------------------------------------------------------------------------------------------


async def test_a_function_in_a_thread_asks_waits_and_is_given_recorded_answers_after_a_crash() -> None:
    begun: list[int] = []

    @service(run_timeout_s=60, concurrency=1)
    def order(context: ServiceContext, item: str) -> str:
        begun.append(context.attempt)
        count = context.blocking.ask(f"how many {item}?", unit="boxes")
        return f"{count} {context.blocking.ask('of which colour?')} {item}"

    async with world() as made:
        first = LinkedRunner([order])
        await first.connect(made.plane)
        entry = await submit(made.plane, "order", '{"item": "apples"}')
        prompt = await asked(made.plane, entry.row.task_id, "how many apples?")
        assert prompt["unit"] == "boxes"
        await time_passes(600.0)  # longer than it may run
        await made.plane.signals.send_input(entry.row.task_id, 3)
        await asked(made.plane, entry.row.task_id, "of which colour?")
        assert begun == [1]
        first.die()
        second = LinkedRunner([order], instance_id="second")
        await second.connect(made.plane)
        await asked(made.plane, entry.row.task_id, "of which colour?")
        await made.plane.signals.send_input(entry.row.task_id, "red")
        assert (await outcome(made.plane, entry)).result == "3 red apples"
        assert begun == [1, 2]
        await second.stop()


async def test_a_thread_that_waits_for_a_person_is_woken_when_its_task_is_canceled() -> None:
    seen: list[str] = []

    @service
    def asks(context: ServiceContext) -> Any:
        try:
            return context.blocking.ask("now?")
        except LlamaDeployError as error:
            seen.append(error.code)
            raise

    async with world() as made:
        local = LinkedRunner([asks])
        await local.connect(made.plane)
        entry = await submit(made.plane, "asks", "{}")
        await asked(made.plane, entry.row.task_id, "now?")
        await made.plane.signals.cancel(entry.row.task_id)
        await until(lambda: seen == ["LD540"])
        await until(lambda: made.plane.views.service("asks").running == 0)
        assert made.plane.views.service("asks").instances[0].left_behind == 0
        await local.stop()


async def test_a_question_survives_a_restart_of_the_control_plane_alone() -> None:
    async with world() as made:
        local = LinkedRunner([interview])
        await local.connect(made.plane)
        await submit(made.plane, "interview", "x", task_id="t")
        await asked(made.plane, "t", "first?")
        await made.crash()
        await local.connect(await made.start())
        await asked(made.plane, "t", "first?")
        await made.plane.signals.send_input("t", 1)
        await asked(made.plane, "t", "second?")
        await made.plane.signals.send_input("t", 2)
        assert (await outcome(made.plane, "t")).result == "x: 1, 2 (1)"
        assert sum(e.kind == "input_requested" for e in await history(made.plane, "t")) == 2
        await local.stop()


async def test_an_input_whose_delivery_is_lost_with_the_connection_arrives_after_it() -> None:
    async with world() as made:
        local = LinkedRunner([interview])
        await local.connect(made.plane)
        await submit(made.plane, "interview", "x", task_id="t")
        await asked(made.plane, "t", "first?")
        local.drop()
        await made.plane.signals.send_input("t", 1)
        await local.connect(made.plane)
        await asked(made.plane, "t", "second?")
        await made.plane.signals.send_input("t", 2)
        assert (await outcome(made.plane, "t")).result == "x: 1, 2 (1)"
        kinds = [e.kind for e in await history(made.plane, "t")]
        assert kinds == ["submitted", "input_requested", "input", "input_requested", "input", "answered"]
        await local.stop()


async def test_an_input_while_its_instance_is_away_goes_to_the_next_attempt() -> None:
    async with world(clock=ManualClock()) as made:
        first, second = FakeInstance(instance_id="a"), FakeInstance(instance_id="b")
        await first.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        first.ask(await first.delivery())
        await recorded(entry, 2)
        first.drop()
        await made.plane.signals.send_input("t", "while away")
        await second.connect(made.plane)
        made.manual.advance(1.0)
        step = await second.delivery()
        assert (step.attempt, step.inputs) == (2, [b'"while away"'])
        second.answer(step)
        await outcome(made.plane, entry)


async def test_a_loss_takes_the_question_back() -> None:
    async with world(clock=ManualClock()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        instance.ask(await instance.delivery())
        await recorded(entry, 2)
        instance.drop()
        made.manual.advance(1.0)
        await recorded(entry, 3)
        assert await state_of(made.plane, "t") == "working"
        with pytest.raises(NoInputExpectedError):
            await made.plane.signals.send_input("t", "nobody asks any more")


async def test_a_question_that_is_repeated_is_recorded_once() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        step = await instance.delivery()
        instance.ask(step)
        instance.ask(step)
        await recorded(entry, 2)
        await asyncio.sleep(0)
        assert len(await history(made.plane, "t")) == 2


async def test_several_questions_of_one_step_are_answered_one_after_the_other() -> None:
    @service(run_timeout_s=60, retry=RetryPolicy(max_retries=0))
    async def echo(context: ServiceContext, text: str) -> str:
        """Asks two things at once."""
        return " ".join(await asyncio.gather(context.ask("first?"), context.ask("second?")))

    async with world() as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        entry = await submit(made.plane, task_id="t")
        await recorded(entry, 3)
        assert (await asked(made.plane, "t"))["prompt"] == "first?"
        await time_passes(600.0)  # longer than it may run
        await made.plane.signals.send_input("t", "a")
        assert (await asked(made.plane, "t"))["prompt"] == "second?"
        await made.crash()
        await local.connect(await made.start())
        assert (await asked(made.plane, "t"))["prompt"] == "second?"
        await made.plane.signals.send_input("t", "b")
        result = await outcome(made.plane, "t")
        assert (result.result, result.attempt) == ("a b", 1)
        kinds = [e.kind for e in await history(made.plane, "t")]
        assert kinds == ["submitted", "input_requested", "input_requested", "input", "input", "answered"]
        await local.stop()


async def test_a_service_that_asks_and_does_not_wait() -> None:
    @service
    async def echo(context: ServiceContext, text: str) -> str:
        """Asks, and does not care."""
        context.request_input({"prompt": "?"})
        return text

    async with world() as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        assert (await outcome(made.plane, await submit(made.plane, text="x"))).result == "x"
        await local.stop()
