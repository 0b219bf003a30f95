"""The order of measuring, and what happens when one measurement fails."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from benchmarks import rounds
from benchmarks.machine import Noise
from benchmarks.processes import REPOSITORY, ProcessFailedError
from benchmarks.scenarios.base import QUICK, Figures, Scenario, Sizes
from benchmarks.summaries import Summary
from benchmarks.systems.base import Running, System


class Double(System):
    note = ""

    def __init__(self, name: str, scenarios: set[str]) -> None:
        self.name = self.title = name
        self.scenarios = frozenset(scenarios)

    def missing(self) -> str | None:
        return None

    def prepare(self) -> None:
        return

    def versions(self) -> dict[str, str]:
        return {}

    def running(self, scenario: str, folder: Path) -> AbstractContextManager[Running]:
        raise NotImplementedError


def scenario(name: str, rounds_max: int = 9) -> Scenario:
    def run(system: System, sizes: Sizes, folder: Path) -> Figures:
        if system.name == "broken":
            raise ProcessFailedError("it went away")
        assert folder.is_dir()
        return {"speed": 1.0}

    return Scenario(name, name, run, rounds_max)


@pytest.fixture(autouse=True)
def _quiet_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    summary = Summary(1, 1, 1, 1)
    monkeypatch.setattr(rounds, "read_noise", lambda: Noise(0.0, summary, summary))
    monkeypatch.setattr(rounds, "work_folder", lambda: tmp_path)


def test_systems_take_turns_within_a_scenario() -> None:
    systems = [Double("ours", {"echo", "growth"}), Double("peer", {"echo"})]
    measured = rounds.measure(systems, [scenario("echo"), scenario("growth", rounds_max=1)], QUICK, rounds=2)
    order = [(found.round, found.scenario, found.system) for found in measured.samples]
    assert order == [
        (1, "echo", "ours"),
        (1, "echo", "peer"),
        (1, "growth", "ours"),
        (2, "echo", "ours"),
        (2, "echo", "peer"),
    ]
    assert len(measured.noise) == 2


def test_what_is_published_of_an_error_names_no_place_on_this_machine() -> None:
    error = ProcessFailedError(
        f"{REPOSITORY}/x ended with 1:\n  File {sys.base_prefix}/lib/y.py\n\nOSError: {sys.base_prefix}/z"
    )
    assert rounds.brief(error) == "ProcessFailedError: x ended with 1:\nOSError: PYTHON/z"
    assert rounds.brief(ProcessFailedError("short")) == "ProcessFailedError: short"


def test_figures_carry_their_scenario_and_a_failure_stops_nobody_else() -> None:
    systems = [Double("broken", {"echo"}), Double("ours", {"echo"})]
    failed, fine = rounds.measure(systems, [scenario("echo")], QUICK, rounds=1).samples
    assert (failed.figures, failed.failure) == ({}, "ProcessFailedError: it went away")
    assert (fine.figures, fine.failure) == ({"echo.speed": 1.0}, "")
