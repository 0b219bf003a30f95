"""The first seeds of the simulation, and that a seed decides everything."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.testing.simulation.seeds import FAST, chunks, run_all

from llama_deploy.testing.simulation import KINDS, run_seed


@pytest.mark.parametrize("seeds", chunks(FAST), ids=str)
def test_the_promise_holds(seeds: range) -> None:
    run_all(seeds)


def test_without_faults_it_holds_as_well() -> None:
    for seed in range(20):
        run = run_seed(seed, kinds=[])
        assert not run.failed, run.report()
        assert not run.faults


@pytest.mark.parametrize("seed", [3, 23, 144])
def test_the_same_seed_is_the_same_run(seed: int) -> None:
    first, second = run_seed(seed, keep_notes=True), run_seed(seed, keep_notes=True)
    assert first.notes == second.notes
    assert (first.trace, first.steps, first.simulated_s) == (second.trace, second.steps, second.simulated_s)
    assert run_seed(seed + 1).trace != first.trace


def test_a_seed_is_the_same_run_in_another_process() -> None:
    """Sets and hashes of that process have another order."""
    program = "from llama_deploy.testing.simulation import run_seed; print([run_seed(s).trace for s in range(40, 60)])"
    found = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert found[0] == found[1]
    assert found[0].strip() == str([run_seed(seed).trace for seed in range(40, 60)])


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_fault_happens_and_is_survived(kind: str) -> None:
    counts = 0
    for seed in range(500, 506):
        run = run_seed(seed, kinds=[kind])
        assert not run.failed, run.report()
        counts += run.faults[kind]
    assert counts
