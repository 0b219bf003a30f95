"""RabbitMQ: a quorum queue and a channel for each topic, publisher confirms, a dead-letter exchange.

The broker pushes, as many messages as a consumer's window allows. The window is as wide as there are credits, and stays
so because what was given is acknowledged with the next credits: that lets the broker push exactly as many more. Where
no credits come for a while, the consumer is cancelled and the rest is acknowledged, so that nothing stands
unacknowledged for long. What cannot be routed comes back, and counts as a broken connection.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_deploy._lazy import published_names
from llama_deploy.errors import CarrierRefusedError
from llama_deploy.message_queues.base import Capabilities, Envelope
from llama_deploy.message_queues.carrier import Carrier
from llama_deploy.message_queues.settings import CarrierSettings, missing, place_name
from llama_deploy.message_queues.topics import Fetched, Measured
from llama_deploy.runtime import Clock
from llama_deploy.runtime.logs import get_logger

log = get_logger("llama_deploy.carrier")

ACKNOWLEDGED_WITHIN_S = 5.0
"""How long what was given may stand unacknowledged, waiting for credits; RabbitMQ closes channels after 30 minutes."""
DELIVERIES_MAX = 20
"""What was delivered so often and never acknowledged is put aside."""
UNANSWERED_MAX = 2
"""After so many times without a confirmation a queue counts as dead: a quorum queue that was made shortly before its
only node was killed may stay so for ever. What it held is published again."""
HEARTBEAT_S = 10
"""How often the broker and this process tell each other that they live."""
NAME_LENGTH_MAX = 200


class RabbitMQCarrier(Carrier):
    """Carries over RabbitMQ 3.10 or later. URL: `amqp://user:password@host:port/vhost`, `amqps://` for TLS."""

    kind = "rabbitmq"
    capabilities = Capabilities(in_process=False, ordered=True, dead_letter=True)

    def __init__(self, settings: CarrierSettings, *, clock: Clock | None = None) -> None:
        super().__init__(settings, clock=clock)
        settings.options(())
        try:
            import aio_pika
        except ImportError as error:
            raise missing("rabbitmq", "aio-pika", "rabbitmq") from error
        self._driver = aio_pika
        self._connection: Any = None
        self._publishing: Any = None
        self._confirmations: dict[int, Any] = {}
        """The driver's own: what the broker is to confirm, by number."""
        self._windows: dict[str, _Window] = {}
        self._marks: dict[str, str] = {}
        self._unanswered: dict[str, int] = {}
        """How often sending to a queue has not been confirmed, one time after the other."""
        self._tls = settings.tls("amqps")

    def _queue_name(self, topic: str) -> str:
        return place_name(self.namespace, topic, most=NAME_LENGTH_MAX)

    @property
    def _dead(self) -> str:
        return f"{place_name(self.namespace, most=NAME_LENGTH_MAX)}__dead"

    async def connect(self) -> None:
        from aiormq.exceptions import AuthenticationError, ConnectionNotAllowed

        settings = self.settings
        username, password = settings.credentials
        try:
            self._connection = await self._driver.connect(
                host=settings.host,
                port=settings.port(5671 if self._tls is not None else 5672),
                login=username or "guest",
                password=password or "guest",
                virtualhost=settings.path or "/",
                ssl=self._tls is not None,
                ssl_context=self._tls,
                heartbeat=HEARTBEAT_S,
                timeout=settings.connect_timeout_s,
                client_properties={"connection_name": "llama_deploy"},
            )
        except (AuthenticationError, ConnectionNotAllowed) as error:
            why = settings.hide(str(error))
            raise CarrierRefusedError(f"RabbitMQ at {settings.location} refuses", why=why) from None
        generation = self._generation + 1
        self._connection.close_callbacks.add(lambda _, error: self._gone(error, generation))
        self._publishing = await self._connection.channel(on_return_raises=True)
        self._confirmations = (await self._publishing.get_underlay_channel()).confirmations
        dead = await self._publishing.declare_exchange(self._dead, "fanout", durable=True)
        queue = await self._publishing.declare_queue(self._dead, durable=True, arguments={"x-max-length": 10_000})
        await queue.bind(dead)

    def _gone(self, error: BaseException | None, generation: int) -> None:
        self._fail(error or ConnectionError("the broker closed the connection"), generation)

    async def disconnect(self) -> None:
        connection, self._connection = self._connection, None
        for window in self._windows.values():
            window.forget()
        self._windows.clear()
        if connection is not None:
            await connection.close()

    async def prepare(self, topic: str) -> str:
        """The mark is this process's own: a queue that has to be made again gets a new one."""
        name = self._queue_name(topic)
        channel = await self._connection.channel()
        if self._unanswered.get(name, 0) >= UNANSWERED_MAX:
            log.warning("a queue does not answer and is made anew", queue=name)
            self._marks.pop(name, None)
            await (await channel.get_underlay_channel()).queue_delete(name)
            self._unanswered.pop(name, None)
        try:
            await channel.declare_queue(name, passive=True)
            mark = self._marks.setdefault(name, os.urandom(4).hex())
        except self._driver.exceptions.ChannelNotFoundEntity:
            self._marks.pop(name, None)  # what it held is gone, also where the answer to what follows is lost
            await channel.reopen()
            arguments = {
                "x-queue-type": "quorum",
                "x-delivery-limit": DELIVERIES_MAX,
                "x-dead-letter-exchange": self._dead,
            }
            await channel.declare_queue(name, durable=True, arguments=arguments)
            mark = self._marks[name] = os.urandom(4).hex()
        await channel.close()
        return mark

    async def send(self, batch: Sequence[tuple[Envelope, bytes]]) -> None:
        publish, message = self._publishing.default_exchange.publish, self._driver.Message
        names = {topic: self._queue_name(topic) for topic in {envelope.topic for envelope, _ in batch}}
        for name in names.values():
            self._unanswered[name] = self._unanswered.get(name, 0) + 1
        try:
            await asyncio.gather(
                *(
                    publish(message(data, delivery_mode=2), names[envelope.topic], mandatory=True)
                    for envelope, data in batch
                )
            )
        except BaseException:
            for confirmation in self._confirmations.values():  # nobody waits for these any more
                if asyncio.isfuture(confirmation):
                    confirmation.add_done_callback(_look_at)
            raise
        for name in names.values():
            del self._unanswered[name]

    async def fetch(self, topic: str, limit: int) -> list[Fetched]:
        window = self._windows.get(topic)
        if window is None:
            channel = await self._connection.channel()
            generation = self._generation
            channel.close_callbacks.add(lambda _, error: self._gone(error, generation))
            queue = await channel.get_queue(self._queue_name(topic), ensure=False)
            window = self._windows[topic] = _Window(channel, queue)
        messages = await window.receive(limit, self.settings.wait_s)
        return [Fetched(message, message.body) for message in messages]

    async def acknowledge(self, topic: str, tokens: list[Any]) -> None:
        window = self._windows.get(topic)
        if window is not None:
            window.take(tokens)

    async def give_back(self, topic: str, tokens: list[Any]) -> None:
        window = self._windows.get(topic)
        if window is not None:
            await window.close()
            for message in tokens:
                await message.nack(requeue=True)

    async def put_aside(self, topic: str, messages: list[Fetched]) -> None:  # noqa: ARG002 - messages know theirs
        """Rejected messages go to the dead-letter exchange."""
        for message in messages:
            await message.token.reject(requeue=False)

    async def measure(self, topic: str) -> Measured:
        found = await self._publishing.declare_queue(self._queue_name(topic), passive=True)
        return Measured(found.declaration_result.message_count)


def _look_at(future: asyncio.Future[Any]) -> None:
    """What has become of it is known; otherwise the loop complains that nobody has asked."""
    if not future.cancelled():
        future.exception()


class _Window:
    """The consumer of one topic: how many more messages the broker may push, and what it has pushed."""

    def __init__(self, channel: Any, queue: Any) -> None:
        self._channel = channel
        self._queue = queue
        self._tag: str | None = None
        self._coming = 0
        """How many messages the broker may push now."""
        self._taken: deque[tuple[float, Any]] = deque()
        """What was given, since when: it is acknowledged when there are credits for as many others."""
        self._messages: list[Any] = []
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    async def receive(self, limit: int, wait_s: float) -> list[Any]:
        """Let the broker push up to `limit` messages, and wait for the first."""
        async with self._lock:
            room = limit - len(self._messages)
            if self._tag is None or not self._coming <= room <= self._coming + len(self._taken):
                await self._close()
                if room > 0:
                    await self._channel.set_qos(prefetch_count=room)
                    self._coming = room
                    self._tag = await self._queue.consume(self._arrived)
            else:
                await self._acknowledge(room - self._coming)
        try:
            async with asyncio.timeout(wait_s):
                while not self._messages and self._tag is not None:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return []
        messages, self._messages = self._messages, []
        return messages

    async def _arrived(self, message: Any) -> None:
        self._coming -= 1
        self._messages.append(message)
        self._changed.set()

    def take(self, messages: list[Any]) -> None:
        """Messages were given to a consumer."""
        now = asyncio.get_running_loop().time()
        self._taken.extend((now, message) for message in messages)
        self._look_later()

    def _look_later(self) -> None:
        if self._timer is None and self._taken:
            when = self._taken[0][0] + ACKNOWLEDGED_WITHIN_S
            self._timer = asyncio.get_running_loop().call_at(when, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._taken and self._taken[0][0] + ACKNOWLEDGED_WITHIN_S <= asyncio.get_running_loop().time():
            self._closing = asyncio.create_task(self._let_go())
        else:
            self._look_later()

    async def _let_go(self) -> None:
        try:
            await self.close()
        except Exception as error:  # noqa: BLE001 - the edge of a task: a connection that breaks meanwhile is told of by itself
            log.info("what was given could not be acknowledged", error=str(error))

    async def close(self) -> None:
        """Let the broker push no more, and acknowledge what was given."""
        async with self._lock:
            await self._close()
        self._changed.set()

    def forget(self) -> None:
        """The channel is gone."""
        if self._timer is not None:
            self._timer.cancel()
        if self._closing is not None:
            self._closing.cancel()

    async def _close(self) -> None:
        if self._tag is not None:
            tag, self._tag = self._tag, None
            await self._queue.cancel(tag)
        await self._acknowledge(len(self._taken))

    async def _acknowledge(self, count: int) -> None:
        for _ in range(count):
            _, message = self._taken.popleft()
            self._coming += 1
            await message.ack()


if not TYPE_CHECKING:
    __getattr__, __dir__ = published_names(__name__)
