"""Copies of a store in one file: written while the store is used, checked, and put in the place of a store.

A backup is an ordinary store file without a log beside it, whatever store it was taken of. Restoring happens while
nobody has the store open; the file takes its place in one step, so that a crash leaves the old store or the new one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from llama_deploy.errors import BackupError, StoreExistsError, StoreUnavailableError
from llama_deploy.state_stores.sqlite_file import APPLICATION_ID, load_statements, lock, migrations, open_connection

UNFINISHED = ".unfinished"


@dataclass(frozen=True, kw_only=True)
class BackupFacts:
    """What a backup says of itself."""

    bytes: int
    schema: int
    tasks: int
    unfinished: int
    """Tasks that have not ended, which a control plane on it carries on with."""


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Have a file written under a temporary name beside it, and give it its name once it is on disk.

    Raises `StoreUnavailableError` when there is a file of that name, or when it cannot be written; nothing is left
    behind then. A crash leaves a file that ends in `.unfinished`.
    """
    unfinished = path.with_name(f".{path.name}.{token_hex(4)}{UNFINISHED}")
    try:
        os.close(os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))
        write(unfinished)
        _sync(unfinished)
        os.link(unfinished, path)
        _sync(path.parent)
    except (OSError, sqlite3.Error) as error:
        raise StoreUnavailableError(f"{path} cannot be written", why=str(error)) from error
    finally:
        for name in (unfinished.name, f"{unfinished.name}-wal", f"{unfinished.name}-shm", f"{unfinished.name}-journal"):
            with contextlib.suppress(OSError):
                unfinished.with_name(name).unlink(missing_ok=True)


def write_rows(path: Path, rows: Mapping[str, Iterable[Sequence[Any]]]) -> None:
    """Make a store file of rows by the names of the statements that insert them."""

    def write(unfinished: Path) -> None:
        statements = load_statements()
        connection = open_connection(unfinished, "FULL")
        try:
            connection.execute("BEGIN")
            for name, parameters in rows.items():
                connection.executemany(statements[name], parameters)
            connection.execute("COMMIT")
            connection.execute("PRAGMA journal_mode = DELETE")
        finally:
            connection.close()

    write_file(path, write)


def check_backup(path: Path) -> BackupFacts:
    """What a file holds, after every page of it was looked at.

    Raises `BackupError` for a file that is not there, is damaged, is no store, or is of a later version.
    """
    if not path.is_file():
        raise BackupError(f"there is no file {path}")
    if path.with_name(f"{path.name}-wal").exists():
        raise BackupError(
            f"{path} has a log beside it, so it is a store in use and no backup",
            fix="llamactl backup FILE   makes a backup of a running control plane's store",
        )
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    except sqlite3.Error as error:
        raise BackupError(f"{path} cannot be read", why=str(error)) from error
    try:
        return _facts(connection, path)
    except sqlite3.Error as error:
        raise BackupError(f"{path} is not a store, or is damaged", why=str(error)) from error
    finally:
        connection.close()


def _facts(connection: sqlite3.Connection, path: Path) -> BackupFacts:
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise BackupError(f"{path} is not a store of this program")
    schema = connection.execute("PRAGMA user_version").fetchone()[0]
    if schema == 0:
        raise BackupError(f"{path} is not finished: it has no tables")
    if schema > (known := len(migrations())):
        raise BackupError(
            f"{path} was written by a later version (schema {schema}, this version knows {known})",
            fix="upgrade this program",
        )
    found = [row[0] for row in connection.execute("PRAGMA integrity_check")]
    if found != ["ok"]:
        raise BackupError(f"{path} is damaged", why="\n".join(found[:5]), fix="take an earlier backup")
    tasks, unfinished = connection.execute(
        "SELECT count(*), count(*) FILTER (WHERE ended_at IS NULL) FROM tasks"
    ).fetchone()
    return BackupFacts(bytes=path.stat().st_size, schema=schema, tasks=tasks, unfinished=unfinished)


def restore(backup: Path, store: Path, *, replace: bool = False) -> BackupFacts:
    """Put a backup in the place of a store that nobody has open.

    Raises what `check_backup` raises, `StoreExistsError` when there is a store and it is not to be replaced,
    `StoreLockedError` when somebody has it open; nothing is changed then. A crash leaves the old store or the new one.
    """
    facts = check_backup(backup)
    descriptor = lock(store)
    try:
        if store.exists():
            if not replace:
                raise StoreExistsError(
                    f"there is a store at {store}", fix="name another place with --store, or replace it with --replace"
                )
            _let_go_of_log(store)
        _put(backup, store)
    except OSError as error:
        raise StoreUnavailableError(f"{store} cannot be written", why=str(error)) from error
    finally:
        os.close(descriptor)
    return facts


def _let_go_of_log(store: Path) -> None:
    """Make the old store whole without its log: the log would be applied to whatever is in its place."""
    try:
        connection = sqlite3.connect(store, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = DELETE")
        finally:
            connection.close()
    except sqlite3.Error:  # it is damaged, which may be why it is replaced
        pass
    for name in (f"{store.name}-wal", f"{store.name}-shm"):
        store.with_name(name).unlink(missing_ok=True)


def _put(backup: Path, store: Path) -> None:
    unfinished = store.with_name(f".{store.name}.{token_hex(4)}{UNFINISHED}")
    try:
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as target:  # noqa: PTH123
            with backup.open("rb") as source:
                shutil.copyfileobj(source, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
        os.replace(unfinished, store)  # noqa: PTH105 - next to the other calls that are about the disk
        _sync(store.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
