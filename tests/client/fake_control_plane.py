"""A control plane that does what a test tells it: real frames on a real socket, or in the test's own process.

By default it accepts every task, answers it at once with its input in upper case, and streams the events that the
test put in. A test replaces `handle` to drop connections, refuse, keep silent or send rubbish, and reads in `frames`
what the client sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Self

import msgspec
from tests.support.ports import free_port
from websockets.asyncio.server import Server, ServerConnection, broadcast, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from llama_deploy.errors import LlamaDeployError, TaskNotFoundError
from llama_deploy.messages.frames import (
    Accepted,
    ClientOp,
    Ended,
    Follow,
    Forget,
    Items,
    Refused,
    ReplyOp,
    StreamEnd,
    Submit,
    Subscribe,
    Wait,
    decode_client_frame,
    encode_frame,
)


class Peer:
    """One client's connection, as the control plane holds it."""

    def __init__(self, send: Callable[[list[ReplyOp]], None], socket: ServerConnection | None = None) -> None:
        self.send = send
        self.socket = socket

    def reply(self, *ops: ReplyOp) -> None:
        self.send(list(ops))

    def refuse(self, request: int, error: LlamaDeployError) -> None:
        self.reply(Refused(request, msgspec.json.encode(error.to_problem())))

    def send_raw(self, data: bytes | str) -> None:
        assert self.socket is not None
        broadcast((self.socket,), data)

    def drop(self) -> None:
        """Cut the connection as a crash would: no closing handshake."""
        assert self.socket is not None
        self.socket.transport.abort()


class FakeTask:
    """A task as recorded."""

    def __init__(self, definition: dict[str, Any]) -> None:
        self.definition = definition
        self.state = "working"
        self.result: dict[str, Any] = {}
        self.events: list[Any] = []

    def end(self, state: str, **result: Any) -> None:
        self.state = state
        task_id = self.definition["task_id"]
        self.result = {"task_id": task_id, "history": [], "result": "", "status": state, **result}


Handler = Callable[["FakeControlPlane", Peer, ClientOp], None]


class FakeControlPlane:
    """Use it with `async with`; `url` is where it listens. `stop` and `start` again keep its port and its tasks."""

    def __init__(self) -> None:
        self.tasks: dict[str, FakeTask] = {}
        self.peers: list[Peer] = []
        self.frames: list[list[ClientOp]] = []
        self.paths: list[str] = []
        self.handle: Handler = answer
        self.refuse_handshake: tuple[HTTPStatus, bytes] | None = None
        self._server: Server | None = None
        self._port = free_port()  # it comes back there

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def ops(self) -> list[ClientOp]:
        """Everything that clients sent, in order."""
        return [op for frame in self.frames for op in frame]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await serve(
            self._serve, "127.0.0.1", self._port, compression=None, process_request=self._handshake, max_size=2**24
        )
        self._port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        """Away at once, as if killed."""
        if self._server is not None:
            server, self._server = self._server, None
            for peer in self.peers:
                if peer.socket is not None:
                    peer.socket.transport.abort()
            server.close()
            await server.wait_closed()

    def _handshake(self, _: ServerConnection, request: Request) -> Response | None:
        self.paths.append(request.path)
        if self.refuse_handshake is None:
            return None
        status, body = self.refuse_handshake
        return Response(status, status.phrase, Headers({"Content-Length": str(len(body))}), body)

    async def _serve(self, socket: ServerConnection) -> None:
        peer = Peer(lambda ops: broadcast((socket,), encode_frame(ops)), socket)
        self.peers.append(peer)
        try:
            async for data in socket:
                assert isinstance(data, bytes)
                self.take(peer, decode_client_frame(data))
        except ConnectionClosed:
            pass

    def attach(self, send: Callable[[list[ReplyOp]], None]) -> FakePort:
        """What the real gateway offers to clients in its own process."""
        peer = Peer(send)
        self.peers.append(peer)
        return FakePort(self, peer)

    def take(self, peer: Peer, ops: list[ClientOp]) -> None:
        self.frames.append(ops)
        for op in ops:
            self.handle(self, peer, op)

    def record(self, op: Submit) -> FakeTask:
        """The task of a submission: the first of its id counts."""
        definition = json.loads(op.definition)
        return self.tasks.setdefault(definition["task_id"], FakeTask(definition))


class FakePort:
    """The place of a client in this process."""

    def __init__(self, plane: FakeControlPlane, peer: Peer) -> None:
        self._plane = plane
        self._peer = peer
        self.closed = False

    def receive(self, ops: list[ClientOp]) -> None:
        self._plane.take(self._peer, ops)

    def close(self) -> None:
        self.closed = True


def answer(plane: FakeControlPlane, peer: Peer, op: ClientOp) -> None:
    """The default behaviour: everything at once."""
    match op:
        case Submit():
            task = accept(plane, peer, op)
            if task.state == "working":
                task.end("completed", kind="json", value=task.definition["input"].upper())
            if op.wait:
                send_outcome(peer, op.request, task)
        case Wait():
            if (found := plane.tasks.get(op.task_id)) is None:
                peer.refuse(op.request, TaskNotFoundError(f"no task has the id {op.task_id}"))
            elif found.state != "working":
                send_outcome(peer, op.request, found)
        case Subscribe() | Follow():
            first = op.first if isinstance(op, Subscribe) else op.after + 1
            send_items(plane, peer, op.request, op.task_id, first)
            peer.reply(StreamEnd(op.request))
        case Forget():
            pass


def silent(plane: FakeControlPlane, peer: Peer, op: ClientOp) -> None:
    """Accept tasks and never end one."""
    if isinstance(op, Submit):
        accept(plane, peer, op)


def accept(plane: FakeControlPlane, peer: Peer, op: Submit) -> FakeTask:
    task = plane.record(op)
    peer.reply(Accepted(op.request, task.definition["task_id"]))
    return task


def send_outcome(peer: Peer, request: int, task: FakeTask) -> None:
    peer.reply(Ended(request, task.definition["task_id"], task.state, msgspec.json.encode(task.result)))


def send_items(plane: FakeControlPlane, peer: Peer, request: int, task_id: str, first: int) -> None:
    """The task's events from `first` on; history entries are numbered from 1."""
    events = plane.tasks[task_id].events
    peer.reply(Items(request, first, [msgspec.json.encode(event) for event in events[first:]]))
