"""The walk of docs/guide/from-laptop-to-cluster.md: each of its deployment files is served, and gives the same answer.

Only addresses are exchanged: those of the page for a database and a broker that are here, and the port for a free one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from secrets import token_hex

import pytest
from tests.docs.pages import ROOT, fences
from tests.support import PROCESS_S, eventually
from tests.support.brokers import SHARED, RedisBroker, listens
from tests.support.ports import free_port
from tests.support.postgres import database_url

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "guide" / "from-laptop-to-cluster.md"
FILES = [fence.text for fence in fences(PAGE) if fence.language == "yaml"]
SERVICES = next(fence.text for fence in fences(PAGE) if fence.note == "file=services.py")
LLAMACTL = [sys.executable, "-m", "llama_deploy.cli"]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with database_url() as url:
        yield url


@pytest.fixture(scope="module")
async def broker() -> AsyncIterator[str]:
    port, url = SHARED["redis"]
    if listens(port):
        yield url
        return
    private = RedisBroker()
    await private.start()
    yield private.url
    await private.remove()


class Machine:
    """A folder with the page's service, and what was started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[subprocess.Popen[bytes]] = []
        (folder / "services.py").write_text(SERVICES)

    async def serve(self, *arguments: str) -> dict[str, str]:
        """Start `llamactl serve`, wait until it is ready, and return what it says of itself."""
        ready = self.folder / f"ready-{len(self.running)}.json"
        self.start("serve", *arguments, "--ready-file", str(ready))
        await eventually(ready.exists, deadline_s=PROCESS_S)
        said: dict[str, str] = json.loads(ready.read_text())
        return said

    def start(self, *arguments: str) -> None:
        with (self.folder / f"{len(self.running)}.log").open("wb") as log:
            process = subprocess.Popen([*LLAMACTL, *arguments], cwd=self.folder, stdout=log, stderr=log)
            self.running.append(process)

    async def answer(self, url: str) -> str:
        command = [*LLAMACTL, "run", "shout", "-a", "text", "hello", "-s", url]
        ran = await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, text=True)
        return ran.stdout.strip()

    def stop(self) -> list[int]:
        """End everything, services first; the exit codes."""
        codes = []
        while self.running:
            process = self.running.pop()
            process.send_signal(signal.SIGTERM)
            codes.append(process.wait(PROCESS_S))
        return codes


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    for process in machine.running:
        process.kill()
        process.wait()


def with_addresses(text: str, database: str, broker: str) -> str:
    """A file of the page with servers that there are."""
    text = text.replace("redis://broker.internal:6379", broker)
    text = text.replace("postgresql://demo@db.internal/demo", f"{database}?schema=walk_{token_hex(4)}")
    assert ".internal" not in text
    return text


def test_every_step_adds_and_takes_nothing_away() -> None:
    lines = [[line for line in text.splitlines() if line] for text in FILES]
    assert len(lines) >= 4
    for before, after in itertools.pairwise(lines):
        assert [line for line in after if line in before] == before
        assert len(after) > len(before)


@pytest.mark.parametrize("number", range(len(FILES) - 1))
async def test_each_file_gives_the_same_answer(number: int, machine: Machine, database: str, broker: str) -> None:
    text = with_addresses(FILES[number], database, broker)
    (machine.folder / "deployment.yml").write_text(text)
    remote = ["--allow-remote"] if "0.0.0.0" in text else []
    url = (await machine.serve("--port", "0", *remote))["url"].replace("0.0.0.0", "127.0.0.1")
    assert await machine.answer(url) == "HELLO"
    assert machine.stop() == [0]


async def test_the_last_step_goes_on_without_one_of_its_control_planes(
    machine: Machine, database: str, broker: str
) -> None:
    (machine.folder / "deployment.yml").write_text(with_addresses(FILES[-1], database, broker))
    urls = []
    for _ in range(2):
        url = f"http://127.0.0.1:{free_port()}"
        where = ["--port", url.rpartition(":")[2], "--public-url", url]
        await machine.serve("--only", "control-plane", "--allow-remote", *where)
        urls.append(url)
    await machine.serve("--only", "shout", "--control-plane", urls[0])
    assert await machine.answer(",".join(urls)) == "HELLO"
    machine.running[0].kill()
    machine.running.pop(0).wait()
    assert [await machine.answer(",".join(urls)) for _ in range(3)] == ["HELLO"] * 3
    assert machine.stop() == [0, 0]


async def test_the_parts_are_started_one_by_one(machine: Machine) -> None:
    (machine.folder / "deployment.yml").write_text(FILES[0])
    url = (await machine.serve("--only", "control-plane", "--port", "0", "--store", ":memory:"))["url"]
    for _ in range(2):
        await machine.serve("--only", "shout", "--control-plane", url)
    assert await machine.answer(url) == "HELLO"
    assert machine.stop() == [0, 0, 0]
