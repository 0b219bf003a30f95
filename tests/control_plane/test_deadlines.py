"""Deadlines of steps and tasks: whose word counts, what follows when one passes, and that a restart forgets none."""

from __future__ import annotations

from typing import Any

import pytest
from tests.control_plane.harness import FakeInstance, history, outcome, submit, world

from llama_deploy.control_plane import EngineSettings
from llama_deploy.messages import QueueMessage
from llama_deploy.messages.frames import CancelStep
from llama_deploy.orchestrators import BaseOrchestrator, get_result_key
from llama_deploy.testing import ManualClock
from llama_deploy.types import StepOptions, TaskDefinition, TaskOptions, TaskResult

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
