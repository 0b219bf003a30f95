"""The simulated network: wires between processes, and the product's own link and client on top of them.

A wire is what TCP is: frames arrive in order or not at all. It may be slow, stand still for a while, go silent without
anybody noticing, or break, and each end hears of that in its own time. Whose frames they are is not known here.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote

from websockets.exceptions import ConnectionClosedError

from llama_deploy.connections.transport import Lost, Receive
from llama_deploy.errors import HTTP_STATUS, CannotReachError, ConnectionLostError, LlamaDeployError
from llama_deploy.messages.frames import (
    ClientOp,
    decode_client_frame,
    decode_control_frame,
    decode_instance_frame,
    decode_reply_frame,
    frames_of,
)
from llama_deploy.services.line import CONNECT_TIMEOUT_S
from llama_deploy.services.link import Link
from llama_deploy.services.runner import Runner
from llama_deploy.testing.simulation.loop import Process, SimulatedLoop
from llama_deploy.types.schedules import Schedule

if TYPE_CHECKING:
    from llama_deploy.control_plane import ControlPlane

NOTICED_S_MAX = 40.0
"""By when a client and its control plane have noticed that their connection is silent: two pings."""

ORDER_S = 1e-7
"""What keeps two frames apart that would arrive at the same time: timers of one time have no order."""


class End:
    """One end of a wire, in one process."""

    def __init__(self, wire: Wire, process: Process) -> None:
        self.process = process
        self.peer: End = self
        self.wire = wire
        self.take: Callable[[bytes], None] = lambda _: None
        """Called with each frame that arrives."""
        self.ended: Callable[[bool], None] = lambda _: None
        """Called once: the connection has ended, in order (True) or by a break."""
        self.open = True
        self._arrives_at = 0.0

    def send(self, frame: bytes) -> None:
        """Put a frame on the wire. What is said on a wire that leads nowhere is lost."""
        wire = self.wire
        if not self.open or self.process.dead or wire.silent:
            return
        loop = wire.network.loop
        self._arrives_at = max(self._arrives_at + ORDER_S, loop.time() + wire.network.latency_s())
        loop.call_at(self._arrives_at, self._arrive, frame, context=self.peer.process.context)

    def _arrive(self, frame: bytes) -> None:
        peer, wire = self.peer, self.wire
        loop = wire.network.loop
        arrives = peer.open and not wire.silent and not wire.broken
        loop.note(self.process.name, "->" if arrives else "-x", peer.process.name)
        if loop.notes is not None:
            loop.notes[-1] += _in_words(frame, (wire.kind, self is wire.near))
        if arrives:
            peer.take(frame)

    def close(self) -> None:
        """End the connection after what was sent; the other end hears of it, unless the wire is silent."""
        if not self.open:
            return
        self.open = False
        wire = self.wire
        wire.network.wires.pop(wire, None)
        loop = wire.network.loop
        if not wire.silent and not self.process.dead:
            when = max(self._arrives_at + ORDER_S, loop.time() + wire.network.latency_s())
            loop.call_at(when, self.peer.hear, True, context=self.peer.process.context)
        loop.call_soon(self.ended, True, context=self.process.context)

    def hear(self, in_order: bool) -> None:
        """The connection has ended, as far as this end can see."""
        if self.open:
            self.open = False
            self.wire.network.wires.pop(self.wire, None)
            self.ended(in_order)


class Wire:
    """A connection of two processes."""

    def __init__(self, network: Network, kind: str, near: Process, far: Process) -> None:
        self.network = network
        self.kind = kind
        self.near, self.far = End(self, near), End(self, far)
        self.near.peer, self.far.peer = self.far, self.near
        self.silent = False
        self.broken = False
        network.wires[self] = None
        for end in (self.near, self.far):
            end.process.at_death.append(lambda end=end: self._died(end))  # type: ignore[misc]

    def cut(self, noticed_s: float = 0.0) -> None:
        """Break it: what is on its way is lost, and each end notices within `noticed_s`."""
        self.broken = True
        self.network.wires.pop(self, None)
        for end in (self.near, self.far):
            delay_s = self.network.chance.uniform(0.0, noticed_s)
            self.network.loop.call_later(delay_s, end.hear, False, context=end.process.context)

    def silence(self) -> None:
        """Let nothing through any more, and tell nobody; the pings of clients' connections notice it after a while."""
        self.silent = True
        if self.kind == "client":
            self.cut(NOTICED_S_MAX)

    def _died(self, end: End) -> None:
        """The process of one end was killed: its kernel tells the other one, unless the whole machine is gone."""
        if not end.open:
            return
        chance = self.network.chance
        end.open = False
        self.network.wires.pop(self, None)
        if self.silent or chance.random() < self.network.vanish_share:
            self.silence()
            return
        self.broken = chance.random() < 0.5
        loop = self.network.loop
        when = max(end._arrives_at + ORDER_S, loop.time() + self.network.latency_s())
        loop.call_at(when, end.peer.hear, False, context=end.peer.process.context)


class Network:
    """All wires of a run, and the address at which the control plane listens."""

    def __init__(self, loop: SimulatedLoop, chance: random.Random) -> None:
        self.loop = loop
        self.chance = chance
        self.wires: dict[Wire, None] = {}
        self.latency_s_max = 0.002
        self.stall_share = 0.0
        """Share of frames that are held up, and with them what follows on their wire."""
        self.stall_s_max = 0.0
        self.vanish_share = 0.0
        """Share of killed processes whose peers are told nothing."""
        self.request_loss_share = 0.0
        """Share of requests that are lost, before or after they were carried out."""
        self.unreachable = False
        """Nobody can connect: attempts hang until their time is over."""
        self.listening: tuple[Process, ControlPlane] | None = None

    def latency_s(self) -> float:
        """How long the next frame is on its way."""
        if self.stall_share and self.chance.random() < self.stall_share:
            return self.chance.uniform(0.0, self.stall_s_max)
        return self.chance.uniform(0.0, self.latency_s_max)

    async def connect(self, near: Process, kind: str) -> End:
        """Connect to the control plane. Raises `OSError` when nothing listens, `TimeoutError` when nothing answers."""
        await asyncio.sleep(self.latency_s())
        if self.unreachable:
            await asyncio.sleep(CONNECT_TIMEOUT_S)
            raise TimeoutError("no answer")
        if self.listening is None:
            raise ConnectionRefusedError("connection refused")
        process, plane = self.listening
        wire = Wire(self, kind, near, process)
        process.call_soon(_serve, plane, wire.far, kind)
        await asyncio.sleep(self.latency_s())
        if not wire.near.open:
            raise ConnectionResetError("connection reset")
        return wire.near


_DECODERS: dict[tuple[str, bool], Callable[[bytes], list[Any]]] = {
    ("instance", True): decode_instance_frame,
    ("instance", False): decode_control_frame,
    ("client", True): decode_client_frame,
    ("client", False): decode_reply_frame,
}


def _in_words(frame: bytes, decoder: tuple[str, bool]) -> str:
    """What a frame says, shortened."""
    words = []
    for operation in _DECODERS[decoder](frame):
        fields = (getattr(operation, name) for name in operation.__struct_fields__)
        shown = (str(value) for value in fields if not isinstance(value, bytes | list) or not value)
        words.append(f" {type(operation).__name__}({', '.join(shown)[:100]})")
    return "".join(words)


def _serve(plane: ControlPlane, end: End, kind: str) -> None:
    """The control plane's side of a connection, as its WebSocket routes have it."""

    def send(operations: list[Any]) -> None:
        for frame in frames_of(operations):
            end.send(frame)

    if kind == "instance":
        port = plane.gateway.attach(send, close=end.close)
        end.take = lambda frame: port.receive(decode_instance_frame(frame))
        end.ended = lambda _: port.closed()
    else:
        client = plane.clients.attach(send)
        end.take = lambda frame: client.receive(decode_client_frame(frame))
        end.ended = lambda _: client.close()


class _Connection:
    """The near end of an instance's wire, with as much of a WebSocket connection as the link uses."""

    def __init__(self, end: End) -> None:
        self._end = end
        self._frames: deque[bytes] = deque()
        self._in_order: bool | None = None
        self._wake = asyncio.Event()
        self.transport = self
        end.take = self._take
        end.ended = self._ended

    def _take(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._wake.set()

    def _ended(self, in_order: bool) -> None:
        self._in_order = in_order
        self._wake.set()

    async def send(self, frame: bytes) -> None:
        if not self._end.open:
            raise ConnectionClosedError(None, None)
        self._end.send(frame)

    async def close(self) -> None:
        self._end.close()

    def abort(self) -> None:
        self._end.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            while self._frames:
                yield self._frames.popleft()
            if self._in_order is not None:
                if self._in_order:
                    return
                raise ConnectionClosedError(None, None)
            self._wake.clear()
            await self._wake.wait()


class SimulatedLink(Link):
    """The product's link of an instance, over a simulated wire and on the instance's own loop."""

    def __init__(self, runner: Runner, network: Network, process: Process) -> None:
        super().__init__(runner, "http://simulated", loop=process.loop)
        self._network = network
        self._process = process

    def start(self) -> None:
        self._process.spawn(self._keep_connected)

    async def stop(self) -> None:
        self._stopped.set()

    async def _open(self, url: str) -> Any:  # noqa: ARG002 - there is one control plane
        return _Connection(await self._network.connect(self._process, "instance"))


class SimulatedTransport:
    """A client's `Transport` over simulated wires."""

    reconnects = True
    address = "simulated"

    def __init__(self, network: Network, process: Process) -> None:
        self._network = network
        self._process = process
        self._end: End | None = None

    async def connect(self, receive: Receive, lost: Lost) -> None:
        self._drop()
        try:
            end = await self._network.connect(self._process, "client")
        except OSError as error:
            raise CannotReachError("cannot reach the control plane", why=str(error)) from error

        def ended(_: bool) -> None:
            if self._end is end:
                self._end = None
                lost(None)

        self._end = end
        end.take = lambda frame: receive(decode_reply_frame(frame)) if self._end is end else None
        end.ended = ended

    def send(self, ops: list[ClientOp]) -> None:
        if self._end is not None:
            for frame in frames_of(ops):
                self._end.send(frame)

    def _drop(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            end.close()

    async def close(self) -> None:
        self._drop()

    async def request(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, json: Any = None
    ) -> tuple[int, Any]:
        """A request, in the place of the HTTP API: what it does to the control plane is the same."""
        network = self._network
        await asyncio.sleep(network.latency_s())
        if network.listening is None or network.unreachable:
            raise CannotReachError("cannot reach the control plane")
        fate = network.chance.random() / network.request_loss_share if network.request_loss_share else 1.0
        if fate < 0.5:
            raise ConnectionLostError("the request was lost")
        process, plane = network.listening
        answer: asyncio.Future[tuple[int, Any]] = network.loop.create_future()

        def reply(status: int, body: Any) -> None:
            if not answer.done():
                answer.set_result((status, body))

        def lost() -> None:
            if not answer.done():
                answer.set_exception(ConnectionLostError("the answer was lost"))

        process.at_death.append(lambda: self._process.call_soon(lost))
        process.spawn(_carry_out, plane, (method, path, json or dict(params or {})), reply)
        network.loop.call_later(60.0, lost, context=self._process.context)
        status, body = await answer
        await asyncio.sleep(network.latency_s())
        if fate < 1.0:
            raise ConnectionLostError("the answer was lost")
        return status, body

    def download(self, path: str) -> AsyncIterator[bytes]:
        raise AssertionError(f"{path} is not simulated")

    async def exchange(self, method: str, path: str, **_: Any) -> tuple[int, Mapping[str, str], bytes]:
        raise AssertionError(f"{method} {path} is not simulated")


async def _carry_out(
    plane: ControlPlane, request: tuple[str, str, Mapping[str, Any]], reply: Callable[[int, Any], None]
) -> None:
    """The rare requests, as the routes of the HTTP API carry them out."""
    method, path, body = request
    _, _, what, *names = map(unquote, path.split("/"))
    try:
        view = await (_asked if method == "GET" else _changed)(plane, (method, what, *names), body)
    except LlamaDeployError as error:
        reply(HTTP_STATUS[error.category], error.to_problem())
        return
    reply(200, view if isinstance(view, dict) else view.model_dump(mode="json"))


async def _asked(plane: ControlPlane, request: tuple[str, ...], body: Mapping[str, Any]) -> Any:
    """What a request shows."""
    match request:
        case (_, "dead"):
            return await plane.dead_letters.page(service=None, task_id=body["task_id"], limit=100, cursor=None)
        case (_, "tasks", task_id):
            return plane.views.task(await plane.engine.cache.get(task_id))
    raise AssertionError(f"{request} is not simulated")


async def _changed(plane: ControlPlane, request: tuple[str, ...], body: Mapping[str, Any]) -> Any:
    """What a request changes: the task that it is about, or that it has made."""
    match request:
        case ("PUT", "schedules", name):
            return await plane.schedules.put(name, Schedule.model_validate(body))
        case (_, "tasks", task_id, "input"):
            return {"step_id": await plane.signals.send_input(task_id, body["value"], step_id=body.get("step_id"))}
        case (_, "tasks", task_id, "retry" | "replay" | "fork"):
            task_id = await _made(plane, request[-1], task_id, body)
        case (_, "dead", step_id, "redrive"):
            task_id = await plane.dead_letters.redrive(step_id)
        case (_, "tasks", task_id, "cancel"):
            await plane.signals.cancel(task_id, reason=str(body.get("reason", "")))
        case (_, "tasks", task_id, "pause"):
            await plane.pauses.pause(task_id, reason=str(body.get("reason", "")))
        case (_, "tasks", task_id, "resume"):
            await plane.pauses.resume(task_id)
        case _:
            raise AssertionError(f"{request} is not simulated")
    return plane.views.task(await plane.engine.cache.get(task_id))


async def _made(plane: ControlPlane, what: str, task_id: str, body: Mapping[str, Any]) -> str:
    """Make a task of another one; its id."""
    repeats, new_task_id = plane.repeats, body["task_id"]
    if what == "retry":
        made, _ = await repeats.retry(task_id, new_task_id=new_task_id)
    elif what == "replay":
        made, _ = await repeats.replay(task_id, step_id=body["step_id"], new_task_id=new_task_id)
    else:
        made, _ = await repeats.fork(task_id, body["seq"], new_task_id=new_task_id)
    return made.row.task_id
