"""The audit log: who did what, when, from where, and what came of it, as lines of JSON in files of a bounded size.

Lines are collected for one turn of the event loop and appended in one write. It is a record for people, no part of
what the control plane promises: a line that cannot be written is told in the program's log, and nothing waits for it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from llama_deploy.runtime.logs import get_logger
from llama_deploy.types.access import AuditSettings

log = get_logger("llama_deploy.audit")

TEXT_CHARACTERS_MAX = 500
"""What others wrote is cut to so many characters."""
STANDARD_OUTPUT = 1
UNKNOWN_PER_SECOND_MAX = 20
"""Refusals of callers who are not known are counted beyond so many in a second, so that they cannot fill the log."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that somebody did, or wanted to do."""

    who: str
    """The name of the token; `anybody` where none is asked for, `unknown` where it is not known."""
    what: str
    """The method of a request, `WS` for a connection, or an operation on one (`submit`)."""
    target: str
    """The path of a request, without its query; or a task's id."""
    peer: str
    """The address that it came from."""
    outcome: str
    """The HTTP status, with the code of the error where it was refused here."""


class Audit:
    """Writes entries to the file of its settings, to standard output, or nowhere."""

    def __init__(
        self, settings: AuditSettings | None, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.settings = settings
        self._now = now
        self._lines: list[bytes] = []
        self._descriptor: int | None = None
        self._size = 0
        self._failing = False
        self._second = 0
        self._unknown = 0

    @property
    def on(self) -> bool:
        """Whether anything is written."""
        return self.settings is not None

    @property
    def reads(self) -> bool:
        """Whether that is written which changes nothing."""
        return self.settings is not None and self.settings.reads

    def write(self, entry: Entry, *, unknown: bool = False) -> None:
        """Write an entry with this turn of the loop."""
        if self.settings is None:
            return
        now = self._now()
        if unknown and not self._counted(int(now.timestamp())):
            return
        document: dict[str, object] = {
            "at": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "who": entry.who[:TEXT_CHARACTERS_MAX],
            "what": entry.what[:TEXT_CHARACTERS_MAX],
            "target": entry.target[:TEXT_CHARACTERS_MAX],
            "from": entry.peer,
            "outcome": entry.outcome,
        }
        self._append(document)

    def _counted(self, second: int) -> bool:
        """Whether a refusal of somebody unknown is still written in this second."""
        if second != self._second:
            suppressed = self._unknown - UNKNOWN_PER_SECOND_MAX
            self._second, self._unknown = second, 0
            if suppressed > 0:
                self._append({"at": _at(second), "who": "unknown", "outcome": "suppressed", "count": suppressed})
        self._unknown += 1
        return self._unknown <= UNKNOWN_PER_SECOND_MAX

    def _append(self, document: dict[str, object]) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_soon(self.flush)
        self._lines.append(json.dumps(document, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")

    def flush(self) -> None:
        """Write what is waiting."""
        if self.settings is None or not self._lines:
            return
        data, self._lines = b"".join(self._lines), []
        try:
            if self._descriptor is None:
                self._open(self.settings.file)
            if self._size and self._size + len(data) > self.settings.bytes_max and self.settings.file is not None:
                self._put_aside(self.settings.file, self.settings.files)
            while data:
                assert self._descriptor is not None
                written = os.write(self._descriptor, data)
                self._size += written
                data = data[written:]
            self._failing = False
        except OSError as error:
            if not self._failing:
                file = str(self.settings.file or "standard output")
                log.error("the audit log cannot be written", file=file, error=str(error))  # noqa: TRY400
            self._failing = True
            self._release()

    def _open(self, file: Path | None) -> None:
        if file is None:
            self._descriptor = os.dup(STANDARD_OUTPUT)
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    def _put_aside(self, file: Path, kept: int) -> None:
        """`.1` becomes `.2` and so on, the file becomes `.1`, and a new one is begun."""
        self._release()
        for number in range(kept, 0, -1):
            older = _numbered(file, number)
            newer = _numbered(file, number - 1) if number > 1 else file
            if newer.exists():
                newer.replace(older)
        if kept == 0:
            file.unlink(missing_ok=True)
        self._open(file)

    def _release(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def close(self) -> None:
        """Write what is waiting and let go of the file. Repeating it is harmless."""
        self.flush()
        self._release()


def _numbered(file: Path, number: int) -> Path:
    return file.with_name(f"{file.name}.{number}")


def _at(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
