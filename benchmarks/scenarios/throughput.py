"""Latency, rate and CPU cost of tasks: echo, two hops, fan-out. Asked of every system in the same way."""

from __future__ import annotations

from pathlib import Path

from benchmarks.scenarios.base import Figures, Sizes
from benchmarks.systems.base import System


def echo(system: System, sizes: Sizes, folder: Path) -> Figures:
    """One service that answers its input in upper case: one task at a time, then many at once."""
    return _tasks(system, "echo", sizes, folder)


def two_hop(system: System, sizes: Sizes, folder: Path) -> Figures:
    """The same through two services, one after the other."""
    return _tasks(system, "two_hop", sizes, folder)


def fan_out(system: System, sizes: Sizes, folder: Path) -> Figures:
    """One job of many independent steps, and all their answers back at the client."""
    with system.running("fan_out", folder) as running:
        return running.client("fan_out", {"steps": sizes.steps, "repeats": sizes.repeats})


def _tasks(system: System, name: str, sizes: Sizes, folder: Path) -> Figures:
    with system.running(name, folder) as running:
        load = {"seconds": sizes.seconds, "width": sizes.width, "processes": running.processes()}
        return running.client(name, load)
