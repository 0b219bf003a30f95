"""What a finished task leaves in the store: of a small one, asked of our own system on each store."""

from __future__ import annotations

from pathlib import Path

from benchmarks.scenarios.base import Figures, Sizes
from benchmarks.systems.base import System
from benchmarks.systems.placed import RunningPlaced


def space(system: System, sizes: Sizes, folder: Path) -> Figures:
    """Bytes per task of what many tasks add to the store, and of what the database writes to its log for them."""
    with system.running("space", folder) as running:
        assert isinstance(running, RunningPlaced), "asked of a store that can be weighed"
        running.client("many", {"count": 500, "width": sizes.width})
        before = running.weight()
        running.client("many", {"count": sizes.weighed_tasks, "width": sizes.width})
        after = running.weight()
    return {f"{name}_per_task": (after[name] - before[name]) / sizes.weighed_tasks for name in after}
