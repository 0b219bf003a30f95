"""The peers: what is started for each of them, and with which settings.

Settings follow each project's own advice for speed where it does not give up what makes it comparable (a task that is
acknowledged after the work). `benchmarks/peers/NAME/` holds its tasks and its client.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import environments
from benchmarks.processes import Process, free_port, run_client
from benchmarks.systems.base import Running, System
from benchmarks.systems.brokers import NATS, REDIS, BrokerKind
from benchmarks.systems.placed import STORES, Place

COMPARED = frozenset({"echo", "two_hop", "fan_out"})
EVERYWHERE = COMPARED | {"idle", "memory"}


@dataclass(frozen=True)
class Peer(System):
    """A system of others, described by what has to be started."""

    name: str
    title: str
    commands: Mapping[str, tuple[str, ...]]
    """Arguments after its own interpreter, by role, in the order of starting."""
    broker: BrokerKind | Place | None
    note: str
    scenarios: frozenset[str] = EVERYWHERE
    listens_on: Mapping[str, str] = field(default_factory=dict)
    """Role -> the environment variable with the port that it must listen on before anything else is started."""

    def missing(self) -> str | None:
        return self.broker.missing() if self.broker else None

    def prepare(self) -> None:
        environments.ensure(self.name)

    def versions(self) -> dict[str, str]:
        return environments.versions_of(self.name)

    @contextmanager
    def running(self, scenario: str, folder: Path) -> Iterator[Running]:
        python = str(environments.python_of(self.name))
        env = {
            "BENCH_FOLDER": str(folder),
            "BENCH_PORT": str(free_port()),
            "BENCH_WORKER_PORT": str(free_port()),
        }
        with ExitStack() as stack:
            broker_pids: list[int] = []
            if self.broker:
                broker = stack.enter_context(self.broker.running(folder))
                env["BENCH_BROKER"] = broker.url
                broker_pids = list(broker.pids)
            started: dict[str, Process] = {}
            for role, arguments in self.commands.items():
                process = Process([python, *arguments], folder / f"{self.name}-{role}.log", env=env)
                stack.callback(process.stop)
                started[role] = process
                if role in self.listens_on:
                    process.wait_for_port(int(env[self.listens_on[role]]))
            yield RunningPeer(python, f"benchmarks.peers.{self.name}.client", env, started, broker_pids)


class RunningPeer(Running):
    """A started peer; its client waits by itself until the workers take its first task."""

    def __init__(
        self, python: str, module: str, env: dict[str, str], started: dict[str, Process], broker_pids: list[int]
    ) -> None:
        self._python = python
        self._module = module
        self._env = env
        self._started = started
        self._broker_pids = broker_pids

    def processes(self) -> dict[str, list[int]]:
        found = {role: [process.pid] for role, process in self._started.items() if process.check()}
        return {**found, "broker": self._broker_pids} if self._broker_pids else found

    def client(
        self, scenario: str, load: Mapping[str, Any], *, on_event: Callable[[str], None] | None = None
    ) -> dict[str, float]:
        argv = [self._python, "-m", self._module, scenario, json.dumps(dict(load))]
        return run_client(argv, env=self._env, on_event=on_event)


PEERS: tuple[Peer, ...] = (
    Peer(
        name="celery",
        title="Celery, Redis",
        commands={
            "service": (
                *("-m", "celery", "-A", "benchmarks.peers.celery.app", "worker", "--pool", "prefork"),
                *("--concurrency", "2", "--loglevel", "ERROR"),
                *("--without-gossip", "--without-mingle", "--without-heartbeat"),
            )
        },
        broker=REDIS,
        note="late acknowledgement, 2 prefork processes, prefetch 16, two hops as a `chain`, fan-out as a `group`",
    ),
    Peer(
        name="taskiq",
        title="Taskiq, Redis streams",
        commands={
            "service": (
                *("-m", "taskiq", "worker", "benchmarks.peers.taskiq.app:broker"),
                *("--workers", "1", "--max-async-tasks", "100", "--log-level", "ERROR"),
            )
        },
        broker=REDIS,
        note="acknowledged when saved, 1 worker process, results polled every 10 ms, two hops as a pipeline",
    ),
    Peer(
        name="saq",
        title="SAQ, Redis",
        commands={"service": ("-m", "saq", "benchmarks.peers.saq.app.settings", "--quiet")},
        broker=REDIS,
        note="1 worker process, concurrency 100, results polled every 10 ms, the client does the second hop",
    ),
    Peer(
        name="dbos",
        title="DBOS, PostgreSQL",
        commands={"service": ("-m", "benchmarks.peers.dbos.app")},
        broker=STORES["postgresql"],
        note="a workflow a task, 1 worker process, concurrency 100, queue and results polled every 10 ms",
    ),
    Peer(
        name="faststream",
        title="FastStream, bare NATS",
        commands={"service": ("-m", "benchmarks.peers.faststream.app")},
        broker=NATS,
        note="request and reply, nothing is stored: not the same promise",
    ),
    Peer(
        name="floor",
        title="floor probe",
        commands={
            "control_plane": ("-m", "benchmarks.peers.floor.server"),
            "service": ("-m", "benchmarks.peers.floor.worker"),
        },
        broker=None,
        listens_on={"control_plane": "BENCH_PORT"},
        note="HTTP submit, SQLite FULL twice, a socket to a worker and back, no features: what the flow itself costs",
    ),
)
