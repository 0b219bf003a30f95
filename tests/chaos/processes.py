"""The processes of a run: started, killed, stood still, ended, started again; none is left when the run is over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from tests.chaos.progress import StandstillError, memory_most_mb, processor_s, processor_steps, while_it_moves
from tests.chaos.surroundings import CLIENT

ROOT = Path(__file__).resolve().parent.parent.parent
END_STILL_S = 40.0
"""A process that is to end and uses no processor for so long hangs."""
END_PROCESSOR_S = 60.0
"""One that uses more than this to end does, too."""
COMPLAINT = re.compile(
    r"\S+Z (ERROR|CRITICAL) |Task exception was never|Future exception was never|Traceback|Fatal|Unclosed"
)
"""How a line of a log begins that no process should write."""
SAID = re.compile(r"\S+Z ([A-Z]+) ")
"""How a line begins that is said through the product's own log, and not by a library."""


class Process:
    """A program that is started again whenever the run wants it."""

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Callable[[], Awaitable[Sequence[str]]],
        folder: Path,
        inside: Sequence[str] = (),
    ) -> None:
        self.name = name
        self._module = module
        self._arguments = arguments
        self._inside = list(inside)
        self._log = folder / f"{name}.log"
        self._process: asyncio.subprocess.Process | None = None
        self.started_at = 0.0
        """When its present life began, in seconds since the epoch."""
        self.codes: list[int] = []
        """How each of its lives ended; negative for a signal."""
        self.memory_most_mb = 0.0

    @property
    def is_client(self) -> bool:
        """Whether it ends by itself, when its share is done."""
        return self.name.startswith(CLIENT)

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
        arguments = await self._arguments()
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._inside,
                sys.executable,
                "-m",
                f"tests.chaos.{self._module}",
                *arguments,
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
        """Send a signal that ends it and wait for that; its exit code, `None` when it hangs."""
        if self._process is None:
            return None
        self.look()
        self.send(signal.SIGCONT)
        self.send(number)
        pid = self._process.pid
        most_s = processor_s(pid) + END_PROCESSOR_S
        try:
            await while_it_moves(
                lambda: not self.runs or processor_s(pid) > most_s,
                lambda: processor_steps(pid),
                still_s=END_STILL_S,
            )
        except StandstillError:
            return None
        if self.runs:
            return None
        code = await self._process.wait()
        self.codes.append(code)
        return code

    def look(self) -> None:
        """Note how much memory it has."""
        if self._process is not None and self.runs:
            self.memory_most_mb = max(self.memory_most_mb, memory_most_mb(self._process.pid))

    def said(self, lines: int = 30) -> str:
        """The last lines of its log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def complaints(self) -> list[str]:
        """Lines of its log that no process should write, whatever is done to it."""
        found = []
        expected = False
        for line in self._log.read_text(errors="replace").splitlines():
            if said := SAID.match(line):
                expected = said[1] == "WARNING"  # the traceback of a step that fails on purpose may follow
            if COMPLAINT.match(line) and not expected:
                found.append(line)
        return found


async def left_over(mark: str) -> list[str]:
    """Command lines of live processes that name `mark`."""
    listing = await asyncio.create_subprocess_exec("ps", "-A", "-o", "args=", stdout=asyncio.subprocess.PIPE)
    out, _ = await listing.communicate()
    lines = out.decode(errors="replace").splitlines()
    named = re.compile(re.escape(mark) + r"(?![\w-])")
    return [line for line in lines if named.search(line) and "_program" in line]
