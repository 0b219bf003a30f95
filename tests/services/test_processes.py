"""Services in worker processes: what their code can do, how it is killed, and that nothing is left of it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.control_plane.harness import LinkedRunner, World, history, outcome, stream, submit, until, world
from tests.services.process_services import double, spin, waits, work

from llama_deploy.control_plane import EngineSettings
from llama_deploy.errors import ServiceStartError, SettingError
from llama_deploy.services import FunctionService, service
from llama_deploy.types import TaskOptions

ONCE = TaskOptions.model_validate({"retry": {"max_retries": 0}})
pytestmark = pytest.mark.slow


@asynccontextmanager
async def running(*services: Any, **settings: Any) -> AsyncIterator[tuple[World, LinkedRunner]]:
    async with world(settings=EngineSettings(**settings)) as made:
        local = LinkedRunner(services)
        await local.connect(made.plane)
        yield made, local
        await local.stop()


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


def pids_in(file: str) -> list[int]:
    return [int(pid) for pid in Path(file).read_text().split()]


async def test_the_code_runs_in_processes_that_are_used_again() -> None:
    async with running(work) as (made, _):
        pids = [(await outcome(made.plane, await submit(made.plane, "work", "pid"))).value for _ in range(3)]
        assert len(set(pids)) == 1
        assert pids[0] != os.getpid()
    await until(lambda: gone(pids[0]))


async def test_it_can_do_what_other_code_can() -> None:
    async with running(work, waits, double) as (made, _):
        entry = await submit(made.plane, "work", "everything")
        kept, doubled, pid = (await outcome(made.plane, entry)).value
        assert (kept, doubled) == (1, 8)
        assert {"pid": pid} in await stream(made.plane, entry)
        assert {one.kind for one in await history(made.plane, entry)} >= {"remembered", "called"}
        asked = await submit(made.plane, "waits", "{}")
        await until(lambda: made.plane.views.task(asked).prompt)
        await made.plane.signals.send_input(asked.row.task_id, 3)
        assert (await outcome(made.plane, asked)).value == 3


async def test_its_own_failure_has_its_class_and_traceback() -> None:
    async with running(work) as (made, _):
        result = await outcome(made.plane, await submit(made.plane, "work", "raise", options=ONCE))
        assert result.error is not None
        assert (result.error.code, result.error.type) == ("LD502", "ValueError")
        assert "process_services.py" in (result.error.traceback or "")


async def test_the_death_of_a_worker_is_a_failure_of_one_attempt(caplog: pytest.LogCaptureFixture) -> None:
    async with running(work) as (made, _):
        entry = await submit(made.plane, "work", "exit")
        assert (await outcome(made.plane, entry)).result == "exit in attempt 2"
        (failed,) = [one for one in await history(made.plane, entry) if one.kind == "retrying"]
        assert failed.error is not None
        assert failed.error.code == "LD543"
        assert "exit code 3" in failed.error.message
        assert "goodbye" in failed.error.message
        result = await outcome(made.plane, await submit(made.plane, "work", "segfault", options=ONCE))
        assert result.error is not None
        assert "SIGSEGV" in result.error.message


@pytest.mark.parametrize("why", ["canceled", "deadline"])
async def test_code_that_does_not_stop_is_killed_with_all_that_it_has_started(tmp_path: Path, why: str) -> None:
    file = tmp_path / "pids"
    async with running(spin, cancel_grace_s=0.1) as (made, _):
        options = {"retry": {"max_retries": 0}, **({"run_timeout_s": 3.0} if why == "deadline" else {})}
        text = f'{{"file": "{file}"}}'
        entry = await submit(made.plane, "spin", text, options=TaskOptions.model_validate(options))
        await until(Path(f"{file}.done").exists)
        pids = pids_in(f"{file}.done")
        if why == "canceled":
            await made.plane.signals.cancel(entry.row.task_id)
        else:
            result = await outcome(made.plane, entry)
            assert result.error is not None
            assert result.error.code == "LD503"
        await until(lambda: all(gone(pid) for pid in pids))
        await until(lambda: made.plane.views.service("spin").running == 0)
        await until(lambda: made.plane.views.service("spin").instances[0].left_behind == 0)


async def test_code_that_heeds_its_cancellation_keeps_its_process() -> None:
    async with running(work) as (made, local):
        pid = (await outcome(made.plane, await submit(made.plane, "work", "pid"))).value
        entry = await submit(made.plane, "work", "heed")
        await until(lambda: local.runner.steps)
        await asyncio.sleep(0)
        await made.plane.signals.cancel(entry.row.task_id)
        await until(lambda: made.plane.views.service("work").running == 0)
        assert (await outcome(made.plane, await submit(made.plane, "work", "pid"))).value == pid


PROGRAM = """
import asyncio, sys, uvloop
from llama_deploy import Deployment
from tests.services.process_services import spin

async def main():
    assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")
    async with Deployment(services=[spin], store=":memory:", quiet=True) as deployment:
        await deployment.run("spin", file=sys.argv[1])

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


async def test_no_worker_outlives_its_instance(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, str(file), env=environment)
    await until(Path(f"{file}.done").exists)
    pids = pids_in(f"{file}.done")
    child.kill()
    await child.wait()
    await until(lambda: all(gone(pid) for pid in pids))


async def test_a_function_that_cannot_be_imported_is_refused_at_the_start() -> None:
    @service(process=True)
    def local(number: int) -> int:
        return number

    with pytest.raises(SettingError, match="process of its own"):
        await local.start()


async def test_a_module_that_breaks_is_told_at_the_start(tmp_path: Path) -> None:
    made = FunctionService(double.function, process=True)
    made.function.__qualname__, before = "nothing_of_the_kind", made.function.__qualname__
    try:
        with pytest.raises(ServiceStartError, match="process of its own") as refused:
            await made.start()
    finally:
        made.function.__qualname__ = before
    assert "nothing_of_the_kind" in refused.value.why
