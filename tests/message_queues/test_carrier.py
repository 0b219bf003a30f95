"""What every carrier does where its driver does not do what is asked of it: it goes on over another connection."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from tests.support import eventually

from llama_deploy.message_queues import Envelope
from llama_deploy.message_queues import connection as connection_module
from llama_deploy.message_queues.base import Capabilities
from llama_deploy.message_queues.carrier import Carrier
from llama_deploy.message_queues.settings import CarrierSettings
from llama_deploy.message_queues.topics import Fetched, Measured
from llama_deploy.testing.queue_conformance import Consumer, envelopes

CALLS = ("connect", "prepare", "send", "fetch", "acknowledge", "disconnect")
FAULTS = ("it cancels itself", "it never ends", "it never ends, not even cancelled")


class InMemory(Carrier):
    """A carrier over a list, whose calls can be made to go wrong once each."""

    kind = "memory"
    capabilities = Capabilities(in_process=False, ordered=True, dead_letter=False)

    def __init__(self) -> None:
        settings = CarrierSettings(
            url="memory://here",
            namespace="n",
            connect_timeout_s=0.2,
            request_timeout_s=0.2,
            wait_s=0.1,
            reconnect_s=0.0,
        )
        super().__init__(settings)
        self.waiting: deque[bytes] = deque()
        self.given: list[bytes] = []
        self.arrived = asyncio.Event()
        self.faults: dict[str, str] = {}
        self.connections = 0
        self.closed = True
        self.ended = asyncio.Event()

    async def _may_fail(self, call: str) -> None:
        fault = self.faults.pop(call, None)
        if fault == "it cancels itself":
            raise asyncio.CancelledError
        while fault is not None and not self.ended.is_set():
            try:
                await self.ended.wait()
            except asyncio.CancelledError:
                if fault == "it never ends":
                    raise

    async def connect(self) -> None:
        self.connections += 1
        self.closed = False
        await self._may_fail("connect")

    async def disconnect(self) -> None:
        self.closed = True
        self.waiting.extendleft(reversed(self.given))
        self.given.clear()
        self.arrived.set()
        await self._may_fail("disconnect")

    async def prepare(self, topic: str) -> str:
        await self._may_fail("prepare")
        return "mark"

    async def send(self, batch: Sequence[tuple[Envelope, bytes]]) -> None:
        await self._may_fail("send")
        self.waiting.extend(data for _, data in batch)
        self.arrived.set()

    async def fetch(self, topic: str, limit: int) -> list[Fetched]:
        await self._may_fail("fetch")
        connection = self.connections
        if not self.waiting:
            self.arrived.clear()
            try:
                async with asyncio.timeout(self.settings.wait_s):
                    await self.arrived.wait()
            except TimeoutError:
                return []
            if connection != self.connections or self.closed:
                raise ConnectionError("closed")
        found = [self.waiting.popleft() for _ in range(min(limit, len(self.waiting)))]
        self.given += found
        return [Fetched(data, data) for data in found]

    async def acknowledge(self, topic: str, tokens: Sequence[object]) -> None:
        await self._may_fail("acknowledge")
        self.given = [data for data in self.given if data not in tokens]

    async def give_back(self, topic: str, tokens: Sequence[object]) -> None:
        """Nothing is given back here."""

    async def put_aside(self, topic: str, messages: Sequence[Fetched]) -> None:
        """Everything can be read here."""

    async def measure(self, topic: str) -> Measured:
        return Measured(len(self.waiting))


@asynccontextmanager
async def running() -> AsyncIterator[tuple[InMemory, Consumer]]:
    carrier = InMemory()
    await carrier.start()
    try:
        yield carrier, Consumer(carrier, "echo", credits=10, automatic=True)
    finally:
        carrier.ended.set()
        await carrier.stop()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", CALLS)
async def test_a_call_of_the_driver_that_goes_wrong_ends_a_connection_and_nothing_else(call: str, fault: str) -> None:
    async with running() as (carrier, consumer):
        carrier.publish(envelopes("echo", range(3)))
        await consumer.has(3)
        carrier.faults[call] = fault
        if call in ("connect", "disconnect", "prepare"):
            carrier._fail(ConnectionError("cut"), carrier._generation)
        carrier.publish(envelopes("echo", range(3, 6)))
        await eventually(lambda: not carrier.faults)
        await eventually(lambda: carrier.health().reconnects == 1 and carrier.health().connected)
        carrier.publish(envelopes("echo", range(6, 9)))
        wanted = {envelope.step_id for envelope in envelopes("echo", range(9))}
        await eventually(lambda: set(consumer.steps) == wanted)  # what was not acknowledged comes again


async def test_a_start_whose_first_attempt_goes_wrong_goes_on() -> None:
    carrier = InMemory()
    carrier.faults["connect"] = "it cancels itself"
    await carrier.start()
    await eventually(lambda: carrier.health().connected)
    assert carrier.connections == 2
    await carrier.stop()


async def test_an_answer_that_is_unread_because_the_process_stood_still_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_module, "put_off_s", lambda _, most_s: most_s)  # every timer counts as late
    carrier = InMemory()
    answer = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.25, answer.set_result, "late")

    async def call() -> str:
        return str(await answer)

    assert await carrier._within(0.1, call()) == "late"
    with pytest.raises(TimeoutError):
        await carrier._within(0.01, asyncio.Event().wait())
