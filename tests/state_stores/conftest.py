"""PostgreSQL for the tests of stores: one database for all of them, one schema for each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from secrets import token_hex

import pytest
from tests.support.postgres import database_url, empty, execute


@pytest.fixture(scope="session")
def postgres_database() -> Iterator[str]:
    with database_url() as url:
        yield url


@pytest.fixture
async def empty_postgres_url(postgres_database: str) -> str:
    """The URL of a store that holds nothing."""
    await empty(postgres_database, "shared")
    return f"{postgres_database}?schema=shared"


@pytest.fixture
async def postgres_url(postgres_database: str) -> AsyncIterator[str]:
    """The URL of a store that is not there yet."""
    schema = f"s_{token_hex(4)}"
    yield f"{postgres_database}?schema={schema}"
    await execute(postgres_database, f"DROP SCHEMA IF EXISTS {schema} CASCADE")
