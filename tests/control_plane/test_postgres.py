"""The engine on PostgreSQL: what tasks cost in round trips, shared state, a control plane that is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from secrets import token_hex
from typing import Any

import pytest
from tests.control_plane.harness import FakeInstance, LinkedRunner, outcome, submit, until, world
from tests.support.postgres import database_url

from llama_deploy import Deployment
from llama_deploy.apiserver.stores import open_store
from llama_deploy.messages import QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.services import service
from llama_deploy.state_stores import PostgresStore
from llama_deploy.types import ActionTypes, TaskDefinition, TaskResult


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with database_url() as url:
        yield url


@pytest.fixture
def url(database: str) -> str:
    return f"{database}?schema=s_{token_hex(4)}"


@service
async def echo(text: str) -> str:
    """The text in upper case."""
    return text.upper()


async def _submit_and_wait(plane: Any, count: int) -> None:
    entries = await asyncio.gather(*[submit(plane, text="x") for _ in range(count)])
    await asyncio.gather(*[outcome(plane, entry) for entry in entries])


async def test_a_task_is_two_transitions_and_two_round_trips_and_many_share_them(url: str) -> None:
    async with world(PostgresStore(url)) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        await _submit_and_wait(made.plane, 1)
        await until(lambda: made.plane.store.backlog == 0)
        statistics = made.plane.store.statistics
        before = (statistics.transitions, statistics.commits, statistics.statements)
        await _submit_and_wait(made.plane, 1)
        after = (statistics.transitions, statistics.commits, statistics.statements)
        assert [b - a for a, b in zip(before, after, strict=True)] == [2, 2, 2]
        await _submit_and_wait(made.plane, 200)
        assert statistics.transitions - after[0] == 400
        assert statistics.statements - after[2] == statistics.commits - after[1] < 100
        await local.stop()


class Counting(BaseOrchestrator):
    """Every task of a session adds one to what all of them share."""

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        if task_def.task_id in state:
            return [QueueMessage(type="nobody", action=ActionTypes.COMPLETED_TASK, data={"result": "end"})], state
        return [QueueMessage(type="echo", action=ActionTypes.NEW_TASK, data={"text": "x"})], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, result.task_id: True, "count": state.get("count", 0) + 1}


async def test_tasks_of_a_session_share_state_without_losing_any(url: str) -> None:
    async with world(PostgresStore(url), orchestrator=Counting()) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        entries = await asyncio.gather(*[submit(made.plane, None, session_id=f"s{n % 3}") for n in range(60)])
        await asyncio.gather(*[outcome(made.plane, entry) for entry in entries])
        for number in range(3):
            values = {value.key: value.value for value in await made.plane.store.load_shared(f"s{number}")}
            assert values["count"] == b"20"
        await local.stop()


async def test_a_control_plane_that_was_killed_is_carried_on_with_by_the_next(url: str) -> None:
    first = PostgresStore(url)
    async with world(first) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        task_ids = [(await submit(made.plane, text=f"x{number}")).row.task_id for number in range(20)]
        await until(lambda: first.backlog == 0)
        assert first._connection is not None
        first._connection.terminate()  # as the kernel does when a process is killed
        async with Deployment(services=[echo], store=url, quiet=True) as deployment:
            results = [await deployment.client.wait(task_id) for task_id in task_ids]
            assert [result.result for result in results] == [f"X{number}" for number in range(20)]
            assert (await deployment.plane.status())["tasks"] == {"completed": 20}
        assert not await first.renew_shards()


async def test_a_setting_names_a_database(url: str) -> None:
    store = open_store(url)
    assert isinstance(store, PostgresStore)
    async with Deployment(services=[echo], store=url, quiet=True) as deployment:
        assert await deployment.run("echo", text="a") == "A"
        assert deployment.store_location == store.location
    async with Deployment(services=[echo], store=url, quiet=True) as deployment:
        assert (await deployment.plane.status())["tasks"] == {"completed": 1}
