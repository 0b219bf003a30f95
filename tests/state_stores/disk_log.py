"""What SQLite does to the disk, recorded: every write, truncation, sync and deletion, in order.

SQLite reaches the operating system through a table of functions, its VFS. `recording` puts functions of ours into
that table (through `ctypes`, in the very library that `sqlite3` uses) which note a call and make it. It needs no
compiler, no tracer and no rights. Readers and the shared-memory index, which no loss of power can harm, stay untouched.
"""

from __future__ import annotations

import _sqlite3
import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p, cast
from pathlib import Path
from typing import Any, NamedTuple


class Write(NamedTuple):
    """Bytes were handed to the operating system; they are on the disk after the next sync of the file."""

    file: str
    offset: int
    data: bytes


class Truncate(NamedTuple):
    """The file was cut; that is on the disk after its next sync."""

    file: str
    size: int


class Sync(NamedTuple):
    """Everything that was done to the file before is on the disk."""

    file: str


class Create(NamedTuple):
    """The file is new. Its name is on the disk after its next sync."""

    file: str


class Delete(NamedTuple):
    """The file's name is gone; on the disk too, where the folder was synced with it."""

    file: str
    synced: bool


class Mark(NamedTuple):
    """Something was said to somebody, who may rely on it from here on."""

    what: str


Event = Write | Truncate | Sync | Create | Delete | Mark

_OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
_DELETE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)
_CLOSE = CFUNCTYPE(c_int, c_void_p)
_WRITE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_TRUNCATE = CFUNCTYPE(c_int, c_void_p, c_int64)
_SYNC = CFUNCTYPE(c_int, c_void_p, c_int)
_DURABLE_FILES = 0x00000100 | 0x00000800 | 0x00080000
"""SQLITE_OPEN_MAIN_DB, SQLITE_OPEN_MAIN_JOURNAL and SQLITE_OPEN_WAL; temporary files need not survive anything."""


class _Vfs(Structure):
    _fields_ = [
        ("version", c_int),
        ("file_size", c_int),
        ("path_max", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", c_void_p),
        ("delete", c_void_p),
    ]


class _Methods(Structure):
    _fields_ = [
        ("version", c_int),
        ("close", c_void_p),
        ("read", c_void_p),
        ("write", c_void_p),
        ("truncate", c_void_p),
        ("sync", c_void_p),
        ("others", c_void_p * 13),
    ]


class _File(Structure):
    _fields_ = [("methods", POINTER(_Methods))]


_kept: list[Any] = []
"""What C code holds pointers to, for as long as the process lives."""


def _library() -> Any:
    """The SQLite that Python's `sqlite3` uses. Raises `OSError` where its symbols cannot be reached."""
    place = getattr(_sqlite3, "__file__", None)  # built in where Python is linked statically
    library = ctypes.CDLL(place)
    if not hasattr(library, "sqlite3_vfs_find"):
        raise OSError("the SQLite of this Python hides its functions")
    return library


def _address(function: Any) -> int:
    """The address of a callback, which is kept from now on."""
    _kept.append(function)
    return cast(function, c_void_p).value or 0


class _Recorder:
    """Notes what is done to the files of one folder."""

    def __init__(self, folder: Path, log: list[Event]) -> None:
        self._folder = str(folder)
        self._log = log
        self._files: dict[int, str] = {}
        self._tables: dict[int, _Methods] = {}

    def attach(self, vfs: _Vfs) -> Callable[[], None]:
        """Stand between SQLite and its VFS; returns what goes away again."""
        before = vfs.open, vfs.delete
        self._open_before, self._delete_before = _OPEN(vfs.open), _DELETE(vfs.delete)
        vfs.open, vfs.delete = _address(_OPEN(self._open)), _address(_DELETE(self._delete))

        def detach() -> None:
            vfs.open, vfs.delete = before

        return detach

    def _open(self, vfs: int, name: int | None, file: int, flags: int, out: int | None) -> int:
        path = ctypes.string_at(name).decode() if name else ""
        wanted = path.startswith(self._folder) and flags & _DURABLE_FILES
        new = wanted and not Path(path).exists()
        code: int = self._open_before(vfs, name, file, flags, out)
        if code == 0 and wanted:
            if new:
                self._log.append(Create(Path(path).name))
            self._files[file] = Path(path).name
            opened = _File.from_address(file)
            opened.methods = ctypes.pointer(self._methods(opened.methods.contents))
        return code

    def _methods(self, original: _Methods) -> _Methods:
        """A copy of a file's functions in which those that change the disk are ours."""
        place = ctypes.addressof(original)
        made = self._tables.get(place)
        if made is None:
            made = _Methods()
            ctypes.memmove(ctypes.addressof(made), place, ctypes.sizeof(_Methods))
            close, write = _CLOSE(original.close), _WRITE(original.write)
            truncate, sync = _TRUNCATE(original.truncate), _SYNC(original.sync)

            def on_close(file: int) -> int:
                self._files.pop(file, None)
                return int(close(file))

            def on_write(file: int, data: int, count: int, offset: int) -> int:
                self._log.append(Write(self._files[file], offset, ctypes.string_at(data, count)))
                return int(write(file, data, count, offset))

            def on_truncate(file: int, size: int) -> int:
                self._log.append(Truncate(self._files[file], size))
                return int(truncate(file, size))

            def on_sync(file: int, flags: int) -> int:
                code = int(sync(file, flags))
                self._log.append(Sync(self._files[file]))
                return code

            made.close, made.write = _address(_CLOSE(on_close)), _address(_WRITE(on_write))
            made.truncate, made.sync = _address(_TRUNCATE(on_truncate)), _address(_SYNC(on_sync))
            self._tables[place] = made
            _kept.append(made)
        return made

    def _delete(self, vfs: int, name: int, synced: int) -> int:
        path = ctypes.string_at(name).decode()
        existed = Path(path).exists()
        code: int = self._delete_before(vfs, name, synced)
        if existed and path.startswith(self._folder):
            self._log.append(Delete(Path(path).name, bool(synced)))
        return code


@contextmanager
def recording(folder: Path) -> Iterator[list[Event]]:
    """Record what SQLite does in a folder, for databases that are opened within."""
    log: list[Event] = []
    library = _library()
    library.sqlite3_vfs_find.restype = POINTER(_Vfs)
    recorder = _Recorder(folder.resolve(), log)
    _kept.append(recorder)
    detach = recorder.attach(library.sqlite3_vfs_find(None).contents)
    try:
        yield log
    finally:
        detach()
