"""Runs seeds for the tests of the simulation, and says what failed with the command that shows it again."""

from __future__ import annotations

from collections.abc import Iterable

from llama_deploy.testing.simulation import Run, run_seed

SEEDS = range(2200)
"""What `make test` runs; the first of them are in the fast tests too."""
FAST = range(150)
CHUNK = 50


def chunks(seeds: range) -> list[range]:
    """The seeds in parts, so that a failure does not hide the others."""
    return [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]


def run_all(seeds: Iterable[int]) -> list[Run]:
    """Run the seeds; a failed one fails the test."""
    runs = [run_seed(seed) for seed in seeds]
    failed = [run.report() for run in runs if run.failed]
    assert not failed, "\n".join(failed)
    return runs


def first_found(seeds: Iterable[int], *, kinds: list[str] | None = None) -> Run | None:
    """The first run that fails, if any does."""
    return next((run for seed in seeds if (run := run_seed(seed, kinds=kinds)).failed), None)
