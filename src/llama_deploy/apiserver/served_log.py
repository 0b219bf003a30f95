"""The log of a deployment that `llamactl serve` runs: what it says, logs, and is told by the services that it started.

It is kept in memory for those who ask the control plane for it; standard error has everything as ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from llama_deploy.apiserver.supervisor import write_to_stderr
from llama_deploy.runtime.line_log import LineLog

Report = Callable[[str], None]


@contextlib.contextmanager
def logged(report: Report) -> Iterator[tuple[LineLog, Report]]:
    """A log that hears what this process logs within the block, and what says something and has it stand there too."""
    log = LineLog()

    def told(text: str) -> None:
        for line in text.splitlines():
            log.write(line)
        report(text)

    with log.hearing():
        yield log, told


def written_to(log: LineLog) -> Callable[[str], None]:
    """What takes the lines of children: on standard error, and in the log."""

    def write(line: str) -> None:
        write_to_stderr(line)
        log.write(line)

    return write
