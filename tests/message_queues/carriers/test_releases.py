"""Releases over a broker: each has a topic of its own there, and what waits in that of a retired one is not lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.message_queues.carriers.conftest import new_namespace
from tests.support import eventually

from llama_deploy import Deployment, service
from llama_deploy.orchestrators import Sequence
from llama_deploy.services import serve_services

pytestmark = pytest.mark.slow

TASKS = 12
AT_ONCE = 4


@asynccontextmanager
async def instance(deployment: Deployment, release: str, gate: asyncio.Event) -> AsyncIterator[None]:
    """An instance of a release, whose first steps wait at a gate."""

    @service(name="work", concurrency=AT_ONCE)
    async def work(text: str) -> str:
        if text == "begin":
            await gate.wait()
            return release
        return f"{text} {release}"

    stop, ready = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(
        serve_services(
            [work],
            control_plane_url=deployment.url,
            release=release,
            stop=stop,
            on_ready=ready.set,
            handle_signals=False,
        )
    )
    await ready.wait()
    try:
        yield
    finally:
        stop.set()
        await serving


async def submitted(deployment: Deployment) -> list[str]:
    """Tasks of which as many as may have begun, and the others wait at the broker."""
    made = [await deployment.submit("work", text="begin") for _ in range(TASKS)]
    entries = [deployment.plane.engine.cache.tasks[task_id] for task_id in made]
    await eventually(lambda: sum(step.claimed_by is not None for e in entries for step in e.open.values()) == AT_ONCE)
    return made


async def outputs(deployment: Deployment, task_ids: list[str]) -> set[Any]:
    return {(await deployment.client.wait(task_id)).output for task_id in task_ids}


@pytest.mark.parametrize("shared_url", ["redis", "rabbitmq", "nats", "postgresql"], indirect=True)
async def test_tasks_finish_where_they_began_and_go_on_when_that_is_retired(shared_url: str) -> None:
    policy = Sequence(first="work", second="work", third="work")
    carrier = {"url": shared_url, "namespace": new_namespace()}
    async with Deployment(
        [], store=":memory:", port=0, quiet=True, orchestrator=policy, message_queue=carrier
    ) as deployment:
        gate = asyncio.Event()
        async with instance(deployment, "1", gate):
            await deployment.client.use_release("1")
            first = await submitted(deployment)
            async with instance(deployment, "2", gate):
                await deployment.client.use_release("2")
                second = await submitted(deployment)
                gate.set()
                assert await outputs(deployment, first) == {"1 1 1"}
                assert await outputs(deployment, second) == {"2 2 2"}
        gate.clear()
        async with instance(deployment, "2", gate):
            held = await submitted(deployment)
            async with instance(deployment, "3", gate):
                await deployment.client.use_release("3", finish_within_s=0)
                gate.set()
                assert await outputs(deployment, held) <= {"2 3 3", "3 3 3"}
