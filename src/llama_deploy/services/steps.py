"""One attempt of one step in an instance, and what its code asks of the control plane while it runs.

What was asked stays open until it is answered: it is asked again after every lost connection, and whoever waits for
it is told when the attempt is stopped. The runner owns these objects and decides what happens to them; user code
reaches them through its `StepContext`, from whatever thread it runs in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

import msgspec

from llama_deploy.errors import (
    ArgumentsError,
    CallConflictError,
    LlamaDeployError,
    ResultNotSerialisableError,
    StepCanceledError,
)
from llama_deploy.messages.frames import (
    Answer,
    AskInput,
    Call,
    Deliver,
    EndCall,
    HeldStep,
    LedgerRead,
    Park,
    ReadLedger,
    Remember,
    Remembered,
    Returned,
)
from llama_deploy.messages.problems import from_problem
from llama_deploy.runtime.logs import get_logger
from llama_deploy.services.base import Parked, StepContext, encode_value
from llama_deploy.services.encoding import check_size
from llama_deploy.services.failures import error_from_exception
from llama_deploy.services.turns import Turns
from llama_deploy.services.upstream import Upstream
from llama_deploy.types import TaskResult

log = get_logger("llama_deploy.runner")

_encode = msgspec.json.Encoder().encode

About = tuple[str, str]
"""What is asked (`remember`, `call`) and under which key."""


class _Wish:
    """What was asked for and is not answered."""

    __slots__ = ("futures", "operation", "waiting")

    def __init__(self, operation: Any, future: Future[Any]) -> None:
        self.operation = operation
        self.futures = [future]
        self.waiting = 1
        """How many of those who have asked have not given up."""

    def settle(self, outcome: Any) -> None:
        """Tell everybody."""
        for future in self.futures:
            _settle(future, outcome)


class RunningStep:
    """One attempt of one step in this instance, from its delivery until its answer is recorded."""

    __slots__ = (
        "answer",
        "asked",
        "attempt",
        "beat",
        "beat_at",
        "beat_unsent",
        "beaten",
        "committed",
        "context",
        "deadline_at",
        "delivery",
        "events",
        "failure",
        "left_behind",
        "left_s",
        "lent",
        "loop",
        "memos",
        "on_deadline",
        "open",
        "silent_task",
        "started_at",
        "stopped",
        "task",
        "timer",
        "turns",
        "unsent",
        "upstream",
    )

    def __init__(
        self,
        delivery: Deliver,
        *,
        loop: asyncio.AbstractEventLoop,
        upstream: Upstream | None,
        turns: Turns,
        beaten: Callable[[RunningStep], None],
    ) -> None:
        self.delivery = delivery
        self.attempt = delivery.attempt
        self.loop = loop
        self.upstream = upstream
        """The control plane that it belongs to; `None` while that is to be found out."""
        self.turns = turns
        self.lent = False
        """It waits for calls, and its turn is others'."""
        self.beaten = beaten
        """Called on the loop when the code has said something with a sign of life."""
        self.task: asyncio.Task[None] | None = None
        self.context: StepContext | None = None
        self.started_at = 0.0
        self.timer: asyncio.TimerHandle | None = None
        """Fires at the run deadline."""
        self.deadline_at = 0.0
        self.on_deadline: Callable[[RunningStep], None] | None = None
        self.failure: LlamaDeployError | None = None
        """Why its code was asked to stop, where that is the answer."""
        self.left_behind = False
        """Its code did not stop, and runs on without being waited for."""
        self.silent_task: asyncio.Task[None] | None = None
        """What runs its code, where it was answered for because it showed no sign of life."""
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
        self.beat: bytes | None = None
        """JSON of what the code said with its last sign of life."""
        self.beat_at = 0.0
        """When that was, by the loop's clock."""
        self.beat_unsent = False
        self.memos = delivery.remembered
        """JSON of what is remembered for the step, by key."""
        self.open: dict[About, _Wish] | None = None
        """What was asked and is not answered; who asks for the same meanwhile is given the same answer."""

    def post(self, operation: Any) -> None:
        """Send one operation; called on the loop. What nobody hears now is said again when it belongs to somebody."""
        if self.upstream is not None:
            self.upstream.post(operation)

    # --- what user code asks for, from any thread -------------------------------------------------------------------

    def remembered(self, key: str) -> bytes | None:
        """JSON of what is recorded under a key."""
        return self.memos.get(key) if self.memos is not None else None

    def all_remembered(self) -> Mapping[str, bytes]:
        """JSON of everything that is recorded, by key."""
        return self.memos or {}

    def remember(self, key: str, value: bytes) -> Future[bytes]:
        """Have a value recorded under a key; the answer is the one that is recorded there."""
        return self._ask(("remember", key), Remember(self.delivery.step_id, self.attempt, key, value))

    def read_ledger(self, name: str, first: int) -> Future[bytes]:
        """Read a ledger from a position on; the answer is JSON of a `LedgerPage`."""
        return self._ask(("ledger", f"{first}:{name}"), ReadLedger(self.delivery.step_id, self.attempt, name, first))

    def call(self, key: str, definition: bytes) -> Future[Returned]:
        """Call another service; the answer is what came of it."""
        return self._ask(("call", key), Call(self.delivery.step_id, self.attempt, key, definition))

    def end_call(self, key: str) -> None:
        """One of those who wait for a call does not any more."""
        self.loop.call_soon_threadsafe(self._end_call, key)

    def _end_call(self, key: str) -> None:
        wish = self.open.get(("call", key)) if self.open is not None else None
        if self.open is None or wish is None:
            return
        wish.waiting -= 1
        if wish.waiting:
            return
        del self.open["call", key]
        self.post(EndCall(self.delivery.step_id, self.attempt, key))
        if self.lent and not self._calls():
            self.lent = False
            self.turns.insist(self.delivery.service)
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
        known = self.open.get(about)
        if known is not None:
            if about[0] == "call" and known.operation != operation:
                _settle(future, _conflict(self.delivery.step_id, about[1]))
            else:
                known.waiting += 1
                known.futures.append(future)
            return
        self.open[about] = _Wish(operation, future)
        if about[0] == "call":
            self.stand_still()
            if not self.lent:
                self.lent = True
                self.turns.end(self.delivery.service)
        self.post(operation)

    # --- the deadline -----------------------------------------------------------------------------------------------

    def limit(self, seconds: float, on_deadline: Callable[[RunningStep], None]) -> None:
        """Call back after so many seconds, those not counted in which the step stands still."""
        self.deadline_at = self.loop.time() + seconds
        self.on_deadline = on_deadline
        self.end_limit()
        self.timer = self.loop.call_at(self.deadline_at, on_deadline, self)

    def end_limit(self) -> None:
        """There is no deadline any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def stand_still(self) -> None:
        """The attempt waits for a person, or for a task that it called: that time does not count."""
        if self.left_s is None:
            self.left_s = max(0.0, self.deadline_at - self.loop.time())
            self.end_limit()

    def go_on(self) -> None:
        """Something that was waited for is here; with the last of it the deadline runs on."""
        if self.asked or self._calls() or self.left_s is None:
            return
        left_s, self.left_s = self.left_s, None
        self.beat_at = self.loop.time()
        if self.on_deadline is not None and self.answer is None and not self.stopped:
            self.limit(left_s, self.on_deadline)

    def _calls(self) -> int:
        """How many calls it waits for."""
        return sum(kind == "call" for kind, _ in self.open) if self.open is not None else 0

    def end_turn(self) -> None:
        """Its code has ended: the turn is others', unless it was already."""
        if not self.lent:
            self.turns.end(self.delivery.service)
        self.lent = False

    # --- signs of life ----------------------------------------------------------------------------------------------

    @property
    def last_heartbeat(self) -> bytes | None:
        """JSON of what an earlier attempt said last."""
        return self.delivery.last_heartbeat

    def heartbeat(self, details: bytes | None) -> None:
        """The code lives, and says how far it is."""
        self.beat_at = self.loop.time()
        if details is None:
            return
        self.beat = details
        if not self.beat_unsent:
            self.beat_unsent = True
            self.loop.call_soon_threadsafe(self.beaten, self)

    def quiet_for_s(self) -> float | None:
        """Seconds after which the step is silent for too long, 0 or less where it is; `None` once it has ended."""
        if self.stopped or self.answer is not None:
            return None
        if self.left_s is not None:
            return self.delivery.heartbeat_timeout_s
        return self.beat_at + self.delivery.heartbeat_timeout_s - self.loop.time()

    @property
    def runs_on(self) -> bool:
        """Whether it was answered for and its code has not ended: it is waited for, within the grace."""
        return self.silent_task is not None and not self.silent_task.done() and not self.left_behind

    def held(self) -> HeldStep:
        """The step as heartbeats name it, with what its code said since the last one."""
        if self.beat_unsent and self.answer is None:
            self.beat_unsent = False
            return HeldStep(self.delivery.step_id, self.attempt, self.beat)
        return HeldStep(self.delivery.step_id, self.attempt)

    # --- what the control plane says --------------------------------------------------------------------------------

    def take_remembered(self, operation: Remembered) -> None:
        """A value is recorded, or refused."""
        problem = problem_of(operation.problem)
        if problem is None:
            self.memos = {**(self.memos or {}), operation.key: operation.value}
        self._close(("remember", operation.key), problem or operation.value)

    def take_page(self, operation: LedgerRead) -> None:
        """A page of a ledger was read, or refused."""
        self._close(("ledger", f"{operation.first}:{operation.name}"), problem_of(operation.problem) or operation.page)

    def take_returned(self, operation: Returned) -> None:
        """A call has come to its end, or was refused. With the last of them the step goes on, when it is its turn."""
        last = self.lent and self._calls() == 1 and self.open is not None and ("call", operation.key) in self.open
        if last and not self.turns.take(self.delivery.service, partial(self._come_back, operation), first=True):
            return
        if last:
            self.lent = False
        self._returned(operation)

    def _come_back(self, operation: Returned) -> bool:
        """It is its turn; the call may have been given up meanwhile, or its end have been said twice."""
        if not self.lent or self.open is None or ("call", operation.key) not in self.open:
            return False
        self.lent = False
        self._returned(operation)
        return True

    def _returned(self, operation: Returned) -> None:
        self._close(("call", operation.key), problem_of(operation.problem) or operation)
        self.go_on()

    def _close(self, about: About, outcome: Any) -> None:
        """Something asked for is answered; what nobody waits for any more is dropped."""
        waiting = self.open.pop(about, None) if self.open is not None else None
        if waiting is not None:
            waiting.settle(outcome)

    def unanswered(self) -> list[Any]:
        """The operations to repeat on a new connection."""
        return [wish.operation for wish in self.open.values()] if self.open is not None else []

    def abandon(self, error: LlamaDeployError) -> None:
        """The attempt has ended: whoever still waits for an answer is told so."""
        waiting, self.open = self.open, None
        for wish in waiting.values() if waiting is not None else ():
            wish.settle(error)


def _conflict(step_id: str, key: str) -> CallConflictError:
    return CallConflictError(
        f"the call with the key {key!r} of step {step_id} is under way with another input or other options",
        fix="give each call a key= of its own",
        key=key,
    )


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


def encoded_answer(
    step: RunningStep, result: TaskResult | Parked, started_at: float, finished_at: float
) -> Answer | Park:
    """The operation that carries a result. Raises where it has no JSON form, or is no result at all."""
    step_id = step.delivery.step_id
    if isinstance(result, Parked):
        prompt = encode_value(result.prompt)
        check_size(result.snapshot or b"")
        memory = _remembered(step)[0]
        check_size(memory or b"")
        return Park(step_id, step.attempt, prompt, result.resume, result.snapshot, result.consumed, memory=memory)
    if not isinstance(result, TaskResult):
        raise ResultNotSerialisableError(
            f"the service answered with a {type(result).__name__}", fix="return a TaskResult, or Parked"
        )
    encoded = _encode(result.dumped())
    check_size(encoded)
    if step.beat is not None and result.status == "failed":
        return Answer(step_id, step.attempt, encoded, started_at, finished_at, heartbeat=step.beat)
    if step.context is None or step.context.kept_memory is None or result.status != "completed":
        return Answer(step_id, step.attempt, encoded, started_at, finished_at)
    memory, version = _remembered(step)
    check_size(memory or b"")
    return Answer(step_id, step.attempt, encoded, started_at, finished_at, memory=memory, memory_version=version)


def _remembered(step: RunningStep) -> tuple[bytes | None, int]:
    """JSON of what the step's service remembers from now on, where that has changed, and from which version."""
    memory = step.context.kept_memory if step.context is not None else None
    return (None, 0) if memory is None else (memory.changed(), memory.version)


def failed_result(step: RunningStep, error: BaseException) -> TaskResult:
    """The failed result of an attempt; whoever watches this process sees it too."""
    found = error_from_exception(error)
    log.warning(
        "attempt failed",
        service=step.delivery.service,
        step_id=step.delivery.step_id,
        attempt=step.attempt,
        error=f"{found.type}: {found.message}",
        # Where the input was refused, no code of the service has run.
        exception="" if isinstance(error, ArgumentsError) else (found.traceback or "").rstrip(),
    )
    return TaskResult(task_id="", history=[], result=found.message, status="failed", error=found)
