"""What processes cost: CPU time and memory, read from /proc (Linux only).

Needs the standard library alone, because the clients of every system use it in their own environments. It reads; it
never starts or stops a process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User and system CPU seconds that this process has used so far, its reaped children not included; 0 if it is gone.

    The kernel counts in ticks (10 ms as a rule), so only differences over a second or more mean something.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    fields = stat.rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def resident_mb(pid: int) -> float:
    """Resident memory in MB (10^6 bytes), shared pages included; 0 if the process is gone."""
    return _memory_mb(Path(f"/proc/{pid}/status"), "VmRSS:")


def proportional_mb(pid: int) -> float:
    """Memory in MB with each shared page divided among those that share it, so that processes may be added up."""
    return _memory_mb(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def _memory_mb(path: Path, key: str) -> float:
    try:
        lines = path.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0.0
    found = next((line for line in lines if line.startswith(key)), None)
    return int(found.split()[1]) * 1024 / 1e6 if found else 0.0


def family(pid: int) -> list[int]:
    """The process and all its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            parent = _parent(entry)
            if parent is not None:
                children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        current = queue.pop()
        found.append(current)
        queue += children.get(current, [])
    return found


def _parent(entry: Path) -> int | None:
    try:
        return int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


class CpuMeter:
    """CPU seconds used between entering and leaving, by role; this process counts as `client`.

    `processes` names the first process of each family; who belongs to the family is looked up on entering.
    """

    def __init__(self, processes: Mapping[str, list[int]]) -> None:
        self._families = processes
        self._processes: dict[str, list[int]] = {}
        self._before: dict[str, float] = {}
        self._used: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._processes = {
            role: [pid for first in pids for pid in family(first)] for role, pids in self._families.items()
        }
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        after = self._read()
        self._used = {role: after[role] - before for role, before in self._before.items()}

    def used_s(self) -> dict[str, float]:
        """Seconds by role; complete once the block has been left."""
        return dict(self._used)

    def _read(self) -> dict[str, float]:
        used = {role: sum(cpu_s(pid) for pid in pids) for role, pids in self._processes.items()}
        return {"client": time.process_time(), **used}
