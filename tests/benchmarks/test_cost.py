"""Readings from /proc, against what this process knows about itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from benchmarks import cost

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_cpu_time_is_that_of_the_process() -> None:
    assert cost.cpu_s(os.getpid()) == pytest.approx(time.process_time(), abs=0.2)


def test_memory_of_this_process_is_plausible() -> None:
    resident = cost.resident_mb(os.getpid())
    assert 5 < resident < 5000
    assert 1 < cost.proportional_mb(os.getpid()) <= resident * 1.05


def test_a_family_is_the_process_and_its_children() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert set(cost.family(os.getpid())) >= {os.getpid(), child.pid}
        assert cost.family(child.pid) == [child.pid]


def test_a_process_that_is_gone_costs_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert cost.cpu_s(child.pid) == 0.0
    assert cost.resident_mb(child.pid) == 0.0


def test_the_meter_counts_this_process_as_the_client() -> None:
    with cost.CpuMeter({"service": [os.getpid()]}) as meter:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
    used = meter.used_s()
    assert used.keys() == {"client", "service"}
    assert used["client"] >= 0.1
    assert used["service"] == pytest.approx(used["client"], abs=0.05)
