"""A crash at every place where one durable step ends and the next begins: what was promised holds afterwards."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from tests.processes.children import ROOT, System

from llama_deploy.runtime.failpoints import EXIT_CODE, FAILPOINTS

TASKS = 20
PASSINGS = {"store.before_commit": 4, "store.after_commit": 4, "engine.before_publish": 4}
"""At which passing the process dies; where a place is passed once for many tasks, earlier than elsewhere."""
PASSINGS_ELSEWHERE = 8

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
@pytest.mark.parametrize("where", ["control plane", "instance"])
async def test_a_crash_at_each(where: str, system: System) -> None:
    """One after the other, each while the one before is being recovered from; then everybody has their answer."""
    system.settings["recovery_grace_s"] = 0.3
    in_an_instance = where == "instance"
    names = sorted(name for name in FAILPOINTS if (name in IN_AN_INSTANCE) == in_an_instance)
    start = system.start_instance if in_an_instance else system.start_plane
    await (system.start_plane if in_an_instance else system.start_instance)()
    waiting: dict[str, asyncio.Future[int]] = {}
    async with system.client() as client:
        for name in names:
            crashing = await start(failpoint=f"{name}:{PASSINGS.get(name, PASSINGS_ELSEWHERE)}")
            for number in range(TASKS):
                service, task_id = ("flaky" if number % 3 else "double"), f"{name}.{number}"
                work = client.run(service, number=number, task_id=task_id, wait_for_service=True)
                waiting[task_id] = asyncio.ensure_future(work)
            assert await crashing.ended() == EXIT_CODE, f"{name}: {crashing.said()}"
        await start()
        for task_id, answer in waiting.items():
            number = int(task_id.rpartition(".")[2])
            assert await answer == (number if number % 3 else number * 2), task_id
        await system.check(client, waiting)
