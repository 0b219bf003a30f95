"""Random programs: tasks as data, the services and orchestrators that carry them out, and what must come of them.

A program is a list of stages, each of them steps that run side by side; the next stage is given the sum of the one
before. What a step computes is plain arithmetic, so the right outcome of a program is known before it runs, whatever
happens on the way. Services count how often they run each step; nothing here knows of faults.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import msgspec

from llama_deploy.errors import NonRetryableError
from llama_deploy.messages import QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator, SimpleOrchestrator
from llama_deploy.services.base import Parked, Service, StepContext
from llama_deploy.services.human import PlainHumanService
from llama_deploy.services.results import result_from_value
from llama_deploy.types import (
    ActionTypes,
    RateLimit,
    ServiceDefinition,
    ServiceLimits,
    TaskDefinition,
    TaskOptions,
    TaskResult,
    Webhook,
)
from llama_deploy.types.reserved import TIMER_SERVICE

Again = Literal["", "redrive", "replay", "fork"]
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
    """How long it takes at most; a timer, how long it is."""
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
    broken: str = ""
    """It raises until what this names is mended."""
    saves: int = 0
    """It stores a file of so many bytes, reads it again, and returns it."""

    @property
    def hopeless(self) -> bool:
        """Whether no attempt succeeds, whatever is mended."""
        return self.final or self.fails > RETRIES


def file_of(job: Job) -> bytes:
    """The file that a job stores; jobs of one value store the same."""
    return (b"%d " % job.value * job.saves)[: job.saves]


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
    total_timeout_s: float | None = None
    retried: bool = False
    """Its client retries it, as a new task, when it has not ended well."""
    again: Again = ""
    """What else its client does once it has ended: mends what is broken and redrives its dead letter, or makes a new
    task of it that begins at a point of its past."""
    point: float = 0.0
    """Which point that is, as a share of all there are."""
    mended: bool = False
    """What is broken in it is mended before it begins."""
    reads_stream: bool = False
    twice: bool = False
    """Two clients submit it."""
    webhook: Webhook | None = None
    """Who is told of its end."""

    @property
    def input(self) -> str:
        """The task's input."""
        return msgspec.json.encode({"stages": self.stages}).decode()

    @property
    def options(self) -> TaskOptions | None:
        """What the client asks for beside the task."""
        if self.priority is None and self.delay_s is None and self.total_timeout_s is None and self.webhook is None:
            return None
        return TaskOptions(
            priority=self.priority,
            delay_s=self.delay_s,
            total_timeout_s=self.total_timeout_s,
            webhook=self.webhook,
        )

    @property
    def breakable(self) -> str:
        """What may be broken in it: not its id alone, which becomes another one in a task that is made of it."""
        return f"part of {self.task_id}"

    @property
    def asks(self) -> bool:
        """Whether a person is needed."""
        return any(job.asks or job.service in {"boss", "clerk"} for stage in self.stages for job in stage)


def value_of(job: Job, carried: int) -> int:
    """What a step of this job returns."""
    if job.service in {"boss", "clerk"}:
        return PERSON
    if job.service == TIMER_SERVICE:
        return 0
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
            if job.hopeless or (job.broken and not plan.mended):
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
    running: Counter[str] = field(default_factory=Counter)
    """By service: how many runs there are now that have their place, as far as nobody was killed."""
    most: Counter[str] = field(default_factory=Counter)
    """By service: how many there were at once."""
    mended: set[str] = field(default_factory=set)
    """What was broken and is not any more."""
    handed_out: dict[str, dict[tuple[str, int], float]] = field(default_factory=lambda: defaultdict(dict))
    """By service, step and attempt: when it was first handed to the queue, and not taken back."""
    raised: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How often the orchestrator has raised at one place of a task."""


class Worker(Service):
    """Does jobs."""

    def __init__(
        self, name: str, ledger: Ledger, chance: random.Random, *, concurrency: int, limits: ServiceLimits | None
    ) -> None:
        self._ledger = ledger
        self._chance = chance
        self.definition = ServiceDefinition(
            service_name=name,
            description="",
            concurrency=concurrency,
            run_timeout_s=RUN_TIMEOUT_S,
            limits=limits,
        )

    async def run(self, context: StepContext) -> TaskResult | Parked:
        with self._counted(1):
            return await self._run(context)

    @contextmanager
    def _counted(self, count: int) -> Iterator[None]:
        """So many more run meanwhile; what waits for a person or for what it has called does not count."""
        name, running = self.definition.service_name, self._ledger.running
        running[name] += count
        self._ledger.most[name] = max(self._ledger.most[name], running[name])
        try:
            yield
        finally:
            running[name] -= count

    async def _run(self, context: StepContext) -> TaskResult | Parked:
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
        if run <= job.fails or job.hopeless or (job.broken and job.broken not in self._ledger.mended):
            raise RuntimeError(f"run {run} fails")
        if run <= job.fails + job.hangs:
            await asyncio.sleep(10 * RUN_TIMEOUT_S)
        called = await self._beyond(context, job)
        if job.asks:
            with self._counted(-1):
                answer = await context.ask("a number?")
            if answer != PERSON:
                raise NonRetryableError(f"a person answered {answer!r}")
        own = value_of(msgspec.structs.replace(job, calls=False), carried)
        made = await self._save(context, job)
        return result_from_value({"value": (own + called) % DRAW_LIMIT, "run": run, **made})

    async def _save(self, context: StepContext, job: Job) -> dict[str, Any]:
        """Store a file and read it again."""
        if not job.saves:
            return {}
        made = await context.save(file_of(job))
        if await made.read() != file_of(job):
            raise NonRetryableError("what was stored is not what is read")
        return {"made": made.model_dump(mode="json")}

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
        with self._counted(-1):
            found = await context.call(child.service, input={"stages": [[child]]}, wait_for_service=True)
        returned: int = found["value"]
        return returned


def services(
    ledger: Ledger,
    chance: random.Random,
    *,
    concurrency: int,
    limits: Mapping[str, int | None],
    rates: Mapping[str, RateLimit],
) -> list[Service]:
    """What one instance serves: workers, people who are asked, and whoever hears of finished tasks.

    `limits`: how many steps of a worker may run at once, over all instances; `rates`: how many may begin.
    """

    def limited(name: str) -> ServiceLimits | None:
        found = ServiceLimits(running_max=limits.get(name), rate=rates.get(name))
        return None if found.nothing else found

    async def notify(outcome: TaskResult) -> None:
        await asyncio.sleep(chance.uniform(0.0, 0.1))
        ledger.told[outcome.task_id] += 1

    return [
        *(Worker(name, ledger, chance, concurrency=concurrency, limits=limited(name)) for name in WORKERS),
        PlainHumanService("human", notify=notify),
        PlainHumanService("boss", prompt="a number?"),
        PlainHumanService("clerk", prompt="a number?", answer=int),
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
        delay_s = job.get("sleep_s", 0.0) if job["service"] == TIMER_SERVICE else 0.0
        return QueueMessage(type=job["service"], data={"job": job, "carried": carried}, tag=tag, delay_s=delay_s)

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
    if result.service == TIMER_SERVICE:
        return 0
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


@dataclass(frozen=True)
class Recurring:
    """A schedule: when it has times, in simulated seconds, and the one job of each of its tasks."""

    name: str
    first: float
    last: float
    every_s: float
    job: Job

    @property
    def times(self) -> list[float]:
        """All of its times."""
        return [
            self.first + number * self.every_s for number in range(int((self.last - self.first) / self.every_s) + 1)
        ]
