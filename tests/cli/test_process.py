"""`llamactl` as a program: signals, closed pipes, and what it needs of its surroundings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import PROCESS_S

from llama_deploy.client import SyncClient
from llama_deploy.types import TaskState

COMMAND = [sys.executable, "-m", "llama_deploy.cli"]


def test_it_runs_without_a_path(tmp_path: Path) -> None:
    ran = subprocess.run(
        [*COMMAND, "--help"], env={"PATH": ""}, cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "Usage: llamactl" in ran.stdout


def test_ctrl_c_leaves_the_task_running_and_says_where(server: str) -> None:
    with subprocess.Popen(
        [*COMMAND, "-s", server, "run", "slow"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        task_id = running.stderr.readline().removeprefix("task ").strip()
        assert running.stderr.readline().endswith("slow  sent\n")
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=PROCESS_S)
    assert running.returncode == 130
    assert out == ""
    assert f"The task goes on: llamactl tasks watch {task_id}" in err
    with SyncClient(server) as client:
        assert client.get_task(task_id).state in {TaskState.SUBMITTED, TaskState.WORKING}
        client.cancel(task_id)


def test_a_reader_that_leaves_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ran = subprocess.run([*COMMAND, "explain"], stdout=writing, stderr=subprocess.PIPE, check=False, text=True)
    finally:
        os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, "")


@pytest.mark.parametrize("value", ["", "1"])
def test_there_are_no_colours_where_nobody_sees_them(server: str, value: str) -> None:
    environment = {**os.environ, "NO_COLOR": value, "TERM": "xterm-256color"}
    ran = subprocess.run(
        [*COMMAND, "-s", server, "run", "shout", "-a", "text", "x"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "\x1b" not in ran.stdout + ran.stderr
