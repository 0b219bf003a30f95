"""What a system costs while it does nothing: CPU and memory of all its processes."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.cost import CpuMeter, family, proportional_mb
from benchmarks.scenarios.base import Figures, Sizes
from benchmarks.systems.base import System

SETTLE_S = 2.0
"""After the last task, before the clock starts: caches are written, connections of the client are gone."""


def idle(system: System, sizes: Sizes, folder: Path) -> Figures:
    """Percent of one core over `idle_s`, and memory, after a few tasks and with no client."""
    with system.running("echo", folder) as running:
        running.client("echo", {"seconds": 0.3, "width": 8, "warm_up": 5})
        time.sleep(SETTLE_S)
        processes = running.processes()
        began = time.monotonic()
        with CpuMeter(processes) as meter:
            time.sleep(sizes.idle_s)
        elapsed_s = time.monotonic() - began
        used = {role: seconds for role, seconds in meter.used_s().items() if role != "client"}
        percents = {f"cpu_{role}_percent": seconds / elapsed_s * 100 for role, seconds in used.items()}
        memory_mb = sum(proportional_mb(pid) for pids in processes.values() for first in pids for pid in family(first))
    return {"cpu_percent": sum(percents.values()), "memory_mb": memory_mb, **percents}
