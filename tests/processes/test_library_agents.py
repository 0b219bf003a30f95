"""`kill -9` of the process that runs an agent, while a person is asked and in mid-step: another one goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.processes.children import Child, System
from tests.support import PROCESS_S, eventually

from llama_deploy.client import Client

pytestmark = pytest.mark.slow

ANSWERS: dict[str, tuple[Any, list[Any], str]] = {
    "clerk": ("tidy up", ["yes", {"decision": "reject", "reason": "b stays"}], "1; deleted a; b stays"),
    "officer": ("tidy up", ["yes", {"decision": "reject", "reason": "b stays"}], "1; deleted a; b stays"),
    "letters": ({"topic": "tides"}, [3, 4, "Ann"], "about tides to Ann (7)"),
}


async def start_agent(system: System, name: str) -> Child:
    child = await Child.start("library_agent_program.py", system.url, str(system.sink), name, folder=system.folder)
    system.children.append(child)
    return child


async def question(client: Client, task_id: str, before: str) -> str:
    """The prompt that the task waits with, once it is another one than before."""

    async def asked() -> str:
        view = await client.get_task(task_id)
        assert view.ended_at is None, view
        if view.state.value != "input_required" or view.prompt is None:
            return ""
        return "" if str(view.prompt["prompt"]) == before else str(view.prompt["prompt"])

    return await eventually(asked, PROCESS_S)


@pytest.mark.parametrize("name", ANSWERS)
async def test_the_process_dies_while_a_person_thinks(system: System, name: str) -> None:
    given, answers, expected = ANSWERS[name]
    await system.start_plane()
    instance = await start_agent(system, name)
    async with system.client() as client:
        task_id = await client.submit(name, input=given, wait_for_service=True)
        prompt = ""
        for answer in answers:
            asked = await question(client, task_id, prompt)
            if not prompt:
                await instance.kill()
            prompt = asked
            await client.send_input(task_id, answer)
            if instance.process.returncode is not None:
                instance = await start_agent(system, name)
        assert str(await client.result(task_id)).strip() == expected
        kinds = [entry.kind async for entry in client.history(task_id)]
        assert kinds.count("answered") == 1
        assert "lost" not in kinds, "nobody held the step while it waited"
    if name == "letters":
        assert system.effects()["write"] == 1, "what was done before the first question is not done again"


@pytest.mark.parametrize("name", ["reader", "investigator"])
async def test_the_process_dies_in_mid_step(system: System, name: str) -> None:
    """The next attempt asks the model anew, and finds what the dead one has called."""
    await system.start_plane()
    first = await start_agent(system, name)
    async with system.client() as client:
        task_id = await client.submit(name, input="what is hav?", wait_for_service=True)
        await eventually(lambda: system.effects()["linger"] == 1, PROCESS_S)
        await start_agent(system, name)
        await eventually(lambda: two_instances(client), PROCESS_S)
        await first.kill()
        await eventually(lambda: system.effects()["linger"] == 2, PROCESS_S)
        system.sink.with_name(system.sink.name + ".open").touch()
        output = await client.result(task_id)
        assert output.strip() == "hav means tide; lingered over hav"
        listed = [task async for task in client.list_tasks()]
    assert len(listed) == 2, "the task, and the one task that it called"
    assert system.effects()["look_up:1"] == 1


async def two_instances(client: Client) -> bool:
    views = await client.list_services()
    await asyncio.sleep(0)
    return bool(views) and all(len(view.instances) == 2 for view in views)
