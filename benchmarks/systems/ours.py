"""Our own system: a control plane with the embedded default (SQLite, `synchronous=FULL`), services in another process.

It is started as a user starts it, with `llamactl`. The services share one process, as the tasks of a peer's worker do.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

from benchmarks.processes import REPOSITORY, Process, run_client, wait_until
from benchmarks.systems.base import Running, System

LLAMACTL = Path(sys.executable).parent / "llamactl"
DEPLOYMENTS = REPOSITORY / "benchmarks" / "ours"
PACKAGES = ("fastapi", "msgspec", "pydantic", "uvicorn", "uvloop", "websockets")


class Ours(System):
    """The system of this repository, from its working tree."""

    name = "ours"
    title = "llama_deploy"
    note = "SQLite WAL `synchronous=FULL`, every hop recorded; control plane, services and client are three processes"
    scenarios = frozenset(
        {
            *("echo", "two_hop", "fan_out", "wide_map", "group_chat"),
            *("idle", "streams", "start_up", "growth", "session", "recovery"),
        }
    )

    environment: Mapping[str, str] = {}
    """Environment variables of its processes, beyond those of every benchmark."""
    store_url: str | None = None
    """The database that is the store; a file of its own where there is none."""

    def missing(self) -> str | None:
        if not LLAMACTL.exists():
            return "`llamactl` is not installed beside this interpreter"
        if importlib.util.find_spec("llama_deploy.cli") is None:
            return "llama_deploy has no command line yet"
        return None

    def prepare(self) -> None:
        """Nothing: it is measured in the environment that runs the benchmarks."""

    def versions(self) -> dict[str, str]:
        from llama_deploy import __version__

        packages = {name: importlib.metadata.version(name) for name in PACKAGES}
        return {"llama_deploy": __version__, "sqlite": sqlite3.sqlite_version, **packages}

    @contextmanager
    def running(self, scenario: str, folder: Path) -> Iterator[RunningOurs]:
        running = RunningOurs(deployment_file(scenario), folder, self.environment)
        if self.store_url is not None:
            running.store_name = f"{self.store_url}?schema=benchmark_{token_hex(4)}"
        try:
            running.start_control_plane()
            running.start_service()
            yield running
        finally:
            running.stop()


class OursOnPostgres(Ours):
    """The same system with PostgreSQL as its store; each measurement has a schema of its own, which stays."""

    name = "ours-postgresql"
    title = "llama_deploy on PostgreSQL"
    note = "as `ours`, with PostgreSQL on this machine as the store"
    scenarios = frozenset({"echo", "two_hop", "fan_out", "wide_map", "idle", "streams", "session"})

    def __init__(self, url: str) -> None:
        self.store_url = url

    def missing(self) -> str | None:
        if importlib.util.find_spec("asyncpg") is None:
            return "the extra `postgres` is not installed"
        return super().missing()


def deployment_file(scenario: str) -> Path:
    """The deployment of a scenario: its own where it has one."""
    own = DEPLOYMENTS / f"{scenario}.yml"
    return own if own.exists() else DEPLOYMENTS / "simple.yml"


class RunningOurs(Running):
    """A started control plane and its service processes, each of which a scenario may kill and start again."""

    def __init__(self, file: Path, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.environment = environment or {}
        self.store = folder / "store.sqlite"
        self.store_name = str(self.store)
        self.message_queue: str | None = None
        self.control_plane: Process | None = None
        self.services: list[Process] = []
        self.url = ""
        self._file = file

    def start_control_plane(self) -> None:
        """Starts it, on the same port and store each time; returns when it is ready."""
        self.control_plane, self.url = self.start_serving("control-plane", port=self.url.rpartition(":")[2] or "0")

    def start_serving(self, name: str, *options: str, port: str = "0") -> tuple[Process, str]:
        """Starts a control plane; returns its process and its URL when it is ready."""
        ready_file = self.folder / f"{name}.ready.json"
        ready_file.unlink(missing_ok=True)  # a killed one has left it
        where = ["--port", port, "--store", self.store_name, "--ready-file", str(ready_file), *options]
        where += ["--message-queue", self.message_queue] if self.message_queue else []
        argv = [str(LLAMACTL), "serve", str(self._file), "--only", "control-plane", *where]
        process = Process(argv, self.folder / f"{name}.log", env=self.environment)
        wait_until(lambda: process.check() and ready_file.exists(), "the control plane is ready")
        return process, json.loads(ready_file.read_text())["url"]

    def start_service(self) -> Process:
        """Starts one more process with all services; it registers by itself."""
        argv = [sys.executable, "-m", "benchmarks.ours.services", self.url.partition(",")[0]]
        process = Process(argv, self.folder / f"service-{len(self.services)}.log", env=self.environment)
        self.services.append(process)
        return process

    def stop(self) -> None:
        """Ends every process that was started here, the services first; they may be started again."""
        for process in [*self.services, self.control_plane]:
            if process is not None:
                process.stop()
        self.services = []

    def store_bytes(self) -> float:
        """What the store takes, of what it keeps, in bytes."""
        return float(self.store.stat().st_size)

    def processes(self) -> dict[str, list[int]]:
        assert self.control_plane is not None, "asked before it was started"
        self.control_plane.check()
        return {"control_plane": [self.control_plane.pid], "service": [process.pid for process in self.services]}

    def client(
        self, scenario: str, load: Mapping[str, Any], *, on_event: Callable[[str], None] | None = None
    ) -> dict[str, float]:
        options = {"url": self.url, "ready": "echo", "ready_input": {"text": "1"}, **load.get("options", {})}
        argv = [sys.executable, "-m", "benchmarks.ours.client", scenario, json.dumps({**load, "options": options})]
        return run_client(argv, env=self.environment, on_event=on_event)
