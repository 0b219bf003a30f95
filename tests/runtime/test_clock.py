"""Timers, and what tells a process that it stood still."""

from __future__ import annotations

import asyncio

from llama_deploy.runtime import SilenceTimer
from llama_deploy.testing import ManualClock


def test_silence_is_noticed_in_time() -> None:
    clock = ManualClock(0.0)
    noticed: list[float] = []
    SilenceTimer(clock, 10.0, lambda: noticed.append(clock.now()), again_s=1.0)
    clock.advance(9.9)
    assert noticed == []
    clock.advance(5.0)
    assert noticed == [10.0]


def test_who_stood_still_reads_first_what_was_said_meanwhile() -> None:
    clock = ManualClock(0.0)
    noticed: list[float] = []
    SilenceTimer(clock, 10.0, lambda: noticed.append(clock.now()), again_s=1.0)
    clock.stand_still(30.0)
    assert noticed == []
    clock.advance(1.0)
    assert noticed == [31.0]


def test_who_was_late_by_a_little_reads_for_a_little() -> None:
    clock = ManualClock(0.0)
    noticed: list[float] = []
    SilenceTimer(clock, 10.0, lambda: noticed.append(clock.now()), again_s=1.0)
    clock.stand_still(10.25)
    assert noticed == []
    clock.advance(10.0)
    assert noticed == [10.75]


def test_being_a_little_late_is_no_standing_still() -> None:
    clock = ManualClock(0.0)
    noticed: list[float] = []
    SilenceTimer(clock, 10.0, lambda: noticed.append(clock.now()), again_s=1.0)
    clock.stand_still(10.05)
    assert noticed == [10.05]


def test_who_is_late_with_everything_comes_to_it_all_the_same() -> None:
    clock = ManualClock(0.0)
    noticed: list[float] = []
    SilenceTimer(clock, 10.0, lambda: noticed.append(clock.now()), again_s=1.0)
    for _ in range(3):
        clock.stand_still(30.0)
    assert noticed == []
    clock.stand_still(30.0)
    assert noticed == [120.0]


def test_a_cancelled_timer_notices_nothing_even_after_it_was_put_off() -> None:
    clock = ManualClock(0.0)
    noticed: list[float] = []
    timers = [SilenceTimer(clock, 10.0, lambda: noticed.append(clock.now()), again_s=1.0) for _ in range(2)]
    timers[0].cancel()
    clock.stand_still(30.0)
    timers[1].cancel()
    clock.advance(100.0)
    assert noticed == []


def test_a_time_that_is_past_when_the_timer_is_set_is_not_late() -> None:
    clock = ManualClock(100.0)
    noticed: list[float] = []

    async def main() -> None:
        SilenceTimer(clock, 10.0, lambda: noticed.append(clock.now()), again_s=1.0)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert noticed == [100.0]
