"""Starting, watching and stopping the processes of a benchmark.

Each process is the leader of its own group, so that stopping it also stops what it forked; only what was started here
is ever signalled. Output goes to a log file beside the run's data, and is shown when a process dies unexpectedly.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 10.0
CLIENT_DEADLINE_S = 600.0


class ProcessFailedError(Exception):
    """A process of a benchmark ended when it should not have, or did not become ready in time."""


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], what: str, *, deadline_s: float = START_DEADLINE_S) -> None:
    """Returns once `condition()` holds; raises `ProcessFailedError` after the deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise ProcessFailedError(f"not within {deadline_s:.0f} s: {what}")
        time.sleep(0.01)


def listens(port: int) -> bool:
    """Whether something accepts connections on this loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def without_paths(text: str) -> str:
    """The text without what names this machine: the repository's folder and those of the interpreters."""
    places = {str(REPOSITORY) + os.sep: "", sys.prefix: "PREFIX", sys.base_prefix: "PYTHON", str(Path.home()): "HOME"}
    for place, word in places.items():
        text = text.replace(place, word)
    return text


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a started process: ours with the repository importable, and no virtual environment's marks."""
    kept = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONHOME")}
    path = os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)])
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **extra}


class Process:
    """One started process and its log."""

    def __init__(self, argv: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None) -> None:
        self.argv = list(argv)
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                self.argv,
                cwd=REPOSITORY,
                env=environment(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pid = self._popen.pid
        self._gone = False

    def check(self) -> bool:
        """True while it runs; raises `ProcessFailedError` with the end of its log when it has ended."""
        if self._popen.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise ProcessFailedError(f"{' '.join(self.argv)} ended with {self._popen.returncode}:\n{tail}")
        return True

    def wait_for_port(self, port: int) -> None:
        """Returns once something listens there; raises `ProcessFailedError` if this process ends first."""
        wait_until(lambda: self.check() and listens(port), f"{' '.join(self.argv[-4:])} listens on {port}")

    def kill(self) -> None:
        """SIGKILL to it and all it forked, at once."""
        self._end([signal.SIGKILL])

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after `STOP_DEADLINE_S`. Returns when it is gone; harmless on one that is gone."""
        self._end([signal.SIGTERM, signal.SIGKILL])

    def _end(self, signals: Sequence[signal.Signals]) -> None:
        if self._gone:  # its number may be somebody else's by now
            return
        for number in signals:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(STOP_DEADLINE_S)
        self._gone = True


def run_client(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    deadline_s: float = CLIENT_DEADLINE_S,
    on_event: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Runs a client to its end and returns the figures in its last line of JSON.

    A line `{"event": name}` before that is handed to `on_event` as it comes, so that a scenario can act in the middle
    of the client's work. Raises `ProcessFailedError` when the client fails, prints no figures, or exceeds the deadline.
    """
    figures: dict[str, float] | None = None
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            list(argv),
            cwd=REPOSITORY,
            env=environment(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None, "Popen was asked for a pipe"
        timer = threading.Timer(deadline_s, process.kill)
        timer.start()
        try:
            for line in process.stdout:
                document = json.loads(line) if line.startswith("{") else {}
                if "event" in document and on_event:
                    on_event(document["event"])
                elif document:
                    figures = document
        finally:
            timer.cancel()
            if figures is None:
                process.kill()
            code = process.wait()
        errors.seek(0)
        if code != 0 or figures is None:
            raise ProcessFailedError(f"{' '.join(argv[1:4])} ended with {code}:\n{errors.read()[-2000:]}")
        return figures
