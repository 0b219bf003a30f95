"""One child process: how it is started, what it prints, how it ended, and how it is made to end.

It knows nothing of restarts; `supervisor.py` decides those. Every child leads a process group of its own, so that a
terminal's Ctrl-C reaches the supervisor alone, and so that nothing which the child started outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import termios
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llama_deploy.runtime.credentials import TOKEN_FILE_VARIABLE, TOKEN_VARIABLE
from llama_deploy.runtime.lifeline import READY_DESCRIPTOR, RETIRE, SUPERVISOR_PID, Guard
from llama_deploy.state_stores.keys import KEY_FILE_VARIABLE, KEY_VARIABLE

LINE_BYTES_MAX = 65_536
"""A longer line of output is broken."""

LAST_LINES_MAX = 20
"""Lines of output that are kept for the report of a failure."""

_READ_BYTES = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class ChildSpec:
    """What to run. Two equal specs are the same child, so a changed one is a reason to restart."""

    name: str
    """Stands in front of every line that the child prints; unique under one supervisor."""
    command: tuple[str, ...]
    """The program by its full path, and its arguments; nothing is looked up on `PATH`."""
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of this process."""
    without: frozenset[str] = frozenset()
    """Variables of this process that the child does not get."""
    service: str = ""
    """The service that the child is an instance of."""
    version: str = ""
    """Whatever else the child depends on: another text makes another child."""
    inherited: tuple[int, ...] = ()
    """Descriptors that stay open in the child, under the same numbers; they have to outlive every start of it."""
    tells_ready: bool = False
    """Whether the child says that it is ready, by `runtime.lifeline.tell_ready`."""


class ChildProcess:
    """A running child. Created by `start`; `on_exit` is called once on the event loop, after its last output."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        spec: ChildSpec,
        guard: Guard,
        output: Output,
        ready: Ready | None = None,
    ) -> None:
        self.pid = process.pid
        self._ready = ready
        self._process = process
        self._name = spec.name
        self._guard = guard
        self._output = output
        self._ended = asyncio.Event()

    @classmethod
    def start(
        cls,
        spec: ChildSpec,
        *,
        guard: Guard,
        write: Callable[[str], None],
        on_exit: Callable[[int], None],
        on_ready: Callable[[], None] = lambda: None,
    ) -> ChildProcess:
        """Start the process. Raises `OSError` when the program or the folder is not there.

        `on_exit` gets the exit code, negative for a signal, once the whole group is gone; `on_ready` is called when
        the child says so. Call it on the thread of the event loop: when that thread ends, the kernel takes the
        supervisor for dead.
        """
        reading, writing = os.pipe()
        ready: Ready | None = None
        try:
            ready = Ready(on_ready) if spec.tells_ready else None
            told = {READY_DESCRIPTOR: str(ready.writing)} if ready is not None else {}
            inherited = (*spec.inherited, ready.writing) if ready is not None else spec.inherited
            process = subprocess.Popen(  # noqa: S603 - the command is ours: this interpreter and this package
                spec.command,
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                cwd=spec.folder,
                env=_environment(spec) | told,
                process_group=0,
                pass_fds=inherited,
            )
        except OSError:
            os.close(reading)
            if ready is not None:
                ready.close()
            raise
        finally:
            os.close(writing)
            if ready is not None:
                ready.started()
        guard.watch(process.pid)
        child = cls(process, spec, guard, Output(reading, spec.name, write), ready)
        loop = asyncio.get_running_loop()
        waiting = threading.Thread(target=child._wait, args=(loop, on_exit), name=f"child {spec.name}", daemon=True)
        waiting.start()
        return child

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The last lines that the child printed, without its name in front."""
        return tuple(self._output.last_lines)

    def terminate(self) -> None:
        """Ask the child to end (SIGTERM); it drains and stops what it started itself."""
        self._signal(os.kill, signal.SIGTERM)

    def retire(self) -> None:
        """Ask the child to finish all that it holds, and then to end (`RETIRE`); `terminate` may follow."""
        self._signal(os.kill, RETIRE)

    def kill(self) -> None:
        """End the child and all that it started, now (SIGKILL to its group)."""
        self._signal(os.killpg, signal.SIGKILL)

    async def ended(self) -> None:
        """Wait until the child has ended and `on_exit` was called."""
        await self._ended.wait()

    def _signal(self, send: Callable[[int, int], None], number: int) -> None:
        """A child that has ended is still ours until it is reaped, so its number can mean nobody else."""
        if not self._ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                send(self.pid, number)

    def _wait(self, loop: asyncio.AbstractEventLoop, on_exit: Callable[[int], None]) -> None:
        """On a thread: sleep until the child has ended, leaving it for `_finish` to reap."""
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            loop.call_soon_threadsafe(self._finish, on_exit)

    def _finish(self, on_exit: Callable[[int], None]) -> None:
        self.kill()
        self._guard.forget(self.pid)
        exit_code = self._process.wait()
        self._output.finish()
        if self._ready is not None:
            self._ready.close()
        self._ended.set()
        on_exit(exit_code)


class Ready:
    """The pipe by which a child says once that it is ready: the first byte counts, its end says nothing."""

    def __init__(self, on_ready: Callable[[], None]) -> None:
        self._reading, self.writing = os.pipe()
        self._on_ready = on_ready
        self._open = True
        os.set_blocking(self._reading, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reading, self._read)

    def started(self) -> None:
        """The child has the writing end now; nobody else keeps it."""
        os.close(self.writing)

    def close(self) -> None:
        """Hear nothing more. Repeating it does nothing."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._reading)
            os.close(self._reading)

    def _read(self) -> None:
        try:
            said = os.read(self._reading, 1)
        except BlockingIOError:
            return
        self.close()
        if said:
            self._on_ready()


class Output:
    """Reads what a child prints and writes it line by line, with the child's name in front."""

    def __init__(self, descriptor: int, name: str, write: Callable[[str], None]) -> None:
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES_MAX)
        self._descriptor = descriptor
        self._prefix = f"[{name}] "
        self._write = write
        self._rest = b""
        self._open = True
        os.set_blocking(descriptor, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._read)

    def finish(self) -> None:
        """Write what the pipe still holds, and close it, even if something that outlived the child keeps it open."""
        held = _bytes_in(self._descriptor) if self._open else 0
        while self._open and held > 0 and (taken := self._read()):
            held -= taken  # and no more than that: somebody may go on printing
        self._close()

    def _read(self) -> int:
        """Take one piece from the pipe; how many bytes it had."""
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            self._close()
            return 0
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._rest) >= LINE_BYTES_MAX:
            self._line(self._rest)
            self._rest = b""
        return len(data)

    def _line(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip("\r")
        self.last_lines.append(text)
        self._write(f"{self._prefix}{text}\n")

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            if self._rest:
                self._line(self._rest)
                self._rest = b""


def _bytes_in(pipe: int) -> int:
    """How many bytes a pipe holds."""
    count: int = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
    return count


_NOT_FOR_SERVICES = frozenset({KEY_VARIABLE, KEY_FILE_VARIABLE, TOKEN_VARIABLE, TOKEN_FILE_VARIABLE})
"""The control plane's alone: the code of services has no use for the keys of the store, and tokens of its own."""


def _environment(spec: ChildSpec) -> dict[str, str]:
    """This process's environment for a child that works in another folder, and the child's own variables."""
    hidden = _NOT_FOR_SERVICES | spec.without
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    path = environment.get("PYTHONPATH")
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(entry).absolute()) for entry in path.split(os.pathsep))
    environment["PYTHONUNBUFFERED"] = "1"
    return environment | dict(spec.environment) | {SUPERVISOR_PID: str(os.getpid())}
