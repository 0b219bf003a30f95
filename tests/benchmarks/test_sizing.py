"""The measured part of the page on sizing: what stands there comes from a run, and from nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import sizing
from benchmarks.machine import Machine, Noise
from benchmarks.report import Run, SystemNote
from benchmarks.rounds import Measured, Sample
from benchmarks.summaries import Summary

ECHO = {"tasks_per_s": 2000.0, "cpu_control_plane_ms": 0.14, "cpu_database_ms": 0.07}
SPACE = {"bytes_per_task": 2000.0, "log_bytes_per_task": 3000.0}


def made(*samples: Sample) -> Run:
    noise = Noise(load_average=0.5, spin_ms=Summary(9, 10, 30, 9), commit_ms=Summary(0.1, 0.25, 2, 200))
    names = list(dict.fromkeys(sample.system for sample in samples))
    return Run(
        started_at="2026-01-02T03:04:05.678+00:00",
        settings={"rounds": 2},
        machine=Machine("a processor", 2, 8.0, "Linux 6", "3.11.7"),
        systems=[SystemNote(name, f"the title of {name}", "", {}) for name in names],
        absent={},
        measured=Measured(list(samples), [noise]),
    )


def sample(number: int, system: str, scenario: str, figures: dict[str, float]) -> Sample:
    return Sample(number, system, scenario, {f"{scenario}.{name}": value for name, value in figures.items()})


RUN = made(
    sample(1, "sqlite-simple", "echo", {"tasks_per_s": 1000.0}),
    sample(1, "postgresql-simple", "echo", ECHO),
    sample(2, "postgresql-simple", "echo", ECHO | {"tasks_per_s": 3000.0}),
    sample(1, "postgresql-simple", "space", SPACE),
)


def test_a_line_for_each_system_and_only_columns_that_were_measured() -> None:
    text = sizing.measured_part(RUN)
    assert "tasks/s at 64 outstanding" in text
    assert "p50 alone" not in text
    assert "| the title of sqlite-simple | 1,000 |  |  |  |  |" in text
    assert "| the title of postgresql-simple | 2,500 | 0.14 | 0.07 | 2,000 | 3,000 |" in text


def test_ten_thousand_tasks_a_second_on_paper() -> None:
    text = sizing.measured_part(RUN)
    assert "| control planes, one core each | 2 |" in text, "1.4 cores at 70 %"
    assert "| cores of the database | 1 |" in text
    assert "| the database's log | 30 MB/s |" in text
    assert "| 1,000,000,000 finished tasks | 2.0 TB |" in text
    assert "| … reached after | 28 hours |" in text
    assert "On paper" not in sizing.measured_part(made(sample(1, "sqlite-simple", "echo", ECHO)))


def test_only_what_stands_between_the_marks_is_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A\n{sizing.BEGIN}\nold\n{sizing.END}\nB\n")
    sizing.write(RUN, page)
    sizing.write(RUN, page)
    text = page.read_text()
    assert text.startswith(f"# A\n{sizing.BEGIN}\nMeasured 2026-01-02 on a processor")
    assert text.endswith(f"\n{sizing.END}\nB\n")
    assert "old" not in text
    assert text.count("the title of sqlite-simple") == 1
    page.write_text("no marks")
    with pytest.raises(ValueError, match=r"page\.md has no"):
        sizing.write(RUN, page)
