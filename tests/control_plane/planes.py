"""Several control planes over one PostgreSQL store, in one process, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from tests.control_plane.harness import FakeInstance, until
from tests.control_plane.wires import Wires

from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.control_plane.leadership import Sharing
from llama_deploy.message_queues import MessageQueue
from llama_deploy.state_stores import PostgresStore

LEASE_S = 1.0
SETTINGS = EngineSettings(recovery_grace_s=0.2, overdue_s=5.0)


class Planes:
    """The control planes that run, by name."""

    def __init__(
        self, url: str, *, lease_s: float = LEASE_S, queue: Callable[[], MessageQueue] | None = None, **options: Any
    ) -> None:
        self.url = url
        self._queue = queue
        """Makes the queue of each; its own by default."""
        settings = options.pop("settings", SETTINGS)
        self.options = {"settings": replace(settings, shard_lease_s=lease_s), **options}
        self.running: dict[str, ControlPlane] = {}
        self.wires = Wires()
        """Between them, where one counts for the others."""

    def __getitem__(self, name: str) -> ControlPlane:
        return self.running[name]

    async def start(self, name: str) -> ControlPlane:
        """Start one more, and do not wait for its part."""
        sharing = Sharing(name=name, url=f"http://{name}")
        store = PostgresStore(self.url, claims=False)
        queue = self._queue() if self._queue is not None else None
        plane = ControlPlane(store=store, queue=queue, sharing=sharing, **self.options)
        self.wires.join(name, plane)
        await plane.start()
        self.running[name] = plane
        return plane

    async def stop(self, name: str) -> None:
        await self.running.pop(name).stop()

    def parts(self) -> list[int]:
        """How many shards each leads, in the order in which they were started."""
        return [len(plane.leadership.shards) for plane in self.running.values()]

    async def shared_out(self) -> None:
        """Wait until each has its part, everything is led by one, and all know by whom."""
        shards = next(iter(self.running.values())).store.shards_count
        part = -(-shards // len(self.running))

        def done() -> bool:
            led = [shard for plane in self.running.values() for shard in plane.leadership.shards]
            known = all(
                {member.name: len(member.shards) for member in plane.leadership.members()}
                == {name: len(other.leadership.shards) for name, other in self.running.items()}
                for plane in self.running.values()
            )
            return sorted(led) == list(range(shards)) and max(self.parts()) <= part and known

        await until(done)


@asynccontextmanager
async def planes(url: str, *names: str, **options: Any) -> AsyncIterator[Planes]:
    """Control planes of these names, shared out; whatever runs at the end is stopped."""
    made = Planes(url, **options)
    try:
        for name in names:
            await made.start(name)
        await made.shared_out()
        yield made
    finally:
        for name in list(made.running):
            await made.stop(name)


async def connected(made: Iterable[ControlPlane], **options: Any) -> list[FakeInstance]:
    """An instance at each of them."""
    instances = []
    for plane in made:
        instance = FakeInstance(instance_id="one", **options)
        await instance.connect(plane)
        instances.append(instance)
    return instances
