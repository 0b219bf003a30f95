"""The file by which a program that serves says to other programs that it is ready, and where it is to be reached.

It is there while everything is ready and at no other time, so that nobody has to read what is meant for people. When
that is the case is decided by whoever serves.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from llama_deploy.errors import SettingError


class ReadyFile:
    """A file that `write` makes and the end of the context manager removes; without a path it does nothing.

    One that a killed process has left is removed at the beginning. What cannot be written is told to `report`, and
    stops nothing. Raises `SettingError` at the beginning when there is no folder for it.
    """

    def __init__(self, path: Path | None, report: Callable[[str], None]) -> None:
        self._path = path.absolute() if path is not None else None
        self._report = report
        self._closed = False
        if self._path is None:
            return
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise _unusable(self._path, error.strerror or str(error)) from error
        if not os.access(self._path.parent, os.W_OK):
            raise _unusable(self._path, "its folder is not there, or cannot be written to")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        if self._path is not None and self._is_ours(self._path):
            self._path.unlink(missing_ok=True)

    def write(self, *, url: str, **more: str) -> None:
        """Say that it is ready: JSON with `url`, `pid` and whatever else there is, all of it at once or nothing.

        Repeating it replaces the file; after the end it does nothing.
        """
        if self._path is None or self._closed:
            return
        document = {"url": url, "pid": os.getpid(), **more}
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            partial.write_text(json.dumps(document) + "\n", encoding="utf-8")
            partial.replace(self._path)
        except OSError as error:
            self._report(f"cannot write {self._path}: {error.strerror or error}")
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    @staticmethod
    def _is_ours(path: Path) -> bool:
        """Whether the file speaks of this process: a second one may have been given the same path."""
        try:
            return bool(json.loads(path.read_text(encoding="utf-8"))["pid"] == os.getpid())
        except (OSError, ValueError, KeyError, TypeError):
            return False


def _unusable(path: Path, why: str) -> SettingError:
    return SettingError(f"{path} cannot be written", why=why, fix="--ready-file PATH   name a file in another folder")
