"""The table of legal transitions, against what a task's life may look like."""

from __future__ import annotations

import itertools

import pytest

from llama_deploy.errors import LlamaDeployError, TaskEndedError
from llama_deploy.types import FINAL_STATES, LEGAL_TRANSITIONS, TaskState, check_transition

OPEN_STATES = frozenset(TaskState) - FINAL_STATES


def test_the_states_are_the_eight_of_a2a() -> None:
    assert [state.value for state in TaskState] == [
        "submitted",
        "working",
        "input_required",
        "auth_required",
        "completed",
        "failed",
        "canceled",
        "rejected",
    ]
    assert {state.value for state in FINAL_STATES} == {"completed", "failed", "canceled", "rejected"}


def test_the_table_covers_every_state_once() -> None:
    assert set(LEGAL_TRANSITIONS) == set(TaskState)
    assert all(state not in targets for state, targets in LEGAL_TRANSITIONS.items())


@pytest.mark.parametrize(("old", "new"), list(itertools.product(sorted(FINAL_STATES), TaskState)))
def test_nothing_leaves_or_repeats_a_final_state(old: TaskState, new: TaskState) -> None:
    with pytest.raises(TaskEndedError, match=f"ended as {old.value}"):
        check_transition(old, new)


@pytest.mark.parametrize(("old", "new"), list(itertools.product(sorted(OPEN_STATES), sorted(FINAL_STATES))))
def test_every_open_task_can_end_in_every_way(old: TaskState, new: TaskState) -> None:
    check_transition(old, new)


@pytest.mark.parametrize("state", sorted(OPEN_STATES))
def test_an_open_task_may_stay_where_it_is(state: TaskState) -> None:
    check_transition(state, state)


@pytest.mark.parametrize("old", sorted(OPEN_STATES - {TaskState.SUBMITTED}))
def test_nothing_becomes_submitted_again(old: TaskState) -> None:
    with pytest.raises(LlamaDeployError, match=f"from {old.value} to submitted"):
        check_transition(old, TaskState.SUBMITTED)


def test_a_waiting_task_goes_back_to_work() -> None:
    check_transition(TaskState.WORKING, TaskState.INPUT_REQUIRED)
    check_transition(TaskState.INPUT_REQUIRED, TaskState.WORKING)
    check_transition(TaskState.INPUT_REQUIRED, TaskState.AUTH_REQUIRED)
    check_transition(TaskState.AUTH_REQUIRED, TaskState.WORKING)
