"""Carries a run out: starts the processes, submits the load, does what the schedule says, waits, checks, reports.

The load is decided by the seed, and so are the faults; what the operating system makes of them is not. A run that
fails says what differs and leaves its folder: the logs, the store, the sink, and what each client was told.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from tests.chaos.checks import PROBLEMS_SHOWN, Findings, check, check_sqlite
from tests.chaos.client_program import Share, read_told
from tests.chaos.kinds import Told, insist, plan_of
from tests.chaos.processes import Process, left_over
from tests.chaos.schedule import PLANE, Fault, schedule
from tests.support import eventually

from llama_deploy.client import Client
from llama_deploy.errors import LlamaDeployError

SETTINGS = {"heartbeat_s": 0.5, "lease_s": 3.0}
"""Leases are shorter than the longest time that a process stands still, so that some of them run out."""
YOUNG_S = 15.0
"""A process that has just begun may not have come to the point yet at which it ends cleanly."""
START_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a run is."""

    duration_s: float = 60.0
    tasks: int = 10_000
    seed: int = 1
    instances: int = 3
    clients: int = 2
    finish_s: float = 180.0
    """How long the clients may take after the last fault."""
    folder: Path | None = None
    """Where logs and store go; a new folder by default, removed when all is well."""
    store: str | None = None
    """What the control plane records in; a file in the folder by default."""


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


@dataclass
class Carried:
    """A fault that was carried out, with the times at which it began and was over."""

    fault: Fault
    began_at: float
    over_at: float = 0.0
    code: int | None = field(default=None)


class Run:
    """One run. `carry_out` does all of it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.store = options.store or str(self.folder / "store.db")
        self.sink = self.folder / "sink.db"
        self.findings = Findings()
        self.carried: list[Carried] = []
        self._begin_at = 0.0
        self._hit: set[str] = set()
        """The processes to which a fault happens now."""
        plane = Process(PLANE, "plane_program", self._plane_arguments, self.folder)
        self.processes = {PLANE: plane}
        for number in range(options.instances):
            name = f"instance-{number}"
            self.processes[name] = Process(name, "service_program", lambda: [self.url, str(self.sink)], self.folder)
        self._clients: list[Process] = []
        for number in range(options.clients):
            name = f"client-{number}"
            share = lambda number=number: [msgspec.json.encode(self._share(number)).decode()]  # noqa: E731
            self.processes[name] = Process(name, "client_program", share, self.folder)
            self._clients.append(self.processes[name])

    def _plane_arguments(self) -> list[str]:
        return [str(self.port), self.store, json.dumps(SETTINGS)]

    def _told(self, index: int) -> Path:
        return self.folder / f"client-{index}.told"

    def _share(self, index: int) -> Share:
        options = self.options
        return Share(
            self.url,
            str(self._told(index)),
            options.seed,
            options.tasks,
            index,
            options.clients,
            self._begin_at,
            options.duration_s,
        )

    async def carry_out(self) -> Report:
        """Do everything; the processes are gone afterwards, whatever happens."""
        began = time.monotonic()
        try:
            await self._start()
            await self._disturb()
            await self._finish()
            told = [one for index in range(self.options.clients) for one in read_told(self._told(index))]
            checked = time.monotonic()
            await self._check(told)
        finally:
            for process in self.processes.values():
                await process.end(signal.SIGKILL)
        figures = {**self._figures(told), "check_s": round(time.monotonic() - checked, 1)}
        figures["all_s"] = round(time.monotonic() - began, 1)
        (self.folder / "report.json").write_text(json.dumps({**figures, "timeline": self._timeline()}, indent=2))
        report = Report(figures, self.findings.problems, self.folder)
        if not report.problems and self.options.folder is None:
            shutil.rmtree(self.folder)
        return report

    async def _start(self) -> None:
        for name, process in self.processes.items():
            if not name.startswith("client"):
                await process.start()
        async with Client(self.url) as client:
            await eventually(lambda: insist(client.list_services), START_S)
        self._begin_at = time.time()
        for process in self._clients:
            await process.start()

    # --- faults -----------------------------------------------------------------------------------------------------

    async def _disturb(self) -> None:
        """Carry the schedule out; faults of different processes overlap."""
        options = self.options
        faults = schedule(
            options.seed, duration_s=options.duration_s, instances=options.instances, clients=options.clients
        )
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, self._begin_at + fault.at_s - time.time()))
                group.create_task(self._carry(fault))

    async def _carry(self, fault: Fault) -> None:
        process = self.processes[fault.target]
        if process.code == 0 or fault.target in self._hit:
            return  # a client that is done; or a process that takes longer to be back than was foreseen
        self._hit.add(fault.target)
        try:
            await self._hit_process(fault, process)
        finally:
            self._hit.discard(fault.target)

    async def _hit_process(self, fault: Fault, process: Process) -> None:
        carried = Carried(fault, time.time())
        self.carried.append(carried)
        if fault.kind == "stop":
            process.send(signal.SIGSTOP)
            await asyncio.sleep(fault.held_s)
            process.send(signal.SIGCONT)
        else:
            clean = fault.kind == "terminate"
            carried.code = await process.end(signal.SIGTERM if clean else signal.SIGKILL)
            young = carried.began_at - process.started_at < YOUNG_S
            if clean and carried.code != 0 and not (young and carried.code == -signal.SIGTERM):
                self.findings.differs(f"{fault.target}: asked to end at {fault.at_s} s, ended with {carried.code}")
            await asyncio.sleep(fault.held_s)
            await process.start()
        carried.over_at = time.time()

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Wait for the clients."""
        try:
            async with asyncio.timeout(self.options.finish_s):
                codes = [await process.wait() for process in self._clients]
        except TimeoutError:
            self.findings.differs(f"clients are not done after {self.options.finish_s:g} s")
            return
        for process, code in zip(self._clients, codes, strict=True):
            if code != 0:
                self.findings.differs(f"{process.name} ended with {code}:\n{process.said()}")

    async def _check(self, told: list[Told]) -> None:
        options = self.options
        plans = [plan_of(options.seed, number) for number in range(options.tasks)]
        try:
            async with Client(self.url, timeout_s=START_S) as client:
                await check(client, plans, told, self.sink, self.findings)
        except LlamaDeployError as error:
            self.findings.differs(f"the control plane cannot be asked: {error.render()}")
        for name in (*(n for n in self.processes if n.startswith("instance")), PLANE):
            if (code := await self.processes[name].end(signal.SIGTERM)) != 0:
                self.findings.differs(f"{name} ended with {code}:\n{self.processes[name].said()}")
        for line in await left_over(str(self.folder)):
            self.findings.differs(f"left behind: {line}")
        if options.store is None:
            check_sqlite(Path(self.store), self.findings)
        for process in self.processes.values():
            for line in process.complaints():
                self.findings.differs(f"{process.name} wrote: {line}")

    def _figures(self, told: list[Told]) -> dict[str, Any]:
        findings = self.findings
        done = Counter(f"{c.fault.kind} {c.fault.target.split('-')[0]}" for c in self.carried)
        recoveries = self._recoveries(sorted(one.at for one in told))
        return {
            "seed": self.options.seed,
            "tasks": self.options.tasks,
            "told": len(told),
            "duration_s": self.options.duration_s,
            "faults": dict(sorted(done.items())),
            "steps": findings.steps,
            "children": findings.children,
            "history": dict(sorted(findings.entries.items())),
            "stream_events": findings.events,
            "effects": findings.effects,
            "effects_suppressed": findings.effects_suppressed,
            "recovery_s": {
                "median": round(statistics.median(recoveries), 2) if recoveries else None,
                "longest": round(max(recoveries), 2) if recoveries else None,
            },
            "problems": len(findings.problems),
        }

    def _timeline(self) -> list[str]:
        """Each fault that was carried out, with when it began and when its process was let go on."""
        return [
            f"{one.began_at - self._begin_at:7.2f} s to {one.over_at - self._begin_at:7.2f} s: {one.fault.kind} "
            f"{one.fault.target}" + ("" if one.code is None else f" ({one.code})")
            for one in self.carried
        ]

    def _recoveries(self, heard_at: list[float]) -> list[float]:
        """From the end of each fault of the control plane until the next outcome that any client was told."""
        found = []
        for carried in self.carried:
            if carried.fault.target == PLANE:
                following = next((at for at in heard_at if at > carried.over_at), None)
                if following is not None:
                    found.append(following - carried.over_at)
        return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
