"""Keys where several control planes lead: a task that was made under one is found, also a moment later."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from tests.control_plane.served_planes import ServedPlane, served_planes
from tests.support import DEADLINE_S

from llama_deploy.client import Client
from llama_deploy.control_plane import relays


class Late:
    """A control plane whose first look under a key was made before the task's commit."""

    def __init__(self, served: ServedPlane) -> None:
        routing = served.plane.routing
        self._look: Callable[[str], Awaitable[str | None]] = routing.session_under
        self.looks = 0
        routing.session_under = self._session_under  # type: ignore[method-assign]

    async def _session_under(self, key: str) -> str | None:
        self.looks += 1
        return None if self.looks == 1 else await self._look(key)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "PATIENCE_S", DEADLINE_S / 2)


async def test_a_task_that_another_submission_makes_meanwhile_is_found(store_url: str) -> None:
    async with served_planes(store_url, "a", "b", "c") as made, Client(made["a"].url, timeout_s=DEADLINE_S) as client:
        late = Late(made["a"])
        for leader in ("a", "b", "c"):
            late.looks = 1
            first = await client.submit("echo", value=1, task_id=made[leader].led(), idempotency_key=leader)
            task_id = made["b"].led()  # where it would be made, if there was none under the key
            late.looks = 0
            assert await client.submit("echo", value=1, task_id=task_id, idempotency_key=leader) == first
            late.looks = 0
            assert await client.run("echo", value=1, task_id=task_id, idempotency_key=leader) == 1
