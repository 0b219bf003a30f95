"""What publishes messages, as published classes of users have it among their bases.

A message that is published is a new task, which the control plane of the queue takes.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from typing import Any

from llama_deploy.deploy.parts.queues import BaseMessageQueue
from llama_deploy.messages import QueueMessage
from llama_deploy.types import generate_id

PublishCallback = Callable[..., Any]
"""What published programs gave to be told of a message that was published; it is not called."""


class MessageQueuePublisherMixin(ABC):
    """Gives a class that has a `message_queue` a `publish`."""

    message_queue: BaseMessageQueue
    publish_callback: PublishCallback | None = None

    @property
    def publisher_id(self) -> str:
        """Who publishes, where the class does not say it otherwise."""
        found: str | None = self.__dict__.get("_publisher_id")
        if found is None:
            found = self.__dict__["_publisher_id"] = f"{type(self).__qualname__}-{generate_id()}"
        return found

    async def publish(self, message: QueueMessage, **_: Any) -> None:
        """Have the control plane take a message as a new task. Raises `SettingError` where none is in this process."""
        if message.publisher_id == QueueMessage.model_fields["publisher_id"].default:
            message.publisher_id = self.publisher_id
        await self.message_queue.publish_message(message)
