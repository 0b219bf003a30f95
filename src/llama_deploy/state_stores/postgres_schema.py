"""The schema of a PostgreSQL store: whose it is, which version it has, and the partitions that history is written to.

Migrations run in two phases (`sql_files`): what a later version needs is added when its first process opens the store,
and what only earlier versions used is taken away once no process of theirs is left. Each runs in a transaction of its
own, under a lock, so that of many processes that start at once one does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_deploy.errors import StoreKeyError, StoreVersionError
from llama_deploy.runtime import failpoint
from llama_deploy.state_stores.postgres_connection import PostgresAddress, quoted
from llama_deploy.state_stores.sql_files import Migration, load_migrations, load_statements

if TYPE_CHECKING:
    import asyncpg

APPLICATION = "llama_deploy"
PARTITION_TASKS = 1_000_000
"""Tasks whose history is in one partition."""
WHOLE_PARTITION_S = 86_400.0
"""What filled faster is not removed row by row: the partition is dropped once nothing in it is left."""

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('llama_deploy ' || $1, 0))"
_HAS_TABLES = (
    "SELECT EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace WHERE nspname = $1)"
)
_HAS_META = "SELECT to_regclass($1) IS NOT NULL"


def statements_of(schema: str) -> dict[str, str]:
    """The named statements for a schema."""
    found = load_statements("postgres")
    return {name: text.replace("{schema}", quoted(schema)) for name, text in found.items()}


class PostgresSchema:
    """The schema of one store."""

    def __init__(self, address: PostgresAddress, statements: dict[str, str]) -> None:
        self._address = address
        self._schema = quoted(address.schema)
        self._sql = statements
        self.migrations: Sequence[Migration] = load_migrations("postgres")
        self.unfinished = False
        """Whether an earlier version still used what the second phase of a migration takes away."""
        self.partition_tasks = PARTITION_TASKS
        self.partition_end = 0
        """The first number that no partition has room for."""

    @property
    def known(self) -> int:
        """The latest version of the schema that this program knows."""
        return len(self.migrations)

    async def open(self, connection: asyncpg.Connection[Any], *, expects_encryption: bool) -> dict[str, str]:
        """Check that the schema is ours, make it or bring it up to date; returns what it says of itself.

        Raises `StoreVersionError` for another program's schema and for one that a later version has changed in a way
        that this one does not understand, `StoreKeyError` for an encrypted one without a key. Nothing is changed then.
        """
        async with connection.transaction():
            await connection.execute(_LOCK, self._address.schema)
            meta = await self._check(connection, expects_encryption=expects_encryption)
        current = int(meta.get("schema", "0"))
        for migration in self.migrations[current:]:
            failpoint("store.before_migration")
            await self._apply(connection, migration)
            failpoint("store.after_migration")
        rows = await connection.fetch(self._sql["load_meta"])
        await self.make_partitions(connection)
        return {row[0]: row[1] for row in rows}

    async def _check(self, connection: asyncpg.Connection[Any], *, expects_encryption: bool) -> dict[str, str]:
        location = self._address.location
        if not await connection.fetchval(_HAS_META, f"{self._schema}.meta"):
            if await connection.fetchval(_HAS_TABLES, self._address.schema):
                raise StoreVersionError(
                    f"the schema {self._address.schema} in {location} is of another program",
                    fix="name another one with ?schema=NAME; this one was not changed",
                )
            return {}
        meta = {row[0]: row[1] for row in await connection.fetch(self._sql["load_meta"])}
        if meta.get("application") != APPLICATION:
            raise StoreVersionError(
                f"the schema {self._address.schema} in {location} is of another program",
                fix="name another one with ?schema=NAME; this one was not changed",
            )
        if int(meta["schema_after"]) > self.known:
            raise StoreVersionError(
                f"{location} was written by a later version "
                f"(schema {meta['schema_after']}, this version knows {self.known})",
                fix="upgrade this program, or name another schema with ?schema=NAME; this one was not changed",
            )
        if not expects_encryption and await connection.fetchval(self._sql["is_encrypted"]):
            raise StoreKeyError(
                f"{location} is encrypted, and no key was given",
                fix="set LLAMA_DEPLOY_ENCRYPTION_KEY or LLAMA_DEPLOY_ENCRYPTION_KEY_FILE",
            )
        return meta

    async def _apply(self, connection: asyncpg.Connection[Any], migration: Migration) -> None:
        """Run the first phase of a migration, unless another process has."""
        async with connection.transaction():
            await connection.execute(_LOCK, self._address.schema)
            if migration.number == 1:
                if await connection.fetchval(_HAS_META, f"{self._schema}.meta"):
                    return
                if not await connection.fetchval(
                    "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", self._address.schema
                ):
                    await connection.execute(f"CREATE SCHEMA {self._schema}")
            elif await self._version(connection, "schema") >= migration.number:
                return
            await connection.execute(migration.before.replace("{schema}", self._schema))
            await self._set(connection, "schema", migration.number)
            if migration.number == 1:
                await self._set(connection, "schema_after", 1)
                await self._set(connection, "application", APPLICATION)
                await self._set(connection, "shards", self._address.shards)
                await connection.execute(
                    f"INSERT INTO {self._schema}.shards (shard) SELECT generate_series(0, $1 - 1)",
                    self._address.shards,
                )

    async def finish_migrations(self, connection: asyncpg.Connection[Any]) -> None:
        """Run the second phase of what every process that has the store open knows; does nothing otherwise."""
        async with connection.transaction():
            await connection.execute(_LOCK, self._address.schema)
            done = await self._version(connection, "schema_after")
            owners = await connection.fetch(self._sql["live_owners"])
            oldest = min([self.known, *(row[3] for row in owners)])
            self.unfinished = oldest < self.known
            for migration in self.migrations[done:oldest]:
                failpoint("store.before_migration")
                if migration.after:
                    await connection.execute(migration.after.replace("{schema}", self._schema))
                await self._set(connection, "schema_after", migration.number)

    async def _version(self, connection: asyncpg.Connection[Any], name: str) -> int:
        value = await connection.fetchval(f"SELECT value FROM {self._schema}.meta WHERE name = $1", name)  # noqa: S608
        return int(value or 0)

    async def _set(self, connection: asyncpg.Connection[Any], name: str, value: object) -> None:
        await connection.execute(
            f"INSERT INTO {self._schema}.meta (name, value) VALUES ($1, $2) "  # noqa: S608
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            name,
            str(value),
        )

    # --- partitions -------------------------------------------------------------------------------------------------

    def needs_partition(self, highest: int) -> bool:
        """Whether the numbers of tasks come near the end of the partitions that there are."""
        return highest + self.partition_tasks // 2 >= self.partition_end

    async def make_partitions(self, connection: asyncpg.Connection[Any]) -> None:
        """See to it that there are partitions for more numbers than one has; note which ones are full.

        Only a lock that lets others read and write is taken: a table is made apart, and attached.
        """
        async with connection.transaction():
            await connection.execute(_LOCK, self._address.schema)
            highest = await connection.fetchval(self._sql["highest_number"])
            await connection.execute(self._sql["note_filled"], highest)
            end = await connection.fetchval(self._sql["latest_partition"]) or 0
            while highest + self.partition_tasks >= end:
                for table in ("history", "stream_chunks"):
                    await self._attach(connection, table, end, end + self.partition_tasks)
                await connection.execute(self._sql["add_partition"], end, end + self.partition_tasks)
                end += self.partition_tasks
            self.partition_end = end

    async def _attach(self, connection: asyncpg.Connection[Any], table: str, low: int, high: int) -> None:
        parent, name = f"{self._schema}.{table}", f"{self._schema}.{table}_{low}"
        await connection.execute(
            f"CREATE TABLE {name} (LIKE {parent} INCLUDING DEFAULTS INCLUDING INDEXES,"
            f" CHECK (number >= {low} AND number < {high}));"
            f"ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES FROM ({low}) TO ({high})"
        )

    async def drop_partition(self, connection: asyncpg.Connection[Any], low: int) -> None:
        """Drop a partition that no task needs; whoever reads or writes waits for the moment that it takes."""
        async with connection.transaction():
            await connection.execute("SELECT set_config('lock_timeout', '1s', true)")
            await connection.execute(self._sql["forget_partition"], low)
            for table in ("history", "stream_chunks"):
                await connection.execute(f"DROP TABLE {self._schema}.{table}_{low}")
