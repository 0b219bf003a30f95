"""The measured part of the page on sizing: a table of stores and carriers, and what it means on paper.

Pure arithmetic on a run's figures. The page has two marks; what stands between them is written here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from benchmarks.report import Run, Values, values_of
from benchmarks.summaries import summarise

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

TASKS_PER_S = 10_000
FINISHED = 1_000_000_000
BUSY = 0.7
"""How busy a core may be on average, so that queues stay short."""
PARTITION_TASKS = 1_000_000
"""Tasks of one partition of the history."""

COLUMNS: Mapping[str, str] = {
    "echo.tasks_per_s": "tasks/s at 64 outstanding",
    "echo.p50_ms": "p50 alone, ms",
    "echo.cpu_ms_per_task": "CPU per task, ms",
    "echo.cpu_control_plane_ms": "… control plane",
    "echo.cpu_service_ms": "… service",
    "echo.cpu_client_ms": "… client",
    "echo.cpu_database_ms": "… database",
    "echo.cpu_broker_ms": "… broker",
    "two_hop.tasks_per_s": "two hops, tasks/s",
    "space.bytes_per_task": "bytes kept per task",
    "space.log_bytes_per_task": "bytes logged per task",
}


def write(run: Run, page: Path) -> None:
    """Put the run's table and figures between the page's marks. Raises `ValueError` where it has none."""
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page.name} has no {BEGIN} and {END}")
    before, _, rest = text.partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{measured_part(run)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def measured_part(run: Run) -> str:
    """The table, and the arithmetic on it."""
    values = values_of(run.measured.samples)
    machine, load = run.machine, max(noise.load_average for noise in run.measured.noise)
    parts = [
        (
            f"Measured {run.started_at[:10]} on {machine.processor}, {machine.cores} cores, Python {machine.python}, "
            f"rounds: {run.settings['rounds']}; load average up to {load:.1f} before them. All processes share the "
            "cores, the client's too."
        ),
        table(run, values),
        on_paper(median_figures(values, "postgresql-simple")),
    ]
    return "\n\n".join(part for part in parts if part)


def table(run: Run, values: Values) -> str:
    """A line for each system, a column for each figure that any of them has."""
    columns = {key: title for key, title in COLUMNS.items() if key in values}
    lines = [_row(["", *columns.values()]), _row(["---"] * (len(columns) + 1))]
    for system in run.systems:
        found = median_figures(values, system.name)
        lines.append(_row([system.title, *(_number(found[key]) if key in found else "" for key in columns)]))
    return "\n".join(lines)


def median_figures(values: Values, system: str) -> dict[str, float]:
    """The medians of one system's rounds."""
    return {key: summarise(list(found[system].values())).median for key, found in values.items() if system in found}


def on_paper(figures: Mapping[str, float]) -> str:
    """What a rate of tasks, and as many finished ones, would take with these costs; nothing where they are unknown."""
    needed = ("echo.cpu_control_plane_ms", "echo.cpu_database_ms", "space.bytes_per_task", "space.log_bytes_per_task")
    if any(name not in figures for name in needed):
        return ""
    plane_ms, database_ms, kept, logged = (figures[name] for name in needed)
    planes, database = _cores(plane_ms), _cores(database_ms)
    rows = [
        ("control planes, one core each", f"{planes}", f"{plane_ms:.2f} ms a task, cores {BUSY:.0%} busy"),
        ("cores of the database", f"{database}", f"{database_ms:.2f} ms a task, {BUSY:.0%} busy"),
        ("transitions", f"{2 * TASKS_PER_S:,}/s", "two a task of one hop, many in one commit"),
        ("the database's log", f"{logged * TASKS_PER_S / 1e6:,.0f} MB/s", f"{logged:,.0f} bytes a task"),
        (f"{FINISHED:,} finished tasks", f"{kept * FINISHED / 1e12:.1f} TB", f"{kept:,.0f} bytes a task"),
        ("… reached after", f"{FINISHED / TASKS_PER_S / 3600:.0f} hours", f"at {TASKS_PER_S:,} tasks/s"),
        ("… partitions of the history", f"{FINISHED // PARTITION_TASKS:,}", "a million tasks in each"),
    ]
    lines = [
        _row(["one hop a task, PostgreSQL", "needed", "from"]),
        _row(["---"] * 3),
        *(_row(list(row)) for row in rows),
    ]
    return f"On paper, {TASKS_PER_S:,} tasks a second:\n\n" + "\n".join(lines)


def _cores(ms_per_task: float) -> int:
    return math.ceil(round(ms_per_task / 1000 * TASKS_PER_S / BUSY, 6))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}" if abs(value) < 1 else f"{value:.3g}"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
