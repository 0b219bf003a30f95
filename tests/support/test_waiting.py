"""Checks of the one way in which tests wait."""

from __future__ import annotations

import asyncio

import pytest

from tests.support import eventually


async def test_returns_the_value_as_soon_as_it_is_true() -> None:
    answers = iter([None, 0, "ready"])
    assert await eventually(lambda: next(answers)) == "ready"


async def test_awaits_an_async_condition() -> None:
    async def condition() -> int:
        return 7

    assert await eventually(condition) == 7


async def test_looks_again_only_when_the_event_says_so() -> None:
    changed = asyncio.Event()
    looked: list[int] = []

    def condition() -> bool:
        looked.append(len(looked))
        return len(looked) == 2

    waiting = asyncio.ensure_future(eventually(condition, changed=changed))
    await eventually(lambda: looked)
    for _ in range(3):
        await asyncio.sleep(0)
    assert looked == [0]
    changed.set()
    assert await waiting
    assert looked == [0, 1]


async def test_names_the_condition_that_did_not_come_true() -> None:
    never_true: list[int] = []
    with pytest.raises(AssertionError, match=r"never_true.*last value: \[\]"):
        await eventually(lambda: never_true, deadline_s=0.01)
