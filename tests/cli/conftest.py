"""A control plane with a few services on a thread of this process, and the command line as a function."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support import PROCESS_S

from llama_deploy import Deployment, HumanService, NonRetryableError, RetryPolicy, ServiceContext, service
from llama_deploy.cli.app import run_command
from llama_deploy.client import SyncClient
from llama_deploy.orchestrators import GroupChat
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


@service
async def remark(topic: str, turns: list[Any], first: int) -> str:
    """Says something in a talk."""
    return f"{topic} {first + len(turns)}"


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
def logging_as_before() -> Iterator[None]:
    """What serves sets up the logs of its process, which here is that of other tests as well."""
    logger = logging.getLogger("llama_deploy")
    handlers, level, propagates = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagates


@pytest.fixture
def llamactl(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, logging_as_before: None
) -> Llamactl:
    """Run a command line in this process."""
    monkeypatch.delenv("LLAMA_DEPLOY_CONTROL_PLANE_URL", raising=False)
    monkeypatch.setenv("LLAMACTL_CONFIG", os.environ.get("LLAMACTL_CONFIG", str(tmp_path / "no-profiles.json")))

    def run(*args: str) -> Ran:
        code = run_command(args)
        return Ran(code, *capsys.readouterr())

    return run


@contextlib.contextmanager
def running(*services: Any, store: Any = ":memory:", **options: Any) -> Iterator[str]:
    """The URL of a deployment, in memory by default, which runs on a thread of its own for a block."""
    loop = asyncio.new_event_loop()
    started: threading.Event = threading.Event()
    stop = asyncio.Event()
    urls: list[str] = []

    async def main() -> None:
        async with Deployment(services, store=store, port=0, quiet=True, drain_timeout_s=0.0, **options) as deployment:
            urls.append(deployment.url)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    assert started.wait(PROCESS_S)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PROCESS_S)
        loop.close()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a control plane that serves `shout`, `count`, `fail`, `flaky`, `slow` and the person `clerk`."""
    talk = GroupChat({"ann": "remark", "ben": "remark"}, turns_max=2)
    services = [shout, count, fail, flaky, slow, size, remark, HumanService("clerk")]
    with running(*services, orchestrators={"talk": talk}) as url:
        yield url


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
