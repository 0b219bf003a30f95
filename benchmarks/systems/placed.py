"""Our own system with each store and each carrier, on servers that are started for it where that is possible.

PostgreSQL has a folder of its own with its default settings, so that its CPU and its log can be read; Redis and NATS
are those that peers are measured on. RabbitMQ and Kafka are only measured where they run already.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from tests.support.postgres import PostgresServer

from benchmarks.processes import Process, listens
from benchmarks.systems.brokers import NATS_JETSTREAM, REDIS, Broker
from benchmarks.systems.ours import Ours, RunningOurs, deployment_file

RABBITMQ_PORT, KAFKA_PORT = 5672, 9092


@dataclass(frozen=True)
class Place:
    """Something that a store or a carrier runs on."""

    title: str
    running: Callable[[Path], AbstractContextManager[Broker]]
    missing: Callable[[], str | None]


@contextmanager
def postgresql(_folder: Path) -> Iterator[Broker]:
    """A PostgreSQL of its own."""
    server = PostgresServer()
    try:
        asyncio.run(server.started())
        yield Broker(server.url, (server.pid,))
    finally:
        server.remove()


def _at_its_port(title: str, url: str, port: int) -> Place:
    """A server that is there or is not."""

    @contextmanager
    def running(_folder: Path) -> Iterator[Broker]:
        yield Broker(url)

    return Place(title, running, lambda: None if listens(port) else f"{title}: nothing listens on port {port}")


@contextmanager
def _nothing(_folder: Path) -> Iterator[Broker]:
    yield Broker("")


def _driver_missing(module: str) -> Callable[[], str | None]:
    return lambda: None if importlib.util.find_spec(module) else f"{module} is not installed"


STORES: Mapping[str, Place] = {
    "memory": Place("memory", _nothing, lambda: None),
    "sqlite": Place("SQLite", _nothing, lambda: None),
    "postgresql": Place("PostgreSQL", postgresql, _driver_missing("asyncpg")),
}
CARRIERS: Mapping[str, Place] = {
    "simple": Place("built-in queue", _nothing, lambda: None),
    "redis": Place("Redis", REDIS.running, REDIS.missing),
    "nats": Place("NATS", NATS_JETSTREAM.running, NATS_JETSTREAM.missing),
    "rabbitmq": _at_its_port("RabbitMQ", f"amqp://guest:guest@127.0.0.1:{RABBITMQ_PORT}/", RABBITMQ_PORT),
    "kafka": _at_its_port("Kafka", f"kafka://127.0.0.1:{KAFKA_PORT}", KAFKA_PORT),
    "postgresql": Place("PostgreSQL", postgresql, _driver_missing("asyncpg")),
}


class Placed(Ours):
    """Our own system on one store and one carrier."""

    scenarios = frozenset({"echo", "two_hop", "fan_out", "idle", "space", "growth"})

    def __init__(self, store: str, carrier: str, control_planes: int = 1) -> None:
        self.store, self.carrier, self.control_planes = store, carrier, control_planes
        self.name = f"{store}-{carrier}"
        self.title = f"{STORES[store].title}, {CARRIERS[carrier].title}"
        if store == "memory" or carrier != "simple":
            self.scenarios = self.scenarios - {
                "space",
                "growth",
            }  # what is kept is kept alike, whatever carries
        self.note = f"ours with {STORES[store].title} as the store and {CARRIERS[carrier].title} as the carrier"
        if control_planes > 1:
            self.name += f"-{control_planes}"
            self.title += f", {control_planes} control planes"
            self.note += f", {control_planes} control planes"

    def missing(self) -> str | None:
        if self.control_planes > 1 and self.store != "postgresql":
            return "control planes share a PostgreSQL store only"
        return super().missing() or STORES[self.store].missing() or CARRIERS[self.carrier].missing()

    @contextmanager
    def running(self, scenario: str, folder: Path) -> Iterator[RunningPlaced]:
        with ExitStack() as stack:
            database = stack.enter_context(STORES[self.store].running(folder))
            if self.carrier == self.store == "postgresql":
                broker = Broker(database.url)
            else:
                broker = stack.enter_context(CARRIERS[self.carrier].running(folder))
            running = RunningPlaced(deployment_file(scenario), folder, self.environment)
            running.servers = {"database": list(database.pids), "broker": list(broker.pids)}
            running.message_queue = broker.url or None
            if database.url:
                running.schema = f"benchmark_{token_hex(4)}"
                running.database_url = database.url
                running.store_name = f"{database.url}?schema={running.schema}"
            elif self.store == "memory":
                running.store_name = ":memory:"
            stack.callback(running.stop)
            if self.control_planes > 1:
                running.share(self.control_planes)
            else:
                running.start_control_plane()
            running.start_service()
            yield running


class RunningPlaced(RunningOurs):
    """One whose servers are counted, and whose store can be weighed."""

    servers: Mapping[str, list[int]] = {}
    database_url = ""
    schema = ""
    others: Sequence[Process] = ()
    """The further control planes on the store."""

    def share(self, control_planes: int) -> None:
        """Starts several control planes on the store; returns when all are ready."""
        started = [self.start_serving(f"control-plane-{number}", "--shared") for number in range(control_planes)]
        (self.control_plane, _), *others = started
        self.others = [process for process, _ in others]
        self.url = ",".join(url for _, url in started)

    def stop(self) -> None:
        super().stop()
        for process in self.others:
            process.stop()

    def processes(self) -> dict[str, list[int]]:
        found = super().processes()
        found["control_plane"] += [process.pid for process in self.others if process.check()]
        return {**found, **{role: pids for role, pids in self.servers.items() if pids}}

    def store_bytes(self) -> float:
        return self.weight()["bytes"]

    def weight(self) -> dict[str, float]:
        """Bytes that the store holds, and, of a database, the bytes that it has written to its log."""
        if not self.database_url:
            with contextlib.closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True)) as connection:
                (pages,), (size,) = (connection.execute(f"PRAGMA page_{what}").fetchone() for what in ("count", "size"))
            return {"bytes": float(pages * size)}
        return asyncio.run(self._database_weight())

    async def _database_weight(self) -> dict[str, float]:
        import asyncpg

        connection = await asyncpg.connect(self.database_url)
        try:
            held = await connection.fetchval(
                "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class AS c JOIN pg_namespace AS n "
                "ON n.oid = relnamespace WHERE nspname = $1 AND relkind = 'r'",
                self.schema,
            )
            log = await connection.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')")
        finally:
            await connection.close()
        return {"bytes": float(held), "log_bytes": float(log)}
