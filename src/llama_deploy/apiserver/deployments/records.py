"""What an API server remembers: deployments, their versions, how many replicas somebody asked for, and what happened.

One small SQLite file. What is wanted is written here before anything is done about it, and each method is one commit:
after a crash either all of it is there or nothing, and whoever starts next carries on from that. It starts nothing.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from llama_deploy.errors import StoreUnavailableError, StoreVersionError

EVENTS_KEPT = 1000
"""Events of one deployment that are kept; older ones go."""
_APPLICATION_ID = 0x4C444150
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE deployments (
    name TEXT PRIMARY KEY,
    wanted TEXT NOT NULL,
    version INTEGER NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL
) STRICT;
CREATE TABLE versions (
    deployment TEXT NOT NULL REFERENCES deployments (name) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    digest TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    created_at REAL NOT NULL,
    PRIMARY KEY (deployment, number)
) STRICT;
CREATE TABLE replicas (
    deployment TEXT NOT NULL REFERENCES deployments (name) ON DELETE CASCADE,
    service TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (deployment, service)
) STRICT;
CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    deployment TEXT NOT NULL,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    version INTEGER,
    message TEXT NOT NULL
) STRICT;
CREATE INDEX events_of ON events (deployment, number);
"""


class Wanted(str, Enum):
    """What somebody wants of a deployment."""

    RUNNING = "running"
    STOPPED = "stopped"
    DELETED = "deleted"


class VersionState(str, Enum):
    """Where a version is in its life."""

    NEW = "new"
    """It was never seen to run."""
    PROVED = "proved"
    """Every service of it has been ready at the same time."""
    FAILED = "failed"
    """It did not start; `reason` says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeploymentRow:
    """One deployment as it is wanted. Times are seconds since the epoch."""

    name: str
    wanted: Wanted
    version: int
    """The version that is to run."""
    created_at: float
    updated_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionRow:
    """One version of a deployment; what it runs from never changes."""

    number: int
    digest: str
    """Of everything that it was made from: equal digests are equal versions."""
    state: VersionState
    reason: str
    created_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class EventRow:
    """Something that happened to a deployment."""

    number: int
    at: float
    kind: str
    version: int | None
    message: str


class Records:
    """The file. Its methods may be called from any thread, and raise `StoreUnavailableError` where it fails."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        path.chmod(0o600)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._migrate()

    def close(self) -> None:
        """Close the file. Repeating it does nothing."""
        with self._lock:
            self._connection.close()

    def _migrate(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        owner = self._connection.execute("PRAGMA application_id").fetchone()[0]
        if version > _SCHEMA_VERSION or (owner and owner != _APPLICATION_ID):
            raise StoreVersionError(
                f"{self._path} was written by a later version, or by another program", fix="name another folder"
            )
        if version == 0:
            marks = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {_SCHEMA_VERSION};"
            self._connection.executescript(f"BEGIN; {_SCHEMA} {marks} COMMIT;")

    # --- deployments ------------------------------------------------------------------------------------------------

    def deployments(self) -> list[DeploymentRow]:
        """Every deployment, by name."""
        return [_deployment(row) for row in self._read("SELECT * FROM deployments ORDER BY name")]

    def deployment(self, name: str) -> DeploymentRow | None:
        """One deployment, or `None`."""
        rows = self._read("SELECT * FROM deployments WHERE name = ?", name)
        return _deployment(rows[0]) if rows else None

    def put_version(self, name: str, digest: str) -> int:
        """A new version of a deployment, which is to run from now on; its number. The deployment is made if need be."""
        now = time.time()
        with self._transaction() as connection:
            last = connection.execute("SELECT max(number) FROM versions WHERE deployment = ?", (name,)).fetchone()[0]
            number = (last or 0) + 1
            connection.execute(
                "INSERT INTO deployments VALUES (?, 'running', ?, ?, ?) ON CONFLICT (name) DO UPDATE"
                " SET wanted = 'running', version = excluded.version, updated_at = excluded.updated_at",
                (name, number, now, now),
            )
            row = (name, number, digest, VersionState.NEW.value, "", now)
            connection.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?)", row)
        return number

    def want(self, name: str, *, wanted: Wanted | None = None, version: int | None = None) -> None:
        """Another state, or another version, is wanted of a deployment."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE deployments SET wanted = coalesce(?, wanted), version = coalesce(?, version), updated_at = ?"
                " WHERE name = ?",
                (wanted.value if wanted is not None else None, version, time.time(), name),
            )

    def forget(self, name: str) -> None:
        """A deployment is gone, and all that was known of it, except what happened."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM deployments WHERE name = ?", (name,))

    # --- versions ---------------------------------------------------------------------------------------------------

    def versions(self, name: str) -> list[VersionRow]:
        """The versions of a deployment, the newest first."""
        rows = self._read("SELECT * FROM versions WHERE deployment = ? ORDER BY number DESC", name)
        return [
            VersionRow(number=row[1], digest=row[2], state=VersionState(row[3]), reason=row[4], created_at=row[5])
            for row in rows
        ]

    def version(self, name: str, number: int) -> VersionRow | None:
        """One version, or `None`."""
        return next((row for row in self.versions(name) if row.number == number), None)

    def judge(self, name: str, number: int, state: VersionState, reason: str = "") -> None:
        """Whether a version was seen to run. One that was is never said to have failed."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE versions SET state = ?, reason = ? WHERE deployment = ? AND number = ? AND state != 'proved'",
                (state.value, reason, name, number),
            )

    def drop_version(self, name: str, number: int) -> None:
        """A version is not kept any more."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM versions WHERE deployment = ? AND number = ?", (name, number))

    # --- replicas ---------------------------------------------------------------------------------------------------

    def replicas(self, name: str) -> dict[str, int]:
        """How many processes somebody asked for, by service; the deployment file has its say about the others."""
        return dict(self._read("SELECT service, count FROM replicas WHERE deployment = ?", name))

    def scale(self, name: str, service: str, count: int | None) -> None:
        """So many processes of a service are wanted; `None`: as many as the file says."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM replicas WHERE deployment = ? AND service = ?", (name, service))
            if count is not None:
                connection.execute("INSERT INTO replicas VALUES (?, ?, ?)", (name, service, count))

    # --- events -----------------------------------------------------------------------------------------------------

    def tell(self, name: str, kind: str, message: str, *, version: int | None = None) -> EventRow:
        """Something happened; it is kept, and the oldest of its deployment goes where there are too many."""
        now = time.time()
        with self._transaction() as connection:
            number = connection.execute(
                "INSERT INTO events (deployment, at, kind, version, message) VALUES (?, ?, ?, ?, ?) RETURNING number",
                (name, now, kind, version, message),
            ).fetchone()[0]
            connection.execute(
                "DELETE FROM events WHERE deployment = ? AND number <= coalesce((SELECT number FROM events"
                " WHERE deployment = ? ORDER BY number DESC LIMIT 1 OFFSET ?), 0)",
                (name, name, EVENTS_KEPT),
            )
        return EventRow(number=number, at=now, kind=kind, version=version, message=message)

    def events(self, name: str, *, after: int = 0, last: int = EVENTS_KEPT) -> list[EventRow]:
        """What happened to a deployment after an event, in order; the `last` of it."""
        rows = self._read(
            "SELECT number, at, kind, version, message FROM events WHERE deployment = ? AND number > ?"
            " ORDER BY number DESC LIMIT ?",
            *(name, after, last),
        )
        return [
            EventRow(number=row[0], at=row[1], kind=row[2], version=row[3], message=row[4]) for row in reversed(rows)
        ]

    # --- the file ---------------------------------------------------------------------------------------------------

    def _read(self, statement: str, *values: object) -> list[Any]:
        with self._lock:
            try:
                return self._connection.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise self._unavailable(error) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One commit, or nothing."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise self._unavailable(error) from error

    def _unavailable(self, error: sqlite3.Error) -> StoreUnavailableError:
        return StoreUnavailableError(f"the records of the API server at {self._path} cannot be used", why=str(error))


def _deployment(row: tuple[Any, ...]) -> DeploymentRow:
    name, wanted, version, created_at, updated_at = row
    return DeploymentRow(
        name=name, wanted=Wanted(wanted), version=version, created_at=created_at, updated_at=updated_at
    )
