"""What is large: it arrives, or it is refused with its size; it never ends a connection again and again."""

from __future__ import annotations

import pytest
from tests.processes.children import System

from llama_deploy.errors import LimitExceededError, TaskFailed

pytestmark = pytest.mark.slow

MEGABYTE = 1024 * 1024


async def test_what_is_too_large_fails_its_own_step_only(system: System) -> None:
    system.settings["lease_s"] = 10.0  # turning 80 MB into JSON takes its time
    await system.start(instances=1)
    async with system.client() as client:
        for arguments, code in (
            ({"size": 5 * MEGABYTE}, "LD208"),
            ({"size": 80 * MEGABYTE}, "LD504"),
            ({"size": 1, "event": 5 * MEGABYTE}, "LD208"),
            ({"size": 1, "event": 80 * MEGABYTE}, "LD504"),
        ):
            with pytest.raises(TaskFailed) as caught:
                await client.run("large", input=arguments)
            assert caught.value.error.code == code
        for size in (5 * MEGABYTE, 80 * MEGABYTE):
            with pytest.raises(LimitExceededError):
                await client.run("double", input="x" * size)
        assert await client.run("double", number=2) == 4
        assert set(system.effects().values()) == {1}, "no connection was lost over it"
