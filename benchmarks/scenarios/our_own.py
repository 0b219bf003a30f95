"""What is asked of our own system alone: streams, growth, long sessions, start-up."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cost import resident_mb
from benchmarks.processes import Process, environment, free_port
from benchmarks.scenarios.base import Figures, Sizes
from benchmarks.systems.base import System
from benchmarks.systems.ours import LLAMACTL, Ours, RunningOurs, deployment_file

IMPORT = "import time; began = time.perf_counter(); import llama_deploy; print(time.perf_counter() - began)"
FIRST_TASK = {"service": "echo", "input": {"text": "first"}, "wait_for_service": True}


def streams(system: System, sizes: Sizes, folder: Path) -> Figures:
    """Stream events: how late one arrives, how many pass in a second, how fast a finished stream is read again."""
    with system.running("streams", folder) as running:
        return running.client("streams", {"count": sizes.stream_events, "options": {"live_count": sizes.live_events}})


def growth(system: System, sizes: Sizes, folder: Path) -> Figures:
    """The cost of a task with an empty store and with many finished tasks in it, in turn; memory after many tasks."""
    empty, full = folder / "empty", folder / "full"
    for place in (empty, full):
        place.mkdir()
    sample = {"count": max(1000, sizes.finished_tasks // 200), "width": sizes.width}
    cpu: list[float] = []
    rates: list[float] = []
    with _ours(system).running("echo", empty) as small, _ours(system).running("echo", full) as large:
        large.client("many", {"count": 200, "width": sizes.width})
        idle_mb = resident_mb(_control_plane_pid(large))
        large.client("many", {"count": sizes.worked_tasks, "width": sizes.width})
        after_mb = resident_mb(_control_plane_pid(large))
        large.stop()
        store_bytes = large.store_bytes()
        fill = [sys.executable, "-m", "benchmarks.ours.fill", large.store_name, str(sizes.finished_tasks)]
        subprocess.run(fill, env=environment({}), check=True)
        large.start_control_plane()
        large.start_service()
        for running in (small, large):
            running.client("many", {"count": 1000, "width": sizes.width})
        for _ in range(sizes.repeats):
            light, heavy = (one.client("many", {**sample, "processes": one.processes()}) for one in (small, large))
            cpu.append(heavy["cpu_ms_per_task"] / light["cpu_ms_per_task"])
            rates.append(light["tasks_per_s"] / heavy["tasks_per_s"])
    return {
        "cpu_growth": statistics.median(cpu),
        "time_growth": statistics.median(rates),
        "memory_idle_mb": idle_mb,
        "memory_after_mb": after_mb,
        "store_bytes_per_task": store_bytes / (sizes.worked_tasks + 200),
    }


def session(system: System, sizes: Sizes, folder: Path) -> Figures:
    """Many tasks in one session: the last tenth against the first."""
    with system.running("echo", folder) as running:
        load = {"count": sizes.session_tasks, "width": sizes.width, "processes": running.processes()}
        return running.client("session", load)


def start_up(system: System, sizes: Sizes, folder: Path) -> Figures:
    """Import, `llamactl --help`, and `llamactl dev` to its first result; bytecode is compiled by a first try."""
    python, llamactl = sys.executable, str(LLAMACTL)
    imports = [float(_output([python, "-c", IMPORT])) for _ in range(1 + 2 * sizes.repeats)][1:]
    helps = [_duration_s([llamactl, "--help"]) for _ in range(1 + sizes.repeats)][1:]
    bare = [_duration_s([python, "-c", "pass"]) for _ in range(sizes.repeats)]
    return {
        "import_ms": statistics.median(imports) * 1000,
        "help_ms": statistics.median(helps) * 1000,
        "bare_python_ms": statistics.median(bare) * 1000,
        "dev_s": _dev_to_first_result_s(folder),
    }


def _dev_to_first_result_s(folder: Path) -> float:
    port = free_port()
    where = ["--port", str(port), "--store", str(folder / "dev.sqlite")]
    began = time.monotonic()
    process = Process([str(LLAMACTL), "dev", str(deployment_file("echo")), *where], folder / "dev.log")
    try:
        process.wait_for_port(port)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/tasks?wait_s=30",
            data=json.dumps(FIRST_TASK).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            task = json.load(response)
        assert task["result"]["result"] == "FIRST", task
        return time.monotonic() - began
    finally:
        process.stop()


def _ours(system: System) -> Ours:
    assert isinstance(system, Ours), "asked of our own system alone"
    return system


def _control_plane_pid(running: RunningOurs) -> int:
    return running.processes()["control_plane"][0]


def _output(argv: Sequence[str]) -> str:
    return subprocess.run(argv, env=environment({}), check=True, capture_output=True, text=True).stdout


def _duration_s(argv: Sequence[str]) -> float:
    began = time.perf_counter()
    _output(argv)
    return time.perf_counter() - began
