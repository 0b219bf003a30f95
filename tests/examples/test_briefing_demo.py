"""The briefing example as a stranger runs it: what it shows, what it leaves behind, and that it leaves no process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from steps.read import document_paths
from tests.support import PROCESS_S, eventually

from llama_deploy import Deployment, TaskState
from llama_deploy.types import HistoryEntry, TaskView

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "briefing" / "run.py"
STEPS = 4 * 12 + 1


class Demo:
    """One place for the example's data, and every process that it starts, known by a variable of its environment."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "briefing.db"
        self.output = folder / "briefing.md"
        self._mark = f"BRIEFING_TEST={uuid4().hex}"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
        name, _, value = self._mark.partition("=")
        return subprocess.Popen(
            [sys.executable, PROGRAM, "--store", self.store, "--output", self.output, *arguments],
            env={**environment, name: value, "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def processes(self) -> list[int]:
        """Whatever of it still runs."""
        return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if self._mark in _read(path)]

    async def recorded(self) -> tuple[list[TaskView], list[HistoryEntry]]:
        """The tasks in the store, and the history of the newest."""
        async with Deployment(store=self.store, quiet=True) as deployment:
            tasks = [task async for task in deployment.client.list_tasks()]
            return tasks, [entry async for entry in deployment.client.history(tasks[0].task_id)]


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:  # it has just ended, or is somebody else's
        return ""


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    if not Path("/proc/self/environ").exists():
        pytest.skip("what runs is read from /proc")
    demo = Demo(tmp_path)
    yield demo
    left = demo.processes()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


async def test_the_briefing_is_made_although_a_process_is_killed(demo: Demo, documents: Path) -> None:
    out, progress = demo.start().communicate(timeout=PROCESS_S)
    assert demo.processes() == []

    pid = re.search(r"==> kill -9 (\d+), the process of `(\w+)`", progress)
    assert pid, progress
    assert f"{pid[2]} {pid[1]}" in progress.partition("service processes after")[2].splitlines()[0]
    assert f"{pid[2]}: killed by SIGKILL; it starts again" in progress
    assert "attempt 1 was lost with its process; attempt 2 is on its way" in progress
    assert re.search(rf"  {pid[2]} .*\(attempt 2\)\n", progress)

    tasks, history = await demo.recorded()
    assert [(task.state, task.service) for task in tasks] == [(TaskState.COMPLETED, "briefing")]
    lost = {entry.step_id for entry in history if entry.kind == "lost"}
    answers = {entry.step_id: entry.attempt for entry in history if entry.kind == "answered"}
    assert lost
    assert len(answers) == STEPS
    assert {step for step, attempt in answers.items() if attempt == 2} == lost
    assert set(answers.values()) == {1, 2}

    written = demo.output.read_text(encoding="utf-8")
    assert written.startswith("# Keeping time\n")
    assert all(f"`{Path(path).name}`" in written for path in document_paths(str(documents)))
    shown, _, timeline = out.partition("waited      ran")
    assert "What stands out" in shown
    assert len(re.findall(r"^.{20}(?:read|analyse|summarise|check|write) ", timeline, re.MULTILINE)) == STEPS
    assert len(re.findall(r"  attempt 2$", timeline, re.MULTILINE)) == len(lost)
    assert "x was lost with its process" in timeline
    assert str(demo.output) in timeline


async def test_what_was_interrupted_goes_on(demo: Demo) -> None:
    with demo.start() as first:
        assert first.stderr is not None
        task_id = next(line for line in first.stderr if line.startswith("==> task ")).split()[2]
        first.send_signal(signal.SIGINT)
        out, progress = first.communicate(timeout=PROCESS_S)
    assert first.returncode == 130
    assert "Interrupted. What was answered is recorded; the same command carries on from there." in progress
    assert out == ""
    assert demo.processes() == []

    second = demo.start("--no-kill")
    out, progress = second.communicate(timeout=PROCESS_S)
    assert second.returncode == 0, progress
    assert f"==> task {task_id} of an interrupted run goes on" in progress
    assert "kill -9" not in progress
    tasks, _ = await demo.recorded()
    assert [(task.task_id, task.state) for task in tasks] == [(task_id, TaskState.COMPLETED)]


async def test_nothing_outlives_it_even_when_it_is_killed(demo: Demo) -> None:
    with demo.start() as killed:
        assert killed.stderr is not None
        assert any("service processes after" in line for line in killed.stderr)
        assert len(demo.processes()) > len(("run.py", "llamactl serve"))
        killed.kill()
    await eventually(lambda: not demo.processes(), PROCESS_S)


def test_a_deployment_that_cannot_start_is_told_as_it_tells_it(demo: Demo) -> None:
    demo.store.write_text("this is no database, and it is longer than a hundred bytes. " * 4)
    failed = demo.start()
    out, progress = failed.communicate(timeout=PROCESS_S)
    assert failed.returncode == 1
    assert out == ""
    assert "Error LD404" in progress


def test_a_folder_without_documents_is_refused(demo: Demo, tmp_path: Path) -> None:
    refused = demo.start(str(tmp_path))
    _, progress = refused.communicate(timeout=PROCESS_S)
    assert refused.returncode == 2
    assert f"there are no documents in {tmp_path}" in progress
