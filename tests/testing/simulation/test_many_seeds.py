"""All seeds that every change has to pass; `make simulate` runs as many further ones as wanted."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.testing.simulation.seeds import FAST, SEEDS

from llama_deploy.testing.simulation import run_seed


def test_the_promise_holds() -> None:
    """By the command itself, on every core: what it prints says which seed failed, and how to see that again."""
    seeds = SEEDS[len(FAST) :]
    arguments = ["--from", str(seeds.start), "--seeds", str(len(seeds)), "--jobs", str(os.cpu_count() or 1)]
    command = [sys.executable, "-m", "llama_deploy.testing.simulation", *arguments]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{len(seeds)} runs" in ended.stdout.replace(",", "")


def test_what_was_found_once_holds() -> None:
    """Seeds far beyond those, which found what each of them stands for.

    Waiting for each other at a limit, two at a limit of one, a place that nobody gave back, a reader who missed events.
    """
    for seed in (300_022, 300_225, 400_568, 402_752, 401_684, 403_190, 402_896, 502_968):
        run = run_seed(seed)
        assert not run.failed, run.report()
