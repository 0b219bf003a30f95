"""Priorities and keys of tasks and steps decide in which order a service gets what waits for it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from tests.control_plane.harness import FakeInstance, submit, until, world

from llama_deploy.control_plane import ControlPlane
from llama_deploy.messages import QueueMessage
from llama_deploy.messages.frames import Deliver
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.types import StepOptions, TaskDefinition, TaskOptions, TaskResult


async def names_in_order(plane: ControlPlane, count: int) -> list[str]:
    """Task ids in the order in which an instance that takes one at a time gets them."""
    instance = FakeInstance(concurrency=1)
    await instance.connect(plane)
    for number in range(1, count + 1):
        instance.answer(await instance.delivery(number))
    return [step.task_id for step in instance.all(Deliver)]


async def test_the_higher_priority_goes_first_and_without_one_it_is_5() -> None:
    async with world() as made:
        for name, priority in (("low", 2), ("none", None), ("high", 8), ("six", 6), ("four", 4)):
            options = TaskOptions(priority=priority)
            await submit(made.plane, task_id=name, options=options, wait_for_service=True)
        assert await names_in_order(made.plane, 5) == ["high", "six", "none", "four", "low"]


async def test_a_customer_with_much_work_does_not_hold_up_another() -> None:
    async with world() as made:
        for number in range(4):
            await submit(made.plane, task_id=f"big{number}", options=TaskOptions(key="big"), wait_for_service=True)
        for number in range(2):
            await submit(made.plane, task_id=f"small{number}", options=TaskOptions(key="small"), wait_for_service=True)
        assert await names_in_order(made.plane, 6) == ["big0", "small0", "big1", "small1", "big2", "big3"]


class OneUrgent(BaseOrchestrator):
    """Three steps at once, the last of which is urgent; the others have what the task says."""

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        if task_def.task_id in state:
            return [], state
        state[task_def.task_id] = {}
        options = (None, StepOptions(priority=1), StepOptions(priority=9))
        return [QueueMessage(type="echo", data={"n": n}, options=options[n]) for n in range(3)], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        return state


async def test_a_steps_own_priority_comes_before_its_tasks() -> None:
    async with world(orchestrator=OneUrgent()) as made:
        await submit(made.plane, None, task_id="t", options=TaskOptions(priority=7), wait_for_service=True)
        instance = FakeInstance(concurrency=1)
        await instance.connect(made.plane)
        for number in (1, 2, 3):
            instance.answer(await instance.delivery(number))
        assert [step.step_id for step in instance.all(Deliver)] == ["t:3", "t:1", "t:2"]


async def test_the_order_is_the_same_after_a_restart() -> None:
    async with world() as made:
        for name, priority in (("low", 2), ("none", None), ("high", 8)):
            options = TaskOptions(priority=priority)
            await submit(made.plane, task_id=name, options=options, wait_for_service=True)
        await made.crash()
        plane = await made.start()
        await until(lambda: plane.queue.depth("echo") == 3)
        assert await names_in_order(plane, 3) == ["high", "none", "low"]


@pytest.mark.parametrize("wrong", [{"priority": 10}, {"priority": -1}, {"priority": 1.5}, {"key": ""}])
def test_what_is_no_priority_or_key_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TaskOptions(**wrong)
