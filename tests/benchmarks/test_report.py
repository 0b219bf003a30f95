"""The report: derived figures, ratios, the page and the data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import report
from benchmarks.machine import Machine, Noise
from benchmarks.report import Run, SystemNote
from benchmarks.rounds import Measured, Sample
from benchmarks.summaries import Summary, summarise


def sample(number: int, system: str, **figures: float) -> Sample:
    scenario = next(iter(figures)).split("__")[0]
    return Sample(number, system, scenario, {name.replace("__", "."): value for name, value in figures.items()})


@pytest.fixture
def run() -> Run:
    samples = [
        sample(1, "ours", echo__tasks_per_s=2000.0, echo__p50_ms=2.0),
        sample(1, "celery", echo__tasks_per_s=500.0, echo__p50_ms=4.0),
        sample(1, "ours", two_hop__p50_ms=3.0),
        sample(2, "ours", echo__tasks_per_s=3000.0, echo__p50_ms=2.5),
        sample(2, "celery", echo__tasks_per_s=600.0, echo__p50_ms=5.0),
        sample(2, "ours", two_hop__p50_ms=5.0),
        sample(1, "ours", growth__memory_idle_mb=120.0),
        Sample(1, "celery", "fan_out", {}, failure="ProcessFailedError: it went away\nOSError: why"),
    ]
    noise = Noise(load_average=0.5, spin_ms=Summary(9, 10, 30, 9), commit_ms=Summary(0.1, 0.25, 2, 200))
    return Run(
        started_at="2026-01-02T03:04:05.678+00:00",
        settings={"rounds": 2},
        machine=Machine("a processor", 2, 8.0, "Linux 6", "3.11.7"),
        systems=[
            SystemNote("ours", "llama_deploy", "durable", {"llama_deploy": "1"}),
            SystemNote("celery", "Celery, Redis", "late", {"celery": "5", "vine": "5"}),
        ],
        absent={"saq": "no Redis"},
        measured=Measured(samples, [noise, noise]),
    )


def test_two_hops_are_compared_with_one_hop_of_the_same_round(run: Run) -> None:
    values = report.values_of(run.measured.samples)
    assert values["two_hop.of_one_hop"] == {"ours": {1: 1.5, 2: 2.0}}


def test_ratios_are_ours_by_theirs(run: Run) -> None:
    values = report.values_of(run.measured.samples)
    assert report.ratios_of(values["echo.tasks_per_s"]) == {"celery": summarise([4.0, 5.0])}


def test_the_page_shows_medians_ratios_targets_and_what_failed(run: Run) -> None:
    page = report.as_page(run, "data.json")
    assert "| echo, 64 outstanding, tasks/s | 2,500 (2,000 to 3,000) ~ | 550 (500 to 600) |" in page
    assert "| echo, 64 outstanding (higher is better) | 4.5 (4 to 5); target 4: reached |" in page
    assert "| echo, one at a time, p50, ms | 2 | **2.25** | 2.5 | at most 2.5 (2 commits + 2) | reached |" in page
    assert "| memory of the control plane, idle, MB | 120 | **120** | 120 | at most 90 | **missed** |" in page
    assert "* fan_out of celery, round 1: ProcessFailedError: it went away … OSError: why\n" in page
    assert "* saq was not measured: no Redis" in page
    assert "(celery 5)" in page


def test_the_page_of_one_system_has_no_comparison(run: Run) -> None:
    ours = [found for found in run.measured.samples if found.system == "ours"]
    alone = Run(run.started_at, run.settings, run.machine, run.systems[:1], {}, Measured(ours, run.measured.noise))
    page = report.as_page(alone, "data.json")
    assert "Side by side" not in page
    assert "Ours / theirs" not in page
    assert "Failed" not in page


def test_both_files_are_written_and_the_data_is_complete(run: Run, tmp_path: Path) -> None:
    data, page = report.write(run, tmp_path / "results")
    assert (data.name, page.name) == ("2026-01-02-030405.json", "latest.md")
    written = json.loads(data.read_text())
    assert len(written["samples"]) == len(run.measured.samples)
    assert written["ratios"]["echo.p50_ms"]["celery"]["median"] == 0.5
    assert written["summaries"]["echo.p50_ms"]["ours"] == {"minimum": 2.0, "median": 2.25, "maximum": 2.5, "count": 2}
    assert "`2026-01-02-030405.json`" in page.read_text()
