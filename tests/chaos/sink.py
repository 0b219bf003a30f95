"""The world outside: counts the effects of steps in a file of its own and takes each of them once, by step id.

It is what a service's own database would be. Steps run at least once; that a repeated effect is suppressed here is
the service's side of the bargain, and how often that happened is a figure of the run.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BUSY_S = 60.0
"""A process that is stood still in the middle of a write holds the others up for as long."""


class Effect(NamedTuple):
    step_id: str
    service: str
    value: str
    """What the first attempt that came here brought, as JSON."""
    times: int


class News(NamedTuple):
    event_id: str
    body: str
    """What its first request brought."""
    times: int
    differently: int
    """How many of its requests brought something else."""


class Sink:
    """Tables of effects and of webhook requests, shared by processes."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS effects "
            "(step_id TEXT PRIMARY KEY, service TEXT NOT NULL, value TEXT NOT NULL, times INTEGER NOT NULL)"
        )

        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS news "
            "(event_id TEXT PRIMARY KEY, body TEXT NOT NULL, times INTEGER NOT NULL, differently INTEGER NOT NULL)"
        )

    def effect(self, step_id: str, service: str, value: object) -> None:
        """An attempt of a step has an effect."""
        self._connection.execute(
            "INSERT INTO effects VALUES (?, ?, ?, 1) ON CONFLICT (step_id) DO UPDATE SET times = times + 1",
            (step_id, service, json.dumps(value, separators=(",", ":"))),
        )

    def effects(self) -> Iterator[Effect]:
        """Every effect there was."""
        for row in self._connection.execute("SELECT step_id, service, value, times FROM effects"):
            yield Effect(*row)

    def hear(self, event_id: str, body: str) -> None:
        """A genuine webhook request has come."""
        self._connection.execute(
            "INSERT INTO news VALUES (?, ?, 1, 0) ON CONFLICT (event_id) DO UPDATE SET "
            "times = times + 1, differently = differently + (body <> excluded.body)",
            (event_id, body),
        )

    def news(self) -> Iterator[News]:
        """Every event of which a request has come."""
        for row in self._connection.execute("SELECT event_id, body, times, differently FROM news"):
            yield News(*row)

    def close(self) -> None:
        self._connection.close()
