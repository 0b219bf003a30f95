"""What holds for every history: the same answers give the same decisions, also across restarts, and work ends.

A history is a list of answers to two tasks of one session in some order. It is driven as a control plane drives it:
fold an answer, ask what is next, keep only the state.
"""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.orchestrators import SimpleOrchestrator, get_result_key
from llama_deploy.types import ActionTypes, TaskDefinition, TaskError, TaskResult

TASKS = {task_id: TaskDefinition(input="x", task_id=task_id, agent_id="writer") for task_id in ("t1", "t2")}

results = st.builds(
    TaskResult,
    task_id=st.sampled_from(sorted(TASKS)),
    history=st.just([]),
    result=st.text(max_size=5),
    status=st.sampled_from(["completed", "failed", "failed", "failed", "canceled"]),
    error=st.none()
    | st.builds(TaskError, retryable=st.sampled_from([True, True, False]), retry_after_s=st.none() | st.floats(0, 1e3)),
    step_id=st.just("step"),
)
histories = st.lists(results, max_size=12)
orchestrators = st.builds(
    SimpleOrchestrator, max_retries=st.integers(0, 4), final_message_type=st.sampled_from([None, "human"])
)

Decision = list[dict[str, Any]]


def restart_through_json(state: dict[str, Any]) -> dict[str, Any]:
    """The state as a new process finds it: what was a model is a dict now."""
    loaded: dict[str, Any] = json.loads(json.dumps(state, default=lambda model: model.model_dump(mode="json")))
    return loaded


def restart_with_text_results(state: dict[str, Any]) -> dict[str, Any]:
    """The same, from a store that keeps results as text."""
    return {
        key: value.model_dump_json() if isinstance(value, TaskResult) else copy.deepcopy(value)
        for key, value in state.items()
    }


async def drive(
    orchestrator: SimpleOrchestrator, history: list[TaskResult], between: Any = lambda state: state
) -> tuple[list[Decision], dict[str, Any]]:
    """The decision after each answer, and the last state. `between` is done to the state after every call."""
    state: dict[str, Any] = {}
    decisions: list[Decision] = []
    for result in history:
        state = between(await orchestrator.add_result_to_state(result, state))
        messages, state = await orchestrator.get_next_messages(TASKS[result.task_id], state)
        state = between(state)
        decisions.append([message.model_dump(exclude={"id_"}) for message in messages])
    return decisions, state


@given(orchestrators, histories)
def test_the_same_history_gives_the_same_decisions(orchestrator: SimpleOrchestrator, history: list[TaskResult]) -> None:
    first = asyncio.run(drive(orchestrator, history))
    assert asyncio.run(drive(orchestrator, history)) == first


@given(orchestrators, histories)
def test_a_restart_after_any_call_changes_no_decision(
    orchestrator: SimpleOrchestrator, history: list[TaskResult]
) -> None:
    decisions, _ = asyncio.run(drive(orchestrator, history))
    for restart in (restart_through_json, restart_with_text_results):
        assert asyncio.run(drive(orchestrator, history, restart))[0] == decisions


@given(orchestrators, histories)
def test_the_answers_of_another_task_change_no_decision(
    orchestrator: SimpleOrchestrator, history: list[TaskResult]
) -> None:
    decisions, _ = asyncio.run(drive(orchestrator, history))
    for task_id in TASKS:
        alone = [result for result in history if result.task_id == task_id]
        of_this_task = [decision for decision, r in zip(decisions, history, strict=True) if r.task_id == task_id]
        assert asyncio.run(drive(orchestrator, alone))[0] == of_this_task


@given(orchestrators, histories)
def test_retries_are_bounded_and_the_first_ending_answer_is_the_outcome(
    orchestrator: SimpleOrchestrator, history: list[TaskResult]
) -> None:
    """Compared with a model of one task in a few lines: count the failures until one of the three endings."""
    for task_id in TASKS:
        alone = _until_it_ends([r for r in history if r.task_id == task_id], orchestrator.max_retries)
        decisions, state = asyncio.run(drive(orchestrator, alone.answers))
        retries = [m for decision in decisions for m in decision if m["action"] is ActionTypes.NEW_TASK]
        assert len(retries) == alone.retries <= orchestrator.max_retries
        assert all(message["step_id"] == "step" and message["delay_s"] >= 0.5 for message in retries)
        assert state.get(get_result_key(task_id)) == alone.outcome
        if alone.outcome is not None and orchestrator.final_message_type is not None:
            assert decisions[-1][0]["action"] is ActionTypes.COMPLETED_TASK
            assert decisions[-1][0]["data"] == alone.outcome.model_dump()


class _Ending:
    """A task's answers up to the one that ends it, how many of them lead to a retry, and the outcome if any."""

    def __init__(self) -> None:
        self.answers: list[TaskResult] = []
        self.retries = 0
        self.outcome: TaskResult | None = None


def _until_it_ends(answers: list[TaskResult], max_retries: int) -> _Ending:
    ending = _Ending()
    for answer in answers:
        ending.answers.append(answer)
        may_retry = answer.status == "failed" and (answer.error is None or answer.error.retryable)
        if not may_retry or ending.retries == max_retries:
            ending.outcome = answer
            break
        ending.retries += 1
    return ending


@given(orchestrators, histories)
def test_no_call_changes_the_task_the_result_or_a_value_of_the_state(
    orchestrator: SimpleOrchestrator, history: list[TaskResult]
) -> None:
    """A call may set keys of the dict it is given; what the keys held before is never touched."""

    async def watch() -> None:
        state: dict[str, Any] = {"shared": {"deep": [1]}}
        for result in history:
            task = TASKS[result.task_id]
            values, untouched = dict(state), copy.deepcopy((dict(state), result, task))
            state = await orchestrator.add_result_to_state(result, state)
            assert (values, result, task) == untouched
            values, untouched_values = dict(state), copy.deepcopy(dict(state))
            messages, state = await orchestrator.get_next_messages(task, state)
            for message in messages:
                message.data.clear()
            assert (values, task) == (untouched_values, untouched[2])

    asyncio.run(watch())
