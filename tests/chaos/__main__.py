"""`python -m tests.chaos`: one run of chaos; exit code 1 and the run's folder where something differs."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from tests.chaos.driver import Options, Run
from tests.chaos.matrix import CARRIERS
from tests.chaos.surroundings import IN_PROCESS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--duration-s", type=float, default=60.0, help="how long tasks are submitted and faults done")
    parser.add_argument("--tasks", type=int, default=10_000, help="how many tasks, spread over the duration")
    parser.add_argument("--seed", type=int, default=1, help="decides the tasks and the faults")
    parser.add_argument("--instances", type=int, default=3, help="service processes")
    parser.add_argument("--clients", type=int, default=2, help="client processes")
    parser.add_argument(
        "--still-s", type=float, default=120.0, help="after the faults: fail when nothing ends for so long"
    )
    parser.add_argument("--folder", type=Path, help="where logs and store go, and stay")
    parser.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite", help="a server is stopped, too")
    parser.add_argument("--carrier", choices=CARRIERS, default=IN_PROCESS, help="a broker is wiped, too")
    parser.add_argument("--cuts", action="store_true", help="cut the network, too")
    parser.add_argument("--planes", type=int, default=1, help="control planes; several take --store postgresql")
    parser.add_argument("--encrypted", action="store_true", help="encrypt the store, with a new key for each start")
    report = asyncio.run(Run(Options(**vars(parser.parse_args()))).carry_out())
    sys.stdout.write(report.render() + "\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
