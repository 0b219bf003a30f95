"""What is drawn for a run: its tasks, a schedule, rates, and what clients do once their tasks have ended.

Only values come from here, in the order in which they are drawn; what they mean is in `programs`.
"""

from __future__ import annotations

import random

import msgspec

from llama_deploy.testing.simulation.programs import RETRIES, WORKERS, Job, Plan, Recurring
from llama_deploy.testing.simulation.receivers import GONE, MANNERS, webhook_of
from llama_deploy.types import RateLimit
from llama_deploy.types.reserved import TIMER_SERVICE

MORE_SHARE = 0.3
"""Of the runs, how many have rates, files, and tasks that are made of others."""
WEBHOOKS_SHARE = 0.25
"""Of the runs, how many have tasks whose end is told to receivers."""
SAVES_SHARE = 0.25
"""Of the jobs in these runs, how many store a file."""


def draw_job(chance: random.Random, *, workers_only: bool) -> Job:
    """A random job."""
    if not workers_only and chance.random() < 0.12:
        return Job(service=chance.choice(["boss", "clerk"]), value=0)
    kind = chance.random()
    fails = chance.randint(1, RETRIES) if kind < 0.2 else 0
    return Job(
        service=chance.choice(WORKERS),
        value=chance.randrange(1000),
        sleep_s=chance.choice([0.0, 0.01, 0.3, 2.0]),
        events=chance.choice([0, 0, 0, 1, 3, 8]),
        fails=RETRIES + 1 if 0.2 <= kind < 0.23 else fails,
        hangs=1 if 0.23 <= kind < 0.26 else 0,
        final=0.26 <= kind < 0.29,
        asks=0.29 <= kind < 0.34,
        calls=0.34 <= kind < 0.42,
        once=chance.random() < 0.2,
    )


def draw_plans(chance: random.Random, kind: str, span_s: float) -> list[Plan]:
    """Random tasks that begin within `span_s` seconds."""
    sessions = [None, "session-1", "session-2"] if chance.random() < 0.6 else [None]
    plans = []
    for number in range(chance.randint(2, 7)):
        shape = 1 if kind == "simple" else chance.randint(1, 3)
        stages = []
        for _ in range(shape):
            width = 1 if kind == "simple" else chance.choice([1, 1, 2, 3])
            stages.append([draw_job(chance, workers_only=kind == "simple") for _ in range(width)])
            if kind != "simple" and chance.random() < 0.12:
                stages[-1].append(Job(TIMER_SERVICE, 0, sleep_s=chance.choice([0.05, 1.0, 8.0])))
        plan = Plan(f"task-{number}", stages[0][0].service, stages, session_id=chance.choice(sessions))
        plan.starts_at = chance.uniform(0.0, span_s)
        plan.key = f"key-{number}" if chance.random() < 0.2 else None
        plan.cancel_at = plan.starts_at + chance.uniform(0.0, 10.0) if chance.random() < 0.12 else None
        plan.pause_at = plan.starts_at + chance.uniform(0.0, 5.0) if chance.random() < 0.1 else None
        plan.priority = chance.choice([None, None, 0, 9])
        plan.delay_s = chance.uniform(0.0, 5.0) if chance.random() < 0.1 else None
        plan.total_timeout_s = chance.choice([1.0, 5.0, 20.0]) if chance.random() < 0.1 else None
        plan.retried = plan.session_id is None and not plan.asks and chance.random() < 0.5
        plan.reads_stream = chance.random() < 0.5
        plan.twice = chance.random() < 0.15
        plans.append(plan)
    return plans


def draw_more(chance: random.Random, plans: list[Plan], kind: str) -> dict[str, RateLimit]:
    """Give some runs what the others do not have: rates of workers, which are returned, files, tasks made of tasks."""
    if chance.random() >= MORE_SHARE:
        return {}
    for stage in (stage for plan in plans for stage in plan.stages):
        for place, job in enumerate(stage):
            if job.service in WORKERS and chance.random() < SAVES_SHARE:
                stage[place] = msgspec.structs.replace(job, saves=chance.choice([1, 700, 5000]))
    for plan in plans:
        if plan.session_id is not None or plan.asks or chance.random() < 0.3:
            continue
        plan.retried, plan.point = False, chance.random()
        plan.again = chance.choice(["redrive", "redrive", "replay", "fork"])
        if plan.again == "redrive":
            stage = chance.choice(plan.stages)
            place = chance.randrange(1 if kind == "simple" else len(stage))
            if stage[place].service in WORKERS:
                stage[place] = msgspec.structs.replace(stage[place], broken=plan.breakable)
    return {
        name: RateLimit(count=chance.randint(1, 4), seconds=chance.choice([0.5, 2.0, 5.0]))
        for name in WORKERS
        if chance.random() < 0.3
    }


def draw_webhooks(chance: random.Random, plans: list[Plan]) -> None:
    """Have the end of some tasks told to receivers, in some of the runs."""
    if chance.random() >= WEBHOOKS_SHARE:
        return
    for plan in plans:
        if chance.random() < 0.7:
            manner = chance.choice(MANNERS)
            # Of what is redriven the dead letter is to be that of the step that was broken, and no other.
            plan.webhook = webhook_of("busy" if manner == GONE and plan.again == "redrive" else manner)


def draw_recurring(chance: random.Random, span_s: float) -> Recurring | None:
    """A random schedule, or none."""
    if chance.random() < 0.7:
        return None
    first, every_s = float(chance.randint(0, int(span_s))), float(chance.choice([1, 2, 5]))
    job = Job(service=chance.choice(WORKERS), value=chance.randrange(1000), sleep_s=0.3, fails=chance.choice([0, 0, 1]))
    return Recurring("often", first, first + every_s * chance.randint(0, 4), every_s, job)
