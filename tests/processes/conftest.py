"""What the tests of real processes share: a system of them that is gone when the test is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.processes.children import System


@pytest.fixture
async def system(tmp_path: Path, free_port: int) -> AsyncIterator[System]:
    """Nothing runs yet. Leases are short, so that a silent instance is lost within a test's time."""
    made = System(tmp_path, free_port, lease_s=2.0, heartbeat_s=0.2)
    try:
        yield made
    finally:
        await made.stop()
