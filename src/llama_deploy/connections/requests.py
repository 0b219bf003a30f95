"""What a client has asked for and not yet got: one object per request that is open on the connection.

Each knows the operation that starts it, also again after a reconnect from where it stands, and what a reply means to
it. They know nothing of sockets; `llama_deploy.connections.connection` keeps them and feeds them.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Literal

from llama_deploy.connections.problems import error_from_refusal, unexpected
from llama_deploy.errors import LlamaDeployError
from llama_deploy.messages.frames import (
    Accepted,
    ClientOp,
    Ended,
    Follow,
    Items,
    Refused,
    ReplyOp,
    StreamEnd,
    Submit,
    Subscribe,
    Wait,
)

READ_AHEAD_BYTES_MAX = 4 * 1024 * 1024
"""How much of a stream is kept for a slow reader; beyond, nothing more is asked for until the reader is through."""


class Request(ABC):
    """One open request. `number` is its name on the connection."""

    __slots__ = ("number", "task_id")

    def __init__(self, number: int, task_id: str) -> None:
        self.number = number
        self.task_id = task_id

    @abstractmethod
    def opening(self) -> ClientOp:
        """The operation that starts the request, or goes on with it after a reconnect."""

    @abstractmethod
    def take(self, op: ReplyOp) -> bool:
        """Take a reply; True when it was the last one."""

    @abstractmethod
    def fail(self, error: LlamaDeployError) -> None:
        """No further reply will come. `error` is this request's own."""

    @abstractmethod
    def standing(self) -> str:
        """A sentence for the caller: what is true of the task if nothing more is ever heard."""


class Call(Request):
    """A submission, a wait for an outcome, or both: it ends with one reply, in `future`."""

    __slots__ = ("accepted", "definition", "future", "told", "wait")

    def __init__(
        self,
        number: int,
        task_id: str,
        future: asyncio.Future[Accepted | Ended],
        *,
        definition: bytes | None,
        wait: bool,
        told: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(number, task_id)
        self.future = future
        self.told = told
        """Called with the task's id once it is accepted."""
        self.definition = definition
        """What to submit, until it is accepted; repeating it under the same task id makes no second task."""
        self.wait = wait
        self.accepted = definition is None

    def opening(self) -> ClientOp:
        if self.definition is not None:
            return Submit(self.number, self.definition, self.wait)
        return Wait(self.number, self.task_id)

    def take(self, op: ReplyOp) -> bool:
        if type(op) is Accepted:
            self.accepted = True
            self.definition = None
            self.task_id = op.task_id  # differs from ours when an idempotency key led to an earlier task
            if self.told is not None:
                self.told(op.task_id)
            if self.wait:
                return False
            self._settle(op)
        elif type(op) is Ended and self.wait:
            self._settle(op)
        elif type(op) is Refused:
            self.fail(error_from_refusal(op.problem))
        else:
            self.fail(unexpected(type(op).__name__))
        return True

    def _settle(self, op: Accepted | Ended) -> None:
        if not self.future.done():
            self.future.set_result(op)

    def fail(self, error: LlamaDeployError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def standing(self) -> str:
        if self.accepted:
            return f"Task {self.task_id} is recorded and goes on."
        return (
            f"It is not known whether task {self.task_id} was recorded; "
            "submitting it again with this task_id never makes a second one."
        )


class Reading(Request):
    """A task's stream or history, read in order: no item is missed and none comes twice, across reconnects too."""

    __slots__ = ("_buffer", "_buffered_bytes", "_ended", "_error", "_kind", "_pause", "_paused", "_waiter", "expected")

    def __init__(
        self,
        number: int,
        task_id: str,
        *,
        kind: Literal["stream", "history"],
        first: int,
        pause: Callable[[Reading], None],
    ) -> None:
        super().__init__(number, task_id)
        self._kind = kind
        self.expected = first
        """Number of the next item to arrive; where a reconnect goes on."""
        self._pause = pause
        """Called when too much is buffered: unsubscribe; `items` asks for it again once the reader is through."""
        self._paused = False
        self._buffer: list[bytes] = []
        self._buffered_bytes = 0
        self._ended = False
        self._error: LlamaDeployError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def opening(self) -> ClientOp:
        if self._kind == "stream":
            return Subscribe(self.number, self.task_id, self.expected)
        return Follow(self.number, self.task_id, self.expected - 1)

    def take(self, op: ReplyOp) -> bool:
        if type(op) is Items:
            return self._take_items(op)
        if type(op) is StreamEnd:
            self._ended = True
            self._wake()
        elif type(op) is Refused:
            self.fail(error_from_refusal(op.problem))
        else:
            self.fail(unexpected(type(op).__name__))
        return True

    def _take_items(self, op: Items) -> bool:
        repeated = self.expected - op.first
        if repeated < 0:
            self.fail(unexpected(f"item {op.first} of the {self._kind} of task {self.task_id} before {self.expected}"))
            return True
        items = op.items[repeated:] if repeated else op.items
        self._buffer.extend(items)
        self.expected += len(items)
        self._buffered_bytes += sum(map(len, items))
        if self._buffered_bytes > READ_AHEAD_BYTES_MAX:
            self._paused = True
            self._pause(self)
        self._wake()
        return False

    def fail(self, error: LlamaDeployError) -> None:
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def items(self, resume: Callable[[Reading], None]) -> AsyncIterator[tuple[int, bytes]]:
        """Number and JSON of each item, as they arrive; `resume` subscribes again after a pause.

        What had arrived before an error is given first.
        """
        async for first, items in self.batches(resume):
            for number, item in enumerate(items, start=first):
                yield number, item

    async def batches(self, resume: Callable[[Reading], None]) -> AsyncIterator[tuple[int, list[bytes]]]:
        """As `items`, all that has arrived at a time, with the number of the first."""
        while True:
            if self._buffer:
                items, self._buffer, self._buffered_bytes = self._buffer, [], 0
                yield self.expected - len(items), items
                continue
            if self._error is not None:
                raise self._error
            if self._ended:
                return
            if self._paused:
                self._paused = False
                resume(self)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def standing(self) -> str:
        return f"Task {self.task_id} goes on; its {self._kind} can be read again from number {self.expected}."
