"""Programs as the published guides show them, each in a process of its own, and the quick start with its server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import PROCESS_S, eventually

PROGRAMS = Path(__file__).resolve().parent / "programs"
QUICK_START = Path(__file__).resolve().parents[2] / "examples" / "published_quick_start"


class Programs:
    """Programs of a folder, started with one environment; they end with the test."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._running: list[subprocess.Popen[str]] = []

    def start(self, *command: str) -> subprocess.Popen[str]:
        started = subprocess.Popen(
            [sys.executable, *command],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._running.append(started)
        return started

    def end(self) -> None:
        for one in self._running:
            one.kill()
            one.communicate()


@pytest.fixture
def programs(tmp_path: Path, free_port: int) -> Iterator[Programs]:
    environment = {
        "CONTROL_PLANE_PORT": str(free_port),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    started = Programs(tmp_path, environment)
    yield started
    started.end()


def test_the_core_the_workflows_and_the_client_in_processes_of_their_own(programs: Programs) -> None:
    program = {path.stem: str(path) for path in PROGRAMS.glob("*.py")}
    inner = programs.start(program["launch_workflows"], "inner", "counting")
    programs.start(program["launch_workflows"], "outer", "streaming", "asking")
    core = programs.start(program["launch_core"])
    said, _ = programs.start(program["use_client"]).communicate(timeout=PROCESS_S)
    wanted = {
        "nested": "hello_world_result_result",
        "events": [{"progress": "0"}, {"progress": "1"}, {"result": "hello_result"}],
        "final": "hello_result",
        "counts": ["1", "2", "1"],
        "answered": "42",
    }
    assert json.loads(said) == wanted

    core.send_signal(signal.SIGKILL)  # and everything goes on as before, with another core
    core.wait()
    programs.start(program["launch_core"])
    said, _ = programs.start(program["use_client"]).communicate(timeout=PROCESS_S)
    assert json.loads(said) == wanted

    inner.terminate()
    inner.communicate(timeout=PROCESS_S)


async def test_the_quick_start_as_it_was(programs: Programs, tmp_path: Path) -> None:
    llamactl = str(Path(sys.executable).with_name("llamactl"))
    ready = tmp_path / "ready.json"
    server = programs.start(llamactl, "apiserver", "--port", "0", "--ready-file", str(ready))
    await eventually(lambda: server.poll() is not None or (ready.exists() and ready.read_text()), PROCESS_S)
    url = json.loads(ready.read_text())["url"]

    def said(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=QUICK_START, check=False, capture_output=True, text=True, timeout=PROCESS_S
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert said("src/workflow.py") == "Message received: Hello!\n"
    assert "QuickStart" in said(llamactl, "-s", url, "deploy", "quick_start.yml")
    shell = ["run", "--deployment", "QuickStart", "--arg", "message", "Hello from my shell!"]
    assert said(llamactl, "-s", url, *shell) == "Message received: Hello from my shell!\n"
    assert said("client.py", url) == "Message received: Hello from Python!\n"
    server.terminate()
    assert server.wait(timeout=PROCESS_S) == 0
