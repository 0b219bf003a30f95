"""The published `SimpleOrchestrator`, fact by fact; what it never did (retry) is the only thing that differs."""

from __future__ import annotations

from typing import Any

import pytest

from llama_deploy.orchestrators import BaseOrchestrator, SimpleOrchestrator, get_result_key
from llama_deploy.types import ActionTypes, NewTask, TaskDefinition, TaskError, TaskResult

TASK = TaskDefinition(input="hi", agent_id="echo", task_id="t")
RESULT = TaskResult(task_id="t", history=[], result="done", data={"a": [1]})


async def test_a_task_without_a_service_is_refused_with_what_to_set() -> None:
    with pytest.raises(ValueError, match="agent_id"):
        await SimpleOrchestrator().get_next_messages(TaskDefinition(input=""), {})


async def test_a_task_without_a_result_goes_to_its_service_with_its_part_of_the_state() -> None:
    state: dict[str, Any] = {"other": 1, "t": {"mine": True}}
    messages, after = await SimpleOrchestrator().get_next_messages(TASK, state)
    (message,) = messages
    assert (message.type, message.action) == ("echo", ActionTypes.NEW_TASK)
    assert message.data == NewTask(task=TASK, state={"mine": True}).model_dump()
    assert after == {"other": 1, "t": {"mine": True}}
    _, fresh = await SimpleOrchestrator().get_next_messages(TASK, {})
    assert fresh == {"t": {}}


@pytest.mark.parametrize("stored", [RESULT, RESULT.model_dump(), RESULT.model_dump_json()], ids=type)
async def test_a_result_in_any_form_is_forwarded_to_whoever_hears_of_the_end(stored: Any) -> None:
    state = {get_result_key("t"): stored}
    (message,), _ = await SimpleOrchestrator().get_next_messages(TASK, dict(state))
    assert (message.type, message.action) == ("human", ActionTypes.COMPLETED_TASK)
    assert message.data == RESULT.model_dump()
    assert (await SimpleOrchestrator(final_message_type=None).get_next_messages(TASK, dict(state)))[0] == []


async def test_anything_else_under_the_key_is_refused() -> None:
    with pytest.raises(ValueError, match="int"):
        await SimpleOrchestrator().get_next_messages(TASK, {get_result_key("t"): 7})


async def test_results_are_counted_from_0_and_stored() -> None:
    orchestrator = SimpleOrchestrator()
    state: dict[str, Any] = {}
    for count in range(3):
        state = await orchestrator.add_result_to_state(RESULT, state)
        assert (state["retries"], state[get_result_key("t")]) == (count, RESULT)


async def test_a_failure_with_attempts_left_is_asked_for_again_and_then_forwarded() -> None:
    failed = TaskResult(
        task_id="t", history=[], result="no", status="failed", error=TaskError(message="no"), step_id="s"
    )
    orchestrator = SimpleOrchestrator(max_retries=1)
    state = await orchestrator.add_result_to_state(failed, {"t": {}})
    assert get_result_key("t") not in state
    (again,), state = await orchestrator.get_next_messages(TASK, state)
    assert (again.type, again.action, again.step_id) == ("echo", ActionTypes.NEW_TASK, "s")
    assert again.delay_s > 0
    state = await orchestrator.add_result_to_state(failed, state)
    (final,), _ = await orchestrator.get_next_messages(TASK, state)
    assert (final.type, final.action, final.data["status"]) == ("human", ActionTypes.COMPLETED_TASK, "failed")


def test_the_base_is_abstract_in_both_methods() -> None:
    assert BaseOrchestrator.__abstractmethods__ == {"get_next_messages", "add_result_to_state"}
