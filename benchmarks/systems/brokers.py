"""The servers that peers need: Redis and NATS.

A server of our own on a free port is started when the program is installed, so that nobody else's data or load is in
the way, and it is stopped afterwards; otherwise one that already runs on its usual port is used. Redis keeps nothing
on disk here, which is its fastest setting.
"""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import environments
from benchmarks.processes import Process, free_port, listens


@dataclass(frozen=True)
class Broker:
    """A server that is there: its address, and its process when it is ours."""

    url: str
    pids: tuple[int, ...] = ()


@dataclass(frozen=True)
class BrokerKind:
    """How to find, start and address one kind of server."""

    title: str
    program: str
    scheme: str
    usual_port: int
    arguments: Callable[[int, Path], list[str]]
    environment: str | None = None
    """The peer's environment whose packages include the program, if any."""

    def find(self) -> str | None:
        """The program's path, if it is installed."""
        inside = environments.python_of(self.environment).parent / self.program if self.environment else None
        if inside and inside.exists():
            return str(inside)
        return shutil.which(self.program) or shutil.which(self.program, path=sysconfig.get_path("scripts"))

    def missing(self) -> str | None:
        """Why there is none, or None when there is one."""
        if self.find() or listens(self.usual_port):
            return None
        return f"{self.title}: `{self.program}` is not installed and nothing listens on port {self.usual_port}"

    @contextmanager
    def running(self, folder: Path) -> Iterator[Broker]:
        """A server that answers; one of ours is stopped on leaving."""
        program = self.find()
        if program is None:
            yield Broker(f"{self.scheme}://127.0.0.1:{self.usual_port}")
            return
        port = free_port()
        process = Process([program, *self.arguments(port, folder)], folder / f"{self.program}.log")
        try:
            process.wait_for_port(port)
            yield Broker(f"{self.scheme}://127.0.0.1:{port}", (process.pid,))
        finally:
            process.stop()


def _redis_arguments(port: int, folder: Path) -> list[str]:
    memory_only = ["--save", "", "--appendonly", "no"]
    return ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), *memory_only]


def _nats_arguments(port: int, folder: Path) -> list[str]:
    return ["-a", "127.0.0.1", "-p", str(port)]


def _jetstream_arguments(port: int, folder: Path) -> list[str]:
    return [*_nats_arguments(port, folder), "-js", "-sd", str(folder / "jetstream")]


REDIS = BrokerKind("Redis", "redis-server", "redis", 6379, _redis_arguments)
NATS = BrokerKind("NATS", "nats-server", "nats", 4222, _nats_arguments, environment="faststream")
NATS_JETSTREAM = BrokerKind("NATS JetStream", "nats-server", "nats", 4222, _jetstream_arguments, "faststream")
