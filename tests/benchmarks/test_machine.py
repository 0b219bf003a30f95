"""What is read about the machine."""

from __future__ import annotations

from benchmarks.machine import CpuTimes


def test_stolen_time_is_a_part_of_what_passed() -> None:
    assert CpuTimes(total=1200, stolen=60).stolen_percent_since(CpuTimes(total=1000, stolen=10)) == 25.0


def test_nothing_is_stolen_from_no_time() -> None:
    assert CpuTimes(total=5, stolen=1).stolen_percent_since(CpuTimes(total=5, stolen=1)) == 0.0
