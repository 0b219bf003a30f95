"""What ties a child process to the process that supervises it, so that neither outlives the other unnoticed.

Two ropes, each enough by itself. The child asks the kernel to kill it when its parent dies (Linux), and checks
afterwards that the parent was still there. The supervisor keeps one small *guard* process, which holds the reading
end of a pipe and the list of the children's process groups: the pipe closes when the supervisor dies, however it
dies, and the guard then kills every group, grandchildren included.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys

SUPERVISOR_PID = "LLAMA_DEPLOY_SUPERVISOR_PID"
"""The environment variable by which a child learns that it has a supervisor, and which one."""

READY_DESCRIPTOR = "LLAMA_DEPLOY_READY_DESCRIPTOR"
"""The environment variable by which a child learns where to say that it is ready."""

RETIRE = signal.SIGUSR1
"""Asks a child to take nothing new, to finish all that it holds, and to end then; SIGTERM has it hurry."""

_PR_SET_PDEATHSIG = 1
"""prctl(2)."""

_GUARD_PROGRAM = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
groups = set()
for line in sys.stdin.buffer:
    group = int(line[1:])
    (groups.add if line[:1] == b"+" else groups.discard)(group)
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
"""


def die_with_supervisor() -> None:
    """Called first thing in a process that may have a supervisor: from now on its death is this process's too.

    Does nothing in a process that a person started. Exits at once when the supervisor is gone already.
    """
    supervisor = os.environ.pop(SUPERVISOR_PID, None)
    if supervisor is None:
        return
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(supervisor):
        os._exit(0)


def tell_ready() -> None:
    """Say to the supervisor that this process is ready. Does nothing the second time, or where nobody asked."""
    descriptor = os.environ.pop(READY_DESCRIPTOR, None)
    if descriptor is not None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(int(descriptor), "wb", buffering=0) as pipe:
            pipe.write(b"!")


class Guard:
    """The process that kills the children's groups when this one dies without having done so."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the guard; repeating it does nothing."""
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, with the program above
                [sys.executable, "-I", "-S", "-c", _GUARD_PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                process_group=0,
            )

    def watch(self, group: int) -> None:
        """This process group dies with us; called right after its leader was started."""
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """This process group is gone; called before its number can be given to somebody else."""
        self._tell(f"-{group}\n")

    def stop(self) -> None:
        """End the guard, which kills what it still watches. Repeating it does nothing."""
        if self._process is not None:
            assert self._process.stdin is not None, "it was started with a pipe"
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()
            self._process = None

    def _tell(self, line: str) -> None:
        """Write one line; a guard that somebody killed is replaced by nothing, the kernel's rope still holds."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()
