"""Each template of `llamactl init` is checked, runs, and does what its README says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.conftest import Llamactl, running

from llama_deploy.apiserver import load_deployment_file
from llama_deploy.apiserver.loader import load_orchestrator, load_service
from llama_deploy.cli.init import FOLDER, NEXT, TEMPLATES
from llama_deploy.client import SyncClient
from llama_deploy.types import TaskState


@pytest.fixture(autouse=True)
def _own_modules() -> Iterator[None]:
    """What a template's modules are called is forgotten afterwards."""
    before, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name in {"services", "agents"}:
            del sys.modules[name]


@pytest.fixture
def made(llamactl: Llamactl, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a control plane that runs what a template has written."""
    ran = llamactl("init", str(tmp_path / "my-demo"), "--template", request.param)
    assert ran.code == 0
    assert NEXT[request.param] in ran.err
    file = load_deployment_file(tmp_path / "my-demo")
    assert file.name == "my-demo"
    assert file.notices == ()
    assert llamactl("serve", str(file.path), "--check").code == 0
    services = [load_service(service, file.folder) for service in file.services]
    orchestrator = load_orchestrator(file.orchestrator, file.folder)
    with running(*services, orchestrator=orchestrator, default_service=file.default_service) as url:
        yield url


@pytest.mark.parametrize("made", ["function"], indirect=True)
def test_functions(made: str, llamactl: Llamactl) -> None:
    assert llamactl("-q", "-s", made, "run", "shout", "-a", "text", "hello").out == "HELLO!\n"
    ran = llamactl("-s", made, "run", "researcher", "-i", '{"topic": "tides"}', "-o", "jsonl", "--stream")
    assert ran.code == 0
    assert ran.lines[0]["data"] == {"looking_into": "What is known about tides?"}


@pytest.mark.parametrize("made", ["workflow"], indirect=True)
def test_a_workflow_that_can_ask(made: str, llamactl: Llamactl) -> None:
    ran = llamactl("-q", "-s", made, "run", "report", "-a", "topic", "tides")
    assert ran.out == "tides: what tides are; why tides matter\n"
    asked = llamactl("-s", made, "run", "report", "-a", "topic", "tides", "-a", "ask_first", "true", "--no-wait")
    task_id = asked.out.strip()
    with SyncClient(made) as client:
        for entry in client.history(task_id, follow=True):
            if entry.state is TaskState.INPUT_REQUIRED:
                break
    assert llamactl("-s", made, "tasks", "send", task_id, "who measures them").code == 0
    watched = llamactl("-s", made, "tasks", "watch", task_id)
    assert watched.code == 0
    assert watched.out.endswith("why tides matter; who measures them\n")


@pytest.mark.parametrize("made", ["agents"], indirect=True)
def test_agents_that_hand_on(made: str, llamactl: Llamactl) -> None:
    ran = llamactl("-q", "-s", made, "run", "desk", "-i", '"Was invoice 1042 paid?"')
    assert ran.out == "Invoice 1042 was paid on 3 May.\n"
    ran = llamactl("-q", "-s", made, "run", "desk", "-i", '"My kettle is broken"')
    assert ran.out == "We look into it: My kettle is broken\n"
    assert "is noted" in llamactl("-q", "-s", made, "run", "desk", "-i", '"Hello"').out


def test_every_template_is_tested_and_is_there() -> None:
    tested = {mark.args[1][0] for test in (test_functions, test_a_workflow_that_can_ask, test_agents_that_hand_on)
              for mark in getattr(test, "pytestmark", [])}  # fmt: skip
    assert tested == set(TEMPLATES) == {path.name for path in FOLDER.iterdir() if path.is_dir()} == set(NEXT)
