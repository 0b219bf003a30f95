"""Programs with the published clients, installed as their users have them, against a deployment of ours.

`make published-clients` installs them, which takes minutes: they bring some two hundred megabytes. Where that has not
been done, what they send is still held by `test_published_core.py` and `test_published_server.py`.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.apiserver.deployments.api_server import running
from tests.support.published import ASYNCHRONOUS_02, BLOCKING_02, BLOCKING_08, CORE_08, PROGRAMS, SERVER_08, serving

INSTALLED = PROGRAMS.parents[3] / ".bench" / "published"

QUICK_START = PROGRAMS.parents[3] / "examples" / "published_quick_start"


def interpreter(version: str) -> str:
    """The Python that has a published version."""
    python = INSTALLED / version / "bin" / "python"
    if not python.exists():
        pytest.skip(f"llama-deploy {version} is not installed: make published-clients")
    return str(python)


def environment(**more: str) -> dict[str, str]:
    """Without anything that would put this package before the published one."""
    return {"PATH": "/usr/bin:/bin", "PYTHONWARNINGS": "ignore", "HOME": str(INSTALLED), **more}


@pytest.fixture
def port() -> Iterator[str]:
    """Where a deployment of ours listens."""
    with serving() as port:
        yield port


def run(version: str, program: str, port: str) -> dict[str, Any]:
    """What a program saw."""
    command = [interpreter(version), str(PROGRAMS / program), port]
    done = subprocess.run(command, env=environment(), cwd=PROGRAMS, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


def test_the_clients_of_0_2(port: str) -> None:
    seen = run("0.2.3", "client_02.py", port)
    blocking, asynchronous = seen["sync"], seen["async"]
    assert blocking == BLOCKING_02
    assert asynchronous == ASYNCHRONOUS_02


def test_the_client_of_0_8(port: str) -> None:
    seen = run("0.8.1", "client_08.py", port)
    core, server, blocking = seen["core"], seen["apiserver"], seen["sync"]
    assert core == CORE_08
    assert "400" in server.pop("refused")
    assert server == SERVER_08
    assert blocking == BLOCKING_08


@pytest.mark.parametrize("version", ["0.2.3", "0.8.1"])
def test_their_command_line(version: str, port: str) -> None:
    llamactl = [str(Path(interpreter(version)).with_name("llamactl")), "-s", f"http://127.0.0.1:{port}"]

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*llamactl, *words], env=environment(), check=False, capture_output=True, text=True)

    status = command("status")
    assert (status.returncode, "- desk" in status.stdout) == (0, True)
    ran = command("run", "-d", "desk", "-s", "echo", "-a", "text", "hi")
    assert ran.stdout.strip() == "echo hi"
    unknown = command("run", "-d", "other", "-a", "text", "hi")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("Error:")
    if version == "0.8.1":
        made = command("sessions", "create", "-d", "desk")
        assert "session_id=" in made.stdout


async def test_their_command_line_deploys_to_an_api_server(tmp_path: Path) -> None:
    llamactl = str(Path(interpreter("0.8.1")).with_name("llamactl"))
    project = tmp_path / "project"
    shutil.copytree(QUICK_START, project)
    async with running(tmp_path) as server:

        async def said(*words: str) -> str:
            process = await asyncio.create_subprocess_exec(
                *(llamactl, "-s", server.url, *words),
                cwd=project,
                env=environment(),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            out, _ = await process.communicate()
            assert process.returncode == 0, out.decode()
            return out.decode().strip()

        assert (await said("deploy", "quick_start.yml")).endswith("Deployment successful: QuickStart")
        found = re.search(r"session_id='([^']+)'", await said("sessions", "create", "-d", "QuickStart"))
        assert found is not None
        run = ("run", "-d", "QuickStart", "-s", "echo_workflow", "-i", found[1], "-a", "message", "hello")
        assert (await said(*run)).endswith("Message received: hello")
        async with server.client("QuickStart") as client:
            assert (await client.get_session(found[1])).task_count == 1
