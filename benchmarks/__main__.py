"""The command: chooses systems and scenarios, measures, writes the report.

`python -m benchmarks` from the repository's root does everything; see `--help` and `benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report, sizing
from benchmarks.machine import read_machine
from benchmarks.processes import ProcessFailedError
from benchmarks.report import Run, SystemNote
from benchmarks.rounds import measure
from benchmarks.scenarios.base import QUICK, Scenario, Sizes
from benchmarks.scenarios.registry import SCENARIOS
from benchmarks.systems.base import System
from benchmarks.systems.earlier import Earlier
from benchmarks.systems.ours import Ours, OursOnPostgres
from benchmarks.systems.peers import PEERS
from benchmarks.systems.placed import CARRIERS, STORES, Placed

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Choice:
    """What the command line asks for."""

    scenarios: list[Scenario]
    systems: list[System]
    sizes: Sizes
    rounds: int
    out: Path
    quick: bool
    page: Path | None = None
    """A page whose measured part is written anew."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when anything was measured, 1 when nothing could be."""
    choice = parse(arguments)
    started_at = dt.datetime.now(dt.UTC).isoformat()
    ready, absent = prepare(choice.systems)
    for name, why in absent.items():
        print(f"{name} is left out: {why}", file=sys.stderr)
    measured = measure(ready, choice.scenarios, choice.sizes, choice.rounds)
    run = Run(
        started_at=started_at,
        settings={"rounds": choice.rounds, "outstanding": choice.sizes.width, "quick": choice.quick},
        machine=read_machine(),
        systems=[SystemNote(system.name, system.title, system.note, system.versions()) for system in ready],
        absent=absent,
        measured=measured,
    )
    data, page = report.write(run, choice.out)
    print(page.read_text())
    if choice.page is not None:
        sizing.write(run, choice.page)
        print(f"written: {choice.page}", file=sys.stderr)
    print(f"written: {data} and {page.name}", file=sys.stderr)
    return 0 if any(sample.figures for sample in measured.samples) else 1


def prepare(systems: Sequence[System]) -> tuple[list[System], dict[str, str]]:
    """Those that can be measured, made ready; and the others with the reason."""
    ready: list[System] = []
    absent: dict[str, str] = {}
    for system in systems:
        try:
            system.prepare()
            why = system.missing()
        except ProcessFailedError as error:
            why = str(error)
        if why is None:
            ready.append(system)
        else:
            absent[system.name] = why
    return ready, absent


def parse(arguments: Sequence[str] | None) -> Choice:
    """Reads the command line; leaves with a message on a name that does not exist."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    peers = {peer.name: peer for peer in PEERS}
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, by comma (default: all of them)")
    parser.add_argument("--peers", default=",".join(peers), help="peers, by comma, or `none` (default: all of them)")
    parser.add_argument("--rounds", type=int, default=None, help="measurements of each (default: 5, or 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="short loops: to see that it works, not to quote")
    parser.add_argument("--without-ours", action="store_true", help="measure the peers alone")
    parser.add_argument("--postgres", metavar="URL", help="measure ours with this PostgreSQL database as well, in turn")
    parser.add_argument("--stores", help=f"ours on each of these stores instead: {', '.join(STORES)}")
    parser.add_argument("--carriers", help=f"… with each of these carriers: {', '.join(CARRIERS)}")
    parser.add_argument(
        "--control-planes", type=_numbers, default=[1], help="… and with so many control planes, by comma: 1,2"
    )
    parser.add_argument("--page", type=Path, help="write the table of stores and carriers into this page")
    parser.add_argument("--before", metavar="REVISION", help="measure the source of this commit as well, in turn")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the results")
    found = parser.parse_args(arguments)
    placed: list[System] = [
        Placed(store, carrier, number)
        for store in _names(parser, found.stores or ("sqlite" if found.carriers else ""), STORES)
        for carrier in _names(parser, found.carriers or "simple", CARRIERS)
        for number in found.control_planes
    ]
    chosen: list[System] = [] if found.without_ours else placed or [Ours()]
    chosen += [OursOnPostgres(found.postgres)] if found.postgres else []
    chosen += [Earlier(found.before)] if found.before else []
    chosen += [peers[name] for name in _names(parser, found.peers, peers)]
    return Choice(
        scenarios=[SCENARIOS[name] for name in _names(parser, found.only, SCENARIOS)],
        systems=chosen,
        sizes=QUICK if found.quick else Sizes(),
        rounds=found.rounds or (1 if found.quick else 5),
        out=found.out,
        quick=found.quick,
        page=found.page,
    )


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _names(parser: argparse.ArgumentParser, text: str, known: Iterable[str]) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip() not in ("", "none")]
    unknown = [name for name in names if name not in set(known)]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are: {', '.join(known)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
