"""The simple orchestrator driven by hand with plain dicts, as programs written for the published one drive it."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest

from llama_deploy.messages import QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator, SimpleOrchestrator, get_result_key, get_stream_key
from llama_deploy.orchestrators import simple as simple_module
from llama_deploy.types import ActionTypes, ChatMessage, NewTask, TaskDefinition, TaskError, TaskResult

TASK = TaskDefinition(input="hello", task_id="t1", session_id="s1", agent_id="writer")
RESULT = TaskResult(task_id="t1", history=[ChatMessage(content="hello")], result="HELLO", data={"n": 1})


def failure(step_id: str | None = "t1:1", **error: Any) -> TaskResult:
    return TaskResult(
        task_id="t1", history=[], result="boom", status="failed", error=TaskError(**error), step_id=step_id
    )


async def test_a_new_task_goes_to_its_service_with_the_task_and_its_state() -> None:
    messages, state = await SimpleOrchestrator().get_next_messages(TASK, {})
    assert [(m.type, m.action, m.step_id, m.delay_s) for m in messages] == [("writer", ActionTypes.NEW_TASK, None, 0.0)]
    assert messages[0].data == NewTask(task=TASK, state={}).model_dump()
    assert state == {"t1": {}}


async def test_the_new_task_carries_what_the_state_has_under_the_task() -> None:
    messages, state = await SimpleOrchestrator().get_next_messages(TASK, {"t1": {"seen": [1]}, "shared": 2})
    assert messages[0].data["state"] == {"seen": [1]}
    assert state == {"t1": {"seen": [1]}, "shared": 2}


async def test_without_a_result_each_ask_gets_one_new_task_message() -> None:
    orchestrator, state = SimpleOrchestrator(), dict[str, Any]()
    for _ in range(3):
        messages, state = await orchestrator.get_next_messages(TASK, state)
        assert [m.action for m in messages] == [ActionTypes.NEW_TASK]


async def test_the_later_name_of_the_service_is_as_good() -> None:
    task = TaskDefinition.model_validate({"input": "x", "service_id": "editor"})
    messages, _ = await SimpleOrchestrator().get_next_messages(task, {})
    assert messages[0].type == "editor"


async def test_a_task_without_a_service_is_refused_with_what_to_set() -> None:
    with pytest.raises(ValueError, match="t2 names no service: set agent_id"):
        await SimpleOrchestrator().get_next_messages(TaskDefinition(input="x", task_id="t2"), {})


async def test_a_result_is_stored_and_results_are_counted_from_zero() -> None:
    orchestrator = SimpleOrchestrator()
    state = await orchestrator.add_result_to_state(RESULT, {})
    assert state["result_t1"] is RESULT
    assert state["retries"] == 0
    state = await orchestrator.add_result_to_state(RESULT.model_copy(update={"task_id": "t2"}), state)
    assert state["retries"] == 1
    assert set(state) == {"result_t1", "result_t2", "retries"}


async def test_a_counter_that_is_no_number_starts_again() -> None:
    assert (await SimpleOrchestrator().add_result_to_state(RESULT, {"retries": "many"}))["retries"] == 0


@pytest.mark.parametrize(
    "stored", [RESULT, RESULT.model_dump(), RESULT.model_dump_json()], ids=["model", "dict", "json"]
)
async def test_a_result_in_any_form_becomes_the_final_message(stored: Any) -> None:
    messages, state = await SimpleOrchestrator().get_next_messages(TASK, {"result_t1": stored})
    assert [(m.type, m.action) for m in messages] == [("human", ActionTypes.COMPLETED_TASK)]
    assert messages[0].data == RESULT.model_dump()
    assert state == {"t1": {}, "result_t1": stored}


async def test_a_published_result_without_the_new_fields_becomes_the_final_message() -> None:
    stored = '{"task_id": "t1", "history": [], "result": "HELLO", "data": {}}'
    messages, _ = await SimpleOrchestrator().get_next_messages(TASK, {"result_t1": stored})
    assert TaskResult.model_validate(messages[0].data) == TaskResult(task_id="t1", history=[], result="HELLO")


async def test_the_final_message_goes_where_it_is_told_or_nowhere() -> None:
    state = {"result_t1": RESULT}
    messages, _ = await SimpleOrchestrator(final_message_type="printer").get_next_messages(TASK, state)
    assert [m.type for m in messages] == ["printer"]
    messages, _ = await SimpleOrchestrator(final_message_type=None).get_next_messages(TASK, state)
    assert messages == []


@pytest.mark.parametrize("stored", [0, 7, ["x"], b"{}", "", "not json", {}, {"result": "no task id"}])
@pytest.mark.parametrize("final_message_type", ["human", None])
async def test_what_is_no_result_is_refused(stored: Any, final_message_type: str | None) -> None:
    with pytest.raises(ValueError, match=r"TaskResult"):
        await SimpleOrchestrator(final_message_type=final_message_type).get_next_messages(TASK, {"result_t1": stored})


async def test_a_retryable_failure_is_tried_again_under_its_own_step_id() -> None:
    orchestrator = SimpleOrchestrator()
    _, state = await orchestrator.get_next_messages(TASK, {})
    state = await orchestrator.add_result_to_state(failure(), state)
    assert "result_t1" not in state
    assert state["t1"] == {"failures": 1, "retry": {"step_id": "t1:1", "delay_s": 0.5}}
    messages, state = await orchestrator.get_next_messages(TASK, state)
    assert [(m.type, m.action, m.step_id, m.delay_s) for m in messages] == [
        ("writer", ActionTypes.NEW_TASK, "t1:1", 0.5)
    ]
    assert messages[0].data == NewTask(task=TASK, state={"failures": 1}).model_dump()
    assert state["t1"] == {"failures": 1}
    assert state["retries"] == 0


async def test_a_retry_is_asked_for_once_and_a_later_ask_is_a_plain_one() -> None:
    orchestrator = SimpleOrchestrator()
    state = await orchestrator.add_result_to_state(failure(), {})
    _, state = await orchestrator.get_next_messages(TASK, state)
    messages, _ = await orchestrator.get_next_messages(TASK, state)
    assert [(m.action, m.step_id, m.delay_s) for m in messages] == [(ActionTypes.NEW_TASK, None, 0.0)]


async def test_a_decision_that_was_not_recorded_is_made_again_from_the_same_state() -> None:
    orchestrator = SimpleOrchestrator()
    state = await orchestrator.add_result_to_state(failure(), {})
    before = copy.deepcopy(state)
    first, _ = await orchestrator.get_next_messages(TASK, state)
    assert state == before
    second, _ = await orchestrator.get_next_messages(TASK, state)
    assert [_value(m) for m in second] == [_value(m) for m in first]


async def test_delays_grow_and_the_last_failure_is_the_outcome() -> None:
    orchestrator, state, delays_s = SimpleOrchestrator(max_retries=3), dict[str, Any](), list[float]()
    for _ in range(3):
        state = await orchestrator.add_result_to_state(failure(), state)
        messages, state = await orchestrator.get_next_messages(TASK, state)
        delays_s += [m.delay_s for m in messages]
    assert delays_s == [0.5, 1.0, 2.0]
    last = failure(message="the last one")
    state = await orchestrator.add_result_to_state(last, state)
    assert (state["result_t1"], state["t1"], state["retries"]) == (last, {"failures": 4}, 3)
    messages, _ = await orchestrator.get_next_messages(TASK, state)
    assert [(m.type, m.action, m.data) for m in messages] == [("human", ActionTypes.COMPLETED_TASK, last.model_dump())]


@pytest.mark.parametrize("max_retries", [0, -1])
async def test_no_retries_means_that_the_first_failure_is_the_outcome(max_retries: int) -> None:
    state = await SimpleOrchestrator(max_retries=max_retries).add_result_to_state(failure(), {})
    assert state["result_t1"] == failure()


async def test_a_failure_that_is_not_retryable_is_the_outcome_at_once() -> None:
    state = await SimpleOrchestrator().add_result_to_state(failure(retryable=False), {})
    assert state["result_t1"] == failure(retryable=False)
    assert state["t1"] == {"failures": 1}


async def test_a_service_that_asks_to_wait_longer_is_heard() -> None:
    state = await SimpleOrchestrator().add_result_to_state(failure(retry_after_s=120.0), {})
    assert state["t1"]["retry"]["delay_s"] == 120.0


@pytest.mark.parametrize("status", ["canceled", "rejected"])
async def test_other_endings_are_outcomes(status: Any) -> None:
    ended = TaskResult(task_id="t1", history=[], result="", status=status, error=TaskError())
    assert (await SimpleOrchestrator().add_result_to_state(ended, {}))["result_t1"] == ended


async def test_a_success_after_a_failure_is_the_outcome() -> None:
    orchestrator = SimpleOrchestrator()
    state = await orchestrator.add_result_to_state(failure(), {})
    state = await orchestrator.add_result_to_state(RESULT, state)
    messages, _ = await orchestrator.get_next_messages(TASK, state)
    assert [m.data for m in messages] == [RESULT.model_dump()]


async def test_failures_are_counted_for_each_task_by_itself() -> None:
    orchestrator, state = SimpleOrchestrator(max_retries=1), dict[str, Any]()
    for task_id in ("t1", "t2"):
        failed = failure().model_copy(update={"task_id": task_id})
        state = await orchestrator.add_result_to_state(failed, state)
    assert (state["t1"]["failures"], state["t2"]["failures"]) == (1, 1)
    assert get_result_key("t1") not in state
    assert get_result_key("t2") not in state


async def test_keys_of_other_tasks_and_programs_are_left_alone() -> None:
    orchestrator = SimpleOrchestrator()
    others = {"mine": {"deep": [1]}, "t2": {"failures": 2}, "result_t2": "{}", "stream_t1": [{}]}
    state = copy.deepcopy(others)
    for result in (failure(), failure(), RESULT):
        state = await orchestrator.add_result_to_state(result, state)
        _, state = await orchestrator.get_next_messages(TASK, state)
    assert {key: state[key] for key in others} == others


async def test_values_that_came_in_are_replaced_and_never_changed() -> None:
    orchestrator = SimpleOrchestrator()
    own: dict[str, Any] = {"failures": 1, "retry": {"step_id": "t1:1", "delay_s": 1.0}, "seen": [1]}
    before = copy.deepcopy(own)
    await orchestrator.get_next_messages(TASK, {"t1": own})
    await orchestrator.add_result_to_state(failure(), {"t1": own})
    await orchestrator.add_result_to_state(RESULT, {"t1": own})
    assert own == before


def test_it_says_that_it_handles_failures_and_never_waits() -> None:
    assert (SimpleOrchestrator.handles_failures, SimpleOrchestrator.synchronous) == (True, True)
    assert (BaseOrchestrator.handles_failures, BaseOrchestrator.synchronous) == (False, False)
    for coroutine in (
        SimpleOrchestrator().get_next_messages(TASK, {}),
        SimpleOrchestrator().add_result_to_state(RESULT, {}),
    ):
        with pytest.raises(StopIteration):
            coroutine.send(None)


def test_the_published_constructor_and_names_are_there() -> None:
    parameters = inspect.signature(SimpleOrchestrator).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        "max_retries": 3,
        "final_message_type": "human",
    }
    orchestrator = SimpleOrchestrator(5, None)
    assert (orchestrator.max_retries, orchestrator.final_message_type) == (5, None)
    assert simple_module.get_result_key("t1") == get_result_key("t1") == "result_t1"
    assert get_stream_key("t1") == "stream_t1"


def test_an_orchestrator_has_to_answer_both_questions() -> None:
    class Half(BaseOrchestrator):
        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            return state

    with pytest.raises(TypeError, match="get_next_messages"):
        Half()  # type: ignore[abstract]


def _value(message: QueueMessage) -> dict[str, Any]:
    """The message without its id, which is no part of what makes two decisions equal."""
    return message.model_dump(exclude={"id_"})
