"""Amazon SQS: a standard queue for each topic, in batches of ten, with a dead-letter queue.

Bodies are text there, so messages travel in base64. A long poll waits for the first message. What was fetched and not
acknowledged (its control plane died) is seen again when its visibility ends; what is given back is seen at once.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from llama_deploy.errors import CarrierRefusedError
from llama_deploy.message_queues.base import Capabilities, Envelope
from llama_deploy.message_queues.carrier import Carrier
from llama_deploy.message_queues.settings import CarrierSettings, missing, place_name
from llama_deploy.message_queues.topics import Fetched, Measured
from llama_deploy.runtime import Clock

BATCH = 10
"""Messages of one request."""
BATCH_TEXT_MAX = 250_000
"""Characters of one request; SQS takes 256 KiB."""
VISIBILITY_S = 10
"""What was fetched and not acknowledged for so long is given to somebody else."""
DELIVERIES_MAX = 20
"""What was received so often and never acknowledged goes to the dead-letter queue."""
WAIT_S_MAX = 20
NAME_LENGTH_MAX = 74
REFUSED = ("AccessDenied", "InvalidClientTokenId", "SignatureDoesNotMatch", "UnrecognizedClientException")


class SQSCarrier(Carrier):
    """Carries over SQS. URL: `sqs://region`, with `?endpoint=http://host:port` for what speaks its protocol.

    User and password are the access key and its secret; without, they come from where AWS's tools look for them.
    """

    kind = "sqs"
    capabilities = Capabilities(in_process=False, ordered=False, delay=True, dead_letter=True)
    body_bytes_max = 150_000

    def __init__(self, settings: CarrierSettings, *, clock: Clock | None = None) -> None:
        super().__init__(settings, clock=clock)
        self._endpoint = settings.options(("endpoint",)).get("endpoint")
        try:
            from aiobotocore.session import get_session
        except ImportError as error:
            raise missing("sqs", "aiobotocore", "sqs") from error
        self._session = get_session()
        self._client: Any = None
        self._stack = AsyncExitStack()
        self._urls: dict[str, str] = {}

    def _name(self, topic: str) -> str:
        return place_name(self.namespace, topic, most=NAME_LENGTH_MAX)

    async def connect(self) -> None:
        from botocore.config import Config
        from botocore.exceptions import ClientError, NoCredentialsError

        settings = self.settings
        username, password = settings.credentials
        timeouts = {"connect_timeout": settings.connect_timeout_s, "read_timeout": WAIT_S_MAX + settings.wait_s}
        ca_file = settings.ca_file
        self._stack = AsyncExitStack()
        try:
            self._client = await self._stack.enter_async_context(
                self._session.create_client(
                    "sqs",
                    region_name=settings.host or None,
                    endpoint_url=self._endpoint,
                    aws_access_key_id=username,
                    aws_secret_access_key=password,
                    verify=None if ca_file is None else str(ca_file),
                    config=Config(retries={"total_max_attempts": 1}, max_pool_connections=100, **timeouts),
                )
            )
            await self._client.list_queues(QueueNamePrefix=place_name(self.namespace, most=NAME_LENGTH_MAX))
        except NoCredentialsError as error:
            raise CarrierRefusedError(f"SQS in {settings.host} refuses", why=str(error)) from None
        except ClientError as error:
            if any(word in str(error) for word in REFUSED):
                why = settings.hide(str(error))
                raise CarrierRefusedError(f"SQS in {settings.host} refuses", why=why) from None
            raise

    async def disconnect(self) -> None:
        self._urls.clear()
        await self._stack.aclose()

    async def prepare(self, topic: str) -> str:
        dead = await self._client.create_queue(QueueName=f"{self._name(topic)}__dead")
        asked = {"QueueUrl": dead["QueueUrl"], "AttributeNames": ["QueueArn"]}
        arn = (await self._client.get_queue_attributes(**asked))["Attributes"]["QueueArn"]
        attributes = {
            "VisibilityTimeout": str(VISIBILITY_S),
            "MessageRetentionPeriod": "1209600",
            "RedrivePolicy": json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": str(DELIVERIES_MAX)}),
        }
        made = await self._client.create_queue(QueueName=self._name(topic), Attributes=attributes)
        self._urls[topic] = made["QueueUrl"]
        found = await self._client.get_queue_attributes(
            QueueUrl=made["QueueUrl"], AttributeNames=["CreatedTimestamp", "QueueArn"]
        )
        return json.dumps(found["Attributes"], sort_keys=True)

    async def send(self, batch: Sequence[tuple[Envelope, bytes]]) -> None:
        texts: dict[str, list[str]] = {}
        for envelope, data in batch:
            texts.setdefault(envelope.topic, []).append(base64.b64encode(data).decode())
        requests = [(topic, some) for topic, all_texts in texts.items() for some in _batches(all_texts)]
        await asyncio.gather(*(self._send_some(topic, some) for topic, some in requests))

    async def _send_some(self, topic: str, texts: list[str]) -> None:
        entries = [{"Id": str(number), "MessageBody": text} for number, text in enumerate(texts)]
        answer = await self._client.send_message_batch(QueueUrl=self._urls[topic], Entries=entries)
        if answer.get("Failed"):
            raise ConnectionError(f"SQS did not take {len(answer['Failed'])} messages: {answer['Failed'][0]}")

    async def fetch(self, topic: str, limit: int) -> list[Fetched]:
        answer = await self._client.receive_message(
            QueueUrl=self._urls[topic],
            MaxNumberOfMessages=min(BATCH, limit),
            WaitTimeSeconds=min(WAIT_S_MAX, max(1, int(self.settings.wait_s))),
        )
        return [Fetched(message["ReceiptHandle"], _bytes(message["Body"])) for message in answer.get("Messages", ())]

    async def acknowledge(self, topic: str, tokens: list[Any]) -> None:
        for first in range(0, len(tokens), BATCH):
            some = enumerate(tokens[first : first + BATCH])
            entries = [{"Id": str(number), "ReceiptHandle": token} for number, token in some]
            await self._client.delete_message_batch(QueueUrl=self._urls[topic], Entries=entries)

    async def give_back(self, topic: str, tokens: list[Any]) -> None:
        for first in range(0, len(tokens), BATCH):
            some = enumerate(tokens[first : first + BATCH])
            entries = [{"Id": str(n), "ReceiptHandle": token, "VisibilityTimeout": 0} for n, token in some]
            await self._client.change_message_visibility_batch(QueueUrl=self._urls[topic], Entries=entries)

    async def put_aside(self, topic: str, messages: list[Fetched]) -> None:
        dead = await self._client.get_queue_url(QueueName=f"{self._name(topic)}__dead")
        for message in messages:
            text = base64.b64encode(message.data).decode() or "="
            await self._client.send_message(QueueUrl=dead["QueueUrl"], MessageBody=text)
        await self.acknowledge(topic, [message.token for message in messages])

    async def measure(self, topic: str) -> Measured:
        answer = await self._client.get_queue_attributes(
            QueueUrl=self._urls[topic], AttributeNames=["ApproximateNumberOfMessages"]
        )
        return Measured(int(answer["Attributes"]["ApproximateNumberOfMessages"]))


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts in the batches that one request takes."""
    some: list[str] = []
    size = 0
    for text in texts:
        if some and (len(some) == BATCH or size + len(text) > BATCH_TEXT_MAX):
            yield some
            some, size = [], 0
        some.append(text)
        size += len(text)
    if some:
        yield some


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return text.encode()  # it is none of ours, and put aside as it is
