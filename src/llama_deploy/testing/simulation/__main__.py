"""`python -m llama_deploy.testing.simulation --seeds N --from S`: runs seeds, says what failed, and how to repeat it.

Exit code 1 when a seed failed. Work is spread over processes (`--jobs`); each seed is independent of all others.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from llama_deploy.testing.simulation.faults import KINDS
from llama_deploy.testing.simulation.run import Run, run_seed

FAILURES_SHOWN_MAX = 20


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m llama_deploy.testing.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--trace", action="store_true", help="print what happened, for every seed")
    parser.add_argument("--fault", action="append", choices=KINDS, help="only these kinds of faults; may be repeated")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    started = time.monotonic()
    total, failures = _Total(), 0
    for run in _runs(seeds, options.jobs, options.fault, keep_notes=options.trace):
        total.add(run)
        if options.trace:
            sys.stdout.write("\n".join(run.notes) + f"\nseed {run.seed}: trace {run.trace:08x}\n")
        if run.failed:
            failures += 1
            if failures <= FAILURES_SHOWN_MAX:
                sys.stdout.write(run.report() + "\n")
                sys.stdout.flush()
    sys.stdout.write(total.text(time.monotonic() - started, failures) + "\n")
    return 1 if failures else 0


def _runs(seeds: Iterable[int], jobs: int, kinds: list[str] | None, *, keep_notes: bool) -> Iterator[Run]:
    if jobs <= 1:
        for seed in seeds:
            yield run_seed(seed, keep_notes=keep_notes, kinds=kinds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(partial(run_seed, keep_notes=keep_notes, kinds=kinds), seeds, chunksize=20)


class _Total:
    """What all runs come to."""

    def __init__(self) -> None:
        self.runs = self.tasks = self.steps = self.planes = self.sqlite = 0
        self.simulated_s = 0.0
        self.faults: Counter[str] = Counter()

    def add(self, run: Run) -> None:
        self.runs += 1
        self.tasks += run.tasks
        self.steps += run.steps
        self.planes += run.planes
        self.sqlite += run.sqlite
        self.simulated_s += run.simulated_s
        self.faults.update(run.faults)

    def text(self, seconds: float, failures: int) -> str:
        """A summary in a few lines."""
        faults = ", ".join(f"{kind} {count}" for kind, count in self.faults.most_common())
        return (
            f"{self.runs} runs in {seconds:.1f} s ({1000 * seconds / max(1, self.runs):.1f} ms each), "
            f"{failures} failed\n"
            f"{self.simulated_s / 3600:.1f} simulated hours, {self.tasks} tasks, {self.planes} control planes, "
            f"{self.steps} callbacks, {self.sqlite} runs on SQLite\nfaults: {faults}"
        )


if __name__ == "__main__":
    sys.exit(main())
