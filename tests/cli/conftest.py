"""A control plane with a few services on a thread of this process, and the command line as a function."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from llama_deploy import Deployment, HumanService, NonRetryableError, RetryPolicy, ServiceContext, service
from llama_deploy.cli.app import run_command
from llama_deploy.client import SyncClient
from llama_deploy.types import TaskState

STARTED = threading.Event()
"""Set when a step of `slow` has begun."""


@service
async def shout(text: str, times: int = 1) -> str:
    """Says it louder."""
    return text.upper() * times


@service
async def count(to: int, context: ServiceContext) -> dict[str, int]:
    """Counts, one event per number."""
    for number in range(to):
        context.stream({"number": number})
    return {"counted": to}


@service
async def fail() -> None:
    """Fails for good."""
    raise NonRetryableError("it is broken")


@service(retry=RetryPolicy(initial_s=0.01))
async def flaky(context: ServiceContext) -> int:
    """Fails at the first attempt."""
    if context.attempt == 1:
        raise OSError("not yet")
    return context.attempt


@service
async def slow() -> None:
    """Does not end by itself."""
    STARTED.set()
    await asyncio.Event().wait()


@service
async def size(data: bytes, times: int = 1) -> int:
    """How much a file has."""
    return len(data) * times


@dataclass
class Ran:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON document: nothing else may stand there."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Standard output as lines of JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


Llamactl = Callable[..., Ran]


@pytest.fixture
def llamactl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Llamactl:
    """Run a command line in this process."""
    monkeypatch.delenv("LLAMA_DEPLOY_CONTROL_PLANE_URL", raising=False)

    def run(*args: str) -> Ran:
        code = run_command(args)
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a control plane that serves `shout`, `count`, `fail`, `flaky`, `slow` and the person `clerk`."""
    loop = asyncio.new_event_loop()
    started: threading.Event = threading.Event()
    stop = asyncio.Event()
    urls: list[str] = []

    async def main() -> None:
        services = [shout, count, fail, flaky, slow, size, HumanService("clerk")]
        async with Deployment(services, store=":memory:", port=0, quiet=True, drain_timeout_s=0.0) as deployment:
            urls.append(deployment.url)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    assert started.wait(20)
    yield urls[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)
    loop.close()


@pytest.fixture
def ctl(server: str, llamactl: Llamactl) -> Llamactl:
    """Run a command line against `server`."""
    return lambda *args: llamactl("-s", server, *args)


def ask_clerk(server: str) -> str:
    """A task that waits for a person."""
    with SyncClient(server) as client:
        task_id = client.submit("clerk", input="May it go out?")
        for entry in client.history(task_id, follow=True):
            if entry.state is TaskState.INPUT_REQUIRED:
                return task_id
    raise AssertionError("the task ended without asking")
