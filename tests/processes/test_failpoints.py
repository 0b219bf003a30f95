"""A crash at every place where one durable step ends and the next begins: what was promised holds afterwards."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.processes.children import ROOT, Child, System
from tests.processes.pair import Pair
from tests.processes.scenarios import CLIENT, CRASHES, INSTANCE, OF_TWO, PLANE, Crash
from tests.processes.works import HELD, all_held, keep_the_promise, open_gate
from tests.support import PROCESS_S, eventually
from tests.support.ports import free_port
from tests.support.postgres import database_url

from llama_deploy.client import Client
from llama_deploy.runtime.failpoints import EXIT_CODE, FAILPOINTS


def used_failpoints() -> list[str]:
    """Every name that the source passes to `failpoint`, as often as it does."""
    found: list[str] = []
    for path in Path(ROOT, "src").rglob("*.py"):
        found += re.findall(r"\bfailpoint\(\s*\"([^\"]*)\"\)+\n", path.read_text())
    return found


def test_every_failpoint_is_used_and_crashed_at_and_no_other() -> None:
    used = used_failpoints()
    assert set(used) == set(FAILPOINTS)
    assert set(CRASHES) == set(FAILPOINTS), "tests/processes/scenarios.py has one line per failpoint"
    assert all(said and not said.endswith(".") for said in FAILPOINTS.values())


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with database_url() as url:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, crash in CRASHES.items() if crash.when in OF_TWO])
async def test_a_crash_of_one_of_two_at(name: str, tmp_path: Path, database: str) -> None:
    crash = CRASHES[name]
    pair = Pair(tmp_path, (free_port(), free_port()), database)
    try:
        wanted = await _crash_one_of_two(pair, name, crash)
        async with pair.client() as client:
            await keep_the_promise(client, wanted)
    finally:
        await pair.stop()


async def _crash_one_of_two(pair: Pair, name: str, crash: Crash) -> dict[str, str]:
    """Begin with the one that is to crash, or the other one; at the end both run."""
    armed = _armed(name, crash)
    of_plane = armed if crash.where == PLANE else None
    instance = await pair.start_instance(failpoint=armed if crash.where == INSTANCE else None)
    await pair.start_one(0, failpoint=None if crash.when == "join" else of_plane)
    client = pair.client_of(0) if crash.when == "asked" else pair.client()
    async with client:
        if crash.when in ("take over", "asked"):
            await pair.start_one(1)
            await pair.shared_out()
        working = asyncio.ensure_future(_all(client, pair, crash))
        if all_held in crash.works:
            await eventually(lambda: sum(step_id.startswith("held") for step_id in pair.effects()) == HELD, PROCESS_S)
        if crash.when == "take over":
            await pair.planes[1].kill()
        elif crash.when != "asked":
            await pair.start_one(1, failpoint=of_plane if crash.when == "join" else None)
        victim = pair.planes[1 if crash.when == "join" else 0]
        await _died(instance if crash.where == INSTANCE else victim)
        if crash.where == INSTANCE:
            await pair.start_instance()
        for number, child in pair.planes.copy().items():
            if child.process.returncode is not None:
                await pair.start_one(number)
        open_gate(pair.folder)
        return await working


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, crash in CRASHES.items() if crash.when not in OF_TWO])
async def test_a_crash_at(name: str, system: System) -> None:
    crash = CRASHES[name]
    system.settings |= {"recovery_grace_s": 0.3, "decision_retry_s": 0.02, **crash.settings}
    async with system.client() as client:
        if crash.where == CLIENT:
            wanted = await _crash_a_client(system, name, crash)
        elif crash.where == INSTANCE:
            wanted = await _crash_an_instance(system, client, name, crash)
        else:
            wanted = await _crash_the_control_plane(system, client, name, crash)
        await keep_the_promise(client, wanted)


def _armed(name: str, crash: Crash) -> str:
    return f"{name}:{crash.passing}"


async def _crash_the_control_plane(system: System, client: Client, name: str, crash: Crash) -> dict[str, str]:
    armed = _armed(name, crash)
    instance = await system.start_instance()
    if crash.when == "first start":
        victim = await system.start_plane(failpoint=armed)
        await _died(victim)
        await system.start_plane()
        return await _all(client, system, crash)
    victim = await system.start_plane(failpoint=None if crash.when == "restart" else armed)
    working = asyncio.ensure_future(_all(client, system, crash))
    if crash.when != "work":
        await _steps_run(system)
    if crash.when == "restart":
        await victim.kill()
        victim = await system.start_plane(failpoint=armed)
    elif crash.when == "stop":
        await victim.terminate()
    elif crash.when == "loss":
        await instance.kill()
        await system.start_instance()
    await _died(victim)
    await system.start_plane()
    open_gate(system.folder)
    return await working


async def _crash_an_instance(system: System, client: Client, name: str, crash: Crash) -> dict[str, str]:
    await system.start_plane()
    victim = await system.start_instance(failpoint=_armed(name, crash))
    working = asyncio.ensure_future(_all(client, system, crash))
    if crash.when == "stop":
        await _steps_run(system)
        await _one_step_is_left(client)
        open_gate(system.folder)
        await victim.terminate()
    await _died(victim)
    await system.start_instance()
    return await working


async def _crash_a_client(system: System, name: str, crash: Crash) -> dict[str, str]:
    await system.start_instance()
    await system.start_plane()
    await _died(await system.start_client(crash.works, failpoint=_armed(name, crash)))
    second = await system.start_client(crash.works)
    said = await second.line()
    assert await second.ended() == 0, second.said()
    wanted: dict[str, str] = json.loads(said)
    return wanted


async def _all(client: Client, system: System, crash: Crash) -> dict[str, str]:
    """Do all works at once; the states in which their tasks have to be."""
    states = await asyncio.gather(*(work(client, system.folder) for work in crash.works))
    return {task_id: state for each in states for task_id, state in each.items()}


async def _steps_run(system: System) -> None:
    """Wait until an instance holds the step that no work lets go of before the gate is open."""
    await eventually(lambda: system.effects()["held:1"] > 0, PROCESS_S)


async def _one_step_is_left(client: Client) -> None:
    async def left() -> bool:
        return [task.task_id async for task in client.list_tasks() if task.ended_at is None] == ["held"]

    await eventually(left, PROCESS_S)


async def _died(victim: Child) -> None:
    assert await victim.ended() == EXIT_CODE, victim.said()
