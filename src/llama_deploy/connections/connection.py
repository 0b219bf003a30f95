"""One connection for everything that a client waits for: submits, outcomes and streams, multiplexed.

Operations of one loop iteration leave as one frame. What is open is kept here until its last reply, so a connection
that is lost is made again and every open request goes on from where it stands: a submission is repeated under its task
id, a wait is asked again, a stream is read from its next number. Nothing here polls. Bytes, sockets and the meaning of
results are others' business.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import math
import random
from collections.abc import Callable
from enum import Enum
from typing import Literal

from llama_deploy.connections.problems import TRANSIENT, connection_lost, error_from_refusal
from llama_deploy.connections.requests import Call, Reading, Request
from llama_deploy.connections.transport import Transport
from llama_deploy.errors import (
    ConnectionLostError,
    LlamaDeployError,
    QueueFullError,
    SettingError,
    ShuttingDownError,
    WaitTimeoutError,
)
from llama_deploy.messages.frames import Accepted, ClientOp, Ended, Forget, Refused, ReplyOp
from llama_deploy.runtime import failpoint
from llama_deploy.types import RetryPolicy

STEADY_S = 10.0
"""A connection that held this long, or brought a reply, was good: after its loss the time to reconnect is whole."""
TIMER_S_MAX = 30 * 24 * 3600.0
"""A longer wait has no timer: event loops cannot count further."""


FULL_PAUSE_S = 1.0
"""Pause before a submission is repeated where the control plane is full and does not say when to come again."""


class _State(Enum):
    IDLE = "idle"
    CONNECTING = "connecting"
    OPEN = "open"
    CLOSED = "closed"


class _Outage:
    """The time since a good connection was lost; ends with the first reply on a new one."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.attempts = 0


class Connection:
    """The open requests of one client, on one event loop, over one transport.

    It connects at the first request, which fails at once with `CannotReachError` when nothing answers. Once there was
    a connection, a loss is mended for `reconnect_timeout_s` seconds, with growing and jittered pauses; then every open
    request ends with `ConnectionLostError`. The next request tries afresh.
    """

    def __init__(self, transport: Transport, *, reconnect_timeout_s: float, wait_when_full: bool = True) -> None:
        self._wait_when_full = wait_when_full
        self._transport = transport
        self._reconnect_timeout_s = reconnect_timeout_s
        self._backoff = RetryPolicy(initial_s=0.05, multiplier=2.0, cap_s=0.5, jitter=0.5)
        self._state = _State.IDLE
        self._loop: asyncio.AbstractEventLoop | None = None
        self._numbers = itertools.count(1)
        self._open: dict[int, Request] = {}
        self._outbox: list[ClientOp] = []
        self._flush_is_due = False
        self._outage: _Outage | None = None
        self._opened_at = 0.0
        self._connecting: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        """Wakes who pauses."""

    # --- requests ---------------------------------------------------------------------------------------------------

    async def submit(self, task_id: str, definition: bytes, *, timeout_s: float) -> str:
        """Submit a task and return its id once it is recorded.

        Repeated by itself under the same task id until it is accepted. Raises what the control plane refuses with,
        `WaitTimeoutError`, `CannotReachError`, `ConnectionLostError`; after the last two, and after a timeout,
        the task may exist.
        """
        return (await self._submit(task_id, definition, wait=False, timeout_s=timeout_s)).task_id

    async def outcome(self, task_id: str, definition: bytes | None, *, timeout_s: float) -> Ended:
        """Wait until a task has ended; with `definition` submit it first.

        Raises like `submit`. The task goes on whatever is raised.
        """
        if definition is None:
            reply = await self.call(task_id, None, wait=True, timeout_s=timeout_s)
        else:
            reply = await self._submit(task_id, definition, wait=True, timeout_s=timeout_s)
        assert isinstance(reply, Ended)
        return reply

    async def call(
        self,
        task_id: str,
        definition: bytes | None,
        *,
        wait: bool,
        accepted: Callable[[str], None] | None = None,
        timeout_s: float = math.inf,
    ) -> Accepted | Ended:
        """Submit a task, or wait for one, or both; once, whatever is refused. `accepted` is told as soon as it is.

        Raises like `submit`.
        """
        future: asyncio.Future[Accepted | Ended] = asyncio.get_running_loop().create_future()
        call = Call(next(self._numbers), task_id, future, definition=definition, wait=wait, told=accepted)
        return await self._settle(call, timeout_s)

    def read(self, task_id: str, *, kind: Literal["stream", "history"], first: int) -> Reading:
        """Begin to read a task's stream or history from number `first` on; `forget` it when done."""
        reading = Reading(next(self._numbers), task_id, kind=kind, first=first, pause=self.forget)
        self._start(reading)
        return reading

    def resume(self, reading: Reading) -> None:
        """Go on with a reading that was paused, under a number of its own: replies to the old one may be on the way."""
        reading.number = next(self._numbers)
        self._start(reading)

    def forget(self, request: Request) -> None:
        """Nothing more is wanted for this request. Repeating it is harmless."""
        if self._open.pop(request.number, None) is not None and self._state is _State.OPEN:
            self._post(Forget(request.number))

    async def _submit(self, task_id: str, definition: bytes, *, wait: bool, timeout_s: float) -> Accepted | Ended:
        """Submit; where as much waits as may, again when the control plane says, for as long as there is time."""
        left_s = timeout_s
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + timeout_s
        while True:
            try:
                return await self.call(task_id, definition, wait=wait, timeout_s=left_s)
            except QueueFullError as error:
                pause_s = _pause_when_full(error)
                if not self._wait_when_full or pause_s >= ends_at - loop.time():
                    raise
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._closing.wait()
            left_s = max(0.0, ends_at - loop.time())

    async def _settle(self, call: Call, timeout_s: float) -> Accepted | Ended:
        self._start(call)
        timer = None
        if timeout_s < TIMER_S_MAX:
            timer = call.future.get_loop().call_later(timeout_s, self._expire, call, timeout_s)
        try:
            return await call.future
        except asyncio.CancelledError:
            self.forget(call)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _expire(self, call: Call, timeout_s: float) -> None:
        self.forget(call)
        if call.accepted:
            what = f"task {call.task_id} has not ended after {timeout_s:g} s"
            fix = f"llamactl tasks watch {call.task_id}     or wait again with `result`"
        else:
            what = f"the control plane has not accepted task {call.task_id} after {timeout_s:g} s"
            fix = f"submit it again with task_id={call.task_id!r}"
        error = WaitTimeoutError(what, why=call.standing(), fix=fix, task_id=call.task_id, timeout_s=timeout_s)
        call.fail(error)

    # --- sending and receiving --------------------------------------------------------------------------------------

    def _start(self, request: Request) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._bind(loop)
        if self._state is _State.CLOSED:
            raise ConnectionLostError("this client is closed", fix="make a new `Client`, or keep this one open longer")
        self._open[request.number] = request
        if self._state is _State.OPEN:
            self._post(request.opening())
        elif self._state is _State.IDLE:
            self._state = _State.CONNECTING
            self._connecting = loop.create_task(self._connect())

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None:
            raise SettingError(
                "this client is used on two event loops",
                why="Its connection belongs to the loop that it was first used on.",
                fix="make one `Client` per loop, or use `SyncClient`, which has a loop of its own",
            )
        self._loop = loop

    def _post(self, op: ClientOp) -> None:
        self._outbox.append(op)
        if not self._flush_is_due:
            assert self._loop is not None
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_is_due = False
        if self._state is _State.OPEN and self._outbox:
            failpoint("client.before_send")
            ops, self._outbox = self._outbox, []
            self._transport.send(ops)
            failpoint("client.after_send")

    def _receive(self, ops: list[ReplyOp]) -> None:
        failpoint("client.before_reply")
        for op in ops:
            request = self._open.get(op.request)
            if type(op) is Refused and (op.request == 0 or request is not None):
                error = error_from_refusal(op.problem)
                if op.request == 0 or (isinstance(error, ShuttingDownError) and self._transport.reconnects):
                    self._lose(error)  # the request stays open, and is asked again where it is answered
                    return
            if request is not None and request.take(op):
                self._open.pop(op.request, None)
        failpoint("client.after_reply")
        self._outage = None

    # --- connecting -------------------------------------------------------------------------------------------------

    async def _connect(self, pause_s: float = 0.0) -> None:
        """Connect after a pause; after a failure pause longer and try again, while that makes sense."""
        while True:
            if pause_s:
                await asyncio.sleep(pause_s)
            try:
                await self._transport.connect(self._receive, self._lost)
            except LlamaDeployError as error:
                next_pause_s = self._next_pause(error)
                if next_pause_s is None:
                    self._give_up(error)
                    return
                pause_s = next_pause_s
            except Exception as error:  # noqa: BLE001 - the edge of this task: without it every waiter would wait for ever
                self._give_up(LlamaDeployError("the client failed on connecting", why=repr(error)))
                return
            else:
                self._opened()
                return

    def _next_pause(self, error: LlamaDeployError) -> float | None:
        """Seconds until the next attempt; None when there is none to be made."""
        outage = self._outage
        if outage is None or error.category not in TRANSIENT or not self._transport.reconnects:
            return None
        remaining_s = outage.deadline - self._now()
        if remaining_s <= 0:
            return None
        outage.attempts += 1
        spread = 1 + self._backoff.jitter * random.uniform(-1, 1)  # noqa: S311 - no secret
        return min(remaining_s, self._backoff.next_delay(outage.attempts) * spread)

    def _opened(self) -> None:
        if self._state is not _State.CONNECTING:
            return
        self._state = _State.OPEN
        self._opened_at = self._now()
        failpoint("client.connected")
        ops = [request.opening() for request in self._open.values()]
        if ops:
            self._transport.send(ops)

    def _lost(self, cause: BaseException | None) -> None:
        if isinstance(cause, LlamaDeployError):
            self._lose(cause)
        else:
            self._lose(ConnectionLostError("the connection was lost", why=str(cause or "The other side closed it.")))

    def _lose(self, error: LlamaDeployError) -> None:
        """The connection is of no use any more: drop it, and go on over a new one if there can be one."""
        if self._state is not _State.OPEN:
            return
        assert self._loop is not None
        if self._now() - self._opened_at >= STEADY_S:
            self._outage = None
        if self._outage is None:
            self._outage = _Outage(self._now() + self._reconnect_timeout_s)
        self._outbox.clear()
        pause_s = self._next_pause(error)
        if pause_s is None:
            self._give_up(error)
        else:
            self._state = _State.CONNECTING
            self._connecting = self._loop.create_task(self._connect(pause_s))

    def _give_up(self, error: LlamaDeployError) -> None:
        if self._outage is not None and error.category in TRANSIENT and self._transport.reconnects:
            why = error.why or error.what
            error = connection_lost(self._transport.address, why, after_s=self._reconnect_timeout_s)
        self._outage = None
        self._state = _State.IDLE
        self._fail_all(error)

    def _fail_all(self, error: LlamaDeployError) -> None:
        """End every open request with its own copy of the error; one that was sent already says how its task stands."""
        requests, self._open = list(self._open.values()), {}
        for request in requests:
            own = copy.copy(error)
            own.details = {**error.details, "task_id": request.task_id}
            if isinstance(error, ConnectionLostError):
                own.why = f"{error.why}\n{request.standing()}".strip()
            request.fail(own)

    def _now(self) -> float:
        assert self._loop is not None
        return self._loop.time()

    async def close(self) -> None:
        """End every open request with `ConnectionLostError` and release everything; tasks go on. May be repeated."""
        if self._state is not _State.CLOSED:
            self._state = _State.CLOSED
            self._outbox.clear()
            self._closing.set()
            if self._connecting is not None:
                self._connecting.cancel()
            self._fail_all(ConnectionLostError("the client was closed while it waited"))
        await self._transport.close()


def _pause_when_full(error: QueueFullError) -> float:
    """Seconds until a submission is repeated: what the control plane says, and up to half of it more."""
    asked_s = error.details.get("retry_after_s")
    pause_s = float(asked_s) if isinstance(asked_s, int | float) else FULL_PAUSE_S
    return max(0.0, pause_s) * random.uniform(1.0, 1.5)  # noqa: S311 - no secret
