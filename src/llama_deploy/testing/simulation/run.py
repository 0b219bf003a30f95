"""One run: a seed becomes a cluster, programs and faults; it runs until all is at rest; the model has the last word."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import uuid_utils

from llama_deploy.control_plane import EngineSettings
from llama_deploy.runtime.failpoints import disarm
from llama_deploy.testing.simulation import model
from llama_deploy.testing.simulation.cluster import Cluster
from llama_deploy.testing.simulation.draws import draw_more, draw_plans, draw_recurring, draw_webhooks
from llama_deploy.testing.simulation.faults import KINDS, Faults
from llama_deploy.testing.simulation.loop import SimulatedLoop, Stuck, in_words
from llama_deploy.testing.simulation.programs import WORKERS

REST_S_MAX = 3600.0
"""Simulated time after the last fault within which everything must have come to rest."""
SQLITE_SHARE = 0.04
"""Of the runs, how many have SQLite's own file in the place of the simulated rows: they take longer."""


@dataclass
class Run:
    """What became of a seed."""

    seed: int
    problems: list[str] = field(default_factory=list)
    trace: int = 0
    """Checksum of everything that happened."""
    steps: int = 0
    simulated_s: float = 0.0
    kind: str = ""
    sqlite: bool = False
    tasks: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    planes: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return bool(self.problems)

    def report(self) -> str:
        """The problems, and how to see them again."""
        lines = [f"seed {self.seed} ({self.kind}{', SQLite' if self.sqlite else ''}):"]
        lines += [f"  {problem}" for problem in self.problems[:20]]
        lines.append(f"  again: python -m llama_deploy.testing.simulation --from {self.seed} --seeds 1 --trace")
        return "\n".join(lines)


class _ErrorLog(logging.Handler):
    """Errors that living processes log are errors of the run."""

    def __init__(self, loop: SimulatedLoop) -> None:
        super().__init__(logging.WARNING)
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        process = self._loop.process
        if process is None or process.dead:
            return
        text = record.getMessage()
        if self._loop.notes is not None:
            self._loop.notes.append(f"{self._loop.time():.6f} {process.name} logs: {text.splitlines()[0]}")
        if record.levelno >= logging.ERROR:
            if record.exc_info and record.exc_info[1] is not None:
                text += f": {in_words(record.exc_info[1])}"
            self._loop.errors.append(f"{process.name}: {text}")


@contextmanager
def _surroundings(loop: SimulatedLoop, seed: int) -> Iterator[None]:
    """What a run changes outside of itself, and puts back: chance, logging, failpoints, new ids, garbage collection."""
    logger = logging.getLogger("llama_deploy")
    before = (logger.handlers[:], logger.propagate, logger.level)
    state = random.getstate()
    collecting = gc.isenabled()
    logger.handlers[:], logger.propagate = [_ErrorLog(loop)], False
    logger.setLevel(logging.WARNING)
    random.seed(seed)
    ids = random.Random(f"ids {seed}")
    gc.disable()  # what a dead process leaves is not to be taken apart in the middle of something else
    try:
        with patch.object(uuid_utils, "uuid7", lambda: f"{int(loop.time() * 1e6):012x}-{ids.getrandbits(64):016x}"):
            yield
    finally:
        if collecting:
            gc.enable()
        random.setstate(state)
        logger.handlers[:], logger.propagate = before[0], before[1]
        logger.setLevel(before[2])
        disarm()


def draw_settings(chance: random.Random) -> EngineSettings:
    """Small limits and short times as well as the defaults: where memory is short, everything is loaded again."""
    small = chance.random() < 0.5
    return EngineSettings(
        attempts_max=60,
        overdue_s=chance.choice([2.0, 30.0]),
        recovery_grace_s=chance.choice([0.0, 1.0]),
        claim_recorded_after_s=chance.choice([0.05, 1.0]),
        decision_retries_max=4,
        ended_tasks_cached_max=chance.choice([0, 1, 2]) if small else 2000,
        sessions_cached_max=chance.choice([0, 1]) if small else 2000,
        sweep_batch_max=chance.choice([1, 2, 500]),
        stream_chunk_bytes_max=chance.choice([60, 262_144]),
    )


def run_seed(seed: int, *, keep_notes: bool = False, kinds: list[str] | None = None) -> Run:
    """Run one seed; never raises for what the product does wrong.

    `kinds` are the faults that may happen, where they are not drawn.
    """
    chance = random.Random(seed)
    loop = SimulatedLoop(chance.randrange(1 << 30), shuffle=chance.random() < 0.7)
    if keep_notes:
        loop.notes = []
    run = Run(seed)
    with _surroundings(loop, seed), tempfile.TemporaryDirectory(prefix="simulation-") as folder:
        run.kind = chance.choice(["simple", "flow", "flow", "own", "slow", "slow"])
        run.sqlite = chance.random() < SQLITE_SHARE
        span_s = chance.choice([3.0, 10.0, 25.0])
        plans = draw_plans(chance, run.kind, span_s * 0.7)
        file = Path(folder) / "store.db" if run.sqlite else None
        cluster = Cluster(loop, random.Random(chance.random()), run.kind, draw_settings(chance), plans, file)
        if chance.random() < 0.3:
            cluster.limits = {name: chance.choice([None, 1, 2]) for name in WORKERS}
        cluster.recurring = draw_recurring(chance, span_s)
        # Drawn by itself: seeds that have none of it are the same runs as before there was any.
        cluster.rates = draw_more(random.Random(f"more {seed}"), plans, run.kind)
        draw_webhooks(random.Random(f"webhooks {seed}"), plans)
        if kinds is None:
            kinds = chance.sample(KINDS, chance.choice([0, 1, 2, 3, 5, len(KINDS)]))
        faults = Faults(cluster, random.Random(chance.random()), kinds=kinds, span_s=span_s)
        faults.instance_names = ("one", "two", "three")[: chance.randint(1, 3)]
        asyncio.set_event_loop(loop)
        try:
            run.problems = list(loop.run_until_complete(_live(cluster, faults, clients=chance.randint(1, 3))))
        except Stuck as stuck:
            run.problems = [str(stuck), *cluster.told.wrong, *loop.errors]
        except Exception as error:  # noqa: BLE001 - what is recorded cannot even be looked at
            run.problems = [f"the check failed: {in_words(error)}", *cluster.told.wrong, *loop.errors]
        finally:
            run.trace, run.steps, run.simulated_s = loop.trace, loop.steps, loop.time()
            run.faults, run.tasks, run.planes = faults.counts, len(plans), cluster.planes_started
            run.notes = loop.notes or []
            loop.discard()
            asyncio.set_event_loop(None)
    return run


async def _live(cluster: Cluster, faults: Faults, *, clients: int) -> list[str]:
    """Start everything, let it be disturbed, wait until it rests, and look."""
    cluster.give_work(clients)
    faults.begin(clients)
    faults.bring_back()
    await faults.run()
    faults.heal()
    rests = 0
    deadline = cluster.loop.time() + REST_S_MAX
    while rests < 3:
        faults.bring_back()
        if cluster.loop.time() > deadline:
            return [
                f"no rest after {REST_S_MAX:g} s: {await _unrest(cluster)}",
                *cluster.told.wrong,
                *cluster.loop.errors,
            ]
        await asyncio.sleep(0.7)
        rests = rests + 1 if not await _unrest(cluster) else 0
        if not rests:
            await asyncio.sleep(min(60.0, (cluster.loop.time() - faults.span_s) / 10))
    return await model.check(cluster, undisturbed=not faults.counts, disk_failed=bool(faults.counts["commits fail"]))


async def _unrest(cluster: Cluster) -> str:
    """What is still going on, in words; empty when nothing is."""
    plane = cluster.plane
    if plane is None:
        return "no control plane"
    if cluster.queue is not None and cluster.queue.held_up:
        return "the queue holds something up"
    if cluster.unfinished:
        return f"clients: {', '.join(cluster.unfinished)}"
    if plane.engine.cache.unfinished or plane.store.backlog or await plane.store.next_due() is not None:
        due = [row.step_id for row in await plane.store.due_deliveries(1e12, limit=10)]
        return f"tasks: {await plane.store.count_tasks()}, deliveries {due}"
    if cluster.recurring is not None and (await plane.schedules.get(cluster.recurring.name)).next_at is not None:
        return "the schedule has further times"
    if plane.engine._background:
        return f"work beside the flow: {list(plane.engine._background)}"
    held = [step for _, runner, _ in cluster.instances.values() for step in runner.steps]
    return f"steps in runners: {held}" if held else ""
