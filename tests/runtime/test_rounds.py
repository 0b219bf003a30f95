"""Rounds: whoever asks is served by a round that begins afterwards, and shares it with all who asked before that."""

from __future__ import annotations

import asyncio

import pytest

from llama_deploy.runtime import Rounds

pytestmark = pytest.mark.anyio


class Work:
    """Counts its rounds; each waits until it is let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = asyncio.Event()

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        await self.go.wait()
        return number


async def asked(rounds: Rounds[int], count: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(rounds.served()) for _ in range(count)]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_those_who_come_while_a_round_is_under_way_share_the_next() -> None:
    work = Work()
    rounds = Rounds(work)
    first = await asked(rounds, 1)
    others = await asked(rounds, 50)
    assert work.begun == 1
    work.go.set()
    assert await asyncio.gather(*first, *others) == [1] + [2] * 50
    assert await rounds.served() == 3


async def test_a_failure_is_told_to_all_who_share_it_and_the_next_round_goes_on() -> None:
    failing = True

    async def work() -> int:
        if failing:
            raise OSError("no room")
        return 7

    rounds = Rounds(work)
    outcomes = await asyncio.gather(*(rounds.served() for _ in range(3)), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["no room"] * 3
    failing = False
    assert await rounds.served() == 7


async def test_a_round_goes_on_for_the_others_when_one_of_them_is_canceled() -> None:
    work = Work()
    one, other = await asked(rounds := Rounds(work), 2)
    one.cancel()
    work.go.set()
    assert await other == 1
    assert one.cancelled()
    assert await rounds.served() == 2
