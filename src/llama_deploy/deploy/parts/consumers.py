"""Consumers: code that is given the messages of one type, as the final messages of tasks (`human`).

A consumer is a service of that name. What it is given is a delivery like any other: it comes again when the consumer
failed, or died, before it was done.
"""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from llama_deploy.errors import LlamaDeployError
from llama_deploy.messages import QueueMessage
from llama_deploy.services.base import Parked, Service, StepContext
from llama_deploy.services.results import result_from_value
from llama_deploy.types import ActionTypes, ServiceDefinition, TaskResult, generate_id

StartConsuming = Callable[..., Coroutine[Any, Any, None]]
"""What registering a consumer returns: consumes until it is canceled."""
StartConsumingCallable = StartConsuming

SEND_TIMEOUT_S = 30.0


async def until_canceled() -> None:
    """Wait for as long as the task is wanted."""
    await asyncio.Event().wait()


class BaseMessageQueueConsumer(ABC):
    """Takes the messages of one type."""

    def __init__(
        self,
        *,
        id_: str | None = None,
        message_type: str = "default",
        channel: Any = None,
        consuming_callable: StartConsuming | None = None,
    ) -> None:
        self.id_ = id_ or generate_id()
        self.message_type = message_type
        self.channel = channel
        self.consuming_callable = consuming_callable or until_canceled

    @abstractmethod
    async def process_message(self, message: QueueMessage, **kwargs: Any) -> Any:
        """Take a message. It comes again when this raises."""

    async def start_consuming(self) -> None:
        """Consume until this is canceled."""
        await self.consuming_callable()


class CallableMessageConsumer(BaseMessageQueueConsumer):
    """Gives each message to a function, async or not; what it returns is the answer, where one is expected."""

    def __init__(self, *, handler: Callable[..., Any], **settings: Any) -> None:
        super().__init__(**settings)
        self.handler = handler

    async def process_message(self, message: QueueMessage, **kwargs: Any) -> Any:
        answer = self.handler(message, **kwargs)
        return await answer if inspect.isawaitable(answer) else answer


class RemoteMessageConsumer(BaseMessageQueueConsumer):
    """Sends each message as JSON to a URL, with POST."""

    def __init__(self, *, url: str, client_kwargs: dict[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.url = url
        self.client_kwargs = {"timeout": SEND_TIMEOUT_S, **(client_kwargs or {})}

    async def process_message(self, message: QueueMessage, **_: Any) -> Any:
        """Raises `LlamaDeployError` when it is not taken, and what the network raises."""
        import httpx2

        async with httpx2.AsyncClient(**self.client_kwargs) as client:
            answer = await client.post(self.url, json=message.model_dump(mode="json"))
        if answer.status_code >= HTTPStatus.BAD_REQUEST:
            raise LlamaDeployError(f"{self.url} has answered a message with HTTP {answer.status_code}")


class ConsumerService(Service):
    """A consumer as the service of its type."""

    def __init__(self, consumer: BaseMessageQueueConsumer) -> None:
        self._consumer = consumer
        self.definition = ServiceDefinition(
            service_name=consumer.message_type, description=f"Takes the messages of type {consumer.message_type!r}."
        )

    async def run(self, context: StepContext) -> TaskResult | Parked:
        """Give the message to the consumer. Raises what that raises."""
        message = QueueMessage(
            id_=context.step_id,
            publisher_id="control_plane",
            type=context.service,
            action=ActionTypes(context.action),
            data=context.data,
        )
        return result_from_value(await self._consumer.process_message(message))
