"""The processes of a run: started, killed, stood still, ended, started again; none is left when the run is over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
END_S = 40.0
"""How long a clean end may take."""


class Process:
    """A program that is started again whenever the run wants it."""

    def __init__(self, name: str, module: str, arguments: Callable[[], list[str]], folder: Path) -> None:
        self.name = name
        self._module = module
        self._arguments = arguments
        self._log = folder / f"{name}.log"
        self._process: asyncio.subprocess.Process | None = None
        self.started_at = 0.0
        """When its present life began, in seconds since the epoch."""
        self.codes: list[int] = []
        """How each of its lives ended; negative for a signal."""

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def code(self) -> int | None:
        """How its present life has ended, `None` while it has not."""
        return self._process.returncode if self._process is not None else None

    async def start(self) -> None:
        """Begin a new life."""
        self.started_at = time.time()
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                f"tests.chaos.{self._module}",
                *self._arguments(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
                cwd=ROOT,
            )

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it lives."""
        if self._process is not None and self.runs:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def end(self, number: signal.Signals) -> int | None:
        """Send a signal that ends it and wait for that; its exit code, `None` when it took too long."""
        if self._process is None:
            return None
        self.send(signal.SIGCONT)
        self.send(number)
        try:
            async with asyncio.timeout(END_S):
                code = await self._process.wait()
        except TimeoutError:
            return None
        self.codes.append(code)
        return code

    async def wait(self) -> int:
        """Wait until it ends by itself."""
        assert self._process is not None
        return await self._process.wait()

    def said(self, lines: int = 30) -> str:
        """The last lines of its log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def complaints(self) -> list[str]:
        """Lines of its log that no process should write, whatever is done to it."""
        words = ("ERROR", "CRITICAL", "Task exception was never", "Fatal", "Future exception was never")
        return [line for line in self._log.read_text(errors="replace").splitlines() if line.startswith(words)]


async def left_over(mark: str) -> list[str]:
    """Command lines of live processes that name `mark`."""
    listing = await asyncio.create_subprocess_exec("ps", "-A", "-o", "args=", stdout=asyncio.subprocess.PIPE)
    out, _ = await listing.communicate()
    lines = out.decode(errors="replace").splitlines()
    return [line for line in lines if mark in line and "_program" in line]
