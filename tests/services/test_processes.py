"""Services in worker processes: what their code can do, how it is killed, and that nothing is left of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.control_plane.harness import LinkedRunner, World, history, outcome, stream, submit, until, world
from tests.control_plane.test_contents import Slow, keep_all, read
from tests.services.attempts import Attempt
from tests.services.process_services import double, files, lingers, size_of, spin, waits, work
from tests.support import DEADLINE_S, eventually

from llama_deploy.apiserver import Deployment
from llama_deploy.control_plane import EngineSettings
from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.errors import ServiceStartError, SettingError, StepCanceledError, WorkerDiedError
from llama_deploy.services import FunctionService, pipes, service
from llama_deploy.services.processes import WorkerProcesses
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


def asks(made: World, entry: TaskEntry, prompt: str) -> bool:
    shown = made.plane.views.task(entry).prompt
    return shown is not None and shown["prompt"] == prompt


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
        asked = await submit(made.plane, "work", "ask")
        for prompt, answer in (("first?", "a"), ("second?", "b")):
            await until(partial(asks, made, asked, prompt))
            await made.plane.signals.send_input(asked.row.task_id, answer)
        assert (await outcome(made.plane, asked)).value == ["a", "b"]


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


# --- files ------------------------------------------------------------------------------------------------------------

BIG = bytes(range(251)) * 3000
"""Three parts, nearly."""


async def test_files_go_in_and_out_of_a_worker(tmp_path: Path) -> None:
    async with Deployment([files, size_of], store=tmp_path / "s.db", quiet=True) as deployment:
        client = deployment.client
        given = await client.upload(BIG, name="big.bin")
        result = await client.run("files", given=given, what="path")
        assert result["head"] == BIG[:4].decode("latin-1")
        assert (result["made"].name, result["made"].media_type) == ("twice.bin", "application/x-twice")
        assert await client.read(result["made"]) == BIG * 2
        task_id = await client.submit("files", given=given, what="iterator")
        made, first = await client.result(task_id)
        assert (made.name, made.size_bytes) == ("twice.txt", 2 * len(BIG))
        assert made.hash == result["made"].hash
        assert await client.read(first) == BIG[:3], "bytes in a result are stored, too"
        assert [event.data["made"].hash async for event in client.stream(task_id)] == [made.hash]
        assert await client.run("size_of", data=given) == len(BIG)


async def test_what_goes_wrong_with_files_of_a_worker_harms_nobody(tmp_path: Path) -> None:
    async with Deployment([files], store=tmp_path / "s.db", quiet=True) as deployment:
        client = deployment.client
        given = await client.upload(BIG)
        died = await client.wait(await client.submit("files", given=given, what="die"))
        assert (died.status, died.attempt) == ("completed", 2)
        missing = await client.wait(await client.submit("files", given=given, what="missing", options=ONCE))
        assert missing.error is not None
        assert missing.error.type == "FileNotFoundError"
        _, first = await client.run("files", given=await client.upload(b"abcdef"), what="x")
        assert await client.read(first) == b"abc"


async def test_a_file_of_a_worker_goes_on_after_the_connection_was_lost() -> None:
    store = Slow()
    async with world(store) as made:
        local = LinkedRunner([files])
        await local.connect(made.plane)
        given = await keep_all(made.plane, store, BIG)
        store.asked, store.let = 0, asyncio.Event()
        text = msgspec.json.encode({"given": given, "what": "path"}).decode()
        entry = await submit(made.plane, "files", text)
        await until(lambda: store.asked > 1)
        local.drop()
        store.let.set()
        await local.connect(made.plane)
        found = (await outcome(made.plane, entry)).value["made"]
        assert await read(made.plane, found) == BIG * 2
        await local.stop()


async def test_a_worker_that_saves_when_its_task_is_canceled_works_on() -> None:
    store = Slow()
    async with world(store) as made:
        local = LinkedRunner([files])
        await local.connect(made.plane)
        given = await keep_all(made.plane, store, BIG)
        text = msgspec.json.encode({"given": given, "what": "path"}).decode()
        store.asked, store.let = 0, asyncio.Event()
        entry = await submit(made.plane, "files", text)
        await until(lambda: store.asked > 0)
        await made.plane.signals.cancel(entry.row.task_id)
        await until(lambda: made.plane.views.service("files").running == 0)
        store.let.set()
        again = await submit(made.plane, "files", text)
        assert (await outcome(made.plane, again)).status == "completed"
        await local.stop()


# --- what comes at the wrong moment ----------------------------------------------------------------------------------


class Wishes:
    """A desk that refuses every call and notes it."""

    last_heartbeat = None

    def __init__(self) -> None:
        self.noted: list[Any] = []

    def all_remembered(self) -> Mapping[str, bytes]:
        return {}

    def call(self, key: str, definition: bytes) -> Future[Any]:
        self.noted.append((key, definition))
        refused: Future[Any] = Future()
        refused.set_exception(StepCanceledError("nobody is called here"))
        return refused

    def heartbeat(self, details: bytes | None) -> None:
        self.noted.append(details)


def attempt(text: dict[str, Any], *, number: int = 1) -> Attempt:
    made = Attempt(text, number=number)
    made._desk = Wishes()  # type: ignore[assignment]
    return made


@asynccontextmanager
async def one_worker(of: Any, said: list[str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WorkerProcesses]:
    """The worker processes of a function, one of them started; `said` is what they are told."""
    write = pipes.write

    def noted(writer: asyncio.StreamWriter, kind: str, *rest: Any) -> None:
        said.append(kind)
        write(writer, kind, *rest)

    monkeypatch.setattr(pipes, "write", noted)
    processes = WorkerProcesses(of.function, name="work", count=1)
    async with asyncio.timeout(DEADLINE_S):
        await processes.start()
        yield processes
        await processes.stop()


async def test_code_that_is_stopped_before_it_has_begun_keeps_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    async with one_worker(work, said, monkeypatch) as processes:
        (process,) = processes._idle
        os.kill(process._child.pid, signal.SIGSTOP)
        running = asyncio.create_task(processes.run(attempt({"what": "pid"})))
        await eventually(lambda: said == ["run"])
        running.cancel()
        await eventually(lambda: said == ["run", "cancel"])
        os.kill(process._child.pid, signal.SIGCONT)
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await processes.run(attempt({"what": "pid"}))).value == process._child.pid


async def test_an_answer_that_comes_before_the_code_has_begun_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    async with one_worker(work, said, monkeypatch) as processes:
        (process,) = processes._idle
        os.kill(process._child.pid, signal.SIGSTOP)
        given = attempt({"what": "ask"})
        running = asyncio.create_task(processes.run(given))
        await eventually(lambda: said == ["run"])
        given.inputs.put_nowait("a")
        given.inputs.put_nowait("b")
        await eventually(lambda: said == ["run", "input", "input"])
        os.kill(process._child.pid, signal.SIGCONT)
        assert (await running).value == ["a", "b"]
        assert given.asked == []


async def test_what_an_earlier_attempt_has_left_behind_does_not_speak_for_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with one_worker(lingers, [], monkeypatch) as processes:
        first, second = (attempt({"file": str(tmp_path / "go")}, number=number) for number in (1, 2))
        assert (await processes.run(first)).result == "done"
        assert (await processes.run(second)).result == "done"
        assert second.events == []
        assert second.desk.noted == []  # type: ignore[attr-defined]


async def test_a_worker_that_is_ready_when_nobody_wants_it_any_more_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    read, ready, taken = pipes.read, asyncio.Event(), asyncio.Event()

    async def held_up(reader: asyncio.StreamReader) -> list[Any]:
        message = await read(reader)
        if message[0] == "ready":
            ready.set()
            await taken.wait()
        return message

    monkeypatch.setattr(pipes, "read", held_up)
    processes = WorkerProcesses(work.function, name="work", count=1)
    starting = asyncio.create_task(processes.start())
    await ready.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    taken.set()
    async with asyncio.timeout(DEADLINE_S):
        await processes.stop()


async def test_a_result_that_cannot_be_handed_over_fails_its_attempt_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async with one_worker(work, [], monkeypatch) as processes:
        result = await processes.run(attempt({"what": "surrogate"}))
        assert result.error is not None
        assert result.error.type == "ResultNotSerialisableError"
        assert (await processes.run(attempt({"what": "fine"}))).result == "fine in attempt 1"


async def test_a_worker_that_ends_with_a_signal_without_a_name_is_dead_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    async with one_worker(work, [], monkeypatch) as processes:
        with pytest.raises(WorkerDiedError, match=f"signal {signal.SIGRTMIN + 3}"):
            await processes.run(attempt({"what": "nameless"}))
