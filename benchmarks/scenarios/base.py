"""What a scenario is, and how much of it a run does.

A scenario starts the system for itself, with an empty store, so that no figure depends on what was measured before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.systems.base import System

Figures = dict[str, float]


@dataclass(frozen=True)
class Sizes:
    """How much each scenario does."""

    seconds: float = 4.0
    """Length of each timed loop."""
    width: int = 64
    """Tasks outstanding at once."""
    steps: int = 1000
    """Steps of one fan-out."""
    repeats: int = 5
    """Repetitions inside one round, of what is short."""
    idle_s: float = 10.0
    finished_tasks: int = 1_000_000
    """Finished tasks in the store where the cost of one more is measured against the empty store."""
    worked_tasks: int = 100_000
    """Tasks that one control plane works off before its memory is measured."""
    session_tasks: int = 10_000
    weighed_tasks: int = 10_000
    """Tasks whose traces in the store are weighed."""
    stream_events: int = 10_000
    live_events: int = 400


QUICK = Sizes(
    seconds=1.5,
    repeats=2,
    idle_s=3.0,
    finished_tasks=3_000,
    worked_tasks=1_000,
    session_tasks=1_000,
    weighed_tasks=1_000,
    stream_events=2_000,
    live_events=100,
)
"""Enough to see that everything works; its figures are for nobody to quote."""


@dataclass(frozen=True)
class Scenario:
    """One thing that is measured. `run` starts the system in the folder, measures, and stops it."""

    name: str
    title: str
    run: Callable[[System, Sizes, Path], Figures]
    rounds_max: int
    """More rounds than this would only take time."""
