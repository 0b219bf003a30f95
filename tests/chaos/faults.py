"""Carries a schedule out: signals processes, stops servers, cuts ways, and has each of them back in time.

Faults of different targets overlap. One whose target is not back yet is left out, and so is one for a client that is
done. What ends by itself is noticed here, too: a difference, except where a control plane could not open its store.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.checks import Findings
from tests.chaos.plane_program import STORE_IS_AWAY
from tests.chaos.processes import Process
from tests.chaos.schedule import Fault, way_of
from tests.chaos.surroundings import PLANE, STORE, Surroundings

YOUNG_S = 15.0
"""A process that has just begun may not have come to the point yet at which it ends cleanly."""
LOOK_S = 0.25
"""How often it is looked whether somebody has ended, and how much memory everybody has."""


@dataclass
class Carried:
    """A fault that was carried out, with the times at which it began and was over."""

    fault: Fault
    began_at: float
    over_at: float = 0.0
    code: int | None = None


def ended_well(process: Process, code: int | None, asked_at: float) -> bool:
    """Whether a process that was asked to end did so as it should; a young one may not know yet how to."""
    young = asked_at - process.started_at < YOUNG_S
    return code == 0 or (young and code in (-signal.SIGTERM, STORE_IS_AWAY))


class Faults:
    """The faults of one run."""

    def __init__(self, processes: Mapping[str, Process], surroundings: Surroundings, findings: Findings) -> None:
        self._processes = processes
        self._surroundings = surroundings
        self._findings = findings
        self.carried: list[Carried] = []
        self.planes_that_found_no_store = 0
        self._hit: set[str] = set()
        """To what a fault happens now."""

    async def carry_out(self, faults: Sequence[Fault], begin_at: float) -> None:
        """All of them, each at its time; returns when the last one is over."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, begin_at + fault.at_s - time.time()))
                group.create_task(self._carry(fault))

    async def watch(self) -> None:
        """Until canceled: have what ends by itself back, and note how much memory everybody has."""
        while True:
            for name, process in tuple(self._processes.items()):
                process.look()
                if process.code is not None and name not in self._hit and not process.is_client:
                    self._ended_by_itself(process)
                    await process.start()
            await asyncio.sleep(LOOK_S)

    def look_at_end(self, process: Process) -> None:
        """Whether a client that has ended did so well."""
        if process.code not in (None, 0):
            self._ended_by_itself(process)

    def _ended_by_itself(self, process: Process) -> None:
        away = process.code == STORE_IS_AWAY and self._surroundings.store_kind != "sqlite"
        if away and process.name.startswith(PLANE):
            self.planes_that_found_no_store += 1
        else:
            self._findings.differs(f"{process.name} ended by itself with {process.code}:\n{process.said()}")

    async def _carry(self, fault: Fault) -> None:
        process = self._processes.get(fault.target)
        if fault.target in self._hit or (process is not None and process.code == 0 and process.is_client):
            return
        self._hit.add(fault.target)
        carried = Carried(fault, time.time())
        self.carried.append(carried)
        try:
            if process is not None:
                await self._hit_process(carried, process)
            else:
                await self._hit_surroundings(fault)
        finally:
            self._hit.discard(fault.target)
            carried.over_at = time.time()

    async def _hit_process(self, carried: Carried, process: Process) -> None:
        fault = carried.fault
        if process.code is not None:  # it is started again below, and nobody would know
            self._ended_by_itself(process)
        if fault.kind == "stop":
            process.send(signal.SIGSTOP)
            await asyncio.sleep(fault.held_s)
            process.send(signal.SIGCONT)
            return
        clean = fault.kind == "terminate"
        carried.code = await process.end(signal.SIGTERM if clean else signal.SIGKILL)
        if clean and not ended_well(process, carried.code, carried.began_at):
            said = process.said()
            self._findings.differs(
                f"{fault.target}: asked to end at {fault.at_s} s, ended with {carried.code}:\n{said}"
            )
            if carried.code is None:
                await process.end(signal.SIGKILL)
        await asyncio.sleep(fault.held_s)
        await process.start()

    async def _hit_surroundings(self, fault: Fault) -> None:
        if fault.kind == "cut":
            await self._surroundings.cut(way_of(fault.target), fault.held_s)
        elif fault.target == STORE:
            await self._surroundings.stop_database(crash=fault.kind == "crash", away_s=fault.held_s)
        else:
            await self._surroundings.kill_broker(wipe=fault.kind == "wipe", away_s=fault.held_s)

    # --- what was done ----------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """How many of each kind."""
        return dict(sorted(Counter(one.fault.what for one in self.carried).items()))

    def timeline(self, begin_at: float) -> list[str]:
        """Each fault that was carried out, with when it began and when it was over."""
        return [
            f"{one.began_at - begin_at:7.2f} s to {one.over_at - begin_at:7.2f} s: {one.fault.kind} "
            f"{one.fault.target}" + ("" if one.code is None else f" ({one.code})")
            for one in self.carried
        ]

    def recoveries(self, heard_at: list[float]) -> list[float]:
        """From the end of each fault of a control plane until the next outcome that any client was told."""
        found = []
        for carried in self.carried:
            if carried.fault.target.startswith(PLANE) and "~" not in carried.fault.target:
                following = next((at for at in heard_at if at > carried.over_at), None)
                if following is not None:
                    found.append(following - carried.over_at)
        return found
