"""What a task has made in memory is gone when the task is."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.control_plane.harness import LinkedRunner, World, outcome, submit, until, world

from llama_deploy.control_plane import EngineSettings
from llama_deploy.services import service
from llama_deploy.state_stores.base import Transition

TASKS = 60
NOTHING_CACHED = EngineSettings(ended_tasks_cached_max=0, sessions_cached_max=0, claim_recorded_after_s=0.05)


@service
async def echo(text: str) -> str:
    """The text."""
    return text


def living() -> Counter[str]:
    """What there is in memory of the project's own types."""
    types = (type(one) for one in gc.get_objects())
    return Counter(one.__qualname__ for one in types if str(one.__module__).startswith("llama_deploy"))


@contextmanager
def without_the_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def some_tasks(made: World) -> None:
    for position in range(TASKS):
        session_id = f"session {position % 3}" if position % 2 else None
        await outcome(made.plane, await submit(made.plane, text="x", session_id=session_id))


@pytest.mark.parametrize("kept", ["memory", "sqlite"])
async def test_nothing_is_left_of_tasks_that_have_left_memory(kept: str, tmp_path: Path) -> None:
    async with world(tmp_path / "s.db" if kept == "sqlite" else None, settings=NOTHING_CACHED) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        await some_tasks(made)
        with without_the_collector():
            before = living()
            await some_tasks(made)
            assert (living() - before)[Transition.__qualname__] == 0  # commits let go of what followed them

            def nothing_is_left() -> bool:
                gc.collect()
                return max((living() - before).values(), default=0) < TASKS // 2

            await until(nothing_is_left)  # claims are looked at a little later
        await local.stop()


async def test_a_transition_is_settled_once() -> None:
    told: list[object] = []
    transition = Transition(settled=told.append)
    transition.settle(None)
    with pytest.raises(AssertionError, match="once"):
        transition.settle(None)
    assert told == [None]
