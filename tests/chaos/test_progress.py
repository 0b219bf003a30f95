"""A run is given up when nothing moves, however long the whole takes."""

from __future__ import annotations

import asyncio
import os
from itertools import count

import pytest
from tests.chaos.progress import StandstillError, memory_most_mb, processor_s, while_it_moves

LONG_S = 60.0


async def test_what_moves_is_waited_for_far_beyond_the_time_that_it_may_stand_still() -> None:
    looks = count()
    await while_it_moves(lambda: next(looks) == 8, lambda: looks, still_s=LONG_S)
    figures, looks = count(), count()
    async with asyncio.timeout(LONG_S):
        await while_it_moves(lambda: next(looks) == 8, lambda: next(figures), still_s=0.0)


async def test_what_stands_still_is_given_up() -> None:
    async def never() -> bool:
        return False

    with pytest.raises(StandstillError, match="it stands at 7"):
        await while_it_moves(never, lambda: 7, still_s=0.0)
    with pytest.raises(StandstillError):
        await while_it_moves(lambda: False, lambda: 7, still_s=0.0)


def test_figures_of_a_process() -> None:
    assert processor_s(os.getpid()) > 0
    assert memory_most_mb(os.getpid()) > 10
    assert processor_s(2**30) == memory_most_mb(2**30) == 0
