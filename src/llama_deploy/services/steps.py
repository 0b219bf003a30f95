"""One attempt of one step in an instance, and what its code asks of the control plane while it runs.

What was asked stays open until it is answered: it is asked again after every lost connection, and whoever waits for
it is told when the attempt is stopped. The runner owns these objects and decides what happens to them; user code
reaches them through its `StepContext`, from whatever thread it runs in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec

from llama_deploy.errors import LlamaDeployError, StepCanceledError, from_problem
from llama_deploy.messages.frames import (
    Answer,
    AskInput,
    Call,
    Deliver,
    EndCall,
    Park,
    Remember,
    Remembered,
    Returned,
)
from llama_deploy.services.base import StepContext

About = tuple[str, str]
"""What is asked (`remember`, `call`) and under which key."""


class RunningStep:
    """One attempt of one step in this instance, from its delivery until its answer is recorded."""

    __slots__ = (
        "answer",
        "asked",
        "attempt",
        "committed",
        "context",
        "deadline",
        "delivery",
        "events",
        "left_s",
        "loop",
        "memos",
        "open",
        "post",
        "stopped",
        "task",
        "unsent",
    )

    def __init__(self, delivery: Deliver, *, loop: asyncio.AbstractEventLoop, post: Callable[[Any], None]) -> None:
        self.delivery = delivery
        self.attempt = delivery.attempt
        self.loop = loop
        self.post = post
        """Sends one operation; called on the loop."""
        self.task: asyncio.Task[None] | None = None
        self.context: StepContext | None = None
        self.deadline: asyncio.Timeout | None = None
        self.left_s: float | None = None
        """Seconds that the deadline had left when it was stopped, `None` while it runs."""
        self.answer: Answer | Park | None = None
        """What was answered and is not acknowledged."""
        self.stopped = False
        """Nobody wants its answer any more."""
        self.asked: dict[int, AskInput] = {}
        """Questions to a person that are not answered yet, by the number of the input that will answer them."""
        self.events: list[bytes] = []
        """Stream events that are not committed."""
        self.committed = delivery.events_from
        """How many events of this attempt are committed: the index of the first of `events`."""
        self.unsent = 0
        """How many of the last of `events` were not sent yet."""
        self.memos = delivery.remembered
        """JSON of what is remembered for the step, by key."""
        self.open: dict[About, tuple[Any, Future[Any]]] | None = None
        """What was asked and is not answered: the operation, and who waits for its answer."""

    # --- what user code asks for, from any thread -------------------------------------------------------------------

    def remembered(self, key: str) -> bytes | None:
        """JSON of what is recorded under a key."""
        return self.memos.get(key) if self.memos is not None else None

    def remember(self, key: str, value: bytes) -> Future[bytes]:
        """Have a value recorded under a key; the answer is the one that is recorded there."""
        return self._ask(("remember", key), Remember(self.delivery.step_id, self.attempt, key, value))

    def call(self, key: str, definition: bytes) -> Future[Returned]:
        """Call another service; the answer is what came of it."""
        return self._ask(("call", key), Call(self.delivery.step_id, self.attempt, key, definition))

    def end_call(self, key: str) -> None:
        """Nobody waits for a call any more."""
        self.loop.call_soon_threadsafe(self._end_call, key)

    def _end_call(self, key: str) -> None:
        if self.open is not None and self.open.pop(("call", key), None) is not None:
            self.post(EndCall(self.delivery.step_id, self.attempt, key))
            self.go_on()

    def _ask(self, about: About, operation: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.loop.call_soon_threadsafe(self._open, about, operation, future)
        return future

    def _open(self, about: About, operation: Any, future: Future[Any]) -> None:
        if self.stopped or self.answer is not None:
            _settle(future, StepCanceledError("the attempt has ended"))
            return
        if self.open is None:
            self.open = {}
        self.open[about] = (operation, future)
        if about[0] == "call":
            self.stand_still()
        self.post(operation)

    # --- the deadline -----------------------------------------------------------------------------------------------

    def stand_still(self) -> None:
        """The attempt waits for a person, or for a task that it called: that time does not count."""
        if self.deadline is not None and self.left_s is None and (when := self.deadline.when()) is not None:
            self.left_s = max(0.0, when - self.loop.time())
            self.deadline.reschedule(None)

    def go_on(self) -> None:
        """Something that was waited for is here; with the last of it the deadline runs on."""
        waits = self.asked or (self.open is not None and any(kind == "call" for kind, _ in self.open))
        if waits or self.left_s is None or self.deadline is None:
            return
        left_s, self.left_s = self.left_s, None
        if self.task is not None and not self.task.done():
            self.deadline.reschedule(self.loop.time() + left_s)

    # --- what the control plane says --------------------------------------------------------------------------------

    def take_remembered(self, operation: Remembered) -> None:
        """A value is recorded, or refused."""
        problem = problem_of(operation.problem)
        if problem is None:
            self.memos = {**(self.memos or {}), operation.key: operation.value}
        self._close(("remember", operation.key), problem or operation.value)

    def take_returned(self, operation: Returned) -> None:
        """A call has come to its end, or was refused."""
        self._close(("call", operation.key), problem_of(operation.problem) or operation)
        self.go_on()

    def _close(self, about: About, outcome: Any) -> None:
        """Something asked for is answered; what nobody waits for any more is dropped."""
        waiting = self.open.pop(about, None) if self.open is not None else None
        if waiting is not None:
            _settle(waiting[1], outcome)

    def unanswered(self) -> list[Any]:
        """The operations to repeat on a new connection."""
        return [operation for operation, _ in self.open.values()] if self.open is not None else []

    def abandon(self, error: LlamaDeployError) -> None:
        """The attempt has ended: whoever still waits for an answer is told so."""
        waiting, self.open = self.open, None
        for _, future in waiting.values() if waiting is not None else ():
            _settle(future, error)


def problem_of(encoded: bytes) -> LlamaDeployError | None:
    """The error in a reply, `None` where there is none."""
    return from_problem(msgspec.json.decode(encoded)) if encoded else None


def _settle(future: Future[Any], outcome: Any) -> None:
    if future.done():
        return  # whoever waited has been cancelled
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
