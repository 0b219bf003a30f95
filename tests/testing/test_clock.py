"""Checks of the clock that tests move."""

from __future__ import annotations

import asyncio

import pytest
from tests.support import eventually

from llama_deploy.runtime import Clock
from llama_deploy.testing import ManualClock


def test_time_stands_still_until_it_is_moved() -> None:
    clock: Clock = ManualClock(100.0)
    assert (clock.now(), clock.now()) == (100.0, 100.0)


def test_timers_run_in_order_of_time_then_of_setting() -> None:
    clock = ManualClock(0.0)
    ran: list[tuple[str, float]] = []
    for name, when in [("late", 3.0), ("early", 1.0), ("also early", 1.0), ("not yet", 9.0)]:
        clock.call_at(when, lambda name=name: ran.append((name, clock.now())))  # type: ignore[misc]
    clock.advance(0.5)
    assert ran == []
    clock.advance(2.5)
    assert ran == [("early", 1.0), ("also early", 1.0), ("late", 3.0)]
    assert clock.now() == 3.0
    assert clock.timers_waiting == 1


def test_a_timer_set_by_a_timer_is_met_on_the_way() -> None:
    clock = ManualClock(0.0)
    beats: list[float] = []

    def beat() -> None:
        beats.append(clock.now())
        clock.call_at(clock.now() + 1.0, beat)

    clock.call_at(1.0, beat)
    clock.advance(4.0)
    assert beats == [1.0, 2.0, 3.0, 4.0]


def test_a_canceled_timer_does_not_run() -> None:
    clock = ManualClock(0.0)
    ran: list[int] = []
    timer = clock.call_at(1.0, lambda: ran.append(1))
    done = clock.call_at(1.0, lambda: ran.append(2))
    timer.cancel()
    timer.cancel()
    clock.advance(5.0)
    done.cancel()
    assert ran == [2]
    assert clock.timers_waiting == 0


async def test_a_time_that_is_past_runs_soon_but_never_inside_the_call() -> None:
    clock = ManualClock(10.0)
    ran = asyncio.Event()
    clock.call_at(10.0, ran.set)
    assert not ran.is_set()
    clock.call_at(3.0, ran.clear).cancel()
    await eventually(ran.is_set)
    assert clock.timers_waiting == 0


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="back"):
        ManualClock().advance(-1.0)
