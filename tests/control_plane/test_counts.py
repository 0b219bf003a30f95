"""One hop is one commit: how many transitions, commits and statements tasks cost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.control_plane.harness import FakeInstance, LinkedRunner, outcome, submit, until, world

from llama_deploy.control_plane import EngineSettings
from llama_deploy.messages import QueueMessage
from llama_deploy.messages.frames import Deliver
from llama_deploy.orchestrators import BaseOrchestrator, get_result_key
from llama_deploy.services import service
from llama_deploy.types import ActionTypes, TaskDefinition, TaskResult

STATEMENTS_PER_BATCH_MAX = 12
"""One execution per kind of row, and there are that many kinds."""


@service
async def echo(text: str) -> str:
    """The text."""
    return text


class Chain(BaseOrchestrator):
    """As many hops as the task's input says, one after the other; state under the task's own key."""

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        mine = state.setdefault(task_def.task_id, {"done": 0})
        if mine["done"] >= int(task_def.input):
            return [QueueMessage(type="nobody", action=ActionTypes.COMPLETED_TASK, data={"result": "end"})], state
        return [QueueMessage(type="echo", action=ActionTypes.NEW_TASK, data={"text": "x"})], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        state[result.task_id]["done"] += 1
        return state


@pytest.mark.parametrize("hops", [1, 2, 5])
async def test_hops_and_one_transitions(hops: int) -> None:
    async with world(orchestrator=Chain()) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        before = made.plane.store.statistics.transitions
        await outcome(made.plane, await submit(made.plane, None, str(hops)))
        assert made.plane.store.statistics.transitions - before == hops + 1
        await local.stop()


async def test_a_task_without_a_session_is_two_transitions_and_two_commits(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        await submit_and_wait(made.plane, 1)
        await until(lambda: made.plane.store.backlog == 0)
        statistics = made.plane.store.statistics
        before = (statistics.transitions, statistics.commits, statistics.statements, statistics.rows_written)
        await submit_and_wait(made.plane, 1)
        assert statistics.transitions - before[0] == 2
        assert statistics.commits - before[1] == 2
        assert statistics.statements - before[2] == 6  # insert: task, entry, delivery; update, entry, delete
        assert statistics.rows_written - before[3] == 6
        await local.stop()


async def submit_and_wait(plane: Any, count: int, **fields: Any) -> None:
    entries = await asyncio.gather(*[submit(plane, text="x", **fields) for _ in range(count)])
    await asyncio.gather(*[outcome(plane, entry) for entry in entries])


async def test_tasks_at_once_share_commits_and_statements(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        await submit_and_wait(made.plane, 1)
        statistics = made.plane.store.statistics
        before = (statistics.transitions, statistics.commits, statistics.statements)
        await submit_and_wait(made.plane, 200)
        transitions = statistics.transitions - before[0]
        commits = statistics.commits - before[1]
        statements = statistics.statements - before[2]
        assert transitions == 400
        assert commits < 200
        assert statements <= commits * STATEMENTS_PER_BATCH_MAX
        await local.stop()


async def test_submissions_at_once_are_one_commit_in_memory() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        before = made.plane.store.statistics.commits
        await asyncio.gather(*[submit(made.plane) for _ in range(50)])
        assert made.plane.store.statistics.commits - before == 1


async def test_the_end_with_a_result_key_costs_nothing_more() -> None:
    class Plain(BaseOrchestrator):
        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            if get_result_key(task_def.task_id) in state:
                return [], state
            return [QueueMessage(type="echo", action=ActionTypes.NEW_TASK, data={"text": "x"})], state

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            return {**state, get_result_key(result.task_id): result}

    async with world(orchestrator=Plain()) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        before = made.plane.store.statistics.transitions
        result = await outcome(made.plane, await submit(made.plane, None))
        assert (result.result, result.status, result.service) == ("x", "completed", "echo")
        assert made.plane.store.statistics.transitions - before == 2
        await local.stop()


async def test_a_notification_is_carried_with_the_end_and_costs_its_answer() -> None:
    async with world() as made:
        instance = FakeInstance(["echo", "human"])
        await instance.connect(made.plane)
        before = made.plane.store.statistics.transitions
        entry = await submit(made.plane)
        instance.answer(await instance.delivery())
        await outcome(made.plane, entry)
        told = await instance.delivery(2)
        assert told.action == "completed_task"
        instance.answer(told)
        await instance.acknowledged(told)
        assert made.plane.store.statistics.transitions - before == 3
        assert await made.plane.store.next_due() is None


async def test_published_steps_are_counted_once() -> None:
    async with world() as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        await asyncio.gather(*[submit(made.plane) for _ in range(5)])
        await instance.delivery(5)
        statistics = made.plane.engine.statistics
        assert (statistics.submitted, statistics.published, statistics.ended) == (5, 5, 0)


@pytest.mark.parametrize("kept", [0, 1])
async def test_a_notification_reaches_its_service_though_its_task_has_left_memory(kept: int) -> None:
    async with world(settings=EngineSettings(ended_tasks_cached_max=kept)) as made:
        instance = FakeInstance(["echo", "human"], concurrency=1)
        await instance.connect(made.plane)
        for number in range(3):
            await submit(made.plane, task_id=f"t{number}")
        done: set[str] = set()
        while len(done) < 6:
            step = next((s for s in instance.all(Deliver) if s.step_id not in done), None)
            if step is None:
                await instance.delivery(len(instance.all(Deliver)) + 1)
                continue
            instance.answer(step)
            done.add(step.step_id)
        await until(lambda: made.plane.store.backlog == 0)
        assert await made.plane.store.next_due() is None


async def test_a_task_whose_end_is_being_told_stays_in_memory_until_that_is_done() -> None:
    """Loaded again meanwhile, nobody would know who tells it, and it would be told twice."""
    async with world(settings=EngineSettings(ended_tasks_cached_max=0)) as made:
        instance = FakeInstance(["echo", "human"])
        await instance.connect(made.plane)
        tasks = made.plane.engine.cache.tasks
        for number in range(3):
            await submit(made.plane, task_id=f"t{number}")
            instance.answer(await instance.delivery(1 + 2 * number))
            await instance.delivery(2 + 2 * number)
        assert set(tasks) == {"t0", "t1", "t2"}
        for number in range(3):
            instance.answer(await instance.delivery(2 + 2 * number))
            await instance.acknowledged(f"t{number}:2")
        assert set(tasks) == {"t2"}
        assert made.plane.engine.cache.unfinished == 0
