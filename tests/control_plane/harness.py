"""What the tests of the control plane share: planes over one store, instances that do what a test says, crashes.

A `World` keeps the store while control planes come and go on it. A `FakeInstance` speaks the protocol of instances
through real frames; a `LinkedRunner` is a real runner that survives the plane it was connected to.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from tests.support import DEADLINE_S, eventually

from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.control_plane.gateway import Port
from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.messages import frames
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.runtime import Clock
from llama_deploy.services import Runner, as_service
from llama_deploy.state_stores import MemoryStore, SQLiteStore, StateStore
from llama_deploy.testing import ManualClock
from llama_deploy.testing.crash import bury, cut_off
from llama_deploy.types import (
    HistoryEntry,
    RetryPolicy,
    ServiceDefinition,
    TaskDefinition,
    TaskError,
    TaskResult,
    WebhookSettings,
)

PATIENT: dict[str, Any] = {"lease_s": 3_600.0, "claim_recorded_after_s": 3_600.0, "overdue_s": 3_600.0}


def patient(settings: EngineSettings | None) -> EngineSettings:
    """The settings of a plane that takes its time from the machine: what a test does not set is never due in it."""
    given, default = settings or EngineSettings(), EngineSettings()
    return replace(
        given, **{name: to for name, to in PATIENT.items() if getattr(given, name) == getattr(default, name)}
    )


class World:
    """One store, and the control planes that run on it one after the other."""

    def __init__(
        self,
        store: StateStore | Path | None = None,
        *,
        orchestrator: BaseOrchestrator | None = None,
        orchestrators: Mapping[str, BaseOrchestrator] | None = None,
        settings: EngineSettings | None = None,
        clock: Clock | None = None,
        default_service: str | None = None,
        webhooks: WebhookSettings | None = None,
    ) -> None:
        self.webhooks = webhooks
        self._path = store if isinstance(store, Path) else None
        self._memory = store if isinstance(store, StateStore) else MemoryStore()
        self.orchestrator = orchestrator
        self.orchestrators = orchestrators
        self.settings = settings
        self.clock = clock
        self.default_service = default_service
        self.running: ControlPlane | None = None

    @property
    def plane(self) -> ControlPlane:
        """The control plane that runs now."""
        assert self.running is not None, "no control plane runs"
        return self.running

    @property
    def manual(self) -> ManualClock:
        """The clock that the test moves."""
        assert isinstance(self.clock, ManualClock)
        return self.clock

    async def start(self) -> ControlPlane:
        """Start a control plane on the store."""
        assert self.running is None
        self.running = ControlPlane(
            store=SQLiteStore(self._path) if self._path is not None else self._memory,
            orchestrator=self.orchestrator,
            orchestrators=self.orchestrators,
            settings=patient(self.settings) if self.clock is None else self.settings,
            clock=self.clock,
            default_service=self.default_service,
            webhooks=self.webhooks,
        )
        await self.running.start()
        return self.running

    async def stop(self) -> None:
        """Stop the control plane as a clean end does."""
        plane, self.running = self.running, None
        if plane is not None:
            await plane.stop()

    async def crash(self) -> None:
        """Make the control plane vanish: what is not committed is gone, and nobody is told anything."""
        plane, self.running = self.running, None
        if plane is not None:
            await abandon(plane)


@asynccontextmanager
async def world(store: StateStore | Path | None = None, **options: Any) -> AsyncIterator[World]:
    """A world with a control plane that runs; whatever runs at the end is stopped."""
    made = World(store, **options)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


def cut(plane: ControlPlane) -> None:
    """The instant of the crash: nothing that is not committed now will ever be."""
    store = cut_off(plane)
    if isinstance(store, MemoryStore):
        store._handed_over.clear()
    elif isinstance(store, SQLiteStore):
        store._settle = lambda *_: None  # type: ignore[method-assign]
        store._pending.clear()
    plane._crashed_store = store  # type: ignore[attr-defined]


async def abandon(plane: ControlPlane) -> None:
    """End a plane without any of what a clean end does."""
    if not hasattr(plane, "_crashed_store"):
        cut(plane)
    await bury(plane)
    store: Any = vars(plane)["_crashed_store"]
    if isinstance(store, MemoryStore):
        store._unsettled = 0
    elif isinstance(store, SQLiteStore) and not store._closed:
        store._closed = True
        store._commits.put(None)
        await asyncio.to_thread(store._thread.join)
        store._close_readers()
        store._connection.close()  # what was not committed is rolled back
        os.close(store._lock_file)


class FakeInstance:
    """An instance that does nothing by itself: the test sends its operations and looks at what it was sent."""

    def __init__(
        self,
        services: Iterable[str | ServiceDefinition] = ("echo",),
        *,
        instance_id: str = "one",
        concurrency: int = 8,
        mesh: bool = False,
        release: str = "",
        **definition: Any,
    ) -> None:
        self.instance_id = instance_id
        self.mesh = mesh
        """Whether it says that it connects to every control plane."""
        self.release = release
        self.definitions = [
            service
            if isinstance(service, ServiceDefinition)
            else ServiceDefinition(service_name=service, description="", concurrency=concurrency, **definition)
            for service in services
        ]
        self.received: list[Any] = []
        self.stops_at_once = True
        """Whether it says at once that code has stopped that it was asked to stop."""
        self.port: Port | None = None
        self.closed = False

    # --- the connection ---------------------------------------------------------------------------------------------

    def attach(self, plane: ControlPlane) -> Port:
        """Open a connection and say nothing yet."""
        self.closed = False
        opened: list[Port] = []

        def close() -> None:
            if opened and self.port is opened[0]:
                self.port = None
                self.closed = True
                opened[0].closed()

        self.port = plane.gateway.attach(self._receive, close=close)
        opened.append(self.port)
        return self.port

    async def connect(self, plane: ControlPlane, held: Iterable[tuple[str, int]] = ()) -> frames.Welcome:
        """Connect, say hello, and wait for the welcome."""
        self.attach(plane)
        known = len(self.all(frames.Welcome))
        self.hello(held)
        await eventually(lambda: len(self.all(frames.Welcome)) > known)
        welcome: frames.Welcome = self.all(frames.Welcome)[-1]
        return welcome

    def _receive(self, operations: list[Any]) -> None:
        received = frames.decode_control_frame(frames.encode_frame(operations))
        self.received += received
        for operation in received:
            if isinstance(operation, frames.CancelStep) and self.stops_at_once:
                asyncio.get_running_loop().call_soon(self._stopped, operation.step_id)

    def _stopped(self, step_id: str) -> None:
        """Its code has ended, as code that was asked to stop does."""
        attempts = [step.attempt for step in self.all(frames.Deliver) if step.step_id == step_id]
        if self.port is not None and attempts:
            self.send(frames.Stopped(step_id, attempts[-1]))

    def drop(self) -> None:
        """The connection breaks."""
        assert self.port is not None
        port, self.port = self.port, None
        port.closed()

    def send(self, *operations: Any) -> None:
        """Send operations in one frame."""
        assert self.port is not None, "not connected"
        self.port.receive(frames.decode_instance_frame(frames.encode_frame(list(operations))))

    # --- what it says -----------------------------------------------------------------------------------------------

    def hello(self, held: Iterable[tuple[str, int]] = (), *, protocol: int = frames.PROTOCOL_VERSION) -> None:
        services = msgspec.json.encode([d.model_dump(mode="json") for d in self.definitions])
        steps = [frames.HeldStep(*step) for step in held]
        self.send(frames.Hello(protocol, self.instance_id, services, steps, 1, "host", self.mesh, release=self.release))

    def answer(self, step: frames.Deliver, result: str | TaskResult = "done", **changes: Any) -> None:
        """Answer a delivered step; `changes` replace fields of the operation."""
        if isinstance(result, str):
            result = TaskResult(task_id="", history=[], result=result)
        encoded = msgspec.json.encode(result.model_dump())
        operation = frames.Answer(step.step_id, step.attempt, encoded, 1.0, 2.0)
        self.send(msgspec.structs.replace(operation, **changes))

    def fail(self, step: frames.Deliver, message: str = "no", **error: Any) -> None:
        """Answer a delivered step with a failure."""
        failed = TaskError(message=message, **error)
        self.answer(step, TaskResult(task_id="", history=[], result=message, status="failed", error=failed))

    def stream(self, step: frames.Deliver, first: int, events: Sequence[Any]) -> None:
        """Stream events of a delivered step."""
        encoded = [msgspec.json.encode(event) for event in events]
        self.send(frames.Events(step.step_id, step.attempt, first, encoded))

    def park(self, step: frames.Deliver, prompt: str = "?", *, resume: str = "answer", **changes: Any) -> None:
        """Let go of a delivered step until a person has answered."""
        encoded = msgspec.json.encode({"prompt": prompt})
        operation = frames.Park(step.step_id, step.attempt, encoded, resume, None, 0)
        self.send(msgspec.structs.replace(operation, **changes))

    def ask(self, step: frames.Deliver, prompt: str = "?") -> None:
        """Ask a person and keep the step."""
        self.send(frames.AskInput(step.step_id, step.attempt, msgspec.json.encode({"prompt": prompt})))

    # --- what it was told -------------------------------------------------------------------------------------------

    def all(self, kind: type[Any]) -> list[Any]:
        """Everything of one kind that it was sent, oldest first."""
        return [operation for operation in self.received if isinstance(operation, kind)]

    async def got(self, kind: type[Any], count: int = 1) -> Any:
        """Wait until it was sent `count` operations of a kind; the `count`-th one."""
        await eventually(lambda: len(self.all(kind)) >= count)
        return self.all(kind)[count - 1]

    async def delivery(self, count: int = 1) -> frames.Deliver:
        """The `count`-th delivery."""
        found: frames.Deliver = await self.got(frames.Deliver, count)
        return found

    async def delivery_in_time(self, world: World, count: int = 1, *, step_s: float = 0.1) -> frames.Deliver:
        """The `count`-th delivery, while the manual clock of the world goes on.

        What falls due may meet a sweep that is under way, which looks again a moment later: a clock that is moved once
        and stands still would never bring that moment.
        """

        def come() -> bool:
            made = len(self.all(frames.Deliver)) >= count
            if not made:
                world.manual.advance(step_s)
            return made

        await eventually(come)
        return await self.delivery(count)

    async def acknowledged(self, step: frames.Deliver | str) -> None:
        """Wait until the control plane has recorded the answer to a step, or does not want it."""
        step_id = step if isinstance(step, str) else step.step_id
        await eventually(lambda: any(step_id in op.step_ids for op in self.all(frames.Acknowledged)))


class LinkedRunner:
    """A real runner in this process that outlives control planes: it reconnects when it is told to."""

    def __init__(self, services: Sequence[Any], *, instance_id: str = "local") -> None:
        self.runner = Runner([as_service(service) for service in services], instance_id=instance_id)
        self._port: Port | None = None
        self._started = False

    async def connect(self, plane: ControlPlane) -> None:
        """Connect, as a link does after every loss of its connection."""
        if not self._started:
            await self.runner.start()
            self._started = True
        opened: list[Port] = []

        def close() -> None:
            if opened and self._port is opened[0]:
                self._closed()

        port = self._port = plane.gateway.attach(self._receive, close=close, in_process=True)
        opened.append(port)
        self.runner.send = self._send
        port.receive(_through_frame([self.runner.hello()]))
        async with asyncio.timeout(DEADLINE_S):
            await self.runner.ready.wait()

    def _send(self, operations: list[Any]) -> None:
        if self._port is not None:
            self._port.receive(_through_frame(operations))

    def _receive(self, operations: list[Any]) -> None:
        self.runner.receive(frames.decode_control_frame(frames.encode_frame(operations)))

    def _closed(self) -> None:
        self.runner.disconnected()
        if self._port is not None:
            port, self._port = self._port, None
            port.closed()

    def drop(self) -> None:
        """The connection breaks."""
        self._closed()

    def die(self) -> None:
        """Its process is gone: nothing that runs here is heard of any more."""
        self.runner.send = lambda _: None
        for step_id in list(self.runner.steps):
            self.runner._stop(step_id, "the process is gone")
        self._closed()

    async def stop(self) -> None:
        """Drain at once and let go."""
        await self.runner.drain(0.0)
        self._closed()


def _through_frame(operations: list[Any]) -> list[Any]:
    return list(frames.decode_instance_frame(frames.encode_frame(operations)))


# --- asking a plane -------------------------------------------------------------------------------------------------


async def submit(plane: ControlPlane, service: str | None = "echo", text: str = "hello", **fields: Any) -> TaskEntry:
    """Submit a task and wait until it is recorded."""
    definition = TaskDefinition(input=text, agent_id=service, **fields)
    async with asyncio.timeout(DEADLINE_S):
        return await plane.engine.submissions.submit_and_wait(definition)


async def outcome(plane: ControlPlane, task: TaskEntry | str) -> TaskResult:
    """Wait for the end of a task; its outcome."""
    task_id = task if isinstance(task, str) else task.row.task_id
    entry = await plane.engine.cache.get(task_id)
    assert await plane.engine.wait_ended(entry, DEADLINE_S), f"{task_id} has not ended: {plane.views.task(entry)}"
    view = await plane.views.result(entry)
    assert view.result is not None
    return view.result


async def history(plane: ControlPlane, task: TaskEntry | str) -> list[HistoryEntry]:
    """The whole history of a task."""
    entry = await plane.engine.cache.get(task if isinstance(task, str) else task.row.task_id)
    return (await plane.views.history(entry, after=0, limit=1000)).items


async def state_of(plane: ControlPlane, task: TaskEntry | str) -> str:
    """The state of a task as the API shows it."""
    entry = await plane.engine.cache.get(task if isinstance(task, str) else task.row.task_id)
    return plane.views.task(entry).state.value


async def stream(plane: ControlPlane, task: TaskEntry | str, first: int = 0) -> list[Any]:
    """The whole stream of a task, read until its end; the numbers must be dense."""
    entry = await plane.engine.cache.get(task if isinstance(task, str) else task.row.task_id)
    found: list[Any] = []
    async with asyncio.timeout(DEADLINE_S):
        async for number, events in plane.engine.streams.follow(entry, first):
            assert number == first + len(found)
            found += [msgspec.json.decode(event) for event in events]
    return found


async def recorded(entry: TaskEntry, entries: int) -> None:
    """Wait until a task's history has this many entries, all committed."""
    await eventually(lambda: entry.settled_seq >= entries)


def is_at_rest(plane: ControlPlane) -> bool:
    """Whether nothing is on its way: to the store, to an instance, or to what looks after lost steps."""
    flushing = any(port._flush_scheduled for port in plane.gateway.ports)
    loading = any(not task.done() for task in plane.engine._background)
    return plane.store.backlog == 0 and not flushing and not plane.sweeper._wake.is_set() and not loading


async def until(condition: Callable[[], Any]) -> Any:
    """Wait for a condition, for as long as anything here may take."""
    return await eventually(condition)


NO_JITTER = RetryPolicy(jitter=0.0)
