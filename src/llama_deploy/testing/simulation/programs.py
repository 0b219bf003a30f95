"""Random programs: tasks as data, the services and orchestrators that carry them out, and what must come of them.

A program is a list of stages, each of them steps that run side by side; the next stage is given the sum of the one
before. What a step computes is plain arithmetic, so the right outcome of a program is known before it runs, whatever
happens on the way. Services count how often they run each step; nothing here knows of faults.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec

from llama_deploy.errors import NonRetryableError
from llama_deploy.messages import QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator, SimpleOrchestrator
from llama_deploy.services import HumanService, Service
from llama_deploy.services.base import Parked, StepContext
from llama_deploy.services.results import result_from_value
from llama_deploy.types import ActionTypes, ServiceDefinition, TaskDefinition, TaskOptions, TaskResult

WORKERS = ("alpha", "beta")
RETRIES = 3
"""How often a failed step is tried again, by each of the orchestrators here and by the services' own settings."""
RUN_TIMEOUT_S = 5.0
PERSON = 7
"""What people answer."""
GIVEN_UP = -5
"""What a step counts for whose failure its orchestrator has accepted."""
DRAW_LIMIT = 1_000_003


class Job(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one step does."""

    service: str
    value: int
    sleep_s: float = 0.0
    events: int = 0
    fails: int = 0
    """So many runs raise before one succeeds; more than `RETRIES` means that it always raises."""
    hangs: int = 0
    """So many runs, after those that fail, do not return before their deadline."""
    final: bool = False
    """It raises an error that another attempt cannot mend."""
    asks: bool = False
    """It asks a person while it runs."""
    once: bool = False
    """It has a value remembered that is another one each time it is made."""
    calls: bool = False
    """It calls another service, as a task of its own, and adds what that returns."""

    @property
    def hopeless(self) -> bool:
        """Whether no attempt succeeds."""
        return self.final or self.fails > RETRIES


@dataclass
class Plan:
    """One task, and what its client does with it."""

    task_id: str
    service: str
    stages: list[list[Job]]
    session_id: str | None = None
    key: str | None = None
    starts_at: float = 0.0
    cancel_at: float | None = None
    pause_at: float | None = None
    priority: int | None = None
    delay_s: float | None = None
    """It begins so much later than it is submitted."""
    reads_stream: bool = False
    twice: bool = False
    """Two clients submit it."""

    @property
    def input(self) -> str:
        """The task's input."""
        return msgspec.json.encode({"stages": self.stages}).decode()

    @property
    def options(self) -> TaskOptions | None:
        """What the client asks for beside the task."""
        if self.priority is None and self.delay_s is None:
            return None
        return TaskOptions(priority=self.priority, delay_s=self.delay_s)

    @property
    def asks(self) -> bool:
        """Whether a person is needed."""
        return any(job.asks or job.service in {"boss", "clerk"} for stage in self.stages for job in stage)


def value_of(job: Job, carried: int) -> int:
    """What a step of this job returns."""
    if job.service in {"boss", "clerk"}:
        return PERSON
    called = value_of(child_of(job), 0) if job.calls else 0
    return (job.value * 31 + carried * 7 + (PERSON if job.asks else 0) + called) % DRAW_LIMIT


def child_of(job: Job) -> Job:
    """What a job calls."""
    other = WORKERS[1 - WORKERS.index(job.service)]
    return Job(service=other, value=job.value + 1, sleep_s=job.sleep_s, events=job.events, fails=job.value % 2)


def expected(plan: Plan, kind: str) -> int | None:
    """The value that the task ends with, or `None` where it must fail."""
    carried = 0
    for stage in plan.stages:
        total = 0
        for job in stage:
            if job.hopeless:
                if kind != "own":
                    return None
                total += GIVEN_UP
            else:
                total += value_of(job, carried)
        carried = total % DRAW_LIMIT
    return carried


@dataclass
class Ledger:
    """What the services of a run have seen; it belongs to nobody who can die."""

    runs: Counter[str] = field(default_factory=Counter)
    """By step: how often it was begun."""
    told: Counter[str] = field(default_factory=Counter)
    """By task: how often its end was told to a person."""
    made: Counter[str] = field(default_factory=Counter)
    """By step: how often a value to be remembered was made."""
    remembered: dict[str, set[int]] = field(default_factory=dict)
    """By step: every value that its attempts were given."""
    raised: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How often the orchestrator has raised at one place of a task."""


class Worker(Service):
    """Does jobs."""

    def __init__(self, name: str, ledger: Ledger, chance: random.Random, concurrency: int) -> None:
        self._ledger = ledger
        self._chance = chance
        self.definition = ServiceDefinition(
            service_name=name, description="", concurrency=concurrency, run_timeout_s=RUN_TIMEOUT_S
        )

    async def run(self, context: StepContext) -> TaskResult | Parked:
        data = context.data
        if "job" in data:
            job, carried = msgspec.convert(data["job"], Job), data["carried"]
        else:
            job, carried = msgspec.convert(msgspec.json.decode(data["task"]["input"])["stages"][0][0], Job), 0
        self._ledger.runs[context.step_id] += 1
        run = self._ledger.runs[context.step_id]
        for number in range(job.events):
            context.stream({"n": number, "attempt": context.attempt, "step": context.step_id})
            if self._chance.random() < 0.5:
                await asyncio.sleep(self._chance.uniform(0.0, job.sleep_s / job.events))
        await asyncio.sleep(self._chance.uniform(0.0, job.sleep_s))
        if job.final:
            raise NonRetryableError("never")
        if run <= job.fails or job.hopeless:
            raise RuntimeError(f"run {run} fails")
        if run <= job.fails + job.hangs:
            await asyncio.sleep(10 * RUN_TIMEOUT_S)
        called = await self._beyond(context, job)
        if job.asks and (answer := await context.ask("a number?")) != PERSON:
            raise NonRetryableError(f"a person answered {answer!r}")
        own = value_of(msgspec.structs.replace(job, calls=False), carried)
        return result_from_value({"value": (own + called) % DRAW_LIMIT, "run": run})

    async def _beyond(self, context: StepContext, job: Job) -> int:
        """Have a value remembered, call another service; returns what that one has returned."""
        ledger, step_id = self._ledger, context.step_id

        def make() -> int:
            ledger.made[step_id] += 1
            return ledger.made[step_id]

        if job.once:
            ledger.remembered.setdefault(step_id, set()).add(await context.once("a number", make))
        if not job.calls:
            return 0
        child = child_of(job)
        found = await context.call(child.service, input={"stages": [[child]]}, wait_for_service=True)
        returned: int = found["value"]
        return returned


def services(ledger: Ledger, chance: random.Random, concurrency: int) -> list[Service]:
    """What one instance serves: workers, people who are asked, and whoever hears of finished tasks."""

    async def notify(outcome: TaskResult) -> None:
        await asyncio.sleep(chance.uniform(0.0, 0.1))
        ledger.told[outcome.task_id] += 1

    return [
        *(Worker(name, ledger, chance, concurrency) for name in WORKERS),
        HumanService("human", notify=notify),
        HumanService("boss", prompt="a number?"),
        HumanService("clerk", prompt="a number?", answer=int),
    ]


class Flow(BaseOrchestrator):
    """Carries a program out stage by stage; tasks of a session count together what was answered."""

    synchronous: ClassVar[bool] = True

    def __init__(self, ledger: Ledger, chance: random.Random) -> None:
        self.ledger = ledger
        self.chance = chance

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        stages = msgspec.json.decode(task_def.input)["stages"]
        mine = state.setdefault(task_def.task_id, {"stage": -1, "waiting": 0, "carried": 0, "total": 0})
        again = mine.pop("again", None)
        if again is not None:
            stage, index = map(int, again["tag"].split("."))
            message = self._message(stages[stage][index], mine["carried"], again["tag"])
            message.step_id, message.delay_s = again["step_id"], again["delay_s"]
            return [message], state
        if mine["waiting"]:
            return [], state
        mine["carried"] = mine["total"] % DRAW_LIMIT
        mine["stage"] += 1
        mine["total"] = 0
        if mine["stage"] == len(stages):
            data = {"value": mine["carried"]}
            return [QueueMessage(type="human", action=ActionTypes.COMPLETED_TASK, data=data)], state
        jobs = stages[mine["stage"]]
        mine["waiting"] = len(jobs)
        return [self._message(job, mine["carried"], f"{mine['stage']}.{i}") for i, job in enumerate(jobs)], state

    @staticmethod
    def _message(job: dict[str, Any], carried: int, tag: str) -> QueueMessage:
        return QueueMessage(type=job["service"], data={"job": job, "carried": carried}, tag=tag)

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        return self._fold(result, state)

    def _fold(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        mine = state[result.task_id]
        mine["waiting"] -= 1
        mine["total"] += answer_of(result)
        count(result, state)
        return state


def answer_of(result: TaskResult) -> int:
    """The number that a step has answered with."""
    found = result.output
    number: int = found["value"] if isinstance(found, dict) else int(found)
    return number


def count(result: TaskResult, state: dict[str, Any]) -> None:
    """What tasks of a session share: how many answers there were, what they come to, and which key each has."""
    state["answers"] = state.get("answers", 0) + 1
    state["sum"] = state.get("sum", 0) + answer_of(result)
    state[f"last of {result.service}"] = result.step_id


class OwnRetries(Flow):
    """Sees failures, has them tried again, and goes on without the step when that does not help."""

    handles_failures: ClassVar[bool] = True

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        if result.status != "failed":
            return self._fold(result, state)
        mine = state[result.task_id]
        failures = mine.setdefault("failures", {})
        failures[result.tag] = failures.get(result.tag, 0) + 1
        if failures[result.tag] > RETRIES or (result.error is not None and not result.error.retryable):
            mine["waiting"] -= 1
            mine["total"] += GIVEN_UP
        else:
            mine["again"] = {"tag": result.tag, "step_id": result.step_id, "delay_s": 0.2}
        return state


class SlowFlow(Flow):
    """Takes its time to decide, looks at what the session shares before and after, and raises now and then."""

    synchronous: ClassVar[bool] = False

    async def _think(self) -> None:
        if self.chance.random() < 0.7:
            await asyncio.sleep(self.chance.uniform(0.0, 0.3))

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        await self._think()
        return await super().get_next_messages(task_def, state)

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        await self._think()
        place = (result.task_id, state[result.task_id]["waiting"])
        if self.chance.random() < 0.1 and self.ledger.raised[place] < RETRIES - 1:
            self.ledger.raised[place] += 1
            raise RuntimeError("the orchestrator raises now and then")
        state = self._fold(result, state)
        await self._think()
        return state


def orchestrator(kind: str, ledger: Ledger, chance: random.Random) -> BaseOrchestrator:
    """An orchestrator by its kind."""
    if kind == "simple":
        return SimpleOrchestrator(max_retries=RETRIES)
    return {"flow": Flow, "own": OwnRetries, "slow": SlowFlow}[kind](ledger, chance)


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
        plan = Plan(f"task-{number}", stages[0][0].service, stages, session_id=chance.choice(sessions))
        plan.starts_at = chance.uniform(0.0, span_s)
        plan.key = f"key-{number}" if chance.random() < 0.2 else None
        plan.cancel_at = plan.starts_at + chance.uniform(0.0, 10.0) if chance.random() < 0.12 else None
        plan.pause_at = plan.starts_at + chance.uniform(0.0, 5.0) if chance.random() < 0.1 else None
        plan.priority = chance.choice([None, None, 0, 9])
        plan.delay_s = chance.uniform(0.0, 5.0) if chance.random() < 0.1 else None
        plan.reads_stream = chance.random() < 0.5
        plan.twice = chance.random() < 0.15
        plans.append(plan)
    return plans
