"""The loops that every client runs: how much they do, what they refuse, what they report."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from benchmarks import load
from benchmarks.load import Load, WrongAnswerError


async def shout(text: str) -> str:
    return text.upper()


@pytest.mark.parametrize(("share", "expected"), [(0.5, 5.0), (0.95, 10.0), (0.1, 1.0), (1.0, 10.0)])
def test_percentile_is_the_nearest_rank(share: float, expected: float) -> None:
    assert load.percentile([float(number) for number in range(10, 0, -1)], share) == expected


def test_percentile_of_one_value_is_that_value() -> None:
    assert load.percentile([7.0], 0.95) == 7.0


def test_latency_figures_are_milliseconds() -> None:
    assert load.latency_figures([0.001, 0.002, 0.003]) == {"p50_ms": 2.0, "p95_ms": 3.0}


async def test_a_wrong_answer_stops_the_measurement() -> None:
    with pytest.raises(WrongAnswerError, match="expected 'HELLO 0', got 'hello 0'"):
        await load.one_at_a_time(_silent, str.upper, Load(count=3))


async def test_a_loop_ends_after_its_number_of_tasks() -> None:
    seen: list[str] = []

    async def call(text: str) -> str:
        seen.append(text)
        return text.upper()

    await load.one_at_a_time(call, str.upper, Load(count=5, seconds=60))
    await load.outstanding(call, str.upper, Load(count=7, seconds=60, width=3))
    assert len(seen) == 12


async def test_no_more_than_the_width_is_outstanding() -> None:
    running = peak = 0

    async def call(text: str) -> str:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        running -= 1
        return text.upper()

    figures = await load.outstanding(call, str.upper, Load(count=50, width=4, seconds=60))
    assert peak == 4
    assert figures["tasks_per_s"] > 0
    assert figures["cpu_ms_per_task"] == pytest.approx(figures["cpu_client_ms"])


def test_a_blocking_client_keeps_a_window_and_collects_the_oldest_first() -> None:
    open_texts: list[str] = []
    collected: list[str] = []
    widest = 0

    def submit(text: str) -> str:
        nonlocal widest
        open_texts.append(text)
        widest = max(widest, len(open_texts))
        return text

    def collect(text: str) -> str:
        open_texts.remove(text)
        collected.append(text)
        return text.upper()

    load.outstanding_blocking(submit, collect, str.upper, Load(count=10, width=4, seconds=60))
    numbers = [int(text.split()[1]) for text in collected]
    assert widest == 4
    assert len(numbers) == 10
    assert all(earlier < later for earlier, later in pairwise(numbers))


async def test_echo_gives_latency_and_rate() -> None:
    figures = await load.echo(shout, str.upper, Load(count=20, width=2, warm_up=1, seconds=60))
    assert {"p50_ms", "p95_ms", "tasks_per_s", "cpu_ms_per_task", "cpu_client_ms"} == figures.keys()


async def test_a_fan_out_must_bring_all_answers_back() -> None:
    async def scatter(steps: int) -> int:
        return steps - 1

    with pytest.raises(WrongAnswerError, match="expected 10, got 9"):
        await load.fan_out(scatter, Load(steps=10))


async def _silent(text: str) -> str:
    return text
