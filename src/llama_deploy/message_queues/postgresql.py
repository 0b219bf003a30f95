"""PostgreSQL as the carrier: one table for all topics, so that a database alone is enough.

Fetching deletes: `FOR UPDATE SKIP LOCKED` hands each row to one control plane, in batches, and there is nothing to
acknowledge; rows whose reply was lost are rolled back. The table is not logged: the store has everything. It is empty
after a crash of the server, and a row with a mark tells. A notification for each topic of a batch wakes who waits.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from llama_deploy.errors import CarrierRefusedError
from llama_deploy.message_queues.base import Capabilities, Envelope
from llama_deploy.message_queues.carrier import Carrier
from llama_deploy.message_queues.settings import CarrierSettings, missing
from llama_deploy.message_queues.topics import Fetched, Measured, decode
from llama_deploy.runtime import Clock

COUNTED_MAX = 100_000
"""More waiting messages than this are not counted."""
LOCK = 0x6C645F63
"""The advisory lock under which the table is made: two control planes may start at once."""

_SCHEMA = """
CREATE UNLOGGED TABLE IF NOT EXISTS llama_deploy_carrier (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic TEXT NOT NULL,
    priority SMALLINT NOT NULL,
    data BYTEA NOT NULL
);
CREATE INDEX IF NOT EXISTS llama_deploy_carrier_turns ON llama_deploy_carrier (topic, priority DESC, id);
CREATE UNLOGGED TABLE IF NOT EXISTS llama_deploy_carrier_marks (topic TEXT PRIMARY KEY, mark TEXT NOT NULL);
"""
_SEND = """
WITH sent AS (
    INSERT INTO llama_deploy_carrier (topic, priority, data)
    SELECT * FROM unnest($1::text[], $2::smallint[], $3::bytea[])
)
SELECT pg_notify('llama_deploy_carrier', topic) FROM (SELECT DISTINCT unnest($1::text[]) AS topic) AS topics
"""
_FETCH = """
WITH taken AS (
    DELETE FROM llama_deploy_carrier WHERE id IN (
        SELECT id FROM llama_deploy_carrier WHERE topic = $1
        ORDER BY priority DESC, id LIMIT $2 FOR UPDATE SKIP LOCKED
    ) RETURNING priority, id, data
)
SELECT data FROM taken ORDER BY priority DESC, id
"""
_MARK = """
INSERT INTO llama_deploy_carrier_marks VALUES ($1, $2)
ON CONFLICT (topic) DO UPDATE SET topic = excluded.topic RETURNING mark
"""
_COUNT = "SELECT count(*) FROM (SELECT 1 FROM llama_deploy_carrier WHERE topic = $1 LIMIT $2) AS found"
_OLDEST = "SELECT data FROM llama_deploy_carrier WHERE topic = $1 ORDER BY id LIMIT 1"


class PostgreSQLCarrier(Carrier):
    """Carries over PostgreSQL 13 or later. URL: `postgresql://user:password@host:port/database`.

    It needs a connection of its own that is not pooled by transactions, for the notifications.
    """

    kind = "postgresql"
    capabilities = Capabilities(in_process=False, ordered=True, priority=True)

    def __init__(self, settings: CarrierSettings, *, clock: Clock | None = None) -> None:
        super().__init__(settings, clock=clock)
        settings.options(())
        try:
            import asyncpg
        except ImportError as error:
            raise missing("postgresql", "asyncpg", "postgres") from error
        self._driver = asyncpg
        self._connection: Any = None
        self._turn = asyncio.Lock()
        self._news: dict[str, asyncio.Event] = {}
        self._tls = settings.tls()

    def _key(self, topic: str) -> str:
        return f"{self.namespace}/{topic}"

    async def connect(self) -> None:
        settings = self.settings
        username, password = settings.credentials
        try:
            connection = await self._driver.connect(
                host=settings.host,
                port=settings.port(5432),
                user=username,
                password=password,
                database=settings.path or None,
                ssl=self._tls if self._tls is not None else "prefer",
                timeout=settings.connect_timeout_s,
                command_timeout=settings.request_timeout_s,
                server_settings={"application_name": "llama_deploy carrier", "synchronous_commit": "off"},
            )
            self._connection = connection
            connection.add_termination_listener(self._gone)
            async with connection.transaction():
                await connection.execute(f"SELECT pg_advisory_xact_lock({LOCK})")
                await connection.execute(_SCHEMA)
            await connection.add_listener("llama_deploy_carrier", self._notified)
        except (
            self._driver.InvalidAuthorizationSpecificationError,
            self._driver.InsufficientPrivilegeError,
            self._driver.InvalidCatalogNameError,
        ) as error:
            why = settings.hide(str(error))
            raise CarrierRefusedError(f"PostgreSQL at {settings.location} refuses", why=why) from None

    def _gone(self, connection: Any) -> None:
        if connection is self._connection:
            self._fail(ConnectionError("the server closed the connection"), self._generation)

    def _notified(self, *said: Any) -> None:
        news = self._news.get(said[3])
        if news is not None:
            news.set()

    async def disconnect(self) -> None:
        connection, self._connection = self._connection, None
        for news in self._news.values():
            news.set()
        if connection is not None:
            connection.terminate()

    async def prepare(self, topic: str) -> str:
        async with self._turn:
            return str(await self._connection.fetchval(_MARK, self._key(topic), os.urandom(8).hex()))

    async def send(self, batch: Sequence[tuple[Envelope, bytes]]) -> None:
        topics = [self._key(envelope.topic) for envelope, _ in batch]
        async with self._turn:
            await self._connection.execute(
                _SEND, topics, [envelope.priority for envelope, _ in batch], [data for _, data in batch]
            )

    async def fetch(self, topic: str, limit: int) -> list[Fetched]:
        news = self._news.setdefault(self._key(topic), asyncio.Event())
        news.clear()
        async with self._turn:
            rows = await self._take(topic, limit)
        if not rows:
            try:
                async with asyncio.timeout(self.settings.wait_s):
                    await news.wait()
            except TimeoutError:
                return []
        return [Fetched(row["data"], row["data"]) for row in rows]

    async def _take(self, topic: str, limit: int) -> list[Any]:
        """Take rows that are back where the connection breaks before they are here."""
        transaction = self._connection.transaction()
        await transaction.start()
        rows: list[Any] = await self._connection.fetch(_FETCH, self._key(topic), limit)
        try:
            await transaction.commit()
        except (self._driver.PostgresError, self._driver.InterfaceError, OSError):
            if not rows:  # else nobody knows whether they are deleted: here they are, and may come twice
                raise
        return rows

    async def acknowledge(self, topic: str, tokens: list[Any]) -> None:
        """What was fetched is deleted already."""

    async def give_back(self, topic: str, tokens: list[Any]) -> None:
        key = self._key(topic)
        async with self._turn:
            await self._connection.execute(_SEND, [key] * len(tokens), [_priority(data) for data in tokens], tokens)

    async def put_aside(self, topic: str, messages: list[Fetched]) -> None:
        """What was fetched is deleted already; nobody but a carrier writes to this table."""

    async def measure(self, topic: str) -> Measured:
        key = self._key(topic)
        async with self._turn:
            waiting = await self._connection.fetchval(_COUNT, key, COUNTED_MAX)
            oldest = await self._connection.fetchval(_OLDEST, key) if waiting else None
        return Measured(waiting, None if oldest is None else decode(oldest).sent_at)


def _priority(data: bytes) -> int:
    return decode(data).envelope.priority
