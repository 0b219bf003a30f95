"""`kill -9` and SIGSTOP of everything, under load: each task reaches its one outcome, under its own id."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

import pytest
from tests.processes.children import System
from tests.support import PROCESS_S, eventually

from llama_deploy.client import Client
from llama_deploy.errors import TaskFailed

pytestmark = pytest.mark.slow

THOUSAND = 1_000


def submit_and_wait(client: Client, count: int, *, seconds: float) -> tuple[list[str], asyncio.Future[list[int]]]:
    """Run `count` tasks at once and wait for all of them, from one client."""
    ids = [f"task-{number}" for number in range(count)]
    waiting = [
        client.run("double", number=number, task_id=task_id, seconds=seconds) for number, task_id in enumerate(ids)
    ]
    return ids, asyncio.gather(*waiting)


async def some_effects(system: System, count: int) -> None:
    """Wait until services have worked on so many steps."""
    await eventually(lambda: sum(system.effects().values()) >= count, PROCESS_S)


async def test_the_control_plane_is_killed_under_a_thousand_tasks(
    system: System, record_property: Callable[[str, object], None]
) -> None:
    await system.start(instances=2)
    async with system.client() as client:
        ids, waiting = submit_and_wait(client, THOUSAND, seconds=0.02)
        await some_effects(system, 200)
        await system.plane.kill()
        killed_at = time.monotonic()
        done = sum(system.effects().values())
        await system.start_plane()
        await eventually(lambda: sum(system.effects().values()) > done + 40, PROCESS_S)
        record_property("recovery_s", time.monotonic() - killed_at)
        assert await waiting == [number * 2 for number in range(THOUSAND)]
        record_property("all_s", time.monotonic() - killed_at)
        await system.instances_are(client, 2)
        await system.check(client, ids)


async def test_an_instance_is_killed_under_load(system: System, record_property: Callable[[str, object], None]) -> None:
    first, _ = await system.start(instances=2)
    async with system.client() as client:
        ids, waiting = submit_and_wait(client, 500, seconds=0.02)
        await some_effects(system, 100)
        await first.kill()
        killed_at = time.monotonic()
        assert await waiting == [number * 2 for number in range(500)]
        record_property("all_s", time.monotonic() - killed_at)
        await system.check(client, ids)
        assert sum(system.effects().values()) <= 500 + 16, "only what the dead instance held may run twice"


async def test_a_step_of_a_killed_instance_goes_to_another_at_once(
    system: System, record_property: Callable[[str, object], None]
) -> None:
    system.settings["lease_s"] = 3_600.0  # so that nothing but the end of its connection tells
    instances = await system.start(instances=1)
    async with system.client() as client:
        waiting = asyncio.ensure_future(client.run("gate", folder=str(system.folder), task_id="g"))
        await some_effects(system, 1)
        await system.start_instance()
        await system.instances_are(client, 2)
        await instances[0].kill()
        killed_at = time.monotonic()
        await some_effects(system, 2)
        record_property("recovery_s", time.monotonic() - killed_at)
        (system.folder / "open").touch()
        assert await waiting == "went through"
        kinds = [entry.kind async for entry in client.history("g")]
        assert kinds == ["submitted", "lost", "answered"]


async def test_everything_is_killed_in_turn_for_seconds(system: System) -> None:
    instances = await system.start(instances=2)
    async with system.client() as client:
        ids, waiting = submit_and_wait(client, 500, seconds=0.05)
        rounds = 0
        while rounds < 4:
            await some_effects(system, sum(system.effects().values()) + 60)
            if rounds % 2 == 0:
                await system.plane.kill()
                await system.start_plane()
            else:
                await instances[rounds % len(instances)].kill()
                instances[rounds % len(instances)] = await system.start_instance()
            rounds += 1
            assert not waiting.done(), "the load has to outlive the kills"
        assert await waiting == [number * 2 for number in range(500)]
        await system.check(client, ids)


async def test_a_stopped_instance_loses_its_steps_and_comes_back_empty(system: System) -> None:
    stopped, *_ = await system.start(instances=1)
    async with system.client() as client:
        waiting = asyncio.ensure_future(client.run("gate", folder=str(system.folder), task_id="g"))
        await some_effects(system, 1)
        stopped.signal(signal.SIGSTOP)
        await system.start_instance()
        await some_effects(system, 2)
        (system.folder / "open").touch()
        assert await waiting == "went through"
        stopped.signal(signal.SIGCONT)
        await system.instances_are(client, 2)
        assert await client.run("double", number=1) == 2
        entries = [entry async for entry in client.history("g")]
        assert [entry.kind for entry in entries] == ["submitted", "lost", "answered"], (
            "the late answer counts for nothing"
        )


async def test_a_stopped_control_plane_is_waited_for(system: System) -> None:
    await system.start(instances=1)
    async with system.client() as client:
        await client.run("double", number=1, task_id="warm")
        waiting = asyncio.ensure_future(client.run("double", number=2, seconds=0.3, task_id="t"))
        await some_effects(system, 2)
        system.plane.signal(signal.SIGSTOP)
        submitted = asyncio.ensure_future(client.run("double", number=3, task_id="during"))
        await stays_silent(system, 2.5)
        system.plane.signal(signal.SIGCONT)
        assert await waiting == 4
        assert await submitted == 6
        await system.check(client, ["warm", "t", "during"])
        assert system.effects()["t:1"] == 1, "the instance was never silent, so nothing ran twice"


async def stays_silent(system: System, seconds: float) -> None:
    """Let real time pass: what is tested is a process that does not run."""
    until = time.monotonic() + seconds
    await eventually(lambda: time.monotonic() >= until, seconds + 5)


async def test_a_handler_that_blocks_its_loop_longer_than_the_lease_keeps_its_step(system: System) -> None:
    await system.start(instances=1)
    async with system.client() as client:
        assert await client.run("block", seconds=3.0, task_id="b") == 1
        assert system.effects() == {"b:1": 1}
        assert [entry.kind async for entry in client.history("b")] == ["submitted", "answered"]


async def test_a_handler_that_blocks_its_loop_is_silent_and_fails_meanwhile(system: System) -> None:
    await system.start(instances=1)
    async with system.client() as client:
        options = {"heartbeat_timeout_s": 0.3, "retry": {"max_retries": 0}}
        with pytest.raises(TaskFailed) as failed:
            await client.run("block", seconds=3_600.0, task_id="b", options=options, timeout_s=PROCESS_S)
        assert failed.value.error.code == "LD542"


async def test_a_stream_has_no_gap_across_crashes(system: System) -> None:
    system.settings["recovery_grace_s"] = 3.0
    first, *_ = await system.start(instances=1)
    async with system.client() as client:
        task_id = await client.submit("tell", events=400, folder=str(system.folder), task_id="s")
        seen: list[int] = []
        first_attempt: list[int] = []

        async def read() -> None:
            async for event in client.stream(task_id):
                seen.append(event.index)
                if event.data.get("attempt") == 1:
                    first_attempt.append(event.data["number"])

        reading = asyncio.ensure_future(read())
        await eventually(lambda: len(seen) > 20, PROCESS_S)
        await system.plane.kill()
        await system.start_plane()
        await eventually(lambda: len(seen) > 60, PROCESS_S)
        await first.kill()
        await system.start_instance()
        (system.folder / "open").touch()
        await reading
        assert seen == list(range(len(seen)))
        assert first_attempt == list(range(len(first_attempt)))
        again = [event async for event in client.stream(task_id)]
        assert [event.index for event in again] == seen
        attempts = [event.data["attempt"] for event in again if "llama_deploy" in event.data]
        assert attempts == list(range(2, 2 + len(attempts))), "each further attempt says so, once"
        assert attempts
        numbers = [e.data["number"] for e in again if e.data["attempt"] == attempts[-1] and "number" in e.data]
        assert numbers == list(range(400))


async def test_retries_survive_kills_of_the_control_plane(system: System) -> None:
    await system.start(instances=1)
    async with system.client() as client:
        ids = [f"f{number}" for number in range(40)]
        waiting = asyncio.gather(*(client.run("flaky", number=n, task_id=i) for n, i in enumerate(ids)))
        await some_effects(system, 30)
        await system.plane.kill()
        await system.start_plane()
        assert await waiting == list(range(40))
        await system.check(client, ids)
