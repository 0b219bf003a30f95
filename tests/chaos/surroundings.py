"""What a run stands on beside its own programs: the network between them, the store's server, the broker.

Each is private to the run, and may be stopped, killed, wiped or cut. `PARTS` are names in the network; whoever is
asked for a URL says for which part it is, because the way there may lead through something that can be cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import asyncpg
from tests.support.brokers import BROKERS, Broker
from tests.support.networks import Link, Loopback, Network, link, network
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer

StoreKind = Literal["sqlite", "postgresql"]

PLANE = "plane"
INSTANCE = "instance"
CLIENT = "client"
RECEIVER = "receiver"
STORE = "store"
BROKER = "broker"
IN_PROCESS = "simple"
"""The queue that is part of the control plane."""
SCHEMA = "llama_deploy"
DATABASE_OPTIONS = "?connect_timeout=3&command_timeout=4"
"""Shorter than the longest cut, so that what nobody knows the end of happens."""


class Surroundings:
    """Started before the run's programs, removed after them."""

    def __init__(self, folder: Path, *, store: StoreKind, carrier: str, cuts: bool, planes: int) -> None:
        self._folder = folder
        self.store_kind = store
        self.carrier = carrier
        self.network: Network = network() if cuts else Loopback()
        self._cuts = cuts
        self._parts: list[str] = []
        self.planes = {f"{PLANE}-{number}": free_port() for number in range(planes)}
        """The names of the control planes, and where they listen."""
        self.receiver_port = free_port()
        self._database: PostgresServer | None = None
        self._broker: Broker | None = None

    async def start(self, parts: Sequence[str]) -> None:
        """Have the network for these parts of the run, and in it the servers."""
        self._parts = [*parts, *([STORE] if self.store_kind == "postgresql" else [])]
        self._parts += [BROKER] if self.carrier != IN_PROCESS else []
        await self.network.start(self._parts)
        async with asyncio.TaskGroup() as group:
            if STORE in self._parts:
                group.create_task(self._start_database())
            if BROKER in self._parts:
                self._broker = BROKERS[self.carrier](self.network.host(BROKER), self.network.inside(BROKER))
                group.create_task(self._broker.start())

    async def _start_database(self) -> None:
        make = PostgresServer
        self._database = await asyncio.to_thread(make, self.network.host(STORE), self.network.inside(STORE))
        await self._database.started()

    async def remove(self) -> None:
        """Take everything away."""
        if self._broker is not None:
            await self._broker.remove()
        if self._database is not None:
            await asyncio.to_thread(self._database.remove)
        await self.network.remove()

    # --- where things are -------------------------------------------------------------------------------------------

    @property
    def links(self) -> list[Link]:
        """The ways that may be cut: all of them lead to a control plane."""
        if not self._cuts:
            return []
        return sorted({link(plane, part) for plane in self.planes for part in self._parts if part != plane})

    def plane_url(self, plane: str) -> str:
        """A control plane, for the calling program, whatever is cut; others are told of it so, too."""
        return f"http://{self.network.host(plane)}:{self.planes[plane]}"

    async def plane_url_for(self, part: str) -> str:
        """The control plane that a part is told of, as the part reaches it: clients are told of one each, in turn."""
        planes = list(self.planes)
        plane = planes[int(part.rpartition("-")[2]) % len(planes)]
        return f"http://{await self._address(part, self.planes[plane], of=plane)}"

    async def webhook_url(self) -> str:
        """Where control planes tell of the end of tasks."""
        return f"http://{await self._address(next(iter(self.planes)), self.receiver_port, of=RECEIVER)}/hook"

    async def store_url(self, plane: str) -> str:
        """What a control plane records in."""
        if self._database is None:
            return str(self.sqlite_file)
        return self._database.url_of(await self._address(plane, self._database.port, of=STORE)) + DATABASE_OPTIONS

    @property
    def sqlite_file(self) -> Path:
        return self._folder / "store.db"

    async def broker_url(self, plane: str) -> str | None:
        """What carries; `None` for the queue within the control plane."""
        if self._broker is None:
            return None
        return self._broker.url_of(await self._address(plane, self._broker.port, of=BROKER))

    async def _address(self, part: str, port: int, *, of: str) -> str:
        if not self._cuts:
            return f"{self.network.host(of)}:{port}"
        host, seen = await self.network.reach(part, port, of=of)
        return f"{host}:{seen}"

    # --- what is done to them ---------------------------------------------------------------------------------------

    async def stop_database(self, *, crash: bool, away_s: float) -> None:
        """Stop or crash the store's server, and have it again after a while."""
        assert self._database is not None
        await asyncio.to_thread(self._database.stop, signal.SIGQUIT if crash else signal.SIGINT)
        await asyncio.sleep(away_s)
        await self._database.started()

    async def kill_broker(self, *, wipe: bool, away_s: float) -> None:
        """Kill the broker, and have it again after a while, with what it had on disk or with nothing."""
        assert self._broker is not None
        await self._broker.kill()
        if wipe:
            await self._broker.wipe()
        await asyncio.sleep(away_s)
        await self._broker.start()

    async def cut(self, way: Link, held_s: float) -> None:
        """Let nothing pass for a while."""
        await self.network.cut(way)
        try:
            await asyncio.sleep(held_s)
        finally:
            await self.network.join(way)

    async def open_steps(self) -> list[str]:
        """Steps that the store's server has as not answered."""
        assert self._database is not None
        connection = await asyncpg.connect(self._database.url)
        try:
            with contextlib.suppress(asyncpg.UndefinedTableError):
                rows = await connection.fetch(f"SELECT step_id FROM {SCHEMA}.deliveries")
                return [row[0] for row in rows]
            return ["the store has no table of deliveries"]
        finally:
            await connection.close()
