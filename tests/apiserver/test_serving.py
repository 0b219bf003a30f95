"""Whole deployments as processes: started, changed, killed and stopped from outside, as a person or a machine would."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.support import PROCESS_S, eventually
from tests.support.postgres import database_url

from llama_deploy.client import Client
from llama_deploy.errors import LimitExceededError
from llama_deploy.types import TaskState

pytestmark = pytest.mark.slow


FILE = """\
name: demo
control-plane: {port: 0}
services:
  shout: {import-path: "services:shout", env: {MARK: "!"}}
  gate: {import-path: "services:gate"}
"""

SERVICES = '''\
"""Services for a test."""
import asyncio, os
from pathlib import Path
from llama_deploy import service

@service
async def shout(text: str) -> str:
    print("shouting", text, flush=True)
    return text.upper() + os.environ["MARK"]

@service
async def gate(name: str) -> int:
    Path(f"{name}.entered.{os.getpid()}").touch()
    while not Path(f"{name}.open").exists():
        await asyncio.sleep(0.01)
    return os.getpid()
'''

POLICY = '''\
"""A policy for a test."""
from llama_deploy import SimpleOrchestrator

class Route(SimpleOrchestrator):
    async def get_next_messages(self, task_def, state):
        task_def.input = "{}"
        return await super().get_next_messages(task_def, state)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a deployment in it."""
    (tmp_path / "deployment.yml").write_text(FILE)
    (tmp_path / "services.py").write_text(SERVICES)
    return tmp_path


class Llamactl:
    """A `llamactl` that serves, and what it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[str] = []
        self.changed = asyncio.Event()

    async def listen(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.said.append(line.decode().rstrip("\n"))
            self.changed.set()
        self.changed.set()

    async def says(self, words: str, *, times: int = 1) -> str:
        """Wait until it has said a line with these words, for the `times`-th time; returns the line."""

        def found() -> str | None:
            matching = [line for line in self.said if words in line]
            return matching[times - 1] if len(matching) >= times else None

        try:
            line = await eventually(found, PROCESS_S, changed=self.changed)
        except AssertionError as error:
            raise AssertionError("\n".join([f"it never said {words!r}; it said:", *self.said])) from error
        assert line is not None
        return line

    async def url(self) -> str:
        found = re.search(r"http://\S+:\d+", await self.says("control plane at"))
        assert found is not None
        return found.group()

    async def ends(self, number: signal.Signals | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), PROCESS_S)


@asynccontextmanager
async def llamactl(*args: str, folder: Path) -> AsyncIterator[Llamactl]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_DEPLOY")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "llama_deploy.cli",
        *args,
        cwd=folder,
        env=environment,
        stderr=asyncio.subprocess.PIPE,
        process_group=0,
    )
    running = Llamactl(process)
    listening = asyncio.create_task(running.listen())
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await asyncio.wait_for(listening, PROCESS_S)  # the pipe closes with the last process that holds it


async def entered(folder: Path, name: str, *, besides: frozenset[int] = frozenset()) -> int:
    """The process in which the step `name` of `gate` is, once it is in one that is none of `besides`."""

    def look() -> int | None:
        pids = {int(path.suffix[1:]) for path in folder.glob(f"{name}.entered.*")} - besides
        return pids.pop() if pids else None

    pid = await eventually(look, PROCESS_S)
    assert pid is not None
    return pid


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has reaped yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_serve_runs_every_service_in_its_own_process_and_stops_cleanly(folder: Path) -> None:
    async with llamactl("serve", folder=folder) as serving:
        url = await serving.url()
        await serving.says("ready. Try: llamactl")
        async with Client(url) as client:
            assert await client.run("shout", text="hello") == "HELLO!"
            (folder / "a.open").touch()
            pid = await client.run("gate", name="a")
            assert pid != serving.process.pid
        assert await serving.ends(signal.SIGTERM) == 0
        assert gone(pid)
        assert (folder / ".llama_deploy" / "demo.db").exists()


async def test_what_the_processes_print_is_told_to_whoever_asks_the_control_plane(folder: Path) -> None:
    async with llamactl("serve", folder=folder) as serving:
        url = await serving.url()
        await serving.says("ready. Try: llamactl")
        async with Client(url) as client:
            following = client.logs(last=5_000, follow=True)
            await client.run("shout", text="hello")
            said = []
            async for line in following:
                said.append(line)
                if "shouting hello" in line:
                    break
            await following.aclose()  # type: ignore[attr-defined]
            assert any("control plane at" in line for line in said)  # its own words, too
            last = [line async for line in client.logs(last=1)]
            assert len(last) == 1
        command = (sys.executable, "-m", "llama_deploy.cli", "-s", url, "logs", "-o", "json")
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        assert any("shouting hello" in item["line"] for item in json.loads(out)["items"])
        assert await serving.ends(signal.SIGTERM) == 0


async def test_what_is_served_under_a_release_is_what_tasks_begin_with(folder: Path) -> None:
    async with llamactl("serve", "--release", "7", folder=folder) as serving:
        await serving.says("ready. Try: llamactl")
        async with Client(await serving.url()) as client:

            async def current() -> bool:
                return (await client.list_releases()).current == "7"

            await eventually(current)
            task_id = await client.submit("shout", text="a")
            assert (await client.wait(task_id)).output == "A!"
            assert [entry.release async for entry in client.history(task_id)][:1] == ["7"]
            instances = (await client.get_service("shout")).instances
            assert {one.release for one in instances} == {"7"}
        assert await serving.ends(signal.SIGTERM) == 0


SHARED = """\
name: shared
store: {store}
control-plane: {{port: 0, shared: true}}
schedules: {{hourly: {{cron: "0 * * * *", service: shout, input: {{text: x}}}}}}
services:
  shout: {{import-path: "services:shout", env: {{MARK: "!"}}}}
"""


@pytest.fixture
def folder_of_two(folder: Path) -> Iterator[Path]:
    """A folder with a deployment whose store is a database."""
    with database_url() as store:
        (folder / "deployment.yml").write_text(SHARED.format(store=store))
        yield folder


async def test_served_twice_on_one_store_either_answers_for_both(folder_of_two: Path) -> None:
    async with llamactl("serve", "--only", "control-plane", folder=folder_of_two) as first:
        urls = [await first.url()]
        await first.says("schedule hourly: next at")
        async with llamactl("serve", folder=folder_of_two) as second:
            urls.append(await second.url())
            await second.says("ready. Try: llamactl")
            for url in urls:
                async with Client(url) as client:
                    for text in ("a", "b", "c", "d"):
                        assert await client.run("shout", text=text, wait_for_service=True) == f"{text.upper()}!"
                    assert [schedule.name for schedule in await client.list_schedules()] == ["hourly"]
            assert await first.ends(signal.SIGTERM) == 0
            async with Client(urls[1]) as client:
                assert await client.run("shout", text="alone") == "ALONE!"
            assert await second.ends(signal.SIGTERM) == 0


@pytest.mark.parametrize("command", ["serve", "dev"])
async def test_the_ready_file_is_there_while_everything_is_ready(folder: Path, command: str) -> None:
    path = folder / "ready.json"
    path.write_text("left behind")
    async with llamactl(command, "--ready-file", "ready.json", folder=folder) as serving:
        await serving.says("ready. Try: llamactl")
        told = json.loads(path.read_text())
        store = str(folder / ".llama_deploy" / "demo.db")
        assert told == {"url": await serving.url(), "pid": serving.process.pid, "store": store}
        async with Client(told["url"]) as client:
            assert await client.run("shout", text="a") == "A!"
            task_id = await client.submit("gate", name="a")
            await entered(folder, "a")
            serving.process.send_signal(signal.SIGTERM)
            assert await eventually(lambda: not path.exists(), PROCESS_S)
            assert serving.process.returncode is None, "it waits for the step, and is not ready any more"
            (folder / "a.open").touch()
            await client.result(task_id)
        assert await serving.ends() == 0


async def test_each_part_has_a_ready_file_of_its_own(folder: Path) -> None:
    whole, part = folder / "plane.json", folder / "shout.json"
    only = ("serve", "--only", "control-plane", "--store", ":memory:", "--ready-file", str(whole))
    async with llamactl(*only, folder=folder) as plane:
        assert await eventually(whole.exists, PROCESS_S)
        url = json.loads(whole.read_text())["url"]
        at = ("--control-plane", url, "--ready-file", str(part))
        async with llamactl("serve", "--only", "shout", *at, folder=folder) as shout:
            assert await eventually(part.exists, PROCESS_S)
            assert json.loads(part.read_text()) == {"url": url, "pid": shout.process.pid, "service": "shout"}
            async with Client(url) as client:
                assert await client.run("shout", text="a") == "A!"
            assert await shout.ends(signal.SIGTERM) == 0
        assert not part.exists()
        assert await plane.ends(signal.SIGTERM) == 0
    assert not whole.exists()


@pytest.mark.parametrize("command", ["serve", "dev"])
async def test_it_works_and_stops_when_nobody_reads_what_it_says(folder: Path, command: str) -> None:
    path = folder / "ready.json"
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llama_deploy.cli", command, "--ready-file", str(path)),
        cwd=folder,
        stderr=writing,
        process_group=0,
    )
    os.close(writing)
    os.close(reading)
    try:
        assert await eventually(path.exists, PROCESS_S)
        async with Client(json.loads(path.read_text())["url"]) as client:
            assert await client.run("shout", text="a") == "A!"
        process.terminate()
        assert await asyncio.wait_for(process.wait(), PROCESS_S) == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_killed_service_comes_back_and_its_step_is_done(folder: Path) -> None:
    async with llamactl("serve", folder=folder) as serving:
        await serving.says("ready. Try: llamactl")
        async with Client(await serving.url()) as client:
            task_id = await client.submit("gate", name="a")
            first = await entered(folder, "a")
            os.kill(first, signal.SIGKILL)
            await serving.says("gate: killed by SIGKILL; it starts again in")
            (folder / "a.open").touch()
            assert await client.result(task_id) != first


async def test_kill_9_leaves_no_process_and_the_next_start_carries_on(folder: Path) -> None:
    async with llamactl("serve", folder=folder) as serving:
        await serving.says("ready. Try: llamactl")
        async with Client(await serving.url()) as client:
            task_id = await client.submit("gate", name="a")
        first = await entered(folder, "a")
        await serving.ends(signal.SIGKILL)
        await eventually(lambda: gone(first), PROCESS_S)
    (folder / "a.open").touch()
    async with llamactl("serve", folder=folder) as serving, Client(await serving.url()) as client:
        assert await client.result(task_id) != first


async def test_a_second_signal_stops_at_once(folder: Path) -> None:
    async with llamactl("serve", folder=folder) as serving:
        await serving.says("ready. Try: llamactl")
        async with Client(await serving.url()) as client:
            task_id = await client.submit("gate", name="a")
            pid = await entered(folder, "a")
            serving.process.send_signal(signal.SIGINT)
            await serving.says("once more to stop at once")
            assert await serving.ends(signal.SIGINT) == 130
            assert gone(pid)
    (folder / "a.open").touch()
    async with llamactl("serve", folder=folder) as serving, Client(await serving.url()) as client:
        assert await client.result(task_id) != pid


async def test_a_service_that_does_not_load_stops_serve_with_its_reason(folder: Path) -> None:
    (folder / "deployment.yml").write_text(FILE.replace("services:gate", "services:gaet"))
    async with llamactl("serve", folder=folder) as serving:
        assert await serving.ends() == 2
        said = await serving.says("Error LD108: service `gate` cannot be started (exit code 2)")
        assert said
        assert any("there is no `gaet` (did you mean `gate`?)" in line for line in serving.said)


async def test_an_invalid_file_starts_nothing(folder: Path) -> None:
    (folder / "deployment.yml").write_text(FILE.replace("import-path", "import_path"))
    async with llamactl("serve", folder=folder) as serving:
        assert await serving.ends() == 2
        assert sum("did you mean `import-path`?" in line for line in serving.said) == 2


async def test_a_port_in_use_is_said(folder: Path) -> None:
    async with llamactl("serve", "--only", "control-plane", folder=folder) as first:
        port = (await first.url()).rpartition(":")[2]
        (folder / "other").mkdir()
        async with llamactl("serve", "--port", port, "--store", ":memory:", folder=folder) as second:
            assert await second.ends() == 3
            await second.says("Error LD103")


async def test_the_parts_run_apart(folder: Path) -> None:
    async with llamactl("serve", "--only", "control-plane", "--store", ":memory:", folder=folder) as plane:
        url = await plane.url()
        async with llamactl("serve", "--only", "shout", "--control-plane", url, folder=folder) as part:
            await plane.says("shout: ready")
            async with Client(url) as client:
                assert await client.run("shout", text="apart") == "APART!"
            assert await part.ends(signal.SIGTERM) == 0
            await plane.says("shout: nobody serves it now")
        assert await plane.ends(signal.SIGINT) == 0
    assert not (folder / ".llama_deploy").exists()


async def test_a_part_finds_the_control_plane_where_the_file_has_it_listen(folder: Path, free_port: int) -> None:
    (folder / "deployment.yml").write_text(FILE.replace("port: 0", f"port: {free_port}"))
    async with (
        llamactl("serve", "--only", "control-plane", "--store", ":memory:", folder=folder) as plane,
        llamactl("serve", "--only", "shout", folder=folder),
    ):
        await plane.says("shout: ready")


async def test_a_part_that_the_file_does_not_have_is_refused(folder: Path) -> None:
    async with llamactl("serve", "--only", "shuot", folder=folder) as part:
        assert await part.ends() == 2
        await part.says("(did you mean `shout`?)")


async def test_replicas_are_processes_of_one_service(folder: Path) -> None:
    (folder / "deployment.yml").write_text(
        FILE.replace('services:gate"', 'services:gate", replicas: 2, concurrency: 1')
    )
    async with llamactl("serve", folder=folder) as serving:
        await serving.says("ready. Try: llamactl")
        async with Client(await serving.url()) as client:
            tasks = [await client.submit("gate", name=name) for name in ("a", "b")]
            (folder / "a.open").touch()
            (folder / "b.open").touch()
            view = await eventually(lambda: _with_instances(client, "gate", 2), PROCESS_S)
            assert view
            for task in tasks:
                assert (await client.wait(task)).status == "completed"


async def _with_instances(client: Client, service: str, count: int) -> bool:
    return len((await client.get_service(service)).instances) == count


async def test_dev_starts_services_again_when_their_code_changes(folder: Path) -> None:
    async with llamactl("dev", folder=folder) as dev:
        await dev.says("ready. Try: llamactl")
        async with Client(await dev.url()) as client:
            (folder / "services.py").write_text(SERVICES.replace("upper()", "lower()"))
            await dev.says("changed: services.py; restarting shout, gate")
            await dev.says("shout: ready", times=2)
            assert await client.run("shout", text="Hello") == "hello!"
            (folder / "services.py").write_text("def (")
            await dev.says("Nothing was restarted.")
            assert await client.run("shout", text="Hello") == "hello!"
            (folder / "services.py").write_text("raise ValueError('half done')")
            await dev.says("shout: failed (exit code 2); it starts again when its code changes")
            (folder / "services.py").write_text(SERVICES)
            await dev.says("shout: ready", times=3)
            assert await client.run("shout", text="Hello") == "HELLO!"
        assert await dev.ends(signal.SIGINT) == 0


async def test_dev_takes_up_a_changed_file_and_refuses_an_invalid_one(folder: Path) -> None:
    async with llamactl("dev", folder=folder) as dev:
        await dev.says("ready. Try: llamactl")
        async with Client(await dev.url()) as client:
            (folder / "a.open").touch()
            gate = await client.run("gate", name="a")
            (folder / "deployment.yml").write_text(FILE.replace("shout:", "shuot :"))
            (folder / "deployment.yml").write_text(FILE.replace('"services:shout"', '"services:shout'))
            await dev.says("Nothing was restarted.")
            assert await client.run("shout", text="still") == "STILL!"
            (folder / "deployment.yml").write_text(FILE.replace('MARK: "!"', 'MARK: "?"'))
            await dev.says("changed: deployment.yml")
            await dev.says("shout: ready", times=2)
            assert await client.run("shout", text="what") == "WHAT?"
            assert await client.run("gate", name="a") == gate


async def test_dev_starts_everything_again_when_a_limit_changes(folder: Path) -> None:
    (folder / "deployment.yml").write_text(FILE + "limits: {payload-bytes-max: 1000}\n")
    async with llamactl("dev", folder=folder) as dev:
        await dev.says("ready. Try: llamactl")
        async with Client(await dev.url()) as client:
            with pytest.raises(LimitExceededError, match="payload_bytes_max is 1000"):
                await client.run("shout", text="a" * 1000)
        (folder / "deployment.yml").write_text(FILE + "limits: {payload-bytes-max: 2000}\n")
        await dev.says("starting everything again")
        await dev.says("ready. Try: llamactl", times=2)
        url = re.search(r"http://\S+:\d+", await dev.says("control plane at", times=2))
        assert url is not None
        async with Client(url.group()) as client:
            assert await client.run("shout", text="a" * 1000) == "A" * 1000 + "!"
        assert await dev.ends(signal.SIGINT) == 0


async def test_dev_starts_everything_again_when_the_orchestrator_changes(folder: Path) -> None:
    (folder / "policy.py").write_text(POLICY.replace('task_def.input = "{}"', "pass"))
    (folder / "deployment.yml").write_text(FILE + 'orchestrator: "policy:Route"\n')
    async with llamactl("dev", folder=folder) as dev:
        await dev.says("ready. Try: llamactl")
        (folder / "policy.py").write_text("raise ValueError('half done')")
        await dev.says("Nothing was restarted.")
        async with Client(await dev.url()) as client:
            assert await client.run("shout", text="a") == "A!"
        (folder / "policy.py").write_text(POLICY)
        await dev.says("starting everything again")
        await dev.says("ready. Try: llamactl", times=2)
        url = re.search(r"http://\S+:\d+", await dev.says("control plane at", times=2))
        assert url is not None
        async with Client(url.group()) as client:
            task_id = await client.submit("shout", text="a")
            assert (await client.wait(task_id)).status == "failed"
            assert (await client.get_task(task_id)).state is TaskState.FAILED
        assert await dev.ends(signal.SIGINT) == 0


async def test_dev_goes_on_when_a_changed_file_asks_for_what_is_not_there(folder: Path) -> None:
    async with llamactl("dev", folder=folder) as dev:
        await dev.says("ready. Try: llamactl")
        (folder / "deployment.yml").write_text(FILE.replace('MARK: "!"', "MARK: '${NOT_SET_ANYWHERE}'"))
        await dev.says("the variable NOT_SET_ANYWHERE is not set")
        await dev.says("Nothing was restarted.")
        (folder / "deployment.yml").write_text(FILE.replace('MARK: "!"}', 'MARK: "!"}, env-files: [gone.env]'))
        await dev.says("gone.env")
        await dev.says("Nothing was restarted.", times=2)
        (folder / "deployment.yml").write_text(FILE.replace('MARK: "!"', 'MARK: "?"'))
        await dev.says("changed: deployment.yml")
        await dev.says("shout: ready", times=2)
        async with Client(await dev.url()) as client:
            assert await client.run("shout", text="what") == "WHAT?"


async def test_dev_comes_back_to_a_control_plane_that_could_not_start_at_first(folder: Path) -> None:
    async with llamactl("dev", folder=folder) as dev:
        await dev.says("ready. Try: llamactl")
        (folder / "policy.py").write_text("raise ValueError('half done')")
        (folder / "deployment.yml").write_text(FILE + 'orchestrator: "policy:Route"\n')
        await dev.says("half done")
        (folder / "policy.py").write_text(POLICY)
        await dev.says("starting everything again")
        await dev.says("ready. Try: llamactl", times=2)
        assert await dev.ends(signal.SIGINT) == 0


async def test_dev_ends_while_it_waits_for_code_that_never_loads(folder: Path) -> None:
    async with llamactl("dev", folder=folder) as dev:
        await dev.says("ready. Try: llamactl")
        (folder / "policy.py").write_text("import signal\nprint(open('begun', 'w'))\nsignal.pause()\n")
        (folder / "deployment.yml").write_text(FILE + 'orchestrator: "policy:Route"\n')
        await eventually((folder / "begun").exists, PROCESS_S)
        assert await dev.ends(signal.SIGTERM) == 0


async def test_an_input_that_kills_its_service_fails_and_the_service_outlives_it(folder: Path) -> None:
    (folder / "services.py").write_text(SERVICES.replace("return text.upper()", "os._exit(3)\n    return text.upper()"))
    limits = "limits: {attempts-max: 3, reconnect-grace-s: 0.1}\n"
    (folder / "deployment.yml").write_text(FILE + limits)
    async with llamactl("serve", folder=folder) as serving:
        await serving.says("ready. Try: llamactl")
        async with Client(await serving.url()) as client:
            outcome = await client.wait(await client.submit("shout", text="a"))
            assert outcome.error is not None
            assert outcome.error.code == "LD506"
            await serving.says("shout: ready", times=4)
