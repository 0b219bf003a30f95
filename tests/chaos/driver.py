"""Carries a run out: starts the processes, submits the load, does what the schedule says, waits, checks, reports.

The load is decided by the seed, and so are the faults; what the operating system makes of them is not. A run that
fails says what differs and leaves its folder: the logs, the store, the sink, and what each client was told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import secrets
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from tests.chaos.checks import PROBLEMS_SHOWN, Findings, check, check_erased, check_sealed, check_sqlite
from tests.chaos.client_program import Share, read_told
from tests.chaos.faults import Faults, ended_well
from tests.chaos.kind import OUTAGES, Told
from tests.chaos.kinds import plan_of
from tests.chaos.plane_program import PlaneConfiguration
from tests.chaos.processes import Process, left_over
from tests.chaos.progress import StandstillError, while_it_moves
from tests.chaos.schedule import schedule, schedule_around
from tests.chaos.surroundings import CLIENT, IN_PROCESS, INSTANCE, RECEIVER, StoreKind, Surroundings
from tests.support import eventually

from llama_deploy.client import Client
from llama_deploy.errors import LlamaDeployError

SETTINGS = {"heartbeat_s": 0.5, "lease_s": 3.0}
"""Leases are shorter than the longest time that a process stands still, so that some of them run out."""
TAKEN_OVER = "shards were taken over by another control plane"
"""What a control plane says that has stood still for longer than its lease, where there are others."""
START_S = 300.0
"""How long everything may take to be there."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a run is."""

    duration_s: float = 60.0
    tasks: int = 10_000
    seed: int = 1
    instances: int = 3
    clients: int = 2
    still_s: float = 120.0
    """After the last fault: how long nothing may end before the run is given up. There is no limit to the whole."""
    folder: Path | None = None
    """Where logs and store go; a new folder by default, removed when all is well."""
    store: StoreKind = "sqlite"
    """A file in the folder, or a database server of the run's own, which is stopped now and then."""
    carrier: str = IN_PROCESS
    """The queue within the control plane, or the kind of a broker of the run's own, which is killed and wiped."""
    cuts: bool = False
    """Whether ways of the network are cut."""
    planes: int = 1
    """Control planes; several share the store."""
    encrypted: bool = False
    """Whether the store's content is encrypted; a control plane that is alone has a new key with each of its lives."""


@dataclass
class Report:
    """What a run has found."""

    figures: dict[str, Any]
    problems: list[str]
    folder: Path

    def render(self) -> str:
        """The figures as JSON, then what differs."""
        lines = [json.dumps(self.figures, indent=2)]
        if self.problems:
            lines.append(f"{len(self.problems)} problems; logs, store and what clients were told: {self.folder}")
            lines += [f"  {problem[:2000]}" for problem in self.problems[:PROBLEMS_SHOWN]]
        return "\n".join(lines)


class Run:
    """One run. `carry_out` does all of it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sink = self.folder / "sink.db"
        self.findings = Findings()
        self.surroundings = Surroundings(
            self.folder, store=options.store, carrier=options.carrier, cuts=options.cuts, planes=options.planes
        )
        self.processes: dict[str, Process] = {}
        self.faults = Faults(self.processes, self.surroundings, self.findings)
        self._begin_at = 0.0
        self._keys: list[str] = []

    async def carry_out(self) -> Report:
        """Do everything; processes, servers and networks are gone afterwards, whatever happens."""
        began = time.monotonic()
        try:
            await self._start()
            async with self._watching():
                await self._disturb()
                await self._finish()
            told = [one for index in range(self.options.clients) for one in read_told(self._told(index))]
            checked = time.monotonic()
            await self._check(told)
        finally:
            for process in self.processes.values():
                await process.end(signal.SIGKILL)
            await self.surroundings.remove()
        figures = {**self._figures(told), "check_s": round(time.monotonic() - checked, 1)}
        figures["all_s"] = round(time.monotonic() - began, 1)
        timeline = self.faults.timeline(self._begin_at)
        (self.folder / "report.json").write_text(json.dumps({**figures, "timeline": timeline}, indent=2))
        report = Report(figures, self.findings.problems, self.folder)
        if not report.problems and self.options.folder is None:
            shutil.rmtree(self.folder)
        return report

    # --- the processes ----------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        instances = [f"{INSTANCE}-{number}" for number in range(self.options.instances)]
        clients = [f"{CLIENT}-{number}" for number in range(self.options.clients)]
        await self.surroundings.start([*self.surroundings.planes, RECEIVER, *instances, *clients])
        for name in self.surroundings.planes:
            self._add(name, "plane_program")
        self._add(RECEIVER, "receiver_program")
        for name in instances:
            self._add(name, "service_program")
        for process in self.processes.values():
            await process.start()
        async with Client(self._asked) as client:

            async def ready() -> bool:
                for process in self.processes.values():
                    assert process.code is None, f"{process.name} does not start:\n{process.said()}"
                with contextlib.suppress(*OUTAGES):
                    return bool(await client.list_services())
                return False

            await eventually(ready, START_S)
        self._begin_at = time.time()
        for name in clients:
            self._add(name, "client_program")
            await self.processes[name].start()

    def _add(self, name: str, module: str) -> None:
        arguments = {
            "plane_program": self._plane_arguments,
            "receiver_program": self._receiver_arguments,
            "service_program": self._service_arguments,
            "client_program": self._client_arguments,
        }[module]
        inside = self.surroundings.network.inside(name)
        self.processes[name] = Process(name, module, lambda: arguments(name), self.folder, inside)

    async def _plane_arguments(self, name: str) -> Sequence[str]:
        around = self.surroundings
        configuration = PlaneConfiguration(
            run=str(self.folder),
            host=around.network.host(name),
            port=around.planes[name],
            store=await around.store_url(name),
            message_queue=await around.broker_url(name),
            public_url=around.plane_url(name) if len(around.planes) > 1 else None,
            settings=SETTINGS,
            key_file=self._key_file() if self.options.encrypted else None,
        )
        return [msgspec.json.encode(configuration).decode()]

    def _key_file(self) -> str:
        """The keys of the next life of a control plane: what others have written has to be readable, too."""
        if not self._keys or self.options.planes == 1:
            self._keys.insert(0, secrets.token_hex(32))
        file = self.folder / "keys"
        file.write_text("\n".join(self._keys))
        return str(file)

    async def _receiver_arguments(self, name: str) -> Sequence[str]:
        return [self.surroundings.network.host(name), str(self.surroundings.receiver_port), str(self.sink)]

    async def _service_arguments(self, name: str) -> Sequence[str]:
        return [await self.surroundings.plane_url_for(name), str(self.sink)]

    async def _client_arguments(self, name: str) -> Sequence[str]:
        options, index = self.options, int(name.rpartition("-")[2])
        share = Share(
            await self.surroundings.plane_url_for(name),
            str(self._told(index)),
            options.seed,
            options.tasks,
            index,
            options.clients,
            self._begin_at,
            options.duration_s,
            await self.surroundings.webhook_url(),
        )
        return [msgspec.json.encode(share).decode()]

    @property
    def _asked(self) -> str:
        """The control plane that is asked how everything stands: any may be."""
        return self.surroundings.plane_url(next(iter(self.surroundings.planes)))

    def _told(self, index: int) -> Path:
        return self.folder / f"client-{index}.told"

    @property
    def _clients(self) -> list[Process]:
        return [process for process in self.processes.values() if process.is_client]

    @contextlib.asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        watching = asyncio.create_task(self.faults.watch())
        try:
            yield
            if watching.done():
                watching.result()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    # --- load and faults --------------------------------------------------------------------------------------------

    async def _disturb(self) -> None:
        options, around = self.options, self.surroundings
        of_processes = schedule(
            options.seed,
            duration_s=options.duration_s,
            instances=options.instances,
            clients=options.clients,
            planes=options.planes,
        )
        of_the_rest = schedule_around(
            options.seed,
            duration_s=options.duration_s,
            database=options.store == "postgresql",
            broker=options.carrier != IN_PROCESS,
            links=around.links,
        )
        faults = sorted([*of_processes, *of_the_rest], key=lambda fault: fault.at_s)
        await self.faults.carry_out(faults, self._begin_at)

    async def _finish(self) -> None:
        """Wait for the clients, for as long as they are told of something."""

        def done() -> bool:
            return all(process.code is not None for process in self._clients)

        def told_bytes() -> int:
            return sum(self._told(n).stat().st_size for n in range(len(self._clients)) if self._told(n).exists())

        try:
            await while_it_moves(done, told_bytes, still_s=self.options.still_s)
        except StandstillError:
            for name in self.surroundings.planes:
                self.processes[name].send(signal.SIGUSR1)  # where it stands, into its log
            self.findings.differs(f"the clients have been told nothing for {self.options.still_s:g} s")
        for process in self._clients:
            self.faults.look_at_end(process)

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _check(self, told: list[Told]) -> None:
        options = self.options
        plans = [plan_of(options.seed, number) for number in range(options.tasks)]
        try:
            async with Client(self._asked, timeout_s=math.inf) as client:
                await check(client, plans, told, self.sink, self.findings)
        except LlamaDeployError as error:
            self.findings.differs(f"the control plane cannot be asked: {error.render()}")
        for name in (*(n for n in self.processes if n.startswith(INSTANCE)), *self.surroundings.planes):
            asked_at = time.time()
            code = await self.processes[name].end(signal.SIGTERM)
            if not ended_well(self.processes[name], code, asked_at):
                self.findings.differs(f"{name} ended with {code}:\n{self.processes[name].said()}")
        await self.processes[RECEIVER].end(signal.SIGKILL)
        for line in await left_over(str(self.folder)):
            self.findings.differs(f"left behind: {line}")
        if options.store == "sqlite":
            check_sqlite(self.surroundings.sqlite_file, self.findings)
            check_erased(self.surroundings.sqlite_file, plans, self.findings)
            if options.encrypted:
                check_sealed(self.surroundings.sqlite_file, self.findings)
        elif left := await self.surroundings.open_steps():
            self.findings.differs(f"steps are open although every task has ended: {left[:PROBLEMS_SHOWN]}")
        for process in self.processes.values():
            for line in process.complaints():
                if options.planes > 1 and TAKEN_OVER in line:
                    continue
                self.findings.differs(f"{process.name} wrote: {line}")

    def _figures(self, told: list[Told]) -> dict[str, Any]:
        findings, faults = self.findings, self.faults
        recoveries = faults.recoveries(sorted(one.at for one in told))
        return {
            "seed": self.options.seed,
            "tasks": self.options.tasks,
            "told": len(told),
            "duration_s": self.options.duration_s,
            "faults": faults.counts(),
            "starts_without_store": faults.planes_that_found_no_store,
            "steps": findings.steps,
            "children": findings.children,
            "history": dict(sorted(findings.entries.items())),
            "stream_events": findings.events,
            "effects": findings.effects,
            "effects_suppressed": findings.effects_suppressed,
            "news": findings.news,
            "news_repeated": findings.news_repeated,
            "recovery_s": {
                "median": round(statistics.median(recoveries), 2) if recoveries else None,
                "longest": round(max(recoveries), 2) if recoveries else None,
            },
            "waited_s": self._waits(told),
            "memory_most_mb": self._memory(),
            "problems": len(findings.problems),
        }

    def _waits(self, told: list[Told]) -> dict[str, Any]:
        """From when a task was due until its client was told of its end; pauses that the task itself makes included."""
        share_s = self.options.duration_s / max(1, self.options.tasks)
        waits = sorted((one.at - self._begin_at - share_s * one.number, one.task_id) for one in told)
        return {
            "median": round(statistics.median(wait for wait, _ in waits), 2) if waits else None,
            "longest": {task_id: round(wait, 2) for wait, task_id in reversed(waits[-3:])},
        }

    def _memory(self) -> dict[str, float]:
        """Of each kind of process, the one that had the most."""
        most: dict[str, float] = {}
        for process in self.processes.values():
            kind = process.name.split("-")[0]
            most[kind] = max(most.get(kind, 0.0), round(process.memory_most_mb, 1))
        return most
