"""Where clients connect: submits, results and streams of many tasks multiplexed on one connection.

A client that waits is woken by the commit that ends its task. Nothing is kept for a client that is gone: it asks
again under the same task ids and stream numbers. What is about a task that another control plane leads, or comes to
lead, is asked there (`relays`), and the client hears nothing of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Literal

import msgspec

from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.records import to_entry
from llama_deploy.control_plane.refusals import beyond, refuse_origin
from llama_deploy.control_plane.relays import Relays
from llama_deploy.control_plane.routing import AGAIN_S, Routing
from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.errors import InvalidRequestError, LlamaDeployError, ShardLostError, ShuttingDownError
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

    def __init__(self, engine: Engine, routing: Routing, relays: Relays) -> None:
        self.engine = engine
        self.routing = routing
        self.relays = relays
        self.ports: dict[ClientPort, None] = {}

    def attach(
        self,
        send: Callable[[list[Any]], None],
        *,
        room: Callable[[], Any] | None = None,
        passed_on: bool = False,
    ) -> ClientPort:
        """A new connection. `room()` is awaited before each batch of a stream: a slow client slows its streams.

        With `passed_on` another control plane asks for its clients: what is led elsewhere is refused, not asked there.
        """
        port = ClientPort(self, send, room, passed_on=passed_on)
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
        self,
        gateway: ClientGateway,
        send: Callable[[list[Any]], None],
        room: Callable[[], Any] | None,
        *,
        passed_on: bool,
    ) -> None:
        self._gateway = gateway
        self._engine = gateway.engine
        self._routing = gateway.routing
        self._passed_on = passed_on
        self._relays = gateway.relays if gateway.routing.shared and not passed_on else None
        """`None` where nothing is asked elsewhere."""
        self._send = send
        self._room = room
        self._outgoing: list[Any] = []
        self._flush_scheduled = False
        self._closed = False
        self._waits: dict[int, Callable[[], None]] = {}
        """By request: what lets go of the task that it waits for."""
        self._works: dict[int, asyncio.Task[None]] = {}
        """By request: what takes time, streams above all."""
        self._streams: set[int] = set()

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
                self._wait(operation)
            elif isinstance(operation, Subscribe):
                self._read(operation.request, operation.task_id, "stream", max(0, operation.first))
            elif isinstance(operation, Follow):
                self._read(operation.request, operation.task_id, "history", max(0, operation.after) + 1)
            elif isinstance(operation, Forget):
                self._forget(operation.request)

    def close(self) -> None:
        """The connection has ended. Repeating it does nothing."""
        self._closed = True
        self._gateway.ports.pop(self, None)
        for request in [*self._waits, *self._works]:
            self._forget(request)

    def refuse(self, request: int, error: LlamaDeployError) -> None:
        self.post(Refused(request, msgspec.json.encode(error.to_problem())))

    # --- what takes time --------------------------------------------------------------------------------------------

    def _begin(self, request: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Answer a request beside the others; a number that is used again names the newer request."""
        self._forget(request)
        if self._closed:
            return
        task = asyncio.get_running_loop().create_task(self._answer(request, work))
        self._works[request] = task
        task.add_done_callback(partial(self._worked, request))

    def _worked(self, request: int, task: asyncio.Task[None]) -> None:
        if self._works.get(request) is task:
            del self._works[request]
            self._streams.discard(request)

    async def _answer(self, request: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do the work of a request that takes time; whatever it raises is told, so that nobody waits for ever."""
        try:
            await work()
        except LlamaDeployError as error:
            self.refuse(request, error)
        except Exception as error:  # the edge of the task
            log.exception("a request of a client failed")
            self.refuse(request, LlamaDeployError("the control plane failed on this request", why=repr(error)))

    def _forget(self, request: int) -> None:
        let_go = self._waits.pop(request, None)
        if let_go is not None:
            let_go()
        self._streams.discard(request)
        work = self._works.pop(request, None)
        if work is not None:
            work.cancel()

    async def _led_elsewhere(self, task_id: str) -> str | None:
        """The session of a task that another control plane leads; `None` where it is looked for here."""
        if self._relays is None:
            return None
        session_id = await self._routing.session_of(task_id)
        return None if session_id is None or self._routing.leads(session_id) else session_id

    async def _load(self, task_id: str) -> TaskEntry | None:
        """A task that is led here; `None` where that is over, and it is to be asked for elsewhere.

        Raises `TaskNotFoundError`, and `ShardLostError` where nothing is asked elsewhere.
        """
        try:
            return await self._engine.cache.get(task_id)
        except ShardLostError:
            if self._relays is None:
                raise
            await self._routing.changed(AGAIN_S)
            return None

    # --- submitting -------------------------------------------------------------------------------------------------

    def _submit(self, operation: Submit) -> None:
        request = operation.request
        try:
            definition = TaskDefinition.model_validate(msgspec.json.decode(operation.definition))
            refuse_origin(definition, passed_on=self._passed_on)
        except (ValueError, RecursionError) as error:
            self.refuse(request, InvalidRequestError("the task definition is not valid", why=str(error)))
            return
        except InvalidRequestError as error:
            self.refuse(request, error)
            return
        keyed = definition.idempotency_key and not definition.session_id
        if self._relays is None or (not keyed and self._routing.leads(definition.session_id or definition.task_id)):
            self._submit_here(operation, definition)
        else:  # elsewhere, or under a key that may have made a task of another session
            self._begin(request, partial(self._submit_there, operation, definition))

    def _submit_here(self, operation: Submit, definition: TaskDefinition) -> None:
        request = operation.request

        def done(entry: TaskEntry | None, error: LlamaDeployError | None) -> None:
            if self._closed:
                return
            if isinstance(error, ShardLostError) and self._relays is not None:
                self._begin(request, partial(self._submit_there, operation, definition))
            elif entry is None:
                self.refuse(request, error or InvalidRequestError("refused"))
            else:
                self.post(Accepted(request, entry.row.task_id))
                if operation.wait:
                    self._wait_here(request, entry)

        self._engine.submissions.submit(definition, done)

    async def _submit_there(self, operation: Submit, definition: TaskDefinition) -> None:
        """Have a task made by whoever leads its session."""
        assert self._relays is not None
        request, task_id = operation.request, ""
        session_of_new = partial(self._routing.session_of_new, definition)
        session_id = await session_of_new()

        def accepted(its_id: str) -> None:
            nonlocal task_id
            task_id = its_id
            self.post(Accepted(request, its_id))

        reply = await self._relays.call(
            session_id,
            definition.task_id,
            operation.definition,
            wait=operation.wait,
            accepted=accepted,
            session_of_new=session_of_new,
        )
        if isinstance(reply, Ended):
            self.post(Ended(request, reply.task_id, reply.state, reply.result))
        elif reply is None and not task_id:
            del self._works[request]
            self._submit_here(operation, definition)
        elif reply is None:
            await self._wait_there(request, task_id)

    # --- waiting ----------------------------------------------------------------------------------------------------

    def _wait(self, operation: Wait) -> None:
        entry = self._engine.cache.tasks.get(operation.task_id)
        if entry is not None and entry.recorded:
            self._wait_here(operation.request, entry)
        else:
            self._begin(operation.request, partial(self._wait_there, operation.request, operation.task_id))

    def _wait_here(self, request: int, entry: TaskEntry) -> None:
        def let_go() -> None:
            entry.forget_moved(moved)
            if ended in entry.ended_callbacks:
                entry.ended_callbacks.remove(ended)

        def ended(entry: TaskEntry) -> None:
            entry.forget_moved(moved)
            self._waits.pop(request, None)
            if not self._closed:
                self.post(Ended(request, entry.row.task_id, entry.row.state, entry.outcome or b"null"))

        def moved() -> None:
            self._begin(request, partial(self._wait_there, request, entry.row.task_id))

        self._forget(request)  # a number that is used again names the newer request
        if not entry.ended:
            self._waits[request] = let_go
            entry.when_moved(moved)
        self._engine.when_ended(entry, ended)

    async def _wait_there(self, request: int, task_id: str) -> None:
        """Have the end of a task waited for by whoever leads it; here, once that is this control plane."""
        while True:
            session_id = await self._led_elsewhere(task_id)
            if session_id is not None and self._relays is not None:
                reply = await self._relays.call(session_id, task_id, None, wait=True)
                if isinstance(reply, Ended):
                    self.post(Ended(request, task_id, reply.state, reply.result))
                    return
            elif (entry := await self._load(task_id)) is not None:
                self._works.pop(request, None)
                if not self._closed:
                    self._wait_here(request, entry)
                return

    # --- streams ----------------------------------------------------------------------------------------------------

    def _read(self, request: int, task_id: str, kind: Literal["stream", "history"], first: int) -> None:
        self._forget(request)
        most = self._engine.settings.streams_per_client_max
        if len(self._streams) >= most and not self._passed_on:  # of many clients, who are counted where they connect
            self.refuse(request, beyond("streams_per_client_max", most, f"this client follows {most} streams"))
            return
        self._begin(request, partial(self._read_on, request, task_id, kind, first))
        self._streams.add(request)

    async def _read_on(self, request: int, task_id: str, kind: Literal["stream", "history"], first: int) -> None:
        """Give the client a task's stream or history from number `first` to its end, whoever leads the task."""
        at: int | None = first
        while at is not None:
            session_id = await self._led_elsewhere(task_id)
            if session_id is not None and self._relays is not None:
                at = await self._relays.read(session_id, task_id, kind, at, partial(self._pass, request))
            elif (entry := await self._load(task_id)) is not None:
                at = await self._read_here(request, entry, kind, at)
        self.post(StreamEnd(request))

    async def _read_here(
        self, request: int, entry: TaskEntry, kind: Literal["stream", "history"], first: int
    ) -> int | None:
        """What is recorded here: `None` at its end, or the number to go on from where another one leads the task."""
        try:
            if kind == "stream":
                async for number, events in self._engine.streams.follow(entry, first):
                    await self._pass(request, number, events)
                    first = number + len(events)
            else:
                async for row in self._engine.streams.follow_history(entry, first - 1):
                    shown = to_entry(row.seq, row.at, row.kind, row.data, self._engine.redact)
                    await self._pass(request, row.seq, [shown.model_dump_json().encode()])
                    first = row.seq + 1
        except ShardLostError:
            if self._relays is None:
                raise
            return first
        return None

    async def _pass(self, request: int, first: int, items: list[bytes]) -> None:
        for offset, part in pieces(items):
            if self._room is not None:
                await self._room()
            self.post(Items(request, first + offset, part))
