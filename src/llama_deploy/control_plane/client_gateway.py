"""Where clients connect: submits, results and streams of many tasks multiplexed on one connection.

A client that waits is woken by the commit that ends its task. Nothing is kept for a client that is gone: it asks
again under the same task ids and stream numbers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import msgspec

from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.records import to_entry
from llama_deploy.control_plane.refusals import beyond, refuse_origin
from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.errors import InvalidRequestError, LlamaDeployError, ShuttingDownError
from llama_deploy.messages.frames import (
    Accepted,
    ClientOp,
    Ended,
    Follow,
    Forget,
    Items,
    Refused,
    StreamEnd,
    Submit,
    Subscribe,
    Wait,
    pieces,
)
from llama_deploy.runtime import failpoint
from llama_deploy.runtime.logs import get_logger
from llama_deploy.types import TaskDefinition

log = get_logger("llama_deploy.clients")


class ClientGateway:
    """All connected clients of one control plane."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ports: dict[ClientPort, None] = {}

    def attach(self, send: Callable[[list[Any]], None], *, room: Callable[[], Any] | None = None) -> ClientPort:
        """A new connection. `room()` is awaited before each batch of a stream: a slow client slows its streams."""
        port = ClientPort(self, send, room)
        self.ports[port] = None
        return port

    def stop(self) -> None:
        """Tell every client that nothing more comes from here; it comes back to the next control plane."""
        error = ShuttingDownError("the control plane is stopping", fix="wait for it to come back; what it took is kept")
        for port in tuple(self.ports):
            port.refuse(0, error)
            port.flush()
            port.close()


class ClientPort:
    """One client's connection."""

    def __init__(
        self, gateway: ClientGateway, send: Callable[[list[Any]], None], room: Callable[[], Any] | None
    ) -> None:
        self._gateway = gateway
        self._engine = gateway.engine
        self._send = send
        self._room = room
        self._outgoing: list[Any] = []
        self._flush_scheduled = False
        self._closed = False
        self._waits: dict[int, tuple[TaskEntry, Callable[[TaskEntry], None]]] = {}
        self._followers: dict[int, asyncio.Task[None]] = {}

    def post(self, operation: Any) -> None:
        """Send an operation with whatever else this turn of the loop sends."""
        self._outgoing.append(operation)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        self._flush_scheduled = False
        if self._outgoing and not self._closed:
            failpoint("clients.before_send")
            operations, self._outgoing = self._outgoing, []
            self._send(operations)

    def receive(self, operations: Sequence[ClientOp]) -> None:
        """What the client asks for, in order."""
        for operation in operations:
            if isinstance(operation, Submit):
                self._submit(operation)
            elif isinstance(operation, Wait):
                self._with_task(operation.request, operation.task_id, self._wait)
            elif isinstance(operation, Subscribe):
                first = max(0, operation.first)
                self._with_task(operation.request, operation.task_id, partial(self._start_stream, first))
            elif isinstance(operation, Follow):
                after = max(0, operation.after)
                self._with_task(operation.request, operation.task_id, partial(self._start_follow, after))
            elif isinstance(operation, Forget):
                self._forget(operation.request)

    def close(self) -> None:
        """The connection has ended. Repeating it does nothing."""
        self._closed = True
        self._gateway.ports.pop(self, None)
        for request in [*self._waits, *self._followers]:
            self._forget(request)

    def refuse(self, request: int, error: LlamaDeployError) -> None:
        self.post(Refused(request, msgspec.json.encode(error.to_problem())))

    # --- submitting and waiting -------------------------------------------------------------------------------------

    def _submit(self, operation: Submit) -> None:
        request = operation.request
        try:
            definition = TaskDefinition.model_validate(msgspec.json.decode(operation.definition))
            refuse_origin(definition)
        except (ValueError, RecursionError) as error:
            self.refuse(request, InvalidRequestError("the task definition is not valid", why=str(error)))
            return
        except InvalidRequestError as error:
            self.refuse(request, error)
            return

        def done(entry: TaskEntry | None, error: LlamaDeployError | None) -> None:
            if self._closed:
                return
            if entry is None:
                self.refuse(request, error or InvalidRequestError("refused"))
                return
            self.post(Accepted(request, entry.row.task_id))
            if operation.wait:
                self._wait(request, entry)

        self._engine.submissions.submit(definition, done)

    def _with_task(self, request: int, task_id: str, use: Callable[[int, TaskEntry], None]) -> None:
        async def run() -> None:
            try:
                entry = await self._engine.cache.get(task_id)
            except LlamaDeployError as error:
                self.refuse(request, error)
                return
            if not self._closed:
                use(request, entry)

        entry = self._engine.cache.tasks.get(task_id)
        if entry is not None and entry.recorded:
            use(request, entry)
        else:
            self._engine.spawn(run())

    def _wait(self, request: int, entry: TaskEntry) -> None:
        def ended(entry: TaskEntry) -> None:
            self._waits.pop(request, None)
            if not self._closed:
                self.post(Ended(request, entry.row.task_id, entry.row.state, entry.outcome or b"null"))

        self._forget(request)  # a number that is used again names the newer request
        if not entry.ended:
            self._waits[request] = (entry, ended)
        self._engine.when_ended(entry, ended)

    # --- streams ----------------------------------------------------------------------------------------------------

    def _start_stream(self, first: int, request: int, entry: TaskEntry) -> None:
        self._start(request, partial(self._stream, request, entry, first))

    def _start_follow(self, after: int, request: int, entry: TaskEntry) -> None:
        self._start(request, partial(self._follow, request, entry, after))

    def _start(self, request: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._forget(request)
        most = self._engine.settings.streams_per_client_max
        if len(self._followers) >= most:
            self.refuse(request, beyond("streams_per_client_max", most, f"this client follows {most} streams"))
            return
        task = asyncio.get_running_loop().create_task(self._answer(request, work))
        self._followers[request] = task
        task.add_done_callback(partial(self._followed, request))

    def _followed(self, request: int, task: asyncio.Task[None]) -> None:
        if self._followers.get(request) is task:
            del self._followers[request]

    async def _answer(self, request: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do the work of a request that takes time; whatever it raises is told, so that nobody waits for ever."""
        try:
            await work()
        except LlamaDeployError as error:
            self.refuse(request, error)
        except Exception as error:  # the edge of the task
            log.exception("a request of a client failed")
            self.refuse(request, LlamaDeployError("the control plane failed on this request", why=repr(error)))
        else:
            self.post(StreamEnd(request))

    async def _pass(self, request: int, first: int, items: list[bytes]) -> None:
        for offset, part in pieces(items):
            if self._room is not None:
                await self._room()
            self.post(Items(request, first + offset, part))

    async def _stream(self, request: int, entry: TaskEntry, first: int) -> None:
        async for number, events in self._engine.streams.follow(entry, first):
            await self._pass(request, number, events)

    async def _follow(self, request: int, entry: TaskEntry, after: int) -> None:
        async for row in self._engine.streams.follow_history(entry, after):
            item = to_entry(row.seq, row.at, row.kind, row.data, self._engine.redact).model_dump_json().encode()
            await self._pass(request, row.seq, [item])

    def _forget(self, request: int) -> None:
        waiting = self._waits.pop(request, None)
        if waiting is not None and waiting[1] in waiting[0].ended_callbacks:
            waiting[0].ended_callbacks.remove(waiting[1])
        follower = self._followers.pop(request, None)
        if follower is not None:
            follower.cancel()
