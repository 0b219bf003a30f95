"""A crash at every place where one durable step ends and the next begins: what was promised holds afterwards."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from tests.processes.children import ROOT, Child, System

from llama_deploy.runtime.failpoints import EXIT_CODE, FAILPOINTS

TASKS = 30
PASSINGS = {"store.before_commit": 4, "store.after_commit": 4, "engine.before_publish": 8}
"""At which passing the process dies; where a place is passed once for many tasks, earlier than elsewhere."""
PASSINGS_ELSEWHERE = 12

IN_AN_INSTANCE = frozenset({"runner.before_answer", "runner.after_answer"})


def used_failpoints() -> set[str]:
    """Every name that the source passes to `failpoint`."""
    found: set[str] = set()
    for path in Path(ROOT, "src").rglob("*.py"):
        found.update(re.findall(r"\bfailpoint\(\s*\"([^\"]*)\"", path.read_text()))
    return found


def test_every_failpoint_is_used_and_no_other() -> None:
    assert used_failpoints() - {"name"} == FAILPOINTS
    assert IN_AN_INSTANCE <= FAILPOINTS
    assert set(PASSINGS) <= FAILPOINTS


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", sorted(FAILPOINTS))
async def test_a_crash_at(failpoint: str, system: System) -> None:
    armed = f"{failpoint}:{PASSINGS.get(failpoint, PASSINGS_ELSEWHERE)}"
    in_an_instance = failpoint in IN_AN_INSTANCE
    system.settings["recovery_grace_s"] = 0.3
    await system.start_plane(failpoint=None if in_an_instance else armed)
    await system.start_instance(failpoint=armed if in_an_instance else None)
    crashing = system.children[-1 if in_an_instance else 0]
    async with system.client() as client:
        restarting = asyncio.ensure_future(_restart(system, crashing, in_an_instance=in_an_instance))
        ids = [f"t{number}" for number in range(TASKS)]
        waiting = [
            client.run("flaky" if number % 3 else "double", number=number, task_id=task_id, wait_for_service=True)
            for number, task_id in enumerate(ids)
        ]
        answers = await asyncio.gather(*waiting)
        assert answers == [number if number % 3 else number * 2 for number in range(TASKS)]
        await restarting
        await system.check(client, ids)


async def _restart(system: System, crashing: Child, *, in_an_instance: bool) -> None:
    assert await crashing.ended() == EXIT_CODE, crashing.said()
    if in_an_instance:
        await system.start_instance()
    else:
        await system.start_plane()
