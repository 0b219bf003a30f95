"""The order of measuring: in each round every system in turn, so that what changes on the machine changes for all.

A scenario that fails for one system is noted and does not stop the others.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environments import work_folder
from benchmarks.load import WrongAnswerError
from benchmarks.machine import Noise, read_cpu_times, read_noise
from benchmarks.processes import ProcessFailedError, without_paths
from benchmarks.scenarios.base import Figures, Scenario, Sizes
from benchmarks.systems.base import System


@dataclass(frozen=True)
class Sample:
    """What one scenario of one system gave in one round: figures by key, or why there are none."""

    round: int
    system: str
    scenario: str
    figures: Figures
    failure: str = ""
    stolen_percent: float = 0.0
    """CPU time of this machine that its host gave to others meanwhile."""


@dataclass(frozen=True)
class Measured:
    """All samples of a run, and the state of the machine before each round."""

    samples: list[Sample]
    noise: list[Noise]


def measure(systems: Sequence[System], scenarios: Sequence[Scenario], sizes: Sizes, rounds: int) -> Measured:
    """Round by round; within a round scenario by scenario, each asked of every system that can run it."""
    samples: list[Sample] = []
    noise: list[Noise] = []
    for number in range(1, rounds + 1):
        noise.append(read_noise())
        for scenario, system in turns(systems, scenarios, number):
            sample = _measure_one(system, scenario, sizes, number)
            _tell(sample, rounds)
            samples.append(sample)
    return Measured(samples, noise)


def turns(systems: Sequence[System], scenarios: Sequence[Scenario], number: int) -> Iterator[tuple[Scenario, System]]:
    """Who is asked what in round `number` (from 1), in order."""
    for scenario in scenarios:
        if number <= scenario.rounds_max:
            for system in systems:
                if scenario.name in system.scenarios:
                    yield scenario, system


def _measure_one(system: System, scenario: Scenario, sizes: Sizes, number: int) -> Sample:
    before = read_cpu_times()
    found, failure = _try(system, scenario, sizes)
    figures = {f"{scenario.name}.{name}": value for name, value in found.items()}
    stolen_percent = round(read_cpu_times().stolen_percent_since(before), 1)
    return Sample(number, system.name, scenario.name, figures, failure, stolen_percent)


def _try(system: System, scenario: Scenario, sizes: Sizes) -> tuple[Figures, str]:
    # On the disk of the working tree, as a user's store is: a temporary folder may live in memory.
    with tempfile.TemporaryDirectory(prefix="run-", dir=work_folder()) as folder:
        try:
            return scenario.run(system, sizes, Path(folder)), ""
        except (ProcessFailedError, WrongAnswerError, OSError, AssertionError) as error:
            print(error, file=sys.stderr, flush=True)
            return {}, brief(error)


def brief(error: Exception) -> str:
    """An error in two lines at most, its first and its last, fit to be published."""
    lines = [line.strip() for line in without_paths(f"{type(error).__name__}: {error}").splitlines() if line.strip()]
    return "\n".join(dict.fromkeys([lines[0], lines[-1]]))


def _tell(sample: Sample, rounds: int) -> None:
    if sample.failure:
        outcome = f"FAILED: {sample.failure}"
    else:
        outcome = "  ".join(f"{key.split('.')[1]}={value:.4g}" for key, value in sample.figures.items())
    where = f"round {sample.round}/{rounds}  {sample.scenario:9} {sample.system:11}"
    print(f"{where} {outcome}", file=sys.stderr, flush=True)
