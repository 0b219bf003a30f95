"""Third-party policies: what they may decide, and that rubbish, errors and hangs end in a clear outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
from llama_deploy.errors import LimitExceededError, OrchestratorError
from llama_deploy.messages import QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator, SimpleOrchestrator
from llama_deploy.services import service
from llama_deploy.testing import ManualClock
from llama_deploy.types import ActionTypes, TaskDefinition, TaskResult

FINAL = ActionTypes.COMPLETED_TASK
QUICKLY = EngineSettings(decision_retry_s=0.0, decision_timeout_s=0.05)


@service(concurrency=100)
async def echo(text: str) -> str:
    """The text."""
    return text


class Scripted(BaseOrchestrator):
    """What a test gives it is what it returns: `begin` at submission, `go_on` after each answer."""

    def __init__(self, begin: Any = None, go_on: Any = None, fold: Any = None) -> None:
        self.begin = begin
        self.go_on = go_on
        self.fold = fold
        self.asked = 0

    async def get_next_messages(self, task_def: TaskDefinition, state: dict[str, Any]) -> Any:
        begin = "answered" not in state.setdefault(task_def.task_id, {})
        self.asked += 1
        if begin and self.begin is None:
            return [to_echo()], state
        found = self.begin if begin else self.go_on
        if isinstance(found, BaseException):
            raise found
        if callable(found):
            found = found(state)
        return await found if asyncio.iscoroutine(found) else found

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> Any:
        state[result.task_id]["answered"] = True
        if isinstance(self.fold, BaseException):
            raise self.fold
        return self.fold(state) if callable(self.fold) else state


class ScriptedSynchronous(Scripted):
    """The same, and it promises never to wait."""

    synchronous: ClassVar[bool] = True


def to_echo(**fields: Any) -> QueueMessage:
    return QueueMessage(**{"type": "echo", "data": {"text": "x"}, **fields})


def ending(data: Any, service_name: str = "human") -> QueueMessage:
    return QueueMessage(type=service_name, action=FINAL, data=data)


async def run(policy: BaseOrchestrator, *, settings: EngineSettings = QUICKLY, **fields: Any) -> TaskResult:
    """The outcome of one task under a policy, as it is also read by the next control plane."""
    async with world(orchestrator=policy, settings=settings) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        entry = await submit(made.plane, None, task_id="t", **fields)
        found = await outcome(made.plane, entry)
        await made.stop()
        plane = await made.start()
        assert await outcome(plane, "t") == found
        await history(plane, "t")
        await local.stop()
        return found


# --- rubbish --------------------------------------------------------------------------------------------------------


def unencodable(state: dict[str, Any]) -> Any:
    state["bad"] = object()
    return [to_echo()], state


def unfit_key(key: Any) -> Callable[[dict[str, Any]], Any]:
    def change(state: dict[str, Any]) -> Any:
        state[key] = 1
        return [to_echo()], state

    return change


def unfit_own_key(state: dict[str, Any]) -> Any:
    state["t"]["\ud800"] = 1
    return [to_echo()], state


def changed(message: QueueMessage, **fields: Any) -> Callable[[dict[str, Any]], Any]:
    for name, value in fields.items():
        object.__setattr__(message, name, value)
    return lambda state: ([message], state)


RUBBISH: dict[str, Any] = {
    "nothing": lambda _: None,
    "one value": lambda state: state,
    "three values": lambda state: ([], state, 1),
    "messages are none": lambda state: (None, state),
    "a number of messages": lambda state: (1, state),
    "other messages": lambda state: ([{"type": "echo"}], state),
    "a state that is none": lambda _: ([to_echo()], None),
    "a state that is a list": lambda _: ([to_echo()], []),
    "a value without json": unencodable,
    "a number as key": unfit_key(5),
    "a surrogate in a key": unfit_key("\ud800"),
    "a surrogate in a key of its own": unfit_own_key,
    "data without json": lambda state: ([to_echo(data={"x": object()})], state),
    "data that is none": changed(to_echo(), data=object()),
    "a surrogate in data": lambda state: ([to_echo(data={"x": "\ud800"})], state),
    "an endless delay": lambda state: ([to_echo(delay_s=float("inf"))], state),
    "a delay that is no number": lambda state: ([to_echo(delay_s=float("nan"))], state),
    "a negative delay": lambda state: ([to_echo(delay_s=-1.0)], state),
    "an unknown action": changed(to_echo(), action="fly"),
    "no service": lambda state: ([to_echo(type="")], state),
    "a service that is no text": changed(to_echo(), type=5),
    "a surrogate in a tag": changed(to_echo(), tag="\ud800"),
    "an outcome that is no dict": changed(ending({}), data=[1]),
    "raises": ValueError("out of luck"),
    "raises nonsense": ValueError("\ud800"),
    "exits": SystemExit(1),
    "cancels itself": asyncio.CancelledError(),
    "stops iteration": StopAsyncIteration(),
    "a key error": KeyError("missing"),
    "recurses": RecursionError("deep"),
}


@pytest.mark.parametrize("kind", [Scripted, ScriptedSynchronous], ids=["plain", "synchronous"])
@pytest.mark.parametrize("name", RUBBISH)
@pytest.mark.parametrize("session_id", [None, "s"], ids=["alone", "session"])
async def test_rubbish_after_an_answer_ends_the_task_with_the_reason(
    name: str, kind: type[Scripted], session_id: str | None
) -> None:
    result = await run(kind(go_on=RUBBISH[name]), session_id=session_id)
    assert result.status == "failed"
    assert result.error is not None
    assert result.error.code == "LD210"
    assert result.error.message


@pytest.mark.parametrize("kind", [Scripted, ScriptedSynchronous], ids=["plain", "synchronous"])
@pytest.mark.parametrize("name", RUBBISH)
async def test_rubbish_at_submission_is_refused_and_nothing_is_recorded(name: str, kind: type[Scripted]) -> None:
    async with world(orchestrator=kind(begin=RUBBISH[name]), settings=QUICKLY) as made:
        await FakeInstance().connect(made.plane)
        with pytest.raises(OrchestratorError):
            await submit(made.plane, None, task_id="t", session_id="s")
        assert await made.plane.store.count_tasks() == {}
        assert made.plane.engine.cache.unfinished == 0
        assert (await made.plane.store.list_sessions(limit=1)).rows == []


@pytest.mark.parametrize(
    "fold",
    [lambda _: None, lambda _: [], ValueError("cannot fold"), lambda _: {"t": object()}],
    ids=["none", "list", "raises", "object"],
)
async def test_rubbish_from_the_fold(fold: Any) -> None:
    result = await run(Scripted(go_on=lambda state: ([], state), fold=fold))
    assert result.error is not None
    assert (result.status, result.error.code) == ("failed", "LD210")


async def test_a_synchronous_policy_that_waits_is_told_so() -> None:
    result = await run(ScriptedSynchronous(go_on=lambda _: asyncio.sleep(0)))
    assert result.error is not None
    assert "synchronous = True" in result.error.message


async def test_a_policy_that_recovers_is_asked_again() -> None:
    async def sometimes(state: dict[str, Any]) -> Any:
        if policy.asked < 4:
            raise ConnectionError("model not reachable")
        return [ending({"result": "fine"})], state

    policy = Scripted(go_on=sometimes)
    assert (await run(policy)).result == "fine"
    assert policy.asked == 4


async def test_a_decision_that_hangs_meets_its_deadline_and_the_task_fails() -> None:
    policy = Scripted(go_on=lambda _: _forever())
    result = await run(policy)
    assert result.error is not None
    assert "did not decide in time" in result.error.message
    assert "decision_timeout_s" in result.error.message
    assert policy.asked == 1 + 1 + QUICKLY.decision_retries_max


async def _forever() -> None:
    await asyncio.Event().wait()


async def test_a_decision_that_hangs_at_submission_refuses_the_task() -> None:
    async with world(orchestrator=Scripted(begin=lambda _: _forever()), settings=QUICKLY) as made:
        await FakeInstance().connect(made.plane)
        with pytest.raises(OrchestratorError, match="did not decide in time"):
            await submit(made.plane, None)
        assert made.plane.engine.cache.tasks == {}


async def test_a_task_is_canceled_while_its_policy_thinks() -> None:
    policy = Scripted(go_on=lambda _: _forever())
    async with world(orchestrator=policy) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, None)
        instance.answer(await instance.delivery(), events=[b'"late"'])
        await until(lambda: policy.asked == 2)
        assert made.plane.views.task(entry).waiting_for == "a decision of the orchestrator"
        await made.plane.signals.cancel(entry.row.task_id)
        assert (await outcome(made.plane, entry)).status == "canceled"
        assert entry.stream is None or entry.stream.committed == 0


# --- limits ---------------------------------------------------------------------------------------------------------


SMALL = EngineSettings(payload_bytes_max=1000, steps_per_task_max=5)
MUCH = "x" * 100_000


def touch(state: dict[str, Any], message: QueueMessage) -> Any:
    state["touched"] = state.get("touched", 0) + 1
    return [message], state


def much_state(state: dict[str, Any]) -> Any:
    state["much"] = MUCH
    return [to_echo()], state


OVER: dict[str, tuple[Any, str]] = {
    "message": (lambda state: touch(state, to_echo(data={"x": MUCH})), "payload_bytes_max"),
    "state": (much_state, "payload_bytes_max"),
    "outcome": (lambda state: touch(state, ending({"result": MUCH})), "payload_bytes_max"),
    "steps": (lambda state: ([to_echo()] * 6, state), "steps_per_task_max"),
}


@pytest.mark.parametrize("kind", [Scripted, ScriptedSynchronous], ids=["plain", "synchronous"])
@pytest.mark.parametrize("name", OVER)
async def test_a_decision_over_a_limit_fails_the_task_and_names_the_setting(name: str, kind: type[Scripted]) -> None:
    decision, setting = OVER[name]
    async with world(orchestrator=kind(go_on=decision), settings=SMALL) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        for _ in range(2):  # the second task of the session meets an undisturbed state
            result = await outcome(made.plane, await submit(made.plane, None, session_id="s"))
            assert result.error is not None
            assert (result.status, result.error.code) == ("failed", "LD208")
            assert setting in result.error.message
        assert await made.plane.views.session_state("s") == {}
        assert made.plane.engine.statistics.conflicts == 0
        await local.stop()


@pytest.mark.parametrize("name", OVER)
async def test_a_first_decision_over_a_limit_refuses_the_task(name: str) -> None:
    decision, setting = OVER[name]
    async with world(orchestrator=Scripted(begin=decision), settings=SMALL) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        with pytest.raises(LimitExceededError) as caught:
            await submit(made.plane, None, session_id="s")
        assert caught.value.details["setting"] == setting
        made.plane.engine.policies.default = Scripted(begin=lambda state: touch(state, to_echo()))
        await submit(made.plane, None, session_id="s")
        assert await made.plane.views.session_state("s") == {"touched": 1}
        assert made.plane.engine.statistics.conflicts == 0


# --- how tasks end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("session_id", [None, "s"])
async def test_no_message_no_step_and_no_result_is_no_progress(session_id: str | None) -> None:
    result = await run(Scripted(go_on=lambda state: ([], state)), session_id=session_id)
    assert result.error is not None
    assert (result.status, result.error.code) == ("failed", "LD507")


async def test_no_message_at_submission_is_a_task_that_has_ended() -> None:
    result = await run(Scripted(begin=lambda state: ([], state)))
    assert result.error is not None
    assert result.error.code == "LD507"


@pytest.mark.parametrize(
    ("stored", "text", "output"),
    [
        ({"result": "r"}, "r", "r"),
        ('{"task_id": "t", "history": [], "result": "json text"}', "json text", "json text"),
        ("plain text", "plain text", "plain text"),
        ([1, 2], "[1,2]", [1, 2]),
        ({"other": 1}, '{"other":1}', {"other": 1}),
    ],
    ids=str,
)
async def test_without_a_message_the_task_ends_with_what_stands_under_its_key(
    stored: Any, text: str, output: Any
) -> None:
    result = await run(Scripted(go_on=lambda state: ([], {**state, "result_t": stored})))
    assert (result.status, result.result, result.output) == ("completed", text, output)


@pytest.mark.parametrize(
    ("data", "status", "output"),
    [
        ({}, "completed", {}),
        ({"answer": 42}, "completed", {"answer": 42}),
        ({"result": "r"}, "completed", "r"),
        ({"result": 5}, "completed", {"result": 5}),
        ({"status": "failed", "reason": "why"}, "failed", ""),
        ({"status": "rejected", "result": "no"}, "rejected", "no"),
        ({"status": "odd", "result": "r"}, "completed", {"status": "odd", "result": "r"}),
        ({"task_id": "t", "status": "odd", "history": [], "result": "r"}, "completed", None),
        ({"task_id": "t", "status": "completed", "history": "no list", "result": "r"}, "completed", None),
        ({"task_id": "t", "status": "completed", "history": [], "result": {"no": "text"}}, "completed", None),
        ({"task_id": "other", "status": "completed", "history": [], "result": "r"}, "completed", "r"),
        ({"kind": "json", "value": [1], "result": "[1]"}, "completed", [1]),
    ],
    ids=str,
)
async def test_whatever_a_final_message_says_is_the_outcome(data: dict[str, Any], status: str, output: Any) -> None:
    result = await run(Scripted(go_on=lambda state: ([ending(data)], state)))
    assert (result.status, result.task_id) == (status, "t")
    assert result.output == (data if output is None else output)


async def test_a_policys_own_words_beside_a_result_are_kept() -> None:
    result = await run(Scripted(go_on=lambda state: ([ending({"result": "r", "score": 3, "data": {"a": 1}})], state)))
    assert (result.result, result.data) == ("r", {"score": 3, "a": 1})
    result = await run(Scripted(go_on=lambda state: ([ending({"status": "failed", "reason": "why"})], state)))
    assert result.data == {"reason": "why"}


async def test_the_end_takes_open_steps_back() -> None:
    policy = Scripted(
        begin=lambda state: ([to_echo(), to_echo(), to_echo()], state),
        go_on=lambda state: ([ending({"result": "enough"})], state),
    )
    async with world(orchestrator=policy) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, None)
        steps = [await instance.delivery(number) for number in (1, 2, 3)]
        instance.answer(steps[1])
        assert (await outcome(made.plane, entry)).result == "enough"
        await until(lambda: len(instance.received) >= 6)
        assert await made.plane.store.next_due() is None
        assert instance.port is not None
        assert instance.port.held == {}
        instance.answer(steps[0])
        await instance.acknowledged(steps[0])
        assert made.plane.engine.statistics.answers_late == 1


async def test_the_final_message_is_delivered_to_whoever_serves_its_name() -> None:
    async with world(orchestrator=SimpleOrchestrator(final_message_type="desk")) as made:
        instance = FakeInstance(["echo", "desk"])
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        instance.answer(await instance.delivery(), "news")
        told = await instance.delivery(2)
        assert (told.service, told.action, told.step_id) == ("desk", "completed_task", f"{entry.row.task_id}:2")
        assert b'"news"' in told.message
        instance.fail(told, "desk is closed")
        assert (await outcome(made.plane, entry)).result == "news"
        await until(lambda: entry.open[told.step_id].attempt == 2)
        assert await state_of(made.plane, entry) == "completed"


async def test_nobody_who_serves_the_final_name_is_no_error() -> None:
    async with world(orchestrator=SimpleOrchestrator(final_message_type="nobody")) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane)
        instance.answer(await instance.delivery(), "r")
        assert (await outcome(made.plane, entry)).result == "r"
        assert entry.open == {}


# --- steps ----------------------------------------------------------------------------------------------------------


class FanOut(BaseOrchestrator):
    """As published: as many messages as the input says, and the end once all of them are answered."""

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        count = int(task_def.input)
        if "parts" not in state:
            state["parts"] = {}
            return [QueueMessage(type="echo", data={"text": str(n)}, tag=str(n)) for n in range(count)], state
        if len(state["parts"]) < count:
            return [], state
        text = "+".join(state["parts"][str(n)] for n in range(count))
        return [QueueMessage(type="human", action=FINAL, data={"result": text})], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        assert result.tag is not None
        state["parts"][result.tag] = f"{result.result}/{result.step_id}"
        return state


@pytest.mark.parametrize("session_id", [None, "s"], ids=["alone", "session"])
async def test_fan_out_and_fan_in(session_id: str | None) -> None:
    result = await run(FanOut(), text="50", session_id=session_id)
    assert result.result == "+".join(f"{n}/t:{n + 1}" for n in range(50))


async def test_a_delayed_message_is_delivered_when_its_time_has_come() -> None:
    policy = Scripted(begin=lambda state: ([to_echo(delay_s=100.0)], state), go_on=lambda s: ([ending({})], s))
    async with world(orchestrator=policy, clock=ManualClock(), settings=EngineSettings(lease_s=1e9)) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, None)
        assert "due in" in (made.plane.views.task(entry).waiting_for or "")
        made.manual.advance(79.0)
        assert await made.plane.sweeper.sweep() == 0
        made.manual.advance(42.0)
        instance.answer(await instance.delivery())
        await outcome(made.plane, entry)


async def test_a_retry_may_go_to_another_service() -> None:
    class FailOver(BaseOrchestrator):
        handles_failures: ClassVar[bool] = True

        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            failed = state.get("failed")
            if state.get("done"):
                return [ending({"result": state["done"]})], state
            name = "second" if failed else "first"
            return [QueueMessage(type=name, data={"text": name}, step_id=failed)], state

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            return {**state, "failed": result.step_id, "done": result.result if result.status == "completed" else None}

    async with world(orchestrator=FailOver()) as made:
        first, second = FakeInstance(["first"], instance_id="1"), FakeInstance(["second"], instance_id="2")
        await first.connect(made.plane)
        await second.connect(made.plane)
        entry = await submit(made.plane, None)
        first.fail(await first.delivery())
        step = await second.delivery()
        assert (step.service, step.message) == ("second", b'{"text":"second"}')
        second.answer(step, "by the second")
        assert (await outcome(made.plane, entry)).result == "by the second"
        assert await made.plane.store.next_due() is None


async def test_a_policy_may_ask_for_a_further_step_and_a_retry_at_once() -> None:
    class Both(BaseOrchestrator):
        handles_failures: ClassVar[bool] = True

        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            failed = state.pop("failed", None)
            if failed:
                return [to_echo(step_id=failed), to_echo(tag="more")], state
            if len(state.get("tags", [])) == 2:
                return [ending({"result": ",".join(sorted(state["tags"]))})], state
            return ([] if "tags" in state else [to_echo(tag="first")]), state

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            if result.status == "failed":
                state["failed"] = result.step_id
            else:
                state.setdefault("tags", []).append(str(result.tag))
            return state

    async with world(orchestrator=Both()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, None, task_id="t")
        instance.fail(await instance.delivery())
        await recorded(entry, 2)
        deliveries = {(d.step_id, d.attempt): d for d in [await instance.delivery(2), await instance.delivery(3)]}
        assert set(deliveries) == {("t:1", 2), ("t:2", 1)}
        for delivery in deliveries.values():
            instance.answer(delivery)
        assert (await outcome(made.plane, entry)).result == "first,more"


async def test_a_policy_that_changes_the_result_it_is_given() -> None:
    class Edits(BaseOrchestrator):
        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            task_def.input = "spoiled"
            return ([] if f"result_{task_def.task_id}" in state else [to_echo()]), state

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            result.result += "!"
            result.data["note"] = 1
            state[f"result_{result.task_id}"] = result
            return state

    result = await run(Edits(), text="fine")
    assert (result.result, result.data) == ("x!", {"note": 1})
