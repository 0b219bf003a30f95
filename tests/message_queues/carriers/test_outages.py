"""The whole engine over every carrier, whose broker is killed, wiped, cut off and slow: every task ends exactly once.

The brokers here are private ones. Each step notes that it runs, and each outcome is noted, so that what is lost and
what is done twice shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace

import pytest
from tests.message_queues.carriers.conftest import new_namespace
from tests.support import DEADLINE_S, PROCESS_S, eventually
from tests.support.brokers import Broker
from tests.support.proxy import proxied

from llama_deploy.apiserver import Deployment
from llama_deploy.message_queues.settings import CarrierSettings
from llama_deploy.services import FunctionService

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"  # aiormq leaves the socket of a reset connection unclosed
)

TASKS = 300


class Echo:
    """A deployment whose one service answers in upper case, and what it has seen."""

    def __init__(self, url: str, *, namespace: str = "", filler: str = "", **settings: object) -> None:
        self.filler = filler
        self.runs: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.deployment = Deployment(
            [FunctionService(self._echo, name="echo", concurrency=8)],
            store=":memory:",
            message_queue={
                "url": url,
                "namespace": namespace or new_namespace(),
                "reconnect_s_max": 0.5,
                "connect_timeout_s": DEADLINE_S,
                "request_timeout_s": 6.0,
                "wait_s": 1.0,
                **settings,
            },
            quiet=True,
        )

    async def _echo(self, text: str, filler: str = "") -> str:
        self.runs[text] += 1
        return text.upper()

    @property
    def queue(self) -> object:
        return self.deployment.plane.queue

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Echo]:
        async with asyncio.timeout(PROCESS_S), self.deployment:
            yield self

    async def work(self, first: int, last: int) -> None:
        """Run tasks, eight at a time, and note how each ends."""
        numbers = iter(range(first, last))

        async def some() -> None:
            for number in numbers:
                assert await self.deployment.run("echo", text=f"t{number}", filler=self.filler) == f"T{number}"
                self.outcomes[f"t{number}"] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(some())

    async def has_done(self, count: int) -> None:
        """Wait until so many tasks have ended."""
        await eventually(lambda: len(self.outcomes) > count)

    def check(self, count: int) -> None:
        """Every task has ended once; a step may only run twice where it was lost, and nothing loses steps here."""
        assert self.outcomes == Counter({f"t{number}": 1 for number in range(count)})
        assert self.runs == self.outcomes, "a duplicate was run"


async def test_a_broker_that_is_killed_and_restarted(broker: Broker) -> None:
    async with Echo(broker.url).running() as echo:
        working = asyncio.create_task(echo.work(0, TASKS))
        await echo.has_done(TASKS // 3)
        await broker.kill()
        await eventually(lambda: not echo.deployment.plane.queue.health().connected)
        await broker.start()
        await working
        echo.check(TASKS)
        assert echo.deployment.plane.queue.health().reconnects >= 1


async def test_a_broker_that_is_wiped_empty(broker: Broker) -> None:
    async with Echo(broker.url).running() as echo:
        plane = echo.deployment.plane
        await echo.work(0, 10)
        working = asyncio.create_task(echo.work(10, TASKS))
        await echo.has_done(TASKS // 3)
        await broker.kill()
        await broker.wipe()
        await broker.start()
        await working
        echo.check(TASKS)
        assert plane.queue.health().losses >= 1


async def test_a_connection_that_is_cut_and_slow(broker: Broker) -> None:
    async with proxied(broker.port) as proxy, Echo(broker.url_at(proxy.port)).running() as echo:
        working = asyncio.create_task(echo.work(0, TASKS))
        for part in range(1, 5):
            await echo.has_done(part * TASKS // 6)
            proxy.delay_s = 0.01 * (part % 2)
            proxy.cut()
        await working
        echo.check(TASKS)


async def test_a_connection_that_takes_nothing_any_more(broker: Broker) -> None:
    """Drivers that cannot write, and are told to give up, may wait for the writing for ever: nobody waits for them."""
    with what_drivers_leave_is_theirs():
        await _take_nothing_for_a_while(broker)


@contextlib.contextmanager
def what_drivers_leave_is_theirs() -> Iterator[None]:
    """Asyncpg lets a future end with an error that nobody asks for, when what it asked to be cancelled is cut off."""
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(
        lambda _, context: None if "future" in context else loop.default_exception_handler(context)
    )
    try:
        yield
        gc.collect()
    finally:
        loop.set_exception_handler(handler)


async def _take_nothing_for_a_while(broker: Broker) -> None:
    async with (
        proxied(broker.port) as proxy,
        Echo(broker.url_at(proxy.port), filler="x" * 1_000_000, request_timeout_s=1.0).running() as echo,
    ):
        working = asyncio.create_task(echo.work(0, 40))
        await echo.has_done(5)
        proxy.hold()
        await eventually(lambda: not echo.deployment.plane.queue.health().connected)
        proxy.cut()
        proxy.let_go()
        await working
        assert echo.outcomes == Counter({f"t{number}": 1 for number in range(40)})


async def test_a_reader_of_the_driver_that_dies_without_a_word_is_noticed() -> None:
    from llama_deploy.message_queues.nats import NatsCarrier

    carrier = NatsCarrier(CarrierSettings(url="nats://localhost", namespace=new_namespace()))
    noticed: list[tuple[str, int]] = []
    carrier._fail = lambda error, generation: noticed.append((str(error), generation))  # type: ignore[method-assign]

    async def reset() -> None:
        raise ConnectionResetError("reset by peer")

    reader = asyncio.create_task(reset())
    carrier._watch(SimpleNamespace(_reading_task=reader))
    await asyncio.wait([reader])
    await eventually(lambda: noticed)
    assert noticed == [("reset by peer", 1)]


async def test_a_queue_that_is_made_anew_and_whose_answer_is_lost_is_a_queue_that_has_lost_everything() -> None:
    """RabbitMQ makes it, and the connection breaks before it says so: the next connection finds it there, and empty."""
    from aio_pika.exceptions import ChannelNotFoundEntity

    from llama_deploy.message_queues.rabbitmq import RabbitMQCarrier

    outcomes: list[BaseException | None] = [None, ChannelNotFoundEntity("wiped"), TimeoutError("cut off"), None]

    async def declare_queue(*_: object, **__: object) -> None:
        if (error := outcomes.pop(0)) is not None:
            raise error

    async def nothing() -> None: ...

    async def channel() -> SimpleNamespace:
        return SimpleNamespace(declare_queue=declare_queue, reopen=nothing, close=nothing)

    carrier = RabbitMQCarrier(CarrierSettings(url="amqp://localhost", namespace=new_namespace()))
    carrier._connection = SimpleNamespace(channel=channel)
    before = await carrier.prepare("echo")
    with pytest.raises(TimeoutError):
        await carrier.prepare("echo")
    assert await carrier.prepare("echo") != before
