"""Several control planes over one PostgreSQL store, in one process, each behind a port that can be cut off."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from tests.control_plane.harness import LinkedRunner, until
from tests.support.ports import free_port
from tests.support.proxy import Proxy, proxied

from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.control_plane.http.access.guard import Access
from llama_deploy.control_plane.http.listener import bind
from llama_deploy.control_plane.http.server import serving
from llama_deploy.control_plane.leadership import Sharing
from llama_deploy.errors import NonRetryableError
from llama_deploy.services import HumanService, ServiceContext, service
from llama_deploy.state_stores import PostgresStore
from llama_deploy.types import generate_id
from llama_deploy.types.access import AccessSettings

SETTINGS = EngineSettings(recovery_grace_s=0.2, overdue_s=5.0, leader_wait_s=60.0, shard_lease_s=20.0)
"""A machine that stands still for some seconds ends no lease."""
SOON = replace(SETTINGS, shard_lease_s=1.0)
"""For tests of control planes that are gone: what they led goes to others soon."""


@dataclass
class ServedPlane:
    """A control plane and its port."""

    plane: ControlPlane
    proxy: Proxy
    url: str
    runner: LinkedRunner
    stack: AsyncExitStack
    cut: bool = False

    def led(self, *, prefix: str = "") -> str:
        """An id of a session, or of a task without one, that this control plane leads."""
        return next(made for _ in range(10_000) if self.plane.leadership.keeps(made := prefix + generate_id()))

    @property
    def passed_on(self) -> int:
        """What other control planes were asked for: operations of clients on their connections."""
        return self.plane.clients.relays.passed_on

    def cut_off(self) -> None:
        """Nobody reaches it any more, and its lease is not prolonged: so a crash looks to everybody else."""
        self.cut = True
        self.proxy.refusing = True
        self.proxy.cut()
        leadership = self.plane.leadership
        leadership._leaving = True
        if leadership._task is not None:
            leadership._task.cancel()
        self.runner.drop()


class ServedPlanes:
    """The control planes that run, by name, and what their services wait for."""

    def __init__(
        self,
        store_url: str,
        settings: EngineSettings,
        access: AccessSettings | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.store_url = store_url
        self.settings = settings
        self._access = access
        self._tls = tls
        self.planes: dict[str, ServedPlane] = {}
        self._gates: dict[str, asyncio.Event] = {}

    def __getitem__(self, name: str) -> ServedPlane:
        return self.planes[name]

    def gate(self, name: str) -> asyncio.Event:
        """What the service `gate` waits for, by the name that it is given."""
        return self._gates.setdefault(name, asyncio.Event())

    def _services(self) -> list[Any]:
        @service
        async def echo(value: Any = None) -> Any:
            """What it was given."""
            return value

        @service
        async def tell(context: ServiceContext, events: int, gate: str = "") -> int:
            """Streams numbers; with a gate, it waits there after the first half."""
            for number in range(events):
                if gate and number == events // 2:
                    await self.gate(gate).wait()
                context.stream(number)
            return events

        @service
        async def gate(name: str) -> str:
            """Waits until the test lets it go on."""
            await self.gate(name).wait()
            return f"through {name}"

        @service
        async def fail(text: str) -> str:
            """Fails for good."""
            raise NonRetryableError(text)

        return [echo, tell, gate, fail, HumanService(name="person")]

    async def start(self, name: str, *, port: int = 0) -> ServedPlane:
        """Start one more, with an instance of every service; on a port that one had before, if that is given."""
        stack = AsyncExitStack()
        listener = bind("127.0.0.1", 0)
        proxy = await stack.enter_async_context(proxied(listener.getsockname()[1], port or free_port()))
        url = f"{'http' if self._tls is None else 'https'}://127.0.0.1:{proxy.port}"
        plane = ControlPlane(
            store=PostgresStore(self.store_url, claims=False),
            settings=self.settings,
            sharing=Sharing(name=name, url=url),
        )
        await plane.start()
        stack.push_async_callback(plane.stop)
        await stack.enter_async_context(serving(plane, listener, access=Access(self._access), tls=self._tls))
        runner = LinkedRunner(self._services(), instance_id=f"of-{name}")
        await runner.connect(plane)
        self.planes[name] = served = ServedPlane(plane, proxy, url, runner, stack)
        return served

    async def shared_out(self) -> None:
        """Wait until each has its part, and everybody knows who leads what."""
        running = [served.plane for served in self.planes.values() if not served.cut]
        part = -(-64 // len(running))

        def done() -> bool:
            led = {shard: plane.store.owner for plane in running for shard in plane.leadership.shards}
            known = all(
                plane.leadership._leaders.keys() == led.keys()
                and all(leader.member.owner == led[s] for s, leader in plane.leadership._leaders.items())
                for plane in running
            )
            return len(led) == 64 and max(len(plane.leadership.shards) for plane in running) <= part and known

        await until(done)

    async def stop_one(self, name: str) -> None:
        """Stop one as SIGTERM does."""
        served = self.planes.pop(name)
        await served.runner.stop()
        await served.stack.aclose()

    async def stop(self) -> None:
        for name in list(self.planes):
            await self.stop_one(name)


@asynccontextmanager
async def served_planes(
    store_url: str,
    *names: str,
    settings: EngineSettings = SETTINGS,
    access: AccessSettings | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[ServedPlanes]:
    """Control planes of these names that share what there is; whatever runs at the end is stopped."""
    made = ServedPlanes(store_url, settings, access, tls)
    try:
        for name in names:
            await made.start(name)
        await made.shared_out()
        yield made
    finally:
        await made.stop()
