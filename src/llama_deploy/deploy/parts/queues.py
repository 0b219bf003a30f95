"""Message queues as published programs make them: what the parts of one system have in common.

Nothing is sent through one: the control plane carries messages by itself. In one process the parts find each other by
the queue that they were given; elsewhere by the control plane's address.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_deploy.deploy.config import (
    AWSMessageQueueConfig,
    ControlPlaneConfig,
    KafkaMessageQueueConfig,
    RabbitMQMessageQueueConfig,
    RedisMessageQueueConfig,
    SimpleMessageQueueConfig,
    SolaceMessageQueueConfig,
)
from llama_deploy.deploy.parts.consumers import (
    BaseMessageQueueConsumer,
    ConsumerService,
    StartConsuming,
    until_canceled,
)
from llama_deploy.deploy.parts.places import Place
from llama_deploy.errors import SettingError
from llama_deploy.message_queues.simple import InProcessQueue
from llama_deploy.messages import QueueMessage

if TYPE_CHECKING:
    from llama_deploy.deploy.parts.control_plane import ControlPlaneServer


class BaseMessageQueue:
    """Where the parts of one system meet."""

    config_class: type[Any] = SimpleMessageQueueConfig

    def _configure(self, config: Any, fields: dict[str, Any]) -> None:
        unknown = sorted(fields.keys() - self.config_class.model_fields.keys() - {"consumers", "queues", "redis"})
        if unknown:
            raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {unknown[0]!r}")
        self.config = config if config is not None else self.config_class(**fields)
        self.control_plane: ControlPlaneServer | None = None
        """That of this process which was made with this queue."""
        self._consumers: list[BaseMessageQueueConsumer] = []
        self._places: dict[str, Place] = {}

    def __init__(self, config: Any = None, **fields: Any) -> None:
        """`config`, or its fields. Raises `TypeError` for a field that there is none of."""
        if isinstance(config, str):  # the address, as the first versions took it
            config, fields = None, {"url": config, **fields}
        self._configure(config, fields)

    @property
    def client(self) -> BaseMessageQueue:
        """What speaks to the queue: the queue itself."""
        return self

    def as_config(self) -> Any:
        """Its configuration."""
        return self.config

    # --- where everybody is ---------------------------------------------------------------------------------------

    @property
    def control_plane_url(self) -> str:
        """Where the control plane listens: that of this process, else what `CONTROL_PLANE_*` says."""
        return ControlPlaneConfig().url if self.control_plane is None else self.control_plane.url

    # --- consumers ------------------------------------------------------------------------------------------------

    async def register_consumer(self, consumer: BaseMessageQueueConsumer, topic: str | None = None) -> StartConsuming:
        """Have a consumer given the messages of its type; what is returned consumes until it is canceled."""
        del topic
        place = self._places.get(consumer.id_)
        if place is None:
            place = getattr(consumer, "place", None) or Place([ConsumerService(consumer)], self)
            self._consumers.append(consumer)
            self._places[consumer.id_] = place
        place.enter_here()
        return consumer.start_consuming

    async def deregister_consumer(self, consumer: BaseMessageQueueConsumer) -> None:
        """Give it nothing more."""
        self._consumers = [one for one in self._consumers if one.id_ != consumer.id_]
        place = self._places.pop(consumer.id_, None)
        if place is not None:
            await place.leave()

    async def get_consumers(self, message_type: str) -> Sequence[BaseMessageQueueConsumer]:
        """Those of this process that take the messages of a type."""
        return [one for one in self._consumers if one.message_type == message_type]

    async def publish_message(self, message: QueueMessage) -> None:
        """Have the control plane of this process take a message: a new task. Raises `SettingError` without one."""
        if self.control_plane is None:
            raise SettingError(
                "no control plane was made with this queue in this process", fix="submit tasks with a client"
            )
        await self.control_plane.process_message(message)

    # --- running --------------------------------------------------------------------------------------------------

    async def launch_server(self) -> None:
        """Wait until this is canceled: the queue is within the control plane."""
        await until_canceled()

    async def processing_loop(self) -> None:
        """The same."""
        await until_canceled()

    async def launch_local(self) -> asyncio.Task[None]:
        """The same, as a task."""
        return asyncio.create_task(self.processing_loop())

    async def cleanup_local(self, message_types: Sequence[str] = (), *_: Any, **__: Any) -> None:
        """Give the consumers of these types nothing more; with none named, all."""
        for consumer in [one for one in self._consumers if not message_types or one.message_type in message_types]:
            await self.deregister_consumer(consumer)

    cleanup = cleanup_local


class SimpleMessageQueue(BaseMessageQueue, InProcessQueue):
    """The queue within the control plane: a carrier of the engine, and where hand-built parts meet."""

    def __init__(self, config: Any = None, **fields: Any) -> None:
        """`config`, or its fields; `depth_max` and `clock` are those of the carrier."""
        carrier = {name: fields.pop(name) for name in ("depth_max", "clock") if name in fields}
        InProcessQueue.__init__(self, **carrier)
        self._configure(config, fields)

    def publish(self, envelopes: Any, topic: str | None = None, **_: Any) -> Any:
        """Carry envelopes; or, awaited, have the control plane take a message."""
        del topic
        return self.publish_message(envelopes) if isinstance(envelopes, QueueMessage) else super().publish(envelopes)


AbstractMessageQueue = BaseMessageQueue
SimpleRemoteClientMessageQueue = SimpleMessageQueue


class SimpleMessageQueueServer:
    """What once ran the simple queue: it is within the control plane."""

    def __init__(self, config: Any = None) -> None:
        self.config = config if config is not None else SimpleMessageQueueConfig()

    async def launch_server(self) -> None:
        """Wait until this is canceled."""
        await until_canceled()


class _BrokerQueue(BaseMessageQueue):
    """A queue at a broker, which is not needed here, and which nothing connects to."""

    async def publish(self, message: QueueMessage, topic: str | None = None, **_: Any) -> None:
        """Have the control plane take a message."""
        del topic
        await self.publish_message(message)


class RedisMessageQueue(_BrokerQueue):
    """A queue at a Redis server."""

    config_class = RedisMessageQueueConfig


class RabbitMQMessageQueue(_BrokerQueue):
    """A queue at a RabbitMQ server."""

    config_class = RabbitMQMessageQueueConfig


class KafkaMessageQueue(_BrokerQueue):
    """A queue at a Kafka server."""

    config_class = KafkaMessageQueueConfig


class AWSMessageQueue(_BrokerQueue):
    """Queues of AWS."""

    config_class = AWSMessageQueueConfig


class SolaceMessageQueue(_BrokerQueue):
    """A queue at a Solace broker."""

    config_class = SolaceMessageQueueConfig


def meeting_place(queue: Any) -> BaseMessageQueue:
    """The queue that a part was given. Raises `SettingError` for what is none."""
    if isinstance(queue, BaseMessageQueue):
        return queue
    raise SettingError(
        f"a {type(queue).__qualname__} is no message queue that parts can meet at",
        fix="give the SimpleMessageQueue() of llama_deploy that the control plane was given",
    )
