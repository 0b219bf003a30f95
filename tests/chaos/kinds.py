"""The kinds of task of a run: what a client does for each, and the only outcome that is right.

A plan is made from the seed and the task's number, so client and check agree without talking. A new feature of the
control plane gets a kind here or in `kinds_of_data`, a place in `KINDS`, and what it needs in `service_program` or
`policy`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable
from typing import Any

from tests.chaos.kind import ASK_AGAIN_S, OUTAGES, Kind, Plan, Told, ended, insist, submitted
from tests.chaos.kinds_of_data import Again, Erased, Files, Notified, Scheduled
from tests.chaos.policy import COUNTED

from llama_deploy.client import Client
from llama_deploy.errors import NoInputExpectedError, TaskEndedError, TaskFailed

SESSIONS = 10


class Step(Kind):
    """One step; submitted and waited for in one request, or in two."""

    name, weight = "step", 25

    async def do(self, client: Client, plan: Plan) -> Told:
        task = {"number": plan.chance, "seconds": plan.chance % 10 / 100}
        if plan.chance % 2:
            return await ended(client, plan, await submitted(client, plan, "work", task))
        run = insist(lambda: client.run("work", input=task, task_id=plan.task_id, wait_for_service=True))
        return Told(plan.number, plan.task_id, "completed", await run)

    def expected(self, plan: Plan) -> tuple[str, Any]:
        return "completed", plan.chance * 2


class Flaky(Kind):
    """A step that fails some times before it works."""

    name, weight = "flaky", 12

    async def do(self, client: Client, plan: Plan) -> Told:
        task = {"number": plan.chance, "failures": 1 + plan.chance % 3}
        return await ended(client, plan, await submitted(client, plan, "flaky", task))

    def expected(self, plan: Plan) -> tuple[str, Any]:
        return "completed", plan.chance


class Broken(Kind):
    """A step that fails for good."""

    name, weight = "broken", 5

    async def do(self, client: Client, plan: Plan) -> Told:
        task = {"number": plan.chance}
        try:
            await insist(lambda: client.run("broken", input=task, task_id=plan.task_id, wait_for_service=True))
        except TaskFailed as failed:
            return Told(plan.number, plan.task_id, "failed", failed.error.message)
        raise AssertionError("it cannot work")

    def expected(self, plan: Plan) -> tuple[str, Any]:
        return "failed", f"never {plan.chance}"


class Fan(Kind):
    """Many steps at once, and one with all of their answers."""

    name, weight = "fan", 12

    async def do(self, client: Client, plan: Plan) -> Told:
        task = {"number": plan.chance, "parts": self._parts(plan)}
        return await ended(client, plan, await submitted(client, plan, "fan", task))

    def expected(self, plan: Plan) -> tuple[str, Any]:
        return "completed", sum(plan.chance + n + 1 for n in range(self._parts(plan)))

    def _parts(self, plan: Plan) -> int:
        return 2 + plan.chance % 7


class Stream(Kind):
    """A stream, followed while it runs."""

    name, weight = "stream", 10

    async def do(self, client: Client, plan: Plan) -> Told:
        task = {"events": self._events(plan), "pause_s": 0.02}
        task_id = await submitted(client, plan, "tell", task)
        seen: list[tuple[int, Any]] = []

        async def follow() -> None:
            async for event in client.stream(task_id, first=len(seen)):
                seen.append((event.index, event.data))  # noqa: PERF401 - what was seen before an outage counts

        await insist(follow)
        outcome = await ended(client, plan, task_id)
        outcome.events = seen
        return outcome

    def expected(self, plan: Plan) -> tuple[str, Any]:
        return "completed", self._events(plan)

    def _events(self, plan: Plan) -> int:
        return 5 + plan.chance % 50


class _Person(Kind):
    """A task whose questions are answered by repeating them."""

    async def _answered(self, client: Client, plan: Plan, service: str, input: Any) -> Told:
        task_id = await submitted(client, plan, service, input)
        while True:
            view = await insist(lambda: client.get_task(task_id))
            if view.ended_at is not None:
                return await ended(client, plan, task_id)
            if view.state.value == "input_required" and view.prompt is not None:
                try:  # where it is not known whether it was taken, the next look at the task says so
                    await client.send_input(task_id, f"on {view.prompt['prompt']}")
                except (*OUTAGES, NoInputExpectedError, TaskEndedError):
                    pass
            await asyncio.sleep(ASK_AGAIN_S)


class Parked(_Person):
    """A person's answer is the step's answer."""

    name, weight = "parked", 5

    async def do(self, client: Client, plan: Plan) -> Told:
        return await self._answered(client, plan, "person", f"{plan.chance}?")

    def expected(self, plan: Plan) -> tuple[str, Any]:
        return "completed", f"on {plan.chance}?"


class Asks(_Person):
    """A running step asks several times."""

    name, weight = "asks", 4

    async def do(self, client: Client, plan: Plan) -> Told:
        return await self._answered(client, plan, "asks", {"questions": self._questions(plan)})

    def expected(self, plan: Plan) -> tuple[str, Any]:
        return "completed", [f"on question {number}" for number in range(self._questions(plan))]

    def _questions(self, plan: Plan) -> int:
        return 1 + plan.chance % 3


class Canceled(Kind):
    """A task that would never end."""

    name, weight = "canceled", 4

    async def do(self, client: Client, plan: Plan) -> Told:
        task_id = await submitted(client, plan, "endless", {})
        await insist(lambda: client.cancel(task_id, reason="enough"))
        return await ended(client, plan, task_id)

    def expected(self, plan: Plan) -> tuple[str, Any]:
        return "canceled", "the task was canceled: enough"


class Calls(Kind):
    """A step that calls other tasks: as many as it calls, however often it was tried."""

    name, weight = "calls", 5

    async def do(self, client: Client, plan: Plan) -> Told:
        task = {"number": plan.chance, "calls": self._calls(plan), "failures": plan.chance % 2}
        return await ended(client, plan, await submitted(client, plan, "caller", task))

    def expected(self, plan: Plan) -> tuple[str, Any]:
        return "completed", sum((plan.chance + n) * 2 for n in range(self._calls(plan)))

    def children_are_right(self, plan: Plan, states: list[str]) -> bool:
        return states == ["completed"] * self._calls(plan)

    def _calls(self, plan: Plan) -> int:
        return 1 + plan.chance % 4


class Stuck(Kind):
    """A step that waits for a task that never ends, until it is canceled: the other one is canceled with it."""

    name, weight = "stuck", 3

    async def do(self, client: Client, plan: Plan) -> Told:
        task_id = await submitted(client, plan, "stuck", {})
        await asyncio.sleep(plan.chance % 5 / 10)
        await insist(lambda: client.cancel(task_id, reason="enough"))
        return await ended(client, plan, task_id)

    def expected(self, plan: Plan) -> tuple[str, Any]:
        return "canceled", "the task was canceled: enough"

    def children_are_right(self, plan: Plan, states: list[str]) -> bool:
        return states in ([], ["canceled"])


class Keyed(Kind):
    """Submitted several times at once under a key, without an id: one task."""

    name, weight = "keyed", 4

    async def do(self, client: Client, plan: Plan) -> Told:
        def submit() -> Awaitable[str]:
            task = {"number": plan.chance}
            return client.submit("work", input=task, idempotency_key=plan.task_id, wait_for_service=True)

        ids = await asyncio.gather(*(insist(submit) for _ in range(3)))
        assert len(set(ids)) == 1, ids
        return await ended(client, plan, ids[0])

    def expected(self, plan: Plan) -> tuple[str, Any]:
        return "completed", plan.chance * 2


class Counted(Kind):
    """A task of a session, counted in the state that the session's tasks share."""

    name, weight = "counted", 4

    async def do(self, client: Client, plan: Plan) -> Told:
        options = {"session_id": session_of(plan), "metadata": {COUNTED: "1"}}
        task_id = await submitted(client, plan, "work", {"number": plan.chance}, **options)
        return await ended(client, plan, task_id)

    def expected(self, plan: Plan) -> tuple[str, Any]:
        return "completed", plan.chance * 2


class Once(Kind):
    """A step that throws dice which are recorded: every attempt goes on with the same ones, whoever died in between."""

    name, weight = "once", 6

    async def do(self, client: Client, plan: Plan) -> Told:
        task = {"dice": self._dice(plan), "failures": plan.chance % 2}
        return await ended(client, plan, await submitted(client, plan, "careful", task))

    def expected(self, plan: Plan) -> tuple[str, Any]:
        return "completed", _Dice(self._dice(plan))

    def _dice(self, plan: Plan) -> int:
        return 1 + plan.chance % 4


class _Dice:
    """Equal to any list of so many throws. That they are the same in each attempt is seen from the step's effect."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list) and len(other) == self._count and all(isinstance(one, str) for one in other)

    def __hash__(self) -> int:
        return self._count


class Paused(Kind):
    """A task that is held back for a moment, if it has not ended before."""

    name, weight = "paused", 4

    async def do(self, client: Client, plan: Plan) -> Told:
        task = {"number": plan.chance, "failures": 1}
        task_id = await submitted(client, plan, "flaky", task)
        try:
            await insist(lambda: client.pause(task_id))
            await asyncio.sleep(plan.chance % 5 / 10)
            await insist(lambda: client.resume(task_id))  # what a killed client has asked for may come in between
        except TaskEndedError:
            pass
        return await ended(client, plan, task_id)

    def expected(self, plan: Plan) -> tuple[str, Any]:
        return "completed", plan.chance


class Worn(Kind):
    """A task that pauses when its step has failed too often, and that somebody has go on each time."""

    name, weight = "worn", 3

    async def do(self, client: Client, plan: Plan) -> Told:
        task = {"number": plan.chance, "failures": 2}
        options = {"retry": {"max_retries": 0, "when_exhausted": "pause"}}
        task_id = await submitted(client, plan, "worn", task, options=options)
        while (view := await insist(lambda: client.get_task(task_id))).ended_at is None:
            if view.paused:
                with contextlib.suppress(TaskEndedError):
                    await insist(lambda: client.resume(task_id))
            await asyncio.sleep(ASK_AGAIN_S)
        return await ended(client, plan, task_id)

    def expected(self, plan: Plan) -> tuple[str, Any]:
        return "completed", plan.chance


class Later(Kind):
    """A task that begins later."""

    name, weight = "later", 4

    async def do(self, client: Client, plan: Plan) -> Told:
        delay_s = 0.5 + plan.chance % 20 / 10
        task_id = await submitted(client, plan, "work", {"number": plan.chance}, options={"delay_s": delay_s})
        outcome = await ended(client, plan, task_id)
        view = await insist(lambda: client.get_task(task_id))
        assert view.ended_at is not None
        assert view.ended_at - view.created_at >= delay_s * 0.99, "it has begun too early"
        return outcome

    def expected(self, plan: Plan) -> tuple[str, Any]:
        return "completed", plan.chance * 2


def session_of(plan: Plan) -> str:
    """The session of a counted task."""
    return f"session-{plan.chance % SESSIONS}"


_PLAIN = (Step(), Flaky(), Broken(), Fan(), Stream(), Parked(), Asks(), Canceled(), Keyed(), Counted())
_RECORDED = (Once(), Calls(), Stuck())
_ABOUT_TIME = (Paused(), Worn(), Later())
_ABOUT_DATA = (Files(), Again(), Notified(), Erased(), Scheduled())
KINDS: dict[str, Kind] = {kind.name: kind for kind in (*_PLAIN, *_RECORDED, *_ABOUT_TIME, *_ABOUT_DATA)}


def plan_of(seed: int, number: int) -> Plan:
    """Task number `number` of the run with this seed."""
    chance = random.Random(f"{seed}/{number}")
    kinds = list(KINDS.values())
    kind = chance.choices(kinds, [kind.weight for kind in kinds])[0]
    return Plan(number, kind.name, f"{kind.name}-{number}", chance.randrange(1_000_000))
