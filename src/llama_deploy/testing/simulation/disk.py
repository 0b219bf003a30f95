"""The simulated disk: what was committed outlives every process, and nothing else does.

A commit takes time and is all or nothing. It may fail for a while, a single transition may be refused, and a process
may die before, in the middle of, or after it; in the middle, chance decides whether it counts. `SimulatedStore` keeps
its rows in a `MemoryStore`; `SimulatedSQLiteStore` is the product's SQLite store with its writer's thread taken away.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from llama_deploy.errors import CommitConflictError, LlamaDeployError
from llama_deploy.runtime import failpoint
from llama_deploy.state_stores import MemoryStore, SQLiteStore, StateStore
from llama_deploy.state_stores.base import Transition
from llama_deploy.testing.simulation.loop import Process

BATCH_TRANSITIONS_MAX = 512
RETRY_S = 0.1
"""Pause after a commit that failed."""


class Platter(MemoryStore):
    """What is on the disk: the rows, and how this disk behaves."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance
        self.commit_s_max = 0.002
        self.read_s_max = 0.001
        self.failing = False
        """No commit succeeds."""
        self.refuse_next = 0
        """So many of the next transitions are refused although nothing is wrong with them."""
        self.refused = 0

    def apply(self, transition: Transition) -> LlamaDeployError | None:
        """Record one transition, or say why not."""
        if self.refuse_next and transition.task is not None and transition.expected_version:
            self.refuse_next -= 1
            self.refused += 1
            return CommitConflictError("refused by the simulation")
        return self._apply(transition)


class SimulatedStore(MemoryStore):
    """One control plane's store over the disk: group commit in simulated time."""

    def __init__(self, platter: Platter, process: Process) -> None:
        super().__init__()
        self.location = "simulated"
        self.last_error = ""
        self._platter = platter
        self._process = process
        self._pending: list[Transition] = []
        self._in_flight: list[Transition] = []
        self._closed = True
        self._healthy = True
        self._flush_scheduled = False
        self._idle = asyncio.Event()
        process.at_death.append(self._died)

    async def open(self) -> None:
        self._closed = False
        self._idle.set()

    async def close(self) -> None:
        if not self._closed:
            await self._idle.wait()
            self._closed = True

    @property
    def healthy(self) -> bool:
        return self._healthy

    @property
    def backlog(self) -> int:
        return len(self._pending) + len(self._in_flight)

    def record(self, transition: Transition) -> None:
        if self._process.dead:
            return
        assert not self._closed, "recorded in a closed store"
        self._pending.append(transition)
        self._idle.clear()
        if not self._in_flight and not self._flush_scheduled:
            self._flush_scheduled = True
            self._process.loop.call_soon(self._flush, context=self._process.context)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._in_flight:
            return
        if not self._pending:
            self._idle.set()
            return
        self._in_flight = self._pending[:BATCH_TRANSITIONS_MAX]
        del self._pending[:BATCH_TRANSITIONS_MAX]
        self._later(self._commit)

    def _later(self, callback: Callable[..., None], *args: Any, delay_s: float | None = None) -> None:
        if delay_s is None:
            delay_s = self._platter.chance.uniform(0.0, self._platter.commit_s_max)
        self._process.loop.call_later(delay_s, callback, *args, context=self._process.context)

    def _commit(self) -> None:
        failpoint("store.before_commit")
        if self._platter.failing:
            self._healthy = False
            self.last_error = "disk I/O error"
            self._pending[:0] = self._in_flight
            self._in_flight = []
            self._flush_scheduled = True
            self._later(self._flush, delay_s=RETRY_S)
            return
        outcomes = [self._platter.apply(transition) for transition in self._in_flight]
        batch, self._in_flight = self._in_flight, []
        self._process.loop.note("committed", len(batch), *(o is None for o in outcomes))
        self.statistics.commits += 1
        self._later(self._settle, batch, outcomes)
        self._flush_scheduled = True  # the next batch begins when this one is settled
        failpoint("store.after_commit")

    def _settle(self, batch: list[Transition], outcomes: list[LlamaDeployError | None]) -> None:
        self._healthy = True
        self._flush()
        for transition, outcome in zip(batch, outcomes, strict=True):
            transition.settle(outcome)
        self._flush()

    def _died(self) -> None:
        """In the middle of a commit: it counts, or it does not."""
        if self._in_flight and not self._platter.failing and self._platter.chance.random() < 0.5:
            for transition in self._in_flight:
                self._platter.apply(transition)
            self._process.loop.note("committed while dying", len(self._in_flight))
        self._pending.clear()
        self._in_flight = []


def _reading(name: str) -> Callable[..., Awaitable[Any]]:
    async def read(self: SimulatedStore, *args: Any, **options: Any) -> Any:
        platter = self._platter
        await asyncio.sleep(platter.chance.uniform(0.0, platter.read_s_max))
        answer = await getattr(platter, name)(*args, **options)
        if platter.chance.random() < 0.5:
            await asyncio.sleep(platter.chance.uniform(0.0, platter.read_s_max))
        return answer

    read.__name__ = name
    return read


for _name in sorted(StateStore.__abstractmethods__ - SimulatedStore.__dict__.keys()):
    setattr(SimulatedStore, _name, _reading(_name))


class SimulatedSQLiteStore(SQLiteStore):
    """The product's SQLite store, all of it on the simulated loop: statements, commits and reads are SQLite's own."""

    def __init__(self, path: Path, platter: Platter, process: Process) -> None:
        super().__init__(path, synchronous="NORMAL")  # no power fails here, and the disk is not what is tested
        self._platter = platter
        self._process = process
        process.at_death.append(self._died)

    def _start_writer(self) -> None:
        self._connection: Any = _Connection(self._connection, self._platter)

    async def _stop_writer(self) -> None:
        """There is no thread to end."""

    def _hand_to_writer(self, job: Callable[[], None]) -> None:
        delay_s = self._platter.chance.uniform(0.0, self._platter.commit_s_max)
        self._process.loop.call_later(delay_s, job, context=self._process.context)

    def record(self, transition: Transition) -> None:
        if not self._process.dead:
            super().record(transition)

    def _died(self) -> None:
        if not self._closed:
            self._closed = True
            self._close_readers()
            self._connection.close()  # what is not committed is rolled back, as after a crash
            os.close(self._lock_file)


class _Connection:
    """The writing connection of SQLite, whose commits may fail."""

    def __init__(self, connection: sqlite3.Connection, platter: Platter) -> None:
        self._connection = connection
        self._platter = platter
        self.executemany = connection.executemany
        self.close = connection.close

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql == "COMMIT" and self._platter.failing:
            raise sqlite3.OperationalError("disk I/O error")
        return self._connection.execute(sql, *parameters)
