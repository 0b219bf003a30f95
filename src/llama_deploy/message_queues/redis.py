"""Redis Streams: a stream for each topic, one consumer group, commands in batches.

A blocking read occupies its connection, so each topic that is served here has one of its own. What is acknowledged is
deleted, so a stream holds what waits and nothing else. What another control plane has fetched and died with is claimed
after a while.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_deploy._lazy import published_names
from llama_deploy.errors import CarrierRefusedError
from llama_deploy.message_queues.base import Capabilities, Envelope
from llama_deploy.message_queues.carrier import Carrier
from llama_deploy.message_queues.settings import CarrierSettings, missing, place_name
from llama_deploy.message_queues.topics import Fetched, Measured
from llama_deploy.runtime import Clock

GROUP = "llama_deploy"
CLAIM_AFTER_S = 10.0
"""What was fetched and not acknowledged for so long is fetched again: whoever had it is gone."""
DEAD_MAX = 10_000
"""Messages that could not be read and are kept, per topic."""
NAME_LENGTH_MAX = 400
_BODY = b"e"


class RedisCarrier(Carrier):
    """Carries over Redis 6.2 or later. URL: `redis://user:password@host:port/db`, `rediss://` for TLS."""

    kind = "redis"
    capabilities = Capabilities(in_process=False, ordered=True, dead_letter=True)

    def __init__(self, settings: CarrierSettings, *, clock: Clock | None = None) -> None:
        super().__init__(settings, clock=clock)
        settings.options(())
        try:
            import redis.asyncio as driver
        except ImportError as error:
            raise missing("redis", "redis", "redis") from error
        self._driver = driver
        self._client: Any = None
        self._blocking: dict[str, Any] = {}
        self._claimed_at: dict[str, float] = {}
        self._consumer = f"{os.getpid()}-{os.urandom(4).hex()}"
        self._tls = settings.tls("rediss")

    async def connect(self) -> None:
        self._client = self._new_client(self.settings.request_timeout_s)
        try:
            await self._client.ping()
        except (self._driver.AuthenticationError, self._driver.ResponseError) as error:
            why = self.settings.hide(str(error))
            raise CarrierRefusedError(f"Redis at {self.settings.location} refuses", why=why) from None

    def _new_client(self, timeout_s: float) -> Any:
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        settings = self.settings
        username, password = settings.credentials
        secure: dict[str, Any] = {}
        if self._tls is not None:
            secure = {"ssl": True, "ssl_ca_certs": settings.ca_file and str(settings.ca_file)}
            secure["ssl_certfile"] = settings.certificate_file and str(settings.certificate_file)
            secure["ssl_keyfile"] = settings.key_file and str(settings.key_file)
        return self._driver.Redis(
            host=settings.host,
            port=settings.port(6379),
            db=int(settings.path or 0),
            username=username,
            password=password,
            socket_timeout=timeout_s,
            socket_connect_timeout=settings.connect_timeout_s,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
            single_connection_client=True,
            client_name="llama_deploy",
            protocol=2,
            **secure,
        )

    async def disconnect(self) -> None:
        clients = [self._client, *self._blocking.values()]
        self._client = None
        self._blocking.clear()
        self._claimed_at.clear()
        await asyncio.gather(*(client.aclose() for client in clients if client is not None), return_exceptions=True)

    def _key(self, topic: str) -> str:
        return place_name(self.namespace, topic, most=NAME_LENGTH_MAX)

    async def prepare(self, topic: str) -> str:
        """The mark stands beside the stream's group, as the name of a consumer that never reads."""
        key = self._key(topic)
        try:
            await self._client.xgroup_create(key, GROUP, id="0", mkstream=True)
        except self._driver.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        mark = f"{key}__mark"
        await self._client.set(mark, os.urandom(8).hex(), nx=True)
        found: bytes = await self._client.get(mark)
        return found.decode()

    async def send(self, batch: Sequence[tuple[Envelope, bytes]]) -> None:
        async with self._client.pipeline(transaction=False) as pipe:
            for envelope, data in batch:
                pipe.xadd(self._key(envelope.topic), {_BODY: data})
            await pipe.execute()

    async def fetch(self, topic: str, limit: int) -> list[Fetched]:
        key = self._key(topic)
        now = time.monotonic()
        if topic not in self._claimed_at:  # a reply that was lost with the connection before
            self._claimed_at[topic] = now
            own = await self._client.xreadgroup(GROUP, self._consumer, {key: "0"}, count=limit)
            if own and (found := own[0][1]):
                del self._claimed_at[topic]
                return [Fetched(number, fields.get(_BODY, b"")) for number, fields in found]
        if now - self._claimed_at[topic] > CLAIM_AFTER_S:
            self._claimed_at[topic] = now
            claimed = await self._client.xautoclaim(key, GROUP, self._consumer, int(CLAIM_AFTER_S * 1000), count=limit)
            if claimed[1]:
                return [Fetched(number, fields.get(_BODY, b"")) for number, fields in claimed[1]]
        client = self._blocking.get(topic)
        if client is None:
            client = self._blocking[topic] = self._new_client(self.settings.wait_s + self.settings.request_timeout_s)
        wait_ms = int(self.settings.wait_s * 1000)
        found = await client.xreadgroup(GROUP, self._consumer, {key: ">"}, count=limit, block=wait_ms)
        return [Fetched(number, fields.get(_BODY, b"")) for _, entries in found or () for number, fields in entries]

    async def acknowledge(self, topic: str, tokens: list[Any]) -> None:
        key = self._key(topic)
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.xack(key, GROUP, *tokens)
            pipe.xdel(key, *tokens)
            await pipe.execute()

    async def give_back(self, topic: str, tokens: list[Any]) -> None:
        """A stream cannot take back what was read: it goes to its end once more."""
        key = self._key(topic)
        async with self._client.pipeline(transaction=False) as pipe:
            for token in tokens:
                pipe.xrange(key, token, token)
            found = await pipe.execute()
        async with self._client.pipeline(transaction=True) as pipe:
            for entries in found:
                for _, fields in entries:
                    pipe.xadd(key, fields)
            pipe.xack(key, GROUP, *tokens)
            pipe.xdel(key, *tokens)
            await pipe.execute()

    async def put_aside(self, topic: str, messages: list[Fetched]) -> None:
        key = self._key(topic)
        async with self._client.pipeline(transaction=True) as pipe:
            for message in messages:
                pipe.xadd(f"{key}__dead", {_BODY: message.data}, maxlen=DEAD_MAX, approximate=True)
            pipe.xack(key, GROUP, *(message.token for message in messages))
            pipe.xdel(key, *(message.token for message in messages))
            await pipe.execute()

    async def measure(self, topic: str) -> Measured:
        key = self._key(topic)
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.xlen(key)
            pipe.xpending(key, GROUP)
            pipe.xrange(key, count=1)
            length, pending, first = await pipe.execute()
        oldest_at = int(first[0][0].partition(b"-")[0]) / 1000 if first else None
        return Measured(max(0, length - pending["pending"]), oldest_at)


if not TYPE_CHECKING:
    __getattr__, __dir__ = published_names(__name__)
