"""The load that every client makes, and how its figures are computed.

Runs inside the client process of each system, in that system's own environment, so it needs the standard library
alone. A client module gives one awaitable call per scenario to `main`; what is measured, and when, is decided here and
is the same for all. It does not start anything: the driver has started the servers and passes their process ids in.
"""

from __future__ import annotations

import asyncio
import collections
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.cost import CpuMeter

Call = Callable[[str], Awaitable[object]]
"""Submits one task with this text and returns its result once the client holds it."""

Figures = dict[str, float]


class WrongAnswerError(Exception):
    """A system answered something else than the scenario asks for, so its figures would mean nothing."""


@dataclass(frozen=True)
class Load:
    """What the driver asks a client to do. Loops end after `seconds` or `count` tasks, whichever comes first."""

    seconds: float = 3.0
    count: int = 1_000_000
    width: int = 64
    """Number of tasks outstanding at once."""
    warm_up: int = 50
    """Tasks before the clock starts."""
    steps: int = 1000
    """Steps of one fan-out."""
    repeats: int = 5
    processes: Mapping[str, list[int]] = field(default_factory=dict)
    """Server processes by role; their CPU time is read before and after."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Anything that only one system's client understands, its address included."""


Job = Callable[[Load], Awaitable[Figures]]
"""One scenario of one client: does the load and returns its figures."""


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * share // 1))
    return ordered[int(rank) - 1]


def check(answer: object, expected: object) -> None:
    """Raises `WrongAnswerError` unless the system did the work."""
    if answer != expected:
        raise WrongAnswerError(f"expected {expected!r}, got {answer!r}")


def latency_figures(latencies_s: list[float]) -> Figures:
    """p50 and p95 in milliseconds."""
    return {"p50_ms": percentile(latencies_s, 0.5) * 1000, "p95_ms": percentile(latencies_s, 0.95) * 1000}


def rate_figures(done: int, elapsed_s: float, meter: CpuMeter) -> Figures:
    """Tasks per second, and CPU milliseconds per task: of the client, of each role, and of all together."""
    shares = {role: seconds * 1000 / done for role, seconds in meter.used_s().items()}
    figures = {f"cpu_{role}_ms": share for role, share in shares.items()}
    return {"tasks_per_s": done / elapsed_s, "cpu_ms_per_task": sum(shares.values()), **figures}


async def one_at_a_time(call: Call, expected: Callable[[str], object], load: Load) -> Figures:
    """Each task is submitted when the one before is in the client's hands."""
    latencies_s: list[float] = []
    end = time.perf_counter() + load.seconds
    while len(latencies_s) < load.count and time.perf_counter() < end:
        text = f"hello {len(latencies_s)}"
        began = time.perf_counter()
        answer = await call(text)
        latencies_s.append(time.perf_counter() - began)
        check(answer, expected(text))
    return latency_figures(latencies_s)


async def outstanding(call: Call, expected: Callable[[str], object], load: Load) -> Figures:
    """`width` tasks are always under way, until the time or the number is over; the last ones are waited for."""
    started = done = 0
    began = time.perf_counter()
    end = began + load.seconds

    async def lane() -> None:
        nonlocal started, done
        while started < load.count and time.perf_counter() < end:
            text = f"hello {started}"
            started += 1
            check(await call(text), expected(text))
            done += 1

    with CpuMeter(load.processes) as meter:
        await asyncio.gather(*(lane() for _ in range(load.width)))
        elapsed_s = time.perf_counter() - began
    return rate_figures(done, elapsed_s, meter)


def outstanding_blocking(
    submit: Callable[[str], Any], collect: Callable[[Any], object], expected: Callable[[str], object], load: Load
) -> Figures:
    """The same for a client library that blocks: a window of `width` handles, of which the oldest is waited for."""
    window: collections.deque[tuple[str, Any]] = collections.deque()
    started = done = 0
    began = time.perf_counter()
    end = began + load.seconds
    with CpuMeter(load.processes) as meter:
        while True:
            while len(window) < load.width and started < load.count and time.perf_counter() < end:
                text = f"hello {started}"
                window.append((text, submit(text)))
                started += 1
            if not window:
                break
            text, handle = window.popleft()
            check(collect(handle), expected(text))
            done += 1
        elapsed_s = time.perf_counter() - began
    return rate_figures(done, elapsed_s, meter)


async def echo(call: Call, expected: Callable[[str], object], load: Load) -> Figures:
    """Warm up, one at a time, then many outstanding."""
    for index in range(load.warm_up):
        check(await call(f"warm {index}"), expected(f"warm {index}"))
    return {**await one_at_a_time(call, expected, load), **await outstanding(call, expected, load)}


async def fan_out(scatter: Callable[[int], Awaitable[int]], load: Load) -> Figures:
    """One job of `steps` steps, `repeats` times; `scatter` returns how many answers it holds. Medians."""
    check(await scatter(load.steps), load.steps)
    times_s: list[float] = []
    for _ in range(load.repeats):
        began = time.perf_counter()
        answers = await scatter(load.steps)
        times_s.append(time.perf_counter() - began)
        check(answers, load.steps)
    middle_s = statistics.median(times_s)
    return {"steps_per_s": load.steps / middle_s, "total_ms": middle_s * 1000}


def report(figures: Mapping[str, Any]) -> None:
    """One line of JSON for the driver."""
    print(json.dumps(figures), flush=True)


def main(jobs: Mapping[str, Job], *, runner: Callable[[Any], Any] = asyncio.run) -> None:
    """The entry point of a client: `client SCENARIO LOAD-AS-JSON`; the last line of its output is its figures."""
    scenario, parameters = sys.argv[1], json.loads(sys.argv[2])
    report(runner(jobs[scenario](Load(**parameters))))
