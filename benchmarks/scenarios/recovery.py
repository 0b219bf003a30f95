"""How long it takes until work goes on after `kill -9`: of a service in mid-step, and of the control plane.

Times include what a supervisor would need to start the control plane again (the driver does it at once); a second
instance of the service is running already, as in a set-up that cares.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scenarios.base import Figures, Sizes
from benchmarks.systems.base import System
from benchmarks.systems.ours import Ours, RunningOurs

IN_FLIGHT = 50
NAP_S = 1.0
"""What each of the steps takes that are in flight when the control plane is killed (`services.nap`)."""


@dataclass
class _Blow:
    """What is done to the system when the client says that the moment has come."""

    running: RunningOurs
    marker: Path
    struck_at: float = 0.0

    def service(self, event: str) -> None:
        """Kill the service process that holds the step."""
        holder = int(self.marker.read_text())
        self.struck_at = time.monotonic()
        next(process for process in self.running.services if process.pid == holder).kill()

    def control_plane(self, event: str) -> None:
        """Kill the control plane and start it again over the same store."""
        assert self.running.control_plane is not None, "it was started with the system"
        self.struck_at = time.monotonic()
        self.running.control_plane.kill()
        self.running.start_control_plane()


def recovery(system: System, sizes: Sizes, folder: Path) -> Figures:
    """Seconds from the blow to the client's last result."""
    assert isinstance(system, Ours), "asked of our own system alone"
    return {**_service_killed(system, folder / "service"), **_control_plane_killed(system, folder / "control_plane")}


def _service_killed(system: Ours, folder: Path) -> Figures:
    folder.mkdir()
    with system.running("recovery", folder) as running:
        running.start_service()
        blow = _Blow(running, folder / "marker")
        ended = running.client("held", {"options": {"marker": str(blow.marker)}}, on_event=blow.service)
    return {"service_s": ended["ended_at"] - blow.struck_at}


def _control_plane_killed(system: Ours, folder: Path) -> Figures:
    folder.mkdir()
    with system.running("recovery", folder) as running:
        blow = _Blow(running, folder / "marker")
        ended = running.client("in_flight", {"width": IN_FLIGHT}, on_event=blow.control_plane)
    lost = IN_FLIGHT - ended["completed"]
    return {"control_plane_s": ended["ended_at"] - blow.struck_at, "control_plane_lost": lost}
