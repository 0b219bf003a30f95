"""A whole system in one process and in memory: control plane, service instances, client, a clock that the test moves.

The parts are the product's own and speak through real frames; store, queue, connections and clock are the test's, so
days pass in milliseconds and anything can go wrong at a chosen moment: the control plane crashes and comes back on
what it had committed, instances die, connections break, the queue misbehaves, commits fail.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from llama_deploy.client import Client, InProcessTransport
from llama_deploy.client.in_process import ClientPort
from llama_deploy.connections.transport import Lost, Receive
from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.control_plane.gateway import Port
from llama_deploy.errors import CannotReachError
from llama_deploy.message_queues.simple import InProcessQueue
from llama_deploy.messages.frames import (
    decode_control_frame,
    decode_instance_frame,
    decode_reply_frame,
    encode_frame,
)
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.runtime import failpoints
from llama_deploy.services import Runner, as_service
from llama_deploy.testing.clock import ManualClock
from llama_deploy.testing.crash import bury, cut_off
from llama_deploy.testing.faulty_queue import FaultyQueue
from llama_deploy.testing.faulty_store import FaultyStore

QUIET_TURNS = 20
"""Turns of the event loop after which everything that needs no time has happened."""
READY_TIMEOUT_S = 60.0


class Crash(asyncio.CancelledError):
    """Unwinds what a control plane was doing when it crashed at a failpoint."""


class InMemorySystem:
    """A control plane with one instance that serves `services`, and a client, while the context is open.

    `orchestrator` and `settings` are those of a `Deployment`. `store` lets a second system go on with what a first one
    has recorded. A `seed` makes jitter and the faults of the queue repeatable.
    """

    def __init__(
        self,
        services: Sequence[Any] = (),
        *,
        orchestrator: BaseOrchestrator | None = None,
        settings: EngineSettings | None = None,
        default_service: str | None = None,
        store: FaultyStore | None = None,
        seed: int = 0,
    ) -> None:
        self.clock = ManualClock()
        """Moved by `advance`; nothing falls due by itself."""
        self.store = store or FaultyStore()
        """Everything that is recorded; also what makes commits fail."""
        self.instances: dict[str, Instance] = {}
        """The instances that were started, by id; crashed ones are gone."""
        self._services = list(services)
        self._orchestrator = orchestrator
        self._settings = settings
        self._default_service = default_service
        self._chance = random.Random(seed)
        self._plane: ControlPlane | None = None
        self._queue: FaultyQueue | None = None
        self._transport = _Transport(self)
        self._graves: list[asyncio.Task[None]] = []
        self.client = Client(transport=self._transport)
        """A client that stays connected through crashes, as any client does."""

    @property
    def plane(self) -> ControlPlane:
        """The control plane that runs. Raises `CannotReachError` between a crash and `restart`."""
        if self._plane is None:
            raise CannotReachError("the control plane of this system does not run", fix="await system.restart()")
        return self._plane

    @property
    def running(self) -> bool:
        """Whether a control plane runs."""
        return self._plane is not None

    @property
    def queue(self) -> FaultyQueue:
        """The queue of the control plane that runs; set its shares to make it misbehave."""
        assert self._queue is not None, "the control plane never ran"
        return self._queue

    async def __aenter__(self) -> Self:
        await self.restart()
        if self._services:
            await self.start_instance(self._services, instance_id="first")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failpoints.disarm()
        self.store.release()
        self.store.mend()
        for instance in list(self.instances.values()):
            await instance.stop()
        await self.client.close()
        if self._plane is not None:
            await self._plane.stop()
        await asyncio.gather(*self._graves)

    # --- time -------------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Let everything happen that needs no time to pass; services that wait for something else go on waiting."""
        for _ in range(QUIET_TURNS):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        """Let time pass, and everything happen on the way in its order: backoffs, leases, deadlines, timers."""
        until = self.clock.now() + seconds
        await self.settle()
        while (due := self.clock.next_at) is not None and due <= until:
            self.clock.advance(max(0.0, due - self.clock.now()))
            await self.settle()
        self.clock.advance(until - self.clock.now())
        await self.settle()

    # --- the control plane ------------------------------------------------------------------------------------------

    async def crash(self) -> None:
        """The control plane dies now: what is not committed is lost, every connection breaks."""
        self._crash()
        await self.settle()

    def crash_at(self, name: str, *, passing: int = 1) -> None:
        """Let the control plane die when it passes a failpoint of `llama_deploy.runtime.FAILPOINTS`.

        Raises `KeyError` for a name that is none.
        """
        remaining = passing

        def pass_by() -> None:
            nonlocal remaining
            remaining -= 1
            if remaining == 0:
                failpoints.disarm(name)
                self._crash()
                raise Crash

        failpoints.arm(name, pass_by)

    def _crash(self) -> None:
        plane, self._plane = self._plane, None
        if plane is not None:
            cut_off(plane)
            self.store.lose_uncommitted()
            self._graves.append(asyncio.get_running_loop().create_task(bury(plane)))
            self._transport.break_off()

    async def restart(self) -> None:
        """Start a control plane on what is recorded, after a crash; instances and client connect again.

        Does nothing where one runs.
        """
        if self._plane is not None:
            return
        self._queue = FaultyQueue(InProcessQueue(clock=self.clock), chance=self._chance)
        plane = ControlPlane(
            store=self.store,
            queue=self._queue,
            orchestrator=self._orchestrator,
            settings=self._settings,
            clock=self.clock,
            default_service=self._default_service,
            seed=self._chance.randrange(1 << 30),
        )
        await plane.start()
        self._plane = plane
        for instance in list(self.instances.values()):
            await instance.connect()
        await self.settle()

    # --- instances --------------------------------------------------------------------------------------------------

    async def start_instance(self, services: Sequence[Any], *, instance_id: str) -> Instance:
        """Start a further instance of these services and wait until it is registered."""
        instance = self.instances[instance_id] = Instance(self, services, instance_id)
        await instance.runner.start()
        await instance.connect()
        return instance


class Instance:
    """A service instance of an `InMemorySystem`: the product's runner, and a connection that a test can break."""

    def __init__(self, system: InMemorySystem, services: Sequence[Any], instance_id: str) -> None:
        self._system = system
        self.runner = Runner([as_service(service) for service in services], instance_id=instance_id, clock=system.clock)
        self._port: Port | None = None
        self._held: list[tuple[Any, list[Any]]] | None = None

    async def connect(self) -> None:
        """Connect to the control plane that runs, as a link does after every loss, and wait until it is registered."""
        if self._port is not None:
            return
        opened: list[Port] = []

        def close() -> None:
            if opened and self._port is opened[0]:
                self.drop()

        port = self._port = self._system.plane.gateway.attach(self._receive, close=close, in_process=True)
        opened.append(port)
        self.runner.send = self._send
        self._send([self.runner.hello()])
        if self._held is None:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await self.runner.ready.wait()

    def _send(self, operations: list[Any]) -> None:
        if self._held is not None:
            self._held.append((self._send, operations))
        elif self._port is not None:
            try:
                self._port.receive(decode_instance_frame(encode_frame(operations)))
            except Crash:
                return  # the control plane died of it

    def _receive(self, operations: list[Any]) -> None:
        if self._held is not None:
            self._held.append((self._receive, operations))
        else:
            self.runner.receive(decode_control_frame(encode_frame(operations)))

    def drop(self) -> None:
        """The connection breaks; what is held up on it is lost. `connect` makes a new one."""
        port, self._port = self._port, None
        if self._held is not None:
            self._held = []
        self.runner.disconnected()
        if port is not None:
            port.closed()

    def hold(self) -> None:
        """Hold up everything that either side says, until `release`."""
        if self._held is None:
            self._held = []

    def release(self) -> None:
        """Let through what was held up, in order."""
        held, self._held = self._held or [], None
        for pass_on, operations in held:
            pass_on(operations)

    def crash(self) -> None:
        """The process of this instance dies: what ran here is not heard of any more."""
        self._system.instances.pop(self.runner.instance_id, None)
        for step_id in list(self.runner.steps):
            self.runner._stop(step_id, "the instance has crashed")  # noqa: SLF001 - nothing else ends it without a word
        self.runner.send = lambda _: None
        self.drop()

    async def stop(self) -> None:
        """Leave as SIGTERM does, at once; what is not finished is handed back."""
        self._system.instances.pop(self.runner.instance_id, None)
        self.release()
        await self.runner.drain(0.0)
        await asyncio.sleep(0)
        self.drop()


class _Transport(InProcessTransport):
    """The client's connection: it breaks when the control plane crashes, and is made again after `restart`."""

    reconnects = True

    def __init__(self, system: InMemorySystem) -> None:
        application: dict[ControlPlane, Any] = {}

        async def app(scope: Any, receive: Any, send: Any) -> None:
            from llama_deploy.control_plane.http.app import build_app

            plane = system.plane
            if plane not in application:
                application.clear()
                application[plane] = build_app(plane)
            await application[plane](scope, receive, send)

        def attach(send: Callable[[list[Any]], None]) -> ClientPort:
            return system.plane.clients.attach(send)  # the one that runs then

        super().__init__(attach, app)
        self._lost: Lost | None = None

    async def connect(self, receive: Receive, lost: Lost) -> None:
        await super().connect(lambda ops: receive(decode_reply_frame(encode_frame(ops))), lost)
        self._lost = lost

    def break_off(self) -> None:
        """The control plane is gone."""
        lost, self._lost = self._lost, None
        if lost is not None:
            asyncio.get_running_loop().call_soon(lost, None)
