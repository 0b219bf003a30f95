"""The file of a SQLite store: whose it is, who may write it, and which schema it has.

Opens the file of any earlier version and brings it up to date; refuses everything else and leaves it untouched.
"""

from __future__ import annotations

import fcntl
import glob
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from llama_deploy.errors import (
    LlamaDeployError,
    StoreKeyError,
    StoreLockedError,
    StoreReadOnlyError,
    StoreUnavailableError,
    StoreVersionError,
)
from llama_deploy.runtime import failpoint
from llama_deploy.state_stores import sql_files

APPLICATION_ID = 0x4C444550
"""Marks the file as ours (`PRAGMA application_id`), so that another program's database is never touched."""


_FIRST_WITH_DOCUMENTS = 2
"""The first schema that has the table in which the keys of an encrypted store are noted."""
_IS_ENCRYPTED = "SELECT 1 FROM documents WHERE kind = 'encryption' LIMIT 1"


def open_connection(path: Path, synchronous: str, *, expects_encryption: bool = True) -> sqlite3.Connection:
    """The writing connection, with the file checked and migrated; nothing is changed where this raises."""
    try:
        # SQLite opens a file that it may only read, and leaves its own files beside it; and what tasks carry is nobody
        # else's business, so a new file is its owner's alone.
        new = not path.exists()
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        if new:  # SQLite syncs what is in the file, not that there is one
            _sync_names(path.parent)
    except OSError as error:
        raise _read_only_error(path, str(error)) from error
    failpoint("store.file_created")
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=64)
    except sqlite3.DatabaseError as error:
        raise _opening_error(path, error) from error
    try:
        _prepare(connection, path, synchronous, expects_encryption=expects_encryption)
        _migrate(connection)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _opening_error(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, synchronous: str, *, expects_encryption: bool) -> None:
    """Check that the file is ours and can be written, then set the connection up."""
    connection.execute("PRAGMA busy_timeout = 5000")
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if tables == 0:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    elif connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise StoreVersionError(
            f"{path} is a database of another program",
            fix="name another file with --store; this one was not changed",
        )
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > (known := len(migrations())):
        raise StoreVersionError(
            f"{path} was written by a later version (schema {version}, this version knows {known})",
            fix="upgrade this program, or name another file with --store; this one was not changed",
        )
    if version >= _FIRST_WITH_DOCUMENTS and not expects_encryption and connection.execute(_IS_ENCRYPTED).fetchone():
        raise StoreKeyError(
            f"{path} is encrypted, and no key was given",
            fix="set LLAMA_DEPLOY_ENCRYPTION_KEY or LLAMA_DEPLOY_ENCRYPTION_KEY_FILE",
        )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA cache_size = -32000")
    connection.execute("PRAGMA secure_delete = FAST")  # removed rows are overwritten where that costs no further page
    connection.execute("PRAGMA wal_autocheckpoint = 2000")
    connection.execute("PRAGMA journal_size_limit = 67108864")  # what a long read has made of the WAL does not stay


def _migrate(connection: sqlite3.Connection) -> None:
    """Run the migrations that the file has not seen, each in a transaction of its own."""
    current = connection.execute("PRAGMA user_version").fetchone()[0]
    for number, script in enumerate(migrations()[current:], start=current + 1):
        failpoint("store.before_migration")
        connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")
        failpoint("store.after_migration")


def _sync_names(folder: Path) -> None:
    """See to it that what was made in a folder is found there after a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably."""
    if not folder.exists():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_names(folder.parent)


def lock(path: Path) -> int:
    """Take the lock file beside the database; it is released when the process ends, however it ends."""
    try:
        _make_folder(path.parent)
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _read_only_error(path, str(error)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise StoreLockedError(
            f"{path} is in use by another process" + (f" (pid {holder})" if holder else ""),
            why="a store has one writer at a time",
            fix="stop the other process, or name another file with --store",
        ) from error
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.unfinished"):
        left.unlink(missing_ok=True)  # of a restoration that was killed
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


def _opening_error(path: Path, error: sqlite3.DatabaseError) -> LlamaDeployError:
    text = str(error)
    if "readonly" in text or "unable to open" in text:
        return _read_only_error(path, text)
    if "not a database" in text or "malformed" in text or "no such" in text:
        return StoreVersionError(
            f"{path} is not a store of this program", why=text, fix="name another file with --store; it was not changed"
        )
    return StoreUnavailableError(f"{path} cannot be opened", why=text)


def _read_only_error(path: Path, why: str) -> StoreReadOnlyError:
    return StoreReadOnlyError(
        f"{path} cannot be written",
        why=why,
        fix="make the file and its folder writable, or name another place with --store",
    )


def load_statements() -> Mapping[str, str]:
    """The named statements of `statements.sql`."""
    return sql_files.load_statements("sqlite")


def migrations() -> list[str]:
    """The migration scripts in order; the database's `user_version` counts those that have run."""
    return [f"{migration.before}\n{migration.after}" for migration in sql_files.load_migrations("sqlite")]
