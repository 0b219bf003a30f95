"""What one attempt in an instance is told at an awkward moment: nothing is lost, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

import msgspec
import pytest
from tests.support import DEADLINE_S, eventually

from llama_deploy.errors import CallConflictError, StepCanceledError
from llama_deploy.messages import frames
from llama_deploy.messages.contents import ContentKept, ContentWanted, DropContent, OfferContent
from llama_deploy.messages.mesh import Begun
from llama_deploy.services import Runner, ServiceContext, service
from llama_deploy.services.base import Parked, Service, StepContext
from llama_deploy.types import ServiceDefinition, TaskResult


class Plane:
    """What a control plane hears from an instance that serves `services`, and says to it."""

    def __init__(self, *services: Any) -> None:
        self.heard: list[Any] = []
        self.runner = Runner(services)
        self.runner.send = self.heard.extend

    async def start(self) -> None:
        await self.runner.start()
        self.welcome()

    def say(self, *operations: Any) -> None:
        self.runner.receive(operations)

    def welcome(self) -> None:
        self.say(frames.Welcome(2.0, 10.0, [], 0.05))

    def deliver(self, name: str = "work", step_id: str = "t:1", **fields: Any) -> None:
        given = {"run_timeout_s": 60.0, **fields}
        self.say(frames.Deliver(step_id, 1, name, "run", "t", "t", b"{}", **given))

    def all(self, kind: type[Any]) -> list[Any]:
        return [operation for operation in self.heard if isinstance(operation, kind)]


class Work(Service):
    """Runs a function as it is."""

    def __init__(self, run: Callable[[StepContext], Awaitable[TaskResult | Parked]]) -> None:
        self.definition = ServiceDefinition(service_name="work", description="Works.", concurrency=1)
        self._run = run

    async def run(self, context: StepContext) -> TaskResult | Parked:
        """Whatever it is."""
        return await self._run(context)


def done(text: str = "done") -> TaskResult:
    return TaskResult(task_id="", history=[], result=text)


async def test_an_input_that_comes_before_the_code_has_begun_is_not_lost() -> None:
    taken: list[Any] = []

    async def run(context: StepContext) -> TaskResult:
        taken.extend(context.inputs.get_nowait() for _ in range(context.inputs.qsize()))
        return done()

    plane = Plane(Work(run))
    await plane.start()
    plane.deliver()
    plane.say(frames.DeliverInput("t:1", 1, b'"an event"'))
    await eventually(lambda: plane.all(frames.Answer))
    assert taken == ["an event"]


async def test_code_that_ends_before_it_can_be_asked_to_stop_is_said_to_have_stopped() -> None:
    """A handler that blocks the loop is found silent from another thread, and may end before the loop turns again."""
    plane = Plane()

    async def run(context: StepContext) -> TaskResult:
        del context
        step = plane.runner.steps["t:1"]
        answer = plane.runner.stopping.silent(step)
        assert answer is not None
        assert answer.runs_on
        plane.heard.append(answer)
        return done()

    work = Work(run)
    plane.runner.services["work"] = work
    await plane.start()
    plane.deliver(heartbeat_timeout_s=30.0)
    await eventually(lambda: plane.all(frames.Answer))
    await eventually(lambda: plane.all(frames.Stopped))


@pytest.mark.parametrize("why", ["deadline", "silence"])
async def test_a_thread_that_waits_for_an_answer_is_woken_when_its_attempt_was_answered_for(why: str) -> None:
    woken = threading.Event()

    @service
    def work(context: ServiceContext) -> None:
        try:
            context.blocking.once("k", lambda: 1)
        except StepCanceledError:
            woken.set()
            raise

    plane = Plane(work)
    await plane.start()
    limit: dict[str, Any] = {"deadline": {"run_timeout_s": 0.05}, "silence": {"heartbeat_timeout_s": 0.05}}
    plane.deliver(**limit[why])
    await eventually(lambda: plane.all(frames.Answer))
    plane.say(frames.Acknowledged(["t:1"]))
    await eventually(woken.is_set)
    await eventually(lambda: work.left_behind == 0)


async def test_two_that_want_the_same_are_both_answered() -> None:
    read: list[Any] = []

    async def run(context: StepContext) -> TaskResult:
        read.extend(await asyncio.gather(context.ledger(), context.ledger()))
        calls = (context.call("other", key="k"), context.call("other", key="k"))
        read.extend(await asyncio.gather(*calls))
        return done()

    plane = Plane(Work(run))
    await plane.start()
    plane.deliver()
    await eventually(lambda: plane.all(frames.ReadLedger))
    page = msgspec.json.encode({"items": [1, 2], "next": None})
    for _ in plane.all(frames.ReadLedger):
        plane.say(frames.LedgerRead("t:1", 1, "transcript", 0, page, b""))
    await eventually(lambda: plane.all(frames.Call))
    result = msgspec.json.encode(done("called").model_dump())
    for _ in plane.all(frames.Call):
        plane.say(frames.Returned("t:1", 1, "k", "c", "completed", result, b""))
    await eventually(lambda: plane.all(frames.Answer))
    assert read == [[1, 2], [1, 2], "called", "called"]


async def test_one_of_two_that_wait_for_a_call_gives_up_and_the_other_does_not() -> None:
    seen: list[Any] = []

    async def run(context: StepContext) -> TaskResult:
        waits = asyncio.create_task(context.call("other", key="k"))
        gives_up = asyncio.create_task(context.call("other", key="k"))
        otherwise = asyncio.create_task(context.call("another", key="k"))
        seen.extend(await asyncio.gather(otherwise, return_exceptions=True))
        gives_up.cancel()
        await asyncio.gather(gives_up, return_exceptions=True)
        context.stream("one has given up")
        seen.append(await waits)
        return done()

    plane = Plane(Work(run))
    await plane.start()
    plane.deliver()
    await eventually(lambda: plane.all(frames.Events))
    result = msgspec.json.encode(done("called").model_dump())
    plane.say(frames.Returned("t:1", 1, "k", "c", "completed", result, b""))
    await eventually(lambda: plane.all(frames.Answer))
    assert isinstance(seen[0], CallConflictError)
    assert seen[1:] == ["called"]
    assert plane.all(frames.EndCall) == []


async def test_a_call_that_nobody_waits_for_any_more_does_not_take_the_turn_of_the_next_one() -> None:
    goes_on = asyncio.Event()

    async def run(context: StepContext) -> TaskResult:
        if context.step_id == "t:1":
            first = asyncio.create_task(context.call("other", key="first"))
            await goes_on.wait()
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await context.call("other", key="second")
        elif context.step_id == "t:2":
            await hold.wait()
        return done()

    hold = asyncio.Event()
    plane = Plane(Work(run))
    await plane.start()
    plane.runner.turns.limited = True
    plane.deliver(step_id="t:1")
    await eventually(lambda: plane.all(frames.Call))
    plane.deliver(step_id="t:2")  # has the turn that the first one has lent
    await eventually(lambda: plane.runner.turns.running["work"] == 1)
    result = msgspec.json.encode(done("called").model_dump())
    plane.say(frames.Returned("t:1", 1, "first", "c", "completed", result, b""))  # waits for its turn
    goes_on.set()
    await eventually(lambda: len(plane.all(frames.Call)) == 2)
    plane.deliver(step_id="t:3")
    hold.set()
    await eventually(lambda: plane.all(Begun))  # the third one, while the first waits for its second call
    await eventually(lambda: len(plane.all(frames.Answer)) == 2)
    assert plane.runner.turns.running["work"] == 0


async def test_an_attempt_that_goes_on_after_a_refused_park_has_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    let = asyncio.Event()

    async def run(context: StepContext) -> TaskResult | Parked:
        if not context.inputs_given:
            context.request_input({"prompt": "?"})
            await let.wait()
            return Parked(prompt={"prompt": "?"}, resume="redeliver")
        await let.wait()
        return done()

    plane = Plane(Work(run))
    await plane.start()
    loop = asyncio.get_running_loop()
    armed: list[asyncio.TimerHandle] = []
    at = loop.call_at

    def noted(when: float, callback: Callable[..., Any], *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        handle = at(when, callback, *args, **kwargs)
        if callback == plane.runner.stopping._overrun:
            armed.append(handle)
        return handle

    monkeypatch.setattr(loop, "call_at", noted)
    plane.deliver()
    await eventually(lambda: plane.all(frames.AskInput))
    let.set()
    await eventually(lambda: plane.all(frames.Park))
    let.clear()
    plane.say(frames.ParkRefused("t:1", 1), frames.DeliverInput("t:1", 1, b'"yes"'))
    await eventually(lambda: len(armed) == 3)
    assert [handle.cancelled() for handle in armed] == [True, True, False]
    let.set()
    await eventually(lambda: plane.all(frames.Answer))


class Content:
    """A content of one part, which cannot be read."""

    hash, size_bytes, parts = "h", 1, 1

    async def part(self, position: int) -> bytes:
        raise OSError(f"part {position} is gone")


async def test_a_transfer_waits_for_a_connection_that_is_still_there() -> None:
    plane = Plane()
    await plane.runner.start()
    keeping = asyncio.create_task(plane.runner.transfers.keep(Content()))
    await asyncio.sleep(0)
    plane.welcome()
    plane.runner.disconnected()  # before anybody who waited for it could do anything
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    plane.welcome()
    await eventually(lambda: plane.all(OfferContent))
    plane.say(ContentKept(plane.all(OfferContent)[-1].transfer))
    async with asyncio.timeout(DEADLINE_S):
        await keeping


async def test_a_transfer_that_fails_here_is_dropped_there() -> None:
    plane = Plane()
    await plane.start()
    keeping = asyncio.create_task(plane.runner.transfers.keep(Content()))
    await eventually(lambda: plane.all(OfferContent))
    plane.say(ContentWanted(1))
    with pytest.raises(OSError, match="is gone"):
        await keeping
    await eventually(lambda: plane.all(DropContent))


async def test_who_waits_for_the_first_of_two_is_not_cancelled_with_it() -> None:
    """Two calls of `once` under one key: the one that calls the function is cancelled by its own code."""
    begun: list[int] = []
    found: list[Any] = []

    async def function() -> int:
        begun.append(len(begun))
        if len(begun) == 1:
            await asyncio.Event().wait()
        return 7

    async def run(context: StepContext) -> TaskResult:
        first = asyncio.create_task(context.once("k", function))
        second = asyncio.create_task(context.once("k", function))
        await asyncio.sleep(0)
        first.cancel()
        found.extend(await asyncio.gather(first, second, return_exceptions=True))
        return done()

    plane = Plane(Work(run))
    await plane.start()
    plane.deliver()
    await eventually(lambda: plane.all(frames.Remember) or plane.all(frames.Answer))
    plane.say(frames.Remembered("t:1", 1, "k", b"7", b""))
    await eventually(lambda: plane.all(frames.Answer))
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == [7]


async def test_an_answer_goes_to_who_has_asked_for_it() -> None:
    answers: Future[Any] = Future()

    async def run(context: StepContext) -> TaskResult:
        first = asyncio.create_task(context.ask("first?"))
        await eventually(lambda: plane.all(frames.AskInput))
        second = asyncio.create_task(context.ask("second?"))  # runs before the first one has seen its answer
        plane.say(frames.DeliverInput("t:1", 1, b'"one"'))
        answers.set_result(await asyncio.gather(second, first))
        return done()

    plane = Plane(Work(run))
    await plane.start()
    plane.deliver()
    await eventually(lambda: len(plane.all(frames.AskInput)) == 2)
    plane.say(frames.DeliverInput("t:1", 2, b'"two"'))
    await eventually(answers.done)
    assert answers.result() == ["two", "one"]
