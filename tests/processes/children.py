"""Child processes of a test: started, signalled, awaited, and all gone when the test is.

`System` is one control plane and its service instances as real processes on one port, one store and one sink; it
knows how to kill and restart them, and what their promise is.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.processes.works import Work
from tests.support import PROCESS_S, eventually

from llama_deploy.client import Client

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
_numbers = itertools.count(1)


def _interruptible() -> None:
    """A shell that runs the tests in the background has SIGINT ignored, and what it starts inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Child:
    """A running program."""

    def __init__(self, process: asyncio.subprocess.Process, errors: Path) -> None:
        self.process = process
        self._errors = errors

    @classmethod
    async def start(
        cls, program: str, *arguments: str, folder: Path, environment: dict[str, str] | None = None
    ) -> Child:
        """Start a program of this folder; what it writes to standard error is kept in `folder`."""
        errors = folder / f"{program}.{next(_numbers)}.stderr"
        with errors.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(HERE / program),
                *arguments,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", **(environment or {})},
                cwd=folder,
                preexec_fn=_interruptible,
            )
        return cls(process, errors)

    async def line(self) -> str:
        """The next line of its output, empty when it has ended."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PROCESS_S):
            return (await self.process.stdout.readline()).decode().strip()

    def said(self) -> str:
        """What it has written to standard error."""
        return self._errors.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; its exit code, negative for a signal."""
        async with asyncio.timeout(PROCESS_S):
            return await self.process.wait()

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def terminate(self) -> int:
        """SIGTERM, and wait; the exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended()


class System:
    """A control plane and its instances as processes."""

    def __init__(self, folder: Path, port: int, **settings: Any) -> None:
        self.folder = folder
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.store = folder / "store.db"
        self.sink = folder / "sink"
        self.settings = settings
        self.children: list[Child] = []
        self._plane: Child | None = None

    @property
    def plane(self) -> Child:
        """The control plane that was started last."""
        assert self._plane is not None, "start_plane was not called"
        return self._plane

    async def start_plane(self, *, failpoint: str | None = None) -> Child:
        """Start the control plane and wait until it takes requests, or has ended."""
        arguments = (str(self.port), str(self.store), json.dumps(self.settings))
        child = await Child.start(
            "control_plane_program.py", *arguments, folder=self.folder, environment=_environment(failpoint)
        )
        self.children.append(child)
        self._plane = child
        await child.line()
        return child

    async def start_instance(self, *, failpoint: str | None = None) -> Child:
        """Start an instance with all services; it connects by itself."""
        child = await Child.start(
            "service_program.py", self.url, str(self.sink), folder=self.folder, environment=_environment(failpoint)
        )
        self.children.append(child)
        return child

    async def start_client(self, works: Sequence[Work], *, failpoint: str | None = None) -> Child:
        """Start a client that does these works, says the states of its tasks as JSON, and ends."""
        names = [work.__name__ for work in works]
        arguments = (self.url, str(self.folder), *names)
        child = await Child.start(
            "client_program.py", *arguments, folder=self.folder, environment=_environment(failpoint)
        )
        self.children.append(child)
        return child

    async def start(self, *, instances: int = 1) -> list[Child]:
        """Start everything and wait until it is ready; the instances."""
        started = [await self.start_instance() for _ in range(instances)]  # they wait for it
        await self.start_plane()
        async with self.client() as client:
            await self.instances_are(client, instances)
        return started

    def client(self, **options: Any) -> Client:
        """A client that waits long enough for what a test does."""
        return Client(self.url, timeout_s=PROCESS_S, **options)

    @staticmethod
    async def instances_are(client: Client, count: int) -> None:
        """Wait until so many instances are connected."""

        async def connected() -> bool:
            views = await client.list_services()
            return bool(views) and all(len(view.instances) == count for view in views)

        await eventually(connected, PROCESS_S)

    async def stop(self) -> None:
        """End every child, at once."""
        for child in self.children:
            if child.process.returncode is None:
                child.signal(signal.SIGCONT)
                await child.kill()

    # --- the promise ------------------------------------------------------------------------------------------------

    def effects(self) -> Counter[str]:
        """How often each step ran, as the sink counted it."""
        if not self.sink.exists():
            return Counter()
        return Counter(line.split()[0] for line in self.sink.read_text().splitlines())

    async def check(self, client: Client, task_ids: Iterable[str]) -> None:
        """Each of these tasks, and no other, exists, ended as completed, once; each of its steps ran."""
        wanted = sorted(task_ids)
        listed = [task async for task in client.list_tasks()]
        assert sorted(task.task_id for task in listed) == wanted
        assert {task.state.value for task in listed} == {"completed"}
        effects = self.effects()
        limit = asyncio.Semaphore(16)

        async def look(task_id: str) -> None:
            async with limit:
                entries = [entry async for entry in client.history(task_id, follow=True)]
            assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
            assert [entry.seq for entry in entries if entry.outcome is not None] == [len(entries)]
            answered = [entry.step_id for entry in entries if entry.kind == "answered"]
            assert len(answered) == len(set(answered))
            sent = [message["step_id"] for entry in entries for message in entry.messages]
            assert all(effects[step_id] >= 1 for step_id in sent), (task_id, sent)

        await asyncio.gather(*(look(task_id) for task_id in wanted))


def _environment(failpoint: str | None) -> dict[str, str]:
    return {} if failpoint is None else {"LLAMA_DEPLOY_FAILPOINT": failpoint}
