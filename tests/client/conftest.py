"""What the tests of the client share: a control plane that does what it is told, and clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.client.fake_control_plane import FakeControlPlane, FakeTask
from tests.support import DEADLINE_S

from llama_deploy.client import Client


@pytest.fixture
async def plane() -> AsyncIterator[FakeControlPlane]:
    async with FakeControlPlane() as fake:
        yield fake


@pytest.fixture
async def client(plane: FakeControlPlane) -> AsyncIterator[Client]:
    async with Client(plane.url, timeout_s=DEADLINE_S, reconnect_timeout_s=DEADLINE_S) as made:
        yield made


@pytest.fixture
def task(plane: FakeControlPlane) -> FakeTask:
    """A task of ten events that has ended, under the id `t`."""
    made = plane.tasks["t"] = FakeTask({"task_id": "t"})
    made.events = [{"n": number} for number in range(10)]
    made.end("completed", kind="json", value=[1, 2])
    return made
