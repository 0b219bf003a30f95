"""The ten-line program, killed in the middle of its task and started again: it carries on with what was unfinished."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.processes.children import Child
from tests.support import PROCESS_S, eventually

from llama_deploy import Deployment

pytestmark = pytest.mark.slow

PROGRAM = "ten_lines_program.py"


async def _kill_in_mid_task(folder: Path, *arguments: str) -> str:
    """Start the program, kill it while its step runs; the id of the task."""
    killed = await Child.start(PROGRAM, *arguments, folder=folder, environment={"RUN": "the first run"})
    ran = await eventually(lambda: _ran(folder), PROCESS_S)
    await killed.kill()
    return ran[0].split(":")[0]


def _ran(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.ran")]


async def test_a_killed_program_carries_on_when_it_starts_again(tmp_path: Path) -> None:
    task_id = await _kill_in_mid_task(tmp_path)
    (tmp_path / "open").touch()
    second = await Child.start(PROGRAM, folder=tmp_path, environment={"RUN": "the second run"})
    assert await second.line() == "HELLO FROM THE SECOND RUN"
    assert await second.ended() == 0
    assert (
        second.said()
        == "llama_deploy: data of 'default' in .llama_deploy/default.db, carrying on with 1 unfinished step\n"
    )
    async with Deployment(store=tmp_path / ".llama_deploy" / "default.db", quiet=True) as deployment:
        assert await deployment.client.result(task_id, timeout_s=1) == "HELLO FROM THE FIRST RUN"
        states = [task.state.value async for task in deployment.client.list_tasks()]
        assert states == ["completed", "completed"]


async def test_with_an_id_of_its_own_it_finds_the_very_task(tmp_path: Path) -> None:
    assert await _kill_in_mid_task(tmp_path, "greeting") == "greeting"
    (tmp_path / "open").touch()
    environment = {"RUN": "the first run"}
    for _ in range(2):
        again = await Child.start(PROGRAM, "greeting", folder=tmp_path, environment=environment)
        assert await again.line() == "HELLO FROM THE FIRST RUN"
        assert await again.ended() == 0
    async with Deployment(store=tmp_path / ".llama_deploy" / "default.db", quiet=True) as deployment:
        assert [task.task_id async for task in deployment.client.list_tasks()] == ["greeting"]


async def test_two_of_them_at_once_are_refused_clearly(tmp_path: Path) -> None:
    first = await Child.start(PROGRAM, folder=tmp_path, environment={"RUN": "1"})
    await eventually(lambda: _ran(tmp_path), PROCESS_S)
    second = await Child.start(PROGRAM, folder=tmp_path, environment={"RUN": "2"})
    assert await second.ended() == 1
    assert f".llama_deploy/default.db is in use by another process (pid {first.process.pid})" in second.said()
    (tmp_path / "open").touch()
    assert await first.ended() == 0


async def test_ctrl_c_hands_the_task_back_and_the_next_run_finishes_it(tmp_path: Path) -> None:
    first = await Child.start(PROGRAM, "greeting", folder=tmp_path, environment={"RUN": "it"})
    await eventually(lambda: _ran(tmp_path), PROCESS_S)
    first.signal(signal.SIGINT)
    (tmp_path / "open").touch()  # what runs may finish while the program ends
    assert await first.ended() != 0
    second = await Child.start(PROGRAM, "greeting", folder=tmp_path, environment={"RUN": "it"})
    assert await second.line() == "HELLO FROM IT"
    assert await second.ended() == 0
    assert _ran(tmp_path) == ["greeting:1.1.ran"]
