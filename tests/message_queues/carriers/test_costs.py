"""What a carrier costs a task, in calls of its driver: one at a time, and shared by many."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.message_queues.carriers.conftest import new_namespace
from tests.support import PROCESS_S, eventually

from llama_deploy.apiserver import Deployment
from llama_deploy.message_queues.carrier import Carrier
from llama_deploy.services import FunctionService

ALONE, TOGETHER, WIDTH = 10, 320, 64


class Calls:
    """The calls of a carrier's driver for the topic of the service, counted, and held back where a test says so."""

    def __init__(self, carrier: Carrier) -> None:
        self.count: Counter[str] = Counter()
        self.may = {name: asyncio.Event() for name in ("send", "fetch", "acknowledge")}
        for name, may in self.may.items():
            may.set()
            setattr(carrier, name, self._counting(name, getattr(carrier, name)))

    def _counting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        async def counting(*arguments: Any) -> Any:
            await self.may[name].wait()
            found = await call(*arguments)
            if found != []:  # a fetch that waited in vain carries nothing
                self.count[name] += 1
            return found

        return counting


@dataclass
class Echo:
    """A service of which `WIDTH` steps run at once, or one at a time, and whose steps go on together."""

    at_once: int = 1
    inside: int = 0
    together: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, text: str) -> str:
        self.inside += 1
        together = self.together
        if self.inside == self.at_once:
            self.inside, self.together = 0, asyncio.Event()
            together.set()
        await together.wait()
        return text


@asynccontextmanager
async def serving(url: str, echo: Echo) -> AsyncIterator[tuple[Deployment, Carrier]]:
    async def call(text: str) -> str:
        return await echo(text)

    # One request is never broken off by its deadline: what a carrier costs has nothing to do with how long it takes.
    queue = {"url": url, "namespace": new_namespace(), "request_timeout_s": PROCESS_S}
    service = FunctionService(call, name="echo", concurrency=WIDTH)
    async with (
        asyncio.timeout(PROCESS_S),
        Deployment([service], store=":memory:", message_queue=queue, quiet=True) as deployment,
    ):
        carrier = deployment.plane.queue
        assert isinstance(carrier, Carrier)
        await deployment.run("echo", text="warm")
        await eventually(lambda: not carrier._acknowledgements)
        yield deployment, carrier


async def test_one_task_at_a_time_costs_one_call_of_each_kind(shared_url: str) -> None:
    async with serving(shared_url, Echo()) as (deployment, carrier):
        calls = Calls(carrier).count
        for number in range(ALONE):
            assert await deployment.run("echo", text=str(number)) == str(number)
            await eventually(lambda: not carrier._acknowledgements)
        await eventually(lambda: calls["send"] >= ALONE)  # a delivery may be quicker than the answer to its sending
        assert calls["send"] == ALONE
        for name in ("fetch", "acknowledge"):
            assert calls[name] <= ALONE + 1, f"{name}: once a task, when tasks come one at a time"


async def test_many_tasks_share_calls(shared_url: str) -> None:
    """What waits while a call is under way goes with the next one; how much that is must not be left to the clock."""
    echo = Echo()
    async with serving(shared_url, echo) as (deployment, carrier):
        calls = Calls(carrier)
        echo.at_once = WIDTH
        calls.may["send"].clear()
        running = [asyncio.create_task(deployment.run("echo", text=str(number))) for number in range(TOGETHER)]
        await eventually(lambda: len(carrier._outgoing) == TOGETHER)
        calls.may["send"].set()
        assert await asyncio.gather(*running) == [str(number) for number in range(TOGETHER)]
        await eventually(lambda: not carrier._outgoing)
    in_one = carrier.settings.batch_max
    sends, fetches = calls.count["send"], calls.count["fetch"]
    assert 1 <= sends <= 1 + -(-TOGETHER // in_one), "one was held, with what was there by then; then all of the rest"
    # How much of what is pushed has come by the time that one looks is the machine's; what is asked for comes at once.
    share = 0.5 if carrier.kind in ("redis", "postgresql") else 1.0
    assert 1 <= fetches <= share * TOGETHER
