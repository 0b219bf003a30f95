"""`python -m tests.chaos.matrix`: chaos on every store with every carrier, one cell of a table after the other.

Each cell is a run of its own with its own database, broker and network: processes are killed, the database stopped or
crashed, the broker restarted or wiped, the network cut. Exit code 1 where a cell differs; its folder stays.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.chaos.driver import Options, Report, Run
from tests.chaos.surroundings import IN_PROCESS, StoreKind
from tests.support.networks import network

KINDS_OF_FAULTS = ("kill", "stop", "terminate", "cut", "restart", "crash", "wipe")


@dataclass(frozen=True)
class Cell:
    """What is combined."""

    store: StoreKind
    carrier: str
    planes: int = 1
    encrypted: bool = False

    @property
    def name(self) -> str:
        name = f"{self.store} + {'in-process' if self.carrier == IN_PROCESS else self.carrier}"
        name += ", encrypted" if self.encrypted else ""
        return name if self.planes == 1 else f"{name}, {self.planes} planes"


CARRIERS = (IN_PROCESS, "redis", "nats", "rabbitmq", "postgresql", "sqs")
CELLS = (
    Cell("sqlite", IN_PROCESS),
    *(Cell("postgresql", carrier) for carrier in CARRIERS),
    *(Cell("postgresql", carrier, planes=2) for carrier in CARRIERS),
    Cell("sqlite", IN_PROCESS, encrypted=True),
    Cell("postgresql", IN_PROCESS, planes=2, encrypted=True),
)


@dataclass
class Outcome:
    """What became of a cell."""

    cell: Cell
    figures: dict[str, Any]
    problems: list[str]
    text: str

    def row(self) -> list[str]:
        """Its line of the table."""
        kinds: Counter[str] = Counter()
        for what, count in self.figures.get("faults", {}).items():
            kinds[what.split()[0]] += count
        faults = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS_OF_FAULTS if kinds[kind])
        figures = self.figures
        numbers = [str(figures.get(name, "")) for name in ("tasks", "told", "steps", "effects_suppressed")]
        longest = max(figures.get("waited_s", {}).get("longest", {}).values(), default="")
        return [self.cell.name, *numbers, faults, str(longest), str(figures.get("all_s", "")), str(len(self.problems))]


HEADER = ["cell", "tasks", "ended", "steps", "repeated", "faults", "longest_s", "seconds", "differences"]


def table(outcomes: Sequence[Outcome]) -> str:
    """All cells, one line each, in columns."""
    rows = [HEADER, *(outcome.row() for outcome in outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


async def run_cell(cell: Cell, options: Options) -> Outcome:
    """One cell; a run that breaks off is a difference, too."""
    try:
        report: Report = await Run(options).carry_out()
    except Exception:  # noqa: BLE001 - the edge of a cell: the others are run all the same
        said = traceback.format_exc()
        return Outcome(cell, {"tasks": options.tasks}, [said], said)
    return Outcome(cell, report.figures, report.problems, report.render())


async def run_cells(
    cells: Sequence[Cell],
    *,
    duration_s: float,
    tasks: int,
    seed: int,
    at_once: int = 1,
    instances: int = 2,
    clients: int = 2,
) -> list[Outcome]:
    """Every cell, `at_once` at the same time; each has a seed of its own that follows from `seed`."""
    limit = asyncio.Semaphore(at_once)

    async def one(number: int, cell: Cell) -> Outcome:
        async with limit:
            began = time.monotonic()
            options = Options(
                duration_s=duration_s,
                tasks=tasks,
                seed=seed * 1000 + number,
                instances=instances,
                clients=clients,
                store=cell.store,
                carrier=cell.carrier,
                cuts=True,
                planes=cell.planes,
                encrypted=cell.encrypted,
            )
            outcome = await run_cell(cell, options)
            outcome.figures.setdefault("all_s", round(time.monotonic() - began, 1))
            sys.stderr.write(f"{cell.name}: {len(outcome.problems)} differences, {outcome.figures['all_s']} s\n")
            return outcome

    async with asyncio.TaskGroup() as group:  # which waits until each has tidied up, also when it is interrupted
        running = [group.create_task(one(number, cell)) for number, cell in enumerate(cells)]
    return [task.result() for task in running]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.matrix", description=__doc__)
    parser.add_argument("--duration-s", type=float, default=60.0, help="how long each cell has load and faults")
    parser.add_argument("--tasks", type=int, default=1_000, help="tasks of each cell")
    parser.add_argument("--seed", type=int, default=1, help="decides the tasks and the faults")
    parser.add_argument("--instances", type=int, default=2, help="service processes of each cell")
    parser.add_argument("--at-once", type=int, default=1, help="cells at the same time")
    parser.add_argument("--cell", action="append", metavar="NAME", help=f"only this one: {[c.name for c in CELLS]}")
    given = vars(parser.parse_args())
    wanted = given.pop("cell")
    cells = [cell for cell in CELLS if not wanted or cell.name in wanted]
    if not cells:
        parser.error(f"no cell has that name: {[cell.name for cell in CELLS]}")
    sys.stdout.write(f"the network is cut by {network().kind}\n")
    outcomes = asyncio.run(run_cells(cells, **given))
    for outcome in outcomes:
        if outcome.problems:
            sys.stdout.write(f"\n{outcome.cell.name}\n{outcome.text}\n")
    sys.stdout.write(table(outcomes) + "\n")
    return 1 if any(outcome.problems for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
