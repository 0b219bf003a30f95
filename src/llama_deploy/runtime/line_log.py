"""What processes print, line by line: the newest lines in memory, and in a file of bounded size if there is one.

Every line is kept with its time and a number, so that whoever follows misses none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, NamedTuple

FILE_BYTES_MAX = 8 * 1024 * 1024
"""The file is put aside as `<name>.1` when it is larger; there are two of them at most."""
LINES_KEPT = 5_000
"""Lines in memory; what is older is in the files."""


class Line(NamedTuple):
    """One line of a log."""

    number: int
    text: str


class LineLog:
    """A log, in memory alone without a `path`. Its methods are for the thread of one event loop."""

    def __init__(self, path: Path | None = None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file: IO[str] | None = None
        self._lines: deque[Line] = deque(_last_lines(path) if path is not None else (), maxlen=LINES_KEPT)
        self._next = self._lines[-1].number + 1 if self._lines else 1
        self._waiting: set[asyncio.Event] = set()
        self._ended = False

    def write(self, line: str) -> None:
        """Add a line, with or without its end. A disk that is full loses it, and nothing else."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        text = f"{now} {line.rstrip()}"
        self._lines.append(Line(self._next, text))
        self._next += 1
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._append(self._path, text)
        for event in self._waiting:
            event.set()

    @contextlib.contextmanager
    def hearing(self) -> Iterator[None]:
        """Within the block, what this package logs, in whatever thread, is written here as well."""
        hearer = _Hearer(self)
        logger = logging.getLogger("llama_deploy")
        logger.addHandler(hearer)
        try:
            yield
        finally:
            logger.removeHandler(hearer)

    def last(self, count: int) -> list[Line]:
        """The newest lines, in order."""
        return list(self._lines)[-count:] if count else []

    @property
    def newest(self) -> int:
        """The number of the newest line; 0 where there is none."""
        return self._next - 1

    async def follow(self, after: int) -> AsyncIterator[Line]:
        """The lines after a number, and those to come, until its `end`; what is not kept any more is left out."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            while True:
                event.clear()
                for line in [line for line in self._lines if line.number > after]:
                    after = line.number
                    yield line
                if self._lines and self._lines[-1].number > after:
                    continue
                if self._ended:
                    return
                await event.wait()
        finally:
            self._waiting.discard(event)

    def end(self) -> None:
        """Nothing more will be written: whoever follows is done. Repeating it does nothing."""
        self._ended = True
        self.close()
        for event in self._waiting:
            event.set()

    def close(self) -> None:
        """Close the file. Repeating it does nothing; writing opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, path: Path, text: str) -> None:
        if self._file is None:
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
        self._file.write(text + "\n")
        self._file.flush()
        if self._file.tell() > FILE_BYTES_MAX:
            self.close()
            path.replace(path.with_name(path.name + ".1"))


class _Hearer(logging.Handler):
    """Writes what is logged in any thread to a log, on the loop that it is made on."""

    def __init__(self, log: LineLog) -> None:
        super().__init__()
        self._log = log
        self._loop = asyncio.get_running_loop()
        self.setFormatter(logging.Formatter("%(levelname)-7s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody reads any more
            self._loop.call_soon_threadsafe(self._log.write, self.format(record))


def _last_lines(path: Path) -> list[Line]:
    """What an earlier run has written last."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 256 * 1024))
            texts = stream.read().decode("utf-8", "replace").splitlines()[-LINES_KEPT:]
    except OSError:
        return []
    return [Line(number, text) for number, text in enumerate(texts, start=1)]
