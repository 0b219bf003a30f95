"""Command line programs as services: input, output, failures, and that nothing is left of one that was stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.services.attempts import Attempt
from tests.support import eventually

from llama_deploy.errors import ArgumentsError, NonRetryableError, ServiceRaisedError, SettingError
from llama_deploy.services import ProgramService
from llama_deploy.types import TaskResult

pytestmark = pytest.mark.anyio


def python(code: str, *words: str, **options: Any) -> ProgramService:
    return ProgramService("program", [sys.executable, "-c", code, *words], **options)


async def output(service: ProgramService, given: Any) -> Any:
    result = await service.run(Attempt(given))
    assert isinstance(result, TaskResult)
    return result.output


async def test_text_goes_in_and_comes_out() -> None:
    assert await output(ProgramService("count", ["wc", "-w"]), "the tide is high") == "4"
    assert await output(python("print(open(0).read().upper())"), "ebb and flow") == "EBB AND FLOW"


async def test_arguments_are_words_or_json_and_never_read_by_a_shell() -> None:
    service = python("import sys; print(sys.argv[1:])", "--name", "{name}", "n={n}")
    assert await output(service, {"name": "a b; rm -rf $HOME", "n": 3}) == "['--name', 'a b; rm -rf $HOME', 'n=3']"
    assert service.definition.input_schema == {
        "type": "object",
        "properties": {"name": {"type": "string"}, "n": {"type": "string"}},
        "required": ["name", "n"],
    }
    with pytest.raises(ArgumentsError, match="no `n`"):
        await output(service, {"name": "x"})
    whole = python("import json; print(json.load(open(0))['deep']['er'])")
    assert await output(whole, {"deep": {"er": [1]}}) == "[1]"


async def test_json_out_the_step_id_and_the_folder(tmp_path: Path) -> None:
    code = "import json, os; print(json.dumps([os.environ['LLAMA_DEPLOY_STEP_ID'], os.getcwd(), os.environ['A']]))"
    assert await output(python(code, output="json", cwd=tmp_path, env={"A": "b"}), "") == ["task:1", str(tmp_path), "b"]
    with pytest.raises(NonRetryableError, match="printed no JSON"):
        await output(python("print('oops')", output="json"), "")


async def test_exit_codes() -> None:
    with pytest.raises(ServiceRaisedError, match="ended with exit code 3") as again:
        await output(python("import sys; print('no luck', file=sys.stderr); sys.exit(3)"), "")
    assert again.value.why == "no luck"
    with pytest.raises(NonRetryableError, match="exit code 2"):
        await output(python("import sys; sys.exit(2)"), "")
    with pytest.raises(ServiceRaisedError, match="was killed by SIGKILL"):
        await output(python("import os; os.kill(os.getpid(), 9)"), "")
    with pytest.raises(NonRetryableError, match="cannot be started"):
        await output(ProgramService("none", ["/no/such/program"]), "")


async def test_lines_are_streamed_as_they_come_and_an_unread_input_is_no_failure() -> None:
    attempt = Attempt("x" * 1_000_000)
    result = await python("print(1); print(2)", stream=True).run(attempt)
    assert attempt.events == ["1", "2"]
    assert isinstance(result, TaskResult)
    assert result.output == "1\n2"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("deaf", [False, True])
async def test_one_that_is_stopped_is_gone_with_all_that_it_has_started(
    stream: bool, deaf: bool, tmp_path: Path
) -> None:
    code = f"""
import os, signal, subprocess, sys, time
if {deaf}: signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(tmp_path / "pids")!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
os.rename({str(tmp_path / "pids")!r}, {str(tmp_path / "ready")!r})
time.sleep(600)
"""
    running = asyncio.create_task(python(code, stream=stream, kill_after_s=0.2).run(Attempt("")))
    await eventually((tmp_path / "ready").exists)
    pids = [int(pid) for pid in (tmp_path / "ready").read_text().split()]
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await eventually(lambda: not any(_lives(pid) for pid in pids))


async def test_one_that_is_given_up_before_its_own_grace_is_over_is_killed(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: open({str(tmp_path / "asked")!r}, "w").close())
sys.stdin.read()
open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
os.rename({str(tmp_path / "pid")!r}, {str(tmp_path / "ready")!r})
while True:
    time.sleep(600)
"""
    running = asyncio.create_task(python(code, kill_after_s=600.0).run(Attempt("")))
    await eventually((tmp_path / "ready").exists)
    pid = int((tmp_path / "ready").read_text())
    try:
        running.cancel()
        await eventually((tmp_path / "asked").exists)
        running.cancel()  # the grace of the instance is over, which is shorter than its own by default
        with contextlib.suppress(asyncio.CancelledError):
            await running
        assert not _lives(pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_command_is_a_list() -> None:
    with pytest.raises(SettingError, match="a list of words"):
        ProgramService("x", "wc -w")
