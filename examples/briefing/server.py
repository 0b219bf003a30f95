"""`llamactl serve` of one deployment, as a process that this program starts, listens to and ends.

What it prints is kept for the report of a failure. Talking to the control plane is the client's affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from llama_deploy.runtime.lifeline import SUPERVISOR_PID

COMMAND = (sys.executable, "-m", "llama_deploy.cli", "serve")
DRAIN_S = 5
STOP_TIMEOUT_S = 20.0
"""How long it may take to end all of its processes; then it is killed, and they with it."""
LOOK_AGAIN_S = 0.02
LAST_LINES_MAX = 25
LINE_BYTES_MAX = 1_048_576
ABOUT_A_SERVICE = re.compile(r"[\w-]+: ")

Value = TypeVar("Value")


class ServerEndedError(RuntimeError):
    """The deployment could not be started, or ended while it was needed; the text is what it said last."""


class Server:
    """A running deployment. `report` gets what it says of its services once all of them have been ready."""

    def __init__(self, process: asyncio.subprocess.Process, ready_file: Path, report: Callable[[str], None]) -> None:
        self.url = ""
        self.store = ""
        """Where the data lives."""
        self._process = process
        self._ready_file = ready_file
        self._report = report
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES_MAX)
        self._reading = asyncio.create_task(self._read())

    async def while_running(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Do something that needs the deployment. Raises `ServerEndedError` when that ends first."""
        working = asyncio.create_task(work)
        try:
            await asyncio.wait({working, self._reading}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ServerEndedError("\n".join(self._last_lines) or "llamactl serve ended without a word")
            return working.result()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def ready(self) -> None:
        """Wait until every service has a process that takes work. Raises `ServerEndedError`."""
        await self.while_running(self._look())
        told = json.loads(self._ready_file.read_text(encoding="utf-8"))
        self.url, self.store = told["url"], told["store"]

    async def stop(self) -> None:
        """End it and all of its processes; what runs is finished or handed back first. Repeating it does nothing."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self._process.wait()
            finally:
                if self._process.returncode is None:
                    self._process.kill()
                    await self._process.wait()
        await self._reading

    async def _look(self) -> None:
        while not self._ready_file.exists():  # noqa: ASYNC110 - a file gives no sign
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _read(self) -> None:
        """Follow what it prints, until it has ended."""
        assert self._process.stderr is not None, "it was started with a pipe"
        async for raw in self._process.stderr:
            line = raw.decode("utf-8", "replace").rstrip()
            self._last_lines.append(line)
            if self.url and ABOUT_A_SERVICE.match(line):
                self._report(line)


@contextlib.asynccontextmanager
async def serving(file: Path, *, store: str | None, report: Callable[[str], None]) -> AsyncIterator[Server]:
    """Serve a deployment file for as long as the block runs, on a free port, with its data in `store`.

    It yields at once; `ready` waits. By default the data is where `llamactl` keeps it: in `.llama_deploy/` beside the
    file.
    """
    place = () if store is None else ("--store", store)
    with tempfile.TemporaryDirectory(prefix="briefing-") as folder:
        ready_file = Path(folder) / "ready.json"
        process = await asyncio.create_subprocess_exec(
            *(*COMMAND, str(file), "--port", "0", "--drain-timeout", str(DRAIN_S), "--ready-file", str(ready_file)),
            *place,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_MAX,
            env={**os.environ, SUPERVISOR_PID: str(os.getpid())},  # it dies with us, even if we are killed
            process_group=0,  # Ctrl-C comes here alone; how the deployment then ends is decided here
        )
        server = Server(process, ready_file, report)
        try:
            yield server
        finally:
            await server.stop()
