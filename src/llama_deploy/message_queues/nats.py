"""NATS JetStream: one stream for a deployment, a subject and a durable pull consumer for each topic.

The stream is a work queue: what is acknowledged is gone from it. Requests for messages are outstanding for as many as
there are credits, so that the server hands a message over at the moment at which it comes. The driver's own
reconnecting is off: the carrier does it, and looks whether the stream is still the one that it was.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from llama_deploy.errors import CarrierRefusedError
from llama_deploy.message_queues.base import Capabilities, Envelope
from llama_deploy.message_queues.carrier import Carrier
from llama_deploy.message_queues.settings import CarrierSettings, missing, place_name
from llama_deploy.message_queues.topics import Fetched, Measured, sent_at
from llama_deploy.runtime import Clock

ACK_WAIT_S = 5.0
"""What was given and not acknowledged for so long is given again: whoever had it is gone."""
DELIVERIES_MAX = 20
"""What was given so often and never acknowledged is put aside."""
NAME_LENGTH_MAX = 200
REFUSALS = ("authorization", "permissions", "credentials", "jetstream not enabled")


class NatsCarrier(Carrier):
    """Carries over a NATS server with JetStream, 2.9 or later. URL: `nats://host:port`, `tls://` for TLS.

    Options of the URL: `storage` (`file` or `memory`), `replicas`.
    """

    kind = "nats"
    capabilities = Capabilities(in_process=False, ordered=True, delay=True, dead_letter=True)
    body_bytes_max = 900_000

    def __init__(self, settings: CarrierSettings, *, clock: Clock | None = None) -> None:
        super().__init__(settings, clock=clock)
        self._options = settings.options(("storage", "replicas"))
        try:
            import nats
            from nats.js import JetStreamContext
        except ImportError as error:
            raise missing("nats", "nats-py", "nats") from error
        self._driver = nats
        self._jetstream_of = JetStreamContext
        self._connection: Any = None
        self._jetstream: Any = None
        self._pulls: dict[str, _Pull] = {}
        self._tls = settings.tls("tls", "nats+tls")

    @property
    def _stream(self) -> str:
        return place_name(self.namespace, most=NAME_LENGTH_MAX)

    def _subject(self, topic: str) -> str:
        return f"{self._stream}.{place_name(topic, most=NAME_LENGTH_MAX)}"

    async def connect(self) -> None:
        from nats.aio.client import Client

        settings = self.settings
        username, password = settings.credentials
        token = username if username is not None and password is None else None
        connection = Client()
        scheme = "tls" if self._tls is not None else "nats"
        try:
            await connection.connect(
                [f"{scheme}://{host}" for host in settings.hosts],
                user=None if token else username,
                password=password,
                token=token,
                tls=self._tls,
                name="llama_deploy",
                allow_reconnect=False,
                connect_timeout=int(max(1.0, settings.connect_timeout_s)),
                ping_interval=10,
                max_outstanding_pings=2,
                error_cb=self._said,
                closed_cb=self._closed,
            )
            self._connection = connection
            self._watch(connection)
            self._jetstream = self._jetstream_of(connection, timeout=settings.request_timeout_s)
            await self._jetstream.account_info()
        except (self._driver.errors.Error, OSError) as error:
            await connection.close()
            said = self.settings.hide(str(error)).lower()
            if any(word in said for word in REFUSALS) or getattr(error, "code", 0) in (401, 403):
                raise CarrierRefusedError(f"NATS at {settings.location} refuses", why=said) from None
            raise

    def _watch(self, connection: Any) -> None:
        """The driver's reader may die of a reset socket without a word: it says so only to who asks its task."""
        generation = self._generation + 1

        def ended(reader: asyncio.Task[None]) -> None:
            error = None if reader.cancelled() else reader.exception()
            if error is not None:
                self._fail(error, generation)

        reader = getattr(connection, "_reading_task", None)
        if reader is not None:
            reader.add_done_callback(ended)

    async def _said(self, error: Exception) -> None:
        self._note(error)

    async def _closed(self) -> None:
        self._fail(ConnectionError("the server closed the connection"), self._generation)

    async def disconnect(self) -> None:
        connection, self._connection = self._connection, None
        pulls, self._pulls = self._pulls, {}
        if connection is None:
            return
        try:
            await connection.close()
        finally:
            for pull in pulls.values():  # where the reader has died, the driver leaves them behind
                if (waiting := getattr(pull.subscription, "_wait_for_msgs_task", None)) is not None:
                    waiting.cancel()

    async def prepare(self, topic: str) -> str:
        from nats.js import api
        from nats.js.errors import NotFoundError

        try:
            info = await self._jetstream.stream_info(self._stream)
        except NotFoundError:
            storage = api.StorageType.MEMORY if self._options.get("storage") == "memory" else api.StorageType.FILE
            await self._jetstream.add_stream(
                name=self._stream,
                subjects=[f"{self._stream}.*"],
                retention=api.RetentionPolicy.WORK_QUEUE,
                storage=storage,
                num_replicas=int(self._options.get("replicas", "1")),
            )
            info = await self._jetstream.stream_info(self._stream)
        await self._jetstream.add_consumer(
            self._stream,
            durable_name=place_name(topic, most=NAME_LENGTH_MAX),
            filter_subject=self._subject(topic),
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_S,
            max_deliver=-1,
            max_ack_pending=-1,
            max_waiting=10_000,
        )
        return str(info.created)

    async def send(self, batch: Sequence[tuple[Envelope, bytes]]) -> None:
        publish = self._jetstream.publish
        await asyncio.gather(*(publish(self._subject(envelope.topic), data) for envelope, data in batch))

    async def fetch(self, topic: str, limit: int) -> list[Fetched]:
        pull = self._pulls.get(topic)
        if pull is None:
            inbox = self._connection.new_inbox()
            pull = self._pulls[topic] = _Pull(inbox)
            pull.subscription = await self._connection.subscribe(inbox, cb=pull.arrived)
        if limit > pull.outstanding:
            request = {"batch": limit - pull.outstanding, "expires": int(self.settings.wait_s * 1e9)}
            consumer = place_name(topic, most=NAME_LENGTH_MAX)
            pull.outstanding = limit
            await self._connection.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{consumer}", json.dumps(request).encode(), reply=pull.inbox
            )
        try:
            async with asyncio.timeout(self.settings.wait_s + 1.0):
                await pull.changed.wait()
        except TimeoutError:
            pull.outstanding = 0  # the server ends a request in its time; what comes late all the same is held here
        pull.changed.clear()
        if pull.trouble:
            raise ConnectionError(pull.trouble)
        messages, pull.messages = pull.messages, []
        worn_out = [message for message in messages if message.metadata.num_delivered > DELIVERIES_MAX]
        if worn_out:
            await self.put_aside(topic, [Fetched(message, message.data) for message in worn_out])
        return [Fetched(message, message.data) for message in messages if message not in worn_out]

    async def acknowledge(self, topic: str, tokens: list[Any]) -> None:  # noqa: ARG002 - messages know theirs
        for message in tokens:
            await message.ack()

    async def give_back(self, topic: str, tokens: list[Any]) -> None:  # noqa: ARG002 - messages know theirs
        for message in tokens:
            await message.nak()

    async def put_aside(self, topic: str, messages: list[Fetched]) -> None:
        """Into a stream of its own, which keeps a week."""
        name = f"{self._stream}__dead"
        await self._jetstream.add_stream(name=name, subjects=[f"{name}.*"], max_age=7 * 86_400, max_msgs=10_000)
        for message in messages:
            await self._jetstream.publish(f"{name}.{place_name(topic, most=NAME_LENGTH_MAX)}", message.data)
            await message.token.term()

    async def measure(self, topic: str) -> Measured:
        info = await self._jetstream.consumer_info(self._stream, place_name(topic, most=NAME_LENGTH_MAX))
        if not info.num_pending:
            return Measured(0)
        after, subject = info.delivered.stream_seq + 1, self._subject(topic)
        oldest = await self._jetstream.get_msg(self._stream, seq=after, subject=subject, next=True)
        return Measured(info.num_pending, sent_at(oldest.data or b""))


class _Pull:
    """The outstanding requests of one topic, and what has come of them."""

    def __init__(self, inbox: str) -> None:
        self.inbox = inbox
        self.subscription: Any = None
        self.outstanding = 0
        """Messages that were asked for and may still come."""
        self.messages: list[Any] = []
        self.trouble = ""
        self.changed = asyncio.Event()

    async def arrived(self, message: Any) -> None:
        """A message, or the server's word that a request has ended."""
        status = (message.headers or {}).get("Status") if message.headers else None
        if status is None:
            self.outstanding = max(0, self.outstanding - 1)
            self.messages.append(message)
        elif status == "100":
            return
        else:
            left = (message.headers or {}).get("Nats-Pending-Messages")
            self.outstanding = max(0, self.outstanding - int(left)) if left else 0
            if status not in ("404", "408"):
                self.trouble = f"{status} {(message.headers or {}).get('Description', '')}"
        self.changed.set()
