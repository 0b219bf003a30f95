"""A store for the tests of several control planes, one for each module: making one takes a second."""

from __future__ import annotations

from collections.abc import Iterator
from secrets import token_hex

import pytest
from tests.support.postgres import database_url


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with database_url() as url:
        yield url


@pytest.fixture(scope="module")
def store_url(database: str) -> str:
    return f"{database}?schema=s_{token_hex(4)}"
