"""The processes of a run: a control plane that may come and go, instances, clients; and what they do when left alone.

Everything in them is the product: `ControlPlane`, `Runner`, `Link`, `Client`. What happens to them is in `faults`, what
must come of it in `model`.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from llama_deploy.apiserver.local_instance import LocalInstance
from llama_deploy.client import Client
from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.errors import (
    CannotReachError,
    CommitConflictError,
    ConnectionLostError,
    NoInputExpectedError,
    ServiceUnknownError,
    ShuttingDownError,
    StoreUnavailableError,
    TaskEndedError,
    WaitTimeoutError,
)
from llama_deploy.message_queues import Envelope
from llama_deploy.message_queues.simple import InProcessQueue
from llama_deploy.services import Runner
from llama_deploy.state_stores import StateStore
from llama_deploy.testing.faulty_queue import FaultyQueue
from llama_deploy.testing.simulation.disk import Platter, SimulatedSQLiteStore, SimulatedStore
from llama_deploy.testing.simulation.loop import START_S, Process, ProcessClock, SimulatedLoop
from llama_deploy.testing.simulation.network import Network, SimulatedLink, SimulatedTransport
from llama_deploy.testing.simulation.programs import PERSON, Ledger, Plan, Recurring, orchestrator, services
from llama_deploy.testing.simulation.receivers import SETTINGS, Heard, SimulatedWebhooks
from llama_deploy.types import RateLimit, TaskResult
from llama_deploy.types.schedules import Schedule

PASSING = (
    CannotReachError,
    CommitConflictError,
    ConnectionLostError,
    ServiceUnknownError,
    ShuttingDownError,
    StoreUnavailableError,
    WaitTimeoutError,
)
"""What a client tries again after."""
OWN_DRAIN_S = 2.0
"""How long requests that are under way may take when a control plane stops."""


@dataclass
class Told:
    """What the control plane has told clients; all of it must turn out to be true."""

    accepted: dict[str, set[str]] = field(default_factory=dict)
    """By planned task: the ids under which it was accepted."""
    outcomes: dict[str, list[TaskResult]] = field(default_factory=dict)
    canceled: set[str] = field(default_factory=set)
    """Tasks of which a client was told that they are canceled."""
    inputs: Counter[str] = field(default_factory=Counter)
    """By task: inputs that were said to be received."""
    inputs_tried: Counter[str] = field(default_factory=Counter)
    streams: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    """By task: every event that a reader was given, who goes on after each break where it stood."""
    made: dict[str, str] = field(default_factory=dict)
    """Tasks that clients have made of another one, and of which."""
    redriven: dict[str, str] = field(default_factory=dict)
    """By dead letter: the task in which it was said to be sent again."""
    wrong: list[str] = field(default_factory=list)
    """What clients were told that they must never be told."""


class WatchedQueue(FaultyQueue):
    """Notes when each attempt of a step is handed out."""

    def __init__(self, ledger: Ledger, loop: SimulatedLoop, inner: InProcessQueue, **options: Any) -> None:
        super().__init__(inner, **options)
        self._ledger = ledger
        self._loop = loop

    def publish(self, envelopes: Sequence[Envelope]) -> list[Envelope]:
        for envelope in envelopes:
            attempts = self._ledger.handed_out[envelope.topic]
            attempts.setdefault((envelope.step_id, envelope.attempt), self._loop.time())
        return super().publish(envelopes)

    def withdraw(self, step_ids: Sequence[str]) -> int:
        for attempts in self._ledger.handed_out.values():
            for place in [place for place in attempts if place[0] in step_ids]:
                del attempts[place]
        return super().withdraw(step_ids)


class Cluster:
    """The processes of one run."""

    def __init__(  # noqa: PLR0917 - made in one place
        self,
        loop: SimulatedLoop,
        chance: random.Random,
        kind: str,
        settings: EngineSettings,
        plans: list[Plan],
        file: Path | None,
    ) -> None:
        self.loop = loop
        self.chance = chance
        self.kind = kind
        self.settings = settings
        self.plans = plans
        self.file = file
        self.ledger = Ledger()
        self.told = Told()
        self.network = Network(loop, random.Random(chance.random()))
        self.platter = Platter(random.Random(chance.random()))
        self.queue_faults: dict[str, float] = {}
        self.plane: ControlPlane | None = None
        self.plane_process: Process | None = None
        self.queue: FaultyQueue | None = None
        self.own_services: LocalInstance | None = None
        """The instance in the control plane's own process, which calls webhooks, where there are any."""
        self.heard = Heard()
        self.starting = False
        self.instances: dict[str, tuple[Process, Runner, SimulatedLink]] = {}
        self.clients: dict[int, Process] = {}
        self.unfinished: dict[str, int] = {}
        """What clients still do: by name of the programme, which client does it."""
        self.planes_started = 0
        self.limits: dict[str, int | None] = {}
        """By worker: how many steps may run at once."""
        self.rates: dict[str, RateLimit] = {}
        """By worker: how often attempts may begin."""
        self.recurring: Recurring | None = None
        self.drained = 0
        """How often an instance was asked to leave."""

    # --- the control plane ------------------------------------------------------------------------------------------

    def start_plane(self) -> None:
        """Start a control plane on the disk, unless one runs."""
        if self.plane_process is not None:
            return
        process = self.plane_process = self.loop.new_process("plane")
        process.at_death.append(lambda: self._plane_died(process))
        self.planes_started += 1
        process.spawn(self._run_plane, process)

    async def _run_plane(self, process: Process) -> None:
        chance = random.Random(self.chance.random())
        clock = ProcessClock(process)
        inner = InProcessQueue(clock=clock)
        queue = self.queue = WatchedQueue(self.ledger, self.loop, inner, chance=chance, **self.queue_faults)
        store: StateStore
        if self.file is not None:
            store = SimulatedSQLiteStore(self.file, self.platter, process)
        else:
            store = SimulatedStore(self.platter, process)
        plane = ControlPlane(
            store=store,
            queue=queue,
            orchestrator=orchestrator(self.kind, self.ledger, chance),
            settings=self.settings,
            clock=clock,
            webhooks=SETTINGS,
            seed=chance.randrange(1 << 30),
        )
        await plane.start()
        if any(plan.webhook is not None for plan in self.plans):
            told = SimulatedWebhooks(plane, self.heard, random.Random(self.chance.random()))
            self.own_services = LocalInstance(plane, [told])
            await self.own_services.start()
        self.plane = plane
        self.network.listening = (process, plane)

    def _plane_died(self, process: Process) -> None:
        if self.plane_process is process:
            self.plane = self.plane_process = self.own_services = None
            self.network.listening = None

    def stop_plane(self) -> None:
        """Ask the control plane to stop as SIGTERM does."""
        process, plane, own_services = self.plane_process, self.plane, self.own_services
        if process is not None and plane is not None:

            async def stop() -> None:
                self.network.listening = None
                if own_services is not None:
                    await own_services.stop(OWN_DRAIN_S)
                await plane.stop()
                process.kill()

            process.spawn(stop)

    # --- instances --------------------------------------------------------------------------------------------------

    def start_instance(self, name: str) -> None:
        """Start an instance of this name, unless it runs."""
        if name in self.instances:
            return
        process = self.loop.new_process(name)
        chance = random.Random(self.chance.random())
        runner = Runner(
            services(self.ledger, chance, concurrency=chance.randint(1, 4), limits=self.limits, rates=self.rates),
            instance_id=chance.choice([name, process.name]),
            clock=ProcessClock(process),
        )

        link = SimulatedLink(runner, self.network, process)
        self.instances[name] = (process, runner, link)

        async def run() -> None:
            await runner.start()
            link.start()

        process.at_death.append(lambda: self._instance_died(name, process))
        process.spawn(run)

    def _instance_died(self, name: str, process: Process) -> None:
        if name in self.instances and self.instances[name][0] is process:
            del self.instances[name]

    def drain_instance(self, name: str) -> None:
        """Ask an instance to leave as SIGTERM does."""
        process, runner, link = self.instances[name]
        self.drained += 1

        async def leave() -> None:
            await runner.drain(self.chance.uniform(0.0, 3.0))
            await asyncio.sleep(0.01)
            await link.stop()
            await asyncio.sleep(0.1)
            process.kill()

        if not process.dead:
            process.spawn(leave)

    # --- clients ----------------------------------------------------------------------------------------------------

    def start_client(self, number: int) -> None:
        """Start a client that goes on with everything that it has not finished."""
        if number in self.clients:
            return
        process = self.clients[number] = self.loop.new_process(f"client-{number}")
        process.at_death.append(lambda: self.clients.__delitem__(number))
        client = Client(transport=SimulatedTransport(self.network, process), reconnect_timeout_s=30.0)
        programmes = self._programmes()
        for name, owner in self.unfinished.items():
            if owner == number:
                process.spawn(self._finish, name, programmes[name], client)

    def give_work(self, clients: int) -> None:
        """Say which client does what."""
        for position, name in enumerate(self._programmes()):
            self.unfinished[name] = position % clients

    async def _finish(self, name: str, work: Callable[[Client], Any], client: Client) -> None:
        try:
            await work(client)
        except Exception as error:  # noqa: BLE001 - the verdict of the run
            self.told.wrong.append(f"{name}: {type(error).__name__}: {error}")
        self.unfinished.pop(name, None)

    def _programmes(self) -> dict[str, Callable[[Client], Any]]:
        """Everything that clients do, by name."""
        found: dict[str, Callable[[Client], Any]] = {}
        if self.recurring is not None:
            found["schedule"] = partial(self._schedule, self.recurring)
        for plan in self.plans:
            found[f"submit {plan.task_id}"] = partial(self._submit, plan)
            if plan.twice:
                found[f"submit {plan.task_id} again"] = partial(self._submit, plan)
            if plan.cancel_at is not None:
                found[f"cancel {plan.task_id}"] = partial(self._cancel, plan)
            if plan.pause_at is not None:
                found[f"pause {plan.task_id}"] = partial(self._pause, plan)
            if plan.reads_stream:
                found[f"read {plan.task_id}"] = partial(self._read, plan)
            if plan.asks:
                found[f"answer {plan.task_id}"] = partial(self._answer, plan)
        return found

    async def _at(self, when: float) -> None:
        await asyncio.sleep(max(0.0, when - self.loop.time()))

    async def _attempts(self) -> AsyncIterator[None]:
        """Turns of a client that tries again, with pauses."""
        while True:
            yield
            await asyncio.sleep(self.chance.uniform(0.05, 1.0))

    async def _submit(self, plan: Plan, client: Client) -> None:
        await self._at(plan.starts_at)
        accepted = self.told.accepted.setdefault(plan.task_id, set())
        async for _ in self._attempts():
            # Under a key the task's id is the server's to say: a further submission has one of its own.
            task_id = f"{plan.task_id}-{self.chance.randrange(1000)}" if plan.key else plan.task_id
            try:
                found = await client.submit(
                    plan.service,
                    input=plan.input,
                    task_id=task_id,
                    session_id=plan.session_id,
                    idempotency_key=plan.key,
                    wait_for_service=True,
                    options=plan.options,
                    timeout_s=self.chance.choice([2.0, 60.0]),
                )
                break
            except PASSING:
                continue
        accepted.add(found)
        async for _ in self._attempts():
            try:
                outcome = await client.wait(found, timeout_s=self.chance.choice([5.0, 600.0]))
                break
            except PASSING:
                continue
        self.told.outcomes.setdefault(found, []).append(outcome)
        if plan.retried and outcome.status != "completed":
            await self._once_more(partial(self._retry, found, client), found, client)
        elif plan.again and not (plan.again == "redrive" and outcome.status == "completed"):
            make = {"redrive": self._redrive, "replay": self._replay, "fork": self._fork}[plan.again]
            await self._once_more(partial(make, found, client, plan), found, client)

    async def _once_more(self, make: Callable[[], Awaitable[str | None]], task_id: str, client: Client) -> None:
        """Have a new task made of one that has ended, in a way that is safe to repeat, and wait for it."""
        async for _ in self._attempts():
            try:
                new_task_id = await make()
                if new_task_id is None:
                    return
                self.told.made[new_task_id] = task_id
                outcome = await client.wait(new_task_id, timeout_s=600.0)
            except PASSING:
                continue
            self.told.outcomes.setdefault(new_task_id, []).append(outcome)
            return

    @staticmethod
    async def _retry(task_id: str, client: Client) -> str:
        return (await client.retry(task_id, new_task_id=f"{task_id}-retry")).task_id

    async def _redrive(self, task_id: str, client: Client, plan: Plan) -> str | None:
        """Mend what was broken, and send again what was given up because of it."""
        self.ledger.mended.add(plan.breakable)
        step_id = min((letter.step_id for letter in (await client.list_dead(task_id=task_id)).items), default=None)
        if step_id is None:
            return None  # nothing was given up: it was canceled, or its deadline was over
        made = (await client.redrive(step_id)).task_id
        if self.told.redriven.setdefault(step_id, made) != made:
            self.told.wrong.append(f"{step_id} was sent again in {self.told.redriven[step_id]} and in {made}")
        return made

    async def _replay(self, task_id: str, client: Client, plan: Plan) -> str:
        _, step_id = await self._point(task_id, client, plan)
        return (await client.replay(task_id, step_id=step_id, new_task_id=f"{task_id}-replay")).task_id

    async def _fork(self, task_id: str, client: Client, plan: Plan) -> str:
        seq, _ = await self._point(task_id, client, plan)
        return (await client.fork(task_id, seq, new_task_id=f"{task_id}-fork")).task_id

    @staticmethod
    async def _point(task_id: str, client: Client, plan: Plan) -> tuple[int, str]:
        """An entry of a task's history that sent steps, and one of those; the same one each time."""
        found = [
            (entry.seq, entry.messages[0]["step_id"])
            async for entry in client.history(task_id, follow=True)
            if entry.kind in {"submitted", "answered"} and entry.messages and entry.outcome is None
        ]
        return found[int(plan.point * len(found))]

    async def _schedule(self, recurring: Recurring, client: Client) -> None:
        schedule = Schedule(
            every_s=recurring.every_s,
            start_at=START_S + recurring.first,
            end_at=START_S + recurring.last,
            overlap="allow",
            catch_up="all",
            service=recurring.job.service,
            input=msgspec.to_builtins({"stages": [[recurring.job]]}),
        )
        async for _ in self._attempts():
            try:
                await client.put_schedule(recurring.name, schedule)
                break
            except PASSING:
                continue

    def _id_of(self, plan: Plan) -> str | None:
        return min(self.told.accepted.get(plan.task_id) or (), default=None)

    async def _when_accepted(self, plan: Plan) -> str:
        async for _ in self._attempts():
            found = self._id_of(plan)
            if found is not None:
                return found
        raise AssertionError("it goes on for ever")

    async def _cancel(self, plan: Plan, client: Client) -> None:
        assert plan.cancel_at is not None
        await self._at(plan.cancel_at)
        task_id = await self._when_accepted(plan)
        async for _ in self._attempts():
            try:
                view = await client.cancel(task_id, reason="no more")
            except PASSING:
                continue
            except TaskEndedError:
                return
            if view.state == "canceled":
                self.told.canceled.add(task_id)
            else:
                self.told.wrong.append(f"{task_id} is {view.state} after it was canceled")
            return

    async def _pause(self, plan: Plan, client: Client) -> None:
        """Pause a task, and have it go on some time later, whoever dies in between."""
        assert plan.pause_at is not None
        await self._at(plan.pause_at)
        task_id = await self._when_accepted(plan)
        for change in (client.pause, client.resume):
            async for _ in self._attempts():
                try:
                    view = await change(task_id)
                except PASSING:
                    continue
                except TaskEndedError:
                    return
                if view.paused != (change == client.pause) and view.ended_at is None:
                    self.told.wrong.append(f"{task_id}: paused is {view.paused} after {change.__name__}")
                break
            await asyncio.sleep(self.chance.uniform(0.0, 4.0))

    async def _read(self, plan: Plan, client: Client) -> None:
        task_id = await self._when_accepted(plan)
        events = self.told.streams.setdefault(task_id, [])
        async for _ in self._attempts():
            try:
                async for event in client.stream(task_id, first=len(events)):
                    events.append((event.index, event.data))
            except PASSING:
                continue
            return

    async def _answer(self, plan: Plan, client: Client) -> None:
        task_id = await self._when_accepted(plan)
        async for _ in self._attempts():
            try:
                view = await client.get_task(task_id)
                if view.ended_at is not None:
                    return
                if view.state == "input_required":
                    await self._give(client, task_id, None)
            except (*PASSING, NoInputExpectedError, TaskEndedError):
                continue

    async def _give(self, client: Client, task_id: str, step_id: str | None) -> None:
        self.told.inputs_tried[task_id] += 1
        try:
            await client.send_input(task_id, PERSON, step_id=step_id)
        except NoInputExpectedError as error:
            steps = error.details.get("steps")
            if step_id is None and steps:
                await self._give(client, task_id, self.chance.choice(list(steps)))
            return
        self.told.inputs[task_id] += 1
