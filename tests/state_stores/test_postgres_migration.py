"""Schemas of earlier versions of the PostgreSQL store, and the two phases of a migration during a rolling upgrade.

`files/postgres_2.sql.gz` is what `pg_dump --schema=released --inserts --no-owner` says of a store of schema 2.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests.support.postgres import execute

from llama_deploy.errors import StoreVersionError
from llama_deploy.state_stores import PostgresStore
from llama_deploy.state_stores.sql_files import Migration, load_migrations
from llama_deploy.testing.recording import completion, record, submission
from llama_deploy.testing.store_backup import BackupConformance

FILES = Path(__file__).parent / "files"


@pytest.mark.parametrize("file", sorted(FILES.glob("postgres_*.sql.gz")), ids=lambda path: path.stem)
async def test_a_store_of_an_earlier_schema_is_opened_with_everything_in_it(file: Path, postgres_database: str) -> None:
    await execute(postgres_database, _unpacked(file))
    try:
        store = PostgresStore(f"{postgres_database}?schema=released")
        await store.open()
        await BackupConformance()._check(store)
        await record(store, **completion("t"))
        await record(store, **submission("new"))
        assert await store.count_tasks() == {"submitted": 1, "completed": 2}
        await store.close()
    finally:
        await execute(postgres_database, "DROP SCHEMA released CASCADE")


def _unpacked(file: Path) -> str:
    return gzip.decompress(file.read_bytes()).decode()


async def _columns(url: str) -> set[str]:
    schema = urlsplit(url).query.partition("schema=")[2]
    connection = await asyncpg.connect(url.partition("?")[0])
    try:
        rows = await connection.fetch(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = $1 AND table_name = 'meta'", schema
        )
    finally:
        await connection.close()
    return {row[0] for row in rows}


async def test_a_rolling_upgrade_adds_first_and_takes_away_when_nobody_needs_it(postgres_url: str) -> None:
    old = PostgresStore(postgres_url)
    await old.open()
    await record(old, **submission("t"))
    new = PostgresStore(postgres_url, claims=False)
    number = len(load_migrations("postgres")) + 1
    before = "ALTER TABLE {schema}.meta ADD COLUMN later text; ALTER TABLE {schema}.meta ADD COLUMN earlier text"
    after = "ALTER TABLE {schema}.meta DROP COLUMN earlier"
    new._tables.migrations = [*new._tables.migrations, Migration(number, before, after)]
    await new.open()
    assert {"later", "earlier"} <= await _columns(postgres_url)
    await record(old, **completion("t"))
    await new.renew_shards()
    assert "earlier" in await _columns(postgres_url), "the earlier version still has it open"
    await old.close()
    again = PostgresStore(postgres_url)
    await again.open()  # it may come back until the second phase has run
    await again.close()
    await new.renew_shards()
    assert "earlier" not in await _columns(postgres_url)
    with pytest.raises(StoreVersionError, match="later version"):
        await PostgresStore(postgres_url).open()
    await new.close()
