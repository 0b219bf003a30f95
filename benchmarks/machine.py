"""What the figures depend on besides the code: the machine, its disk, and what else it was doing.

Only facts that say something about speed; no names, addresses or paths.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environments import work_folder
from benchmarks.summaries import Summary, summarise

COMMITS = 200
SPINS = 9


@dataclass(frozen=True)
class Machine:
    """The machine."""

    processor: str
    cores: int
    memory_gb: float
    kernel: str
    python: str


@dataclass(frozen=True)
class Noise:
    """How busy the machine was before a round began."""

    load_average: float
    """Processes wanting to run over the last minute; the run itself counts from the second round on."""
    spin_ms: Summary
    """Time of one and the same short computation; its spread shows what others take."""
    commit_ms: Summary
    """Time of one durable SQLite commit (WAL, `synchronous=FULL`) on the disk of the working tree."""


def read_machine() -> Machine:
    """Facts about this machine."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 0,
        memory_gb=round(memory_bytes / 1e9, 1),
        kernel=f"{platform.system()} {platform.release().split('-')[0]}",
        python=platform.python_version(),
    )


@dataclass(frozen=True)
class CpuTimes:
    """What all cores together have spent since the machine started, in ticks."""

    total: int
    stolen: int
    """Wanted by this machine and given to others by its host."""

    def stolen_percent_since(self, earlier: CpuTimes) -> float:
        """The stolen part of what passed since then; 0 when nothing did."""
        passed = self.total - earlier.total
        return 100 * (self.stolen - earlier.stolen) / passed if passed else 0.0


def read_cpu_times() -> CpuTimes:
    """The counters of all cores now (the first line of /proc/stat, see proc(5))."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return CpuTimes(total=sum(ticks), stolen=ticks[7])


def read_noise() -> Noise:
    """How busy the machine is now; takes about a second."""
    return Noise(round(os.getloadavg()[0], 2), summarise(_spins_ms()), summarise(_commits_ms()))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def _spins_ms() -> list[float]:
    times_ms = []
    for _ in range(SPINS):
        began = time.perf_counter()
        sum(range(1_000_000))
        times_ms.append((time.perf_counter() - began) * 1000)
    return times_ms


def _commits_ms() -> list[float]:
    times_ms = []
    with tempfile.TemporaryDirectory(prefix="commit-", dir=work_folder()) as folder:
        connection = sqlite3.connect(Path(folder) / "probe.sqlite", isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE row (id INTEGER PRIMARY KEY, text TEXT)")
        for number in range(COMMITS):
            began = time.perf_counter()
            connection.execute("INSERT INTO row VALUES (?, ?)", (number, "x" * 500))
            times_ms.append((time.perf_counter() - began) * 1000)
        connection.close()
    return times_ms
