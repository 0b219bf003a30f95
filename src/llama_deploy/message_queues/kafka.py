"""Apache Kafka: a topic for each service, of one partition or as many as are asked for, and one consumer group.

A batch goes out over all partitions in turn. A partition belongs to one member of the group at a time, so whoever has
had no room for a while leaves its partitions to the others. Kafka remembers one number for each partition:
what is acknowledged out of order is kept here until everything before it is acknowledged too, and one commit tells the
numbers of all partitions. What was fetched and not acknowledged when partitions move comes again to whoever gets them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple

from llama_deploy.errors import CarrierRefusedError, SettingError
from llama_deploy.message_queues.base import Capabilities, Envelope
from llama_deploy.message_queues.carrier import Carrier
from llama_deploy.message_queues.settings import CarrierSettings, missing, place_name
from llama_deploy.message_queues.topics import Fetched, Measured
from llama_deploy.runtime import Clock

PARTITIONS = 1
"""Partitions of a topic that is made here. One keeps the order; with more, so many control planes can share a topic."""
REPLICAS_MAX = 3
"""Replicas of a topic that is made here, where the cluster has so many brokers and the URL says nothing."""
RETENTION_MS = 86_400_000
"""How long Kafka keeps what is in a topic that is made here, acknowledged or not; the store has it longer."""
DEAD_RETENTION_MS = 7 * RETENTION_MS
BATCH_BYTES_MAX = 500_000
REQUEST_BYTES_MAX = 2_000_000
MARK_AGAIN_S = 86_400.0
"""Kafka forgets a group that says nothing for a week, so the mark is written again after a day."""
CLOSE_S = 2.0
"""How long leaving a group and closing may take before the carrier goes on; it is finished beside it then."""
FETCH_WAIT_MS = 5_000
SESSION_MS = 6_000
"""A control plane that has not been heard of for so long loses its partitions; Kafka takes nothing shorter."""
NAME_LENGTH_MAX = 220
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_CREATED, _EXISTS = 0, 36


class KafkaCarrier(Carrier):
    """Carries over Kafka 2.1 or later. URL: `kafka://host:port,host:port`, `kafka+tls://` for TLS.

    Options of the URL: `partitions` and `replicas` of topics that are made here, `sasl` (the mechanism, where there is
    a user), and `fetch_wait_ms` for servers that do not answer a waiting fetch as soon as something comes.
    """

    kind = "kafka"
    capabilities = Capabilities(in_process=False, ordered=True, dead_letter=True)
    body_bytes_max = 900_000

    def __init__(self, settings: CarrierSettings, *, clock: Clock | None = None) -> None:
        super().__init__(settings, clock=clock)
        try:
            import aiokafka as driver
        except ImportError as error:
            raise missing("kafka", "aiokafka", "kafka") from error
        options = settings.options(("partitions", "replicas", "sasl", "fetch_wait_ms"))
        self._driver = driver
        self._partitions = _number(options, "partitions", PARTITIONS)
        self._replicas = _number(options, "replicas", 0)
        self._fetch_wait_ms = _number(options, "fetch_wait_ms", FETCH_WAIT_MS)
        self._common = self._connection_settings(options.get("sasl", "PLAIN"))
        if self._partitions > 1:
            self.capabilities = Capabilities(in_process=False, ordered=False, dead_letter=True)
        self._producer: Any = None
        self._ledger: Any = None
        self._readers: dict[str, _Reader] = {}
        self._desks: dict[str, Any] = {}
        self._known: dict[str, list[int]] = {}
        self._turn = 0
        self._marked_at: dict[str, float] = {}
        self._closing: set[asyncio.Task[Any]] = set()

    def _connection_settings(self, mechanism: str) -> dict[str, Any]:
        settings = self.settings
        username, password = settings.credentials
        tls = settings.tls("kafka+tls")
        protocol = "SSL" if tls is not None else "PLAINTEXT"
        common: dict[str, Any] = {
            "bootstrap_servers": [host if _has_port(host) else f"{host}:9092" for host in settings.hosts],
            "client_id": "llama_deploy",
            "request_timeout_ms": int(settings.request_timeout_s * 1000),
            "ssl_context": tls,
        }
        if username is not None:
            if mechanism not in MECHANISMS:
                raise SettingError(
                    f"the message queue knows no SASL mechanism {mechanism!r}", fix="take " + ", ".join(MECHANISMS)
                )
            protocol = f"SASL_{protocol}"
            common |= {"sasl_mechanism": mechanism, "sasl_plain_username": username, "sasl_plain_password": password}
        return {**common, "security_protocol": protocol}

    def _name(self, topic: str) -> str:
        return place_name(self.namespace, topic, most=NAME_LENGTH_MAX)

    # --- the connection ---------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Start what sends, and what reads and writes the marks; the driver makes its connections from these."""
        producer = self._driver.AIOKafkaProducer(
            **self._common, acks="all", max_batch_size=BATCH_BYTES_MAX, max_request_size=REQUEST_BYTES_MAX
        )
        try:
            await producer.start()
        except BaseException as error:
            await self._close([producer])
            if isinstance(error, self._driver.errors.KafkaError):
                raise await self._reason(error) from None
            raise
        self._producer = producer
        self._ledger = await self._started(place_name(self.namespace, "marks", most=NAME_LENGTH_MAX))

    async def _reason(self, error: Exception) -> Exception:
        """What a server says, which the driver leaves out where none of the servers can be used."""
        from aiokafka.conn import create_conn

        given = {name: value for name, value in self._common.items() if name != "bootstrap_servers"}
        host, _, port = self._common["bootstrap_servers"][0].rpartition(":")
        try:
            connection = await create_conn(host.strip("[]"), int(port), **given)
        except (OSError, self._driver.errors.KafkaError) as said:
            refused = (self._driver.errors.AuthenticationFailedError, self._driver.errors.SaslAuthenticationFailed)
            if isinstance(said, (*refused, self._driver.errors.UnsupportedSaslMechanismError)):
                why = self.settings.hide(str(said))
                return CarrierRefusedError(f"Kafka at {self.settings.location} refuses", why=why)
            return said
        connection.close()
        return error

    def _new_consumer(self, group: str) -> Any:
        joining_ms = 2 * SESSION_MS  # a server answers when every member has come, or has had its time
        settings = {**self._common, "request_timeout_ms": max(self._common["request_timeout_ms"], joining_ms)}
        return self._driver.AIOKafkaConsumer(
            **settings,
            group_id=group,
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=SESSION_MS // 6,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=self._fetch_wait_ms,
            max_poll_interval_ms=2**31 - 1,  # `leave` says when partitions are for others
        )

    async def disconnect(self) -> None:
        going = [self._producer, self._ledger, *self._desks.values(), *(r.consumer for r in self._readers.values())]
        self._producer = self._ledger = None
        for reader in self._readers.values():
            reader.gone = True
            self._beside(reader.let_go())
        self._readers.clear()
        self._desks.clear()
        self._known.clear()
        await self._close([one for one in going if one is not None])

    async def _close(self, going: Sequence[Any]) -> None:
        """Let the driver's clients leave; one that its server does not answer loses its connections."""
        closing = [self._beside(one.stop()) for one in going]
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_S)
        for one, task in zip(going, closing, strict=True):
            if not task.done():  # it waits for a server that is not there; without a connection it does not
                for connection in _connections(one):
                    connection.close()

    def _beside(self, closing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closed)
        return task

    def _closed(self, task: asyncio.Task[Any]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._note(error)

    # --- places -----------------------------------------------------------------------------------------------------

    async def prepare(self, topic: str) -> str:
        """The mark is a number that a group of its own has committed for the topic; it goes when the topic goes."""
        name = self._name(topic)
        await self._create(name, RETENTION_MS, self._partitions)
        self._known[topic] = sorted(await self._producer.partitions_for(name))
        mark = await self._mark(name)
        if mark is None:
            await self._set_mark(name, random.getrandbits(52))  # a name, not a secret
            mark = await self._mark(name)
        else:
            await self._set_mark(name, mark)
        return str(mark)

    async def _create(self, name: str, retention_ms: int, partitions: int) -> None:
        """Make a topic, unless it is there; who may not make topics uses those that an administrator has made."""
        from aiokafka.admin import AIOKafkaAdminClient, NewTopic

        cluster = self._producer.client.cluster
        if cluster.controller is None:
            return  # nobody can make one now; it is there, or is made when it is asked for, or this is tried again
        admin = AIOKafkaAdminClient(**self._common)
        replicas = self._replicas or min(REPLICAS_MAX, len(cluster.brokers()))
        wanted = NewTopic(name, partitions, replicas, topic_configs={"retention.ms": str(retention_ms)})
        try:
            await admin.start()
            answer = await admin.create_topics([wanted])
        except self._driver.errors.IncompatibleBrokerVersion:
            return  # it makes topics when they are asked for, or somebody else does
        finally:
            await admin.close()
        for _, code, *said in answer.topic_errors:
            if code not in (_CREATED, _EXISTS, self._driver.errors.TopicAuthorizationFailedError.errno):
                raise ConnectionError(f"Kafka cannot make topic {name}: {said[0] if said else code}")

    async def _mark(self, name: str) -> int | None:
        found: int | None = await self._ledger.committed(self._driver.TopicPartition(name, 0))
        return found

    async def _set_mark(self, name: str, mark: int) -> None:
        place = self._driver.TopicPartition(name, 0)
        assigned = {*self._ledger.assignment(), place}
        self._ledger.assign(assigned)
        self._ledger.pause(*assigned)  # nothing is read there
        await self._ledger.commit({place: mark})
        self._marked_at[name] = time.monotonic()

    async def _look(self, topic: str) -> None:
        """Raise where a topic is not the one that it was: the driver goes on with a new one as if it were the same."""
        name = self._name(topic)
        mark = await self._mark(name)
        if str(mark) != self._topic(topic).mark:
            raise ConnectionError(f"topic {name} is not the one that it was")
        if mark is not None and time.monotonic() - self._marked_at.get(name, 0.0) > MARK_AGAIN_S:
            await self._set_mark(name, mark)

    # --- sending ----------------------------------------------------------------------------------------------------

    async def send(self, batch: Sequence[tuple[Envelope, bytes]]) -> None:
        parts: dict[tuple[str, int], list[bytes]] = {}
        for envelope, data in batch:
            partitions = self._known[envelope.topic]
            self._turn += 1
            parts.setdefault((envelope.topic, partitions[self._turn % len(partitions)]), []).append(data)
        sent = [await self._hand_over(self._name(topic), part, some) for (topic, part), some in parts.items()]
        await asyncio.gather(*(asyncio.shield(future) for futures in sent for future in futures))

    async def _hand_over(self, name: str, partition: int, messages: Iterable[bytes]) -> list[asyncio.Future[Any]]:
        """Give the driver messages of one partition; what is returned is done when every replica has them."""
        sent = []
        builder = self._producer.create_batch()
        for data in messages:
            if builder.append(key=None, value=data, timestamp=None) is None:  # it is full
                sent.append(await self._handed_over(builder, name, partition))
                builder = self._producer.create_batch()
                builder.append(key=None, value=data, timestamp=None)
        sent.append(await self._handed_over(builder, name, partition))
        return sent

    async def _handed_over(self, builder: Any, name: str, partition: int) -> asyncio.Future[Any]:
        """Of one batch. The driver may give it up after everybody here has: that is no error that nobody looks at."""
        sent: asyncio.Future[Any] = await self._producer.send_batch(builder, name, partition=partition)
        sent.add_done_callback(_looked_at)
        return sent

    # --- receiving --------------------------------------------------------------------------------------------------

    async def fetch(self, topic: str, limit: int) -> list[Fetched]:
        reader = self._readers.get(topic) or await self._join(topic)
        wait_ms = int(self.settings.wait_s * 1000)
        found = await reader.consumer.getmany(timeout_ms=wait_ms, max_records=limit)
        fetched = []
        for place, records in found.items():
            taken = reader.taken.get(place)
            if taken is None:
                taken = reader.taken[place] = _Taken()
            for record in records:
                taken.add(record.offset)
                data = record.value or b""
                fetched.append(Fetched(_Token(taken, record.offset, data), data))
        if not fetched:
            await self._look(topic)
        return fetched

    async def _join(self, topic: str) -> _Reader:
        name = self._name(topic)
        reader = self._readers[topic] = _Reader(await self._started(name))
        reader.consumer.subscribe([name], listener=_listener(reader, self._commit))
        return reader

    async def _started(self, group: str) -> Any:
        """A consumer that may be used; one that could not be started leaves nothing open."""
        consumer, connection = self._new_consumer(group), self._producer
        try:
            await consumer.start()
        except BaseException:
            await self._close([consumer])
            raise
        if self._producer is not connection:
            await self._close([consumer])
            raise ConnectionError("disconnected meanwhile")
        return consumer

    async def leave(self, topic: str, *, consumers: int) -> None:
        """Partitions are left to others where there are others, and where nobody here wants them any more."""
        reader = self._readers.get(topic)
        if reader is None:
            return
        if consumers and len(reader.consumer.assignment()) >= len(self._known.get(topic, ())):
            return
        await self._commit(reader)
        if self._readers.pop(topic, None) is not None:
            reader.gone = True
            self._beside(reader.let_go())
            await self._close([reader.consumer])

    async def acknowledge(self, topic: str, tokens: list[Any]) -> None:
        for token in tokens:
            token.taken.acknowledge(token.offset)
        reader = self._readers.get(topic)
        if reader is not None:
            await self._commit(reader)

    async def _commit(self, reader: _Reader) -> None:
        """One commit for all partitions that are ours; of those that have moved, what they bring again is known.

        Whoever is not in the group says nothing: a group that has lost its members takes a commit from anybody, and
        the server may have been wiped meanwhile.
        """
        errors = self._driver.errors
        if reader.gone or reader.group.generation < 0:
            return
        due = {place: taken for place, taken in reader.taken.items() if taken.watermark > taken.committed}
        offsets = {place: taken.watermark for place, taken in due.items()}
        if not offsets:
            return
        committing = reader.beside(reader.consumer.commit(offsets))
        await asyncio.wait((committing,))
        try:
            committing.result()
        except (errors.CommitFailedError, errors.IllegalStateError):
            return
        except asyncio.CancelledError:  # it is let go
            return
        for place, taken in due.items():
            taken.committed = offsets[place]

    async def give_back(self, topic: str, tokens: list[Any]) -> None:
        """Kafka cannot take back what was read: it goes to the end once more."""
        await self._again(topic, self._name(topic), tokens)

    async def put_aside(self, topic: str, messages: list[Fetched]) -> None:
        """Into a topic of its own, which keeps a week."""
        name = f"{self._name(topic)}__dead"
        await self._create(name, DEAD_RETENTION_MS, 1)
        await self._again(topic, name, [message.token for message in messages])

    async def _again(self, topic: str, name: str, tokens: list[Any]) -> None:
        partitions = sorted(await self._producer.partitions_for(name))
        self._turn += 1
        partition = partitions[self._turn % len(partitions)]
        sent = await self._hand_over(name, partition, [token.data for token in tokens])
        await asyncio.gather(*(asyncio.shield(future) for future in sent))
        await self.acknowledge(topic, tokens)

    # --- figures ----------------------------------------------------------------------------------------------------

    async def measure(self, topic: str) -> Measured:
        name = self._name(topic)
        reader = self._readers.get(topic)
        taken = reader.taken if reader is not None else {}
        consumer = reader.consumer if reader is not None else await self._desk(topic, name)
        places = [self._driver.TopicPartition(name, number) for number in self._known[topic]]
        first, end = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
        numbers = await asyncio.gather(*(consumer.committed(place) for place in places))
        waiting = 0
        for place, committed in zip(places, numbers, strict=True):
            ours = taken[place].upto if place in taken else 0
            waiting += max(0, end[place] - max(first[place], committed or 0, ours))
        return Measured(waiting)

    async def _desk(self, topic: str, name: str) -> Any:
        """A consumer that asks for a group's figures and is not in it."""
        if topic not in self._desks:
            self._desks[topic] = await self._started(name)
        return self._desks[topic]


class _Taken:
    """What was fetched of one partition since it is ours."""

    __slots__ = ("_done", "_waiting", "committed", "upto")

    def __init__(self) -> None:
        self._waiting: deque[int] = deque()
        self._done: set[int] = set()
        self.upto = 0
        """The offset after the last one that was fetched."""
        self.committed = 0

    def add(self, offset: int) -> None:
        self._waiting.append(offset)
        self.upto = offset + 1

    def acknowledge(self, offset: int) -> None:
        self._done.add(offset)
        while self._waiting and self._waiting[0] in self._done:
            self._done.discard(self._waiting.popleft())

    @property
    def watermark(self) -> int:
        """Everything before this offset is acknowledged."""
        return self._waiting[0] if self._waiting else self.upto


class _Token(NamedTuple):
    """One message, of the time for which its partition was ours."""

    taken: _Taken
    offset: int
    data: bytes


class _Reader:
    """One topic's consumer, and what it has taken."""

    def __init__(self, consumer: Any) -> None:
        self.consumer = consumer
        self.taken: dict[Any, _Taken] = {}
        self.gone = False
        """It is let go, and commits nothing any more."""
        self._commits: set[asyncio.Task[None]] = set()

    @property
    def group(self) -> Any:
        """What the driver knows of its membership."""
        return self.consumer._coordinator  # noqa: SLF001 - nothing of it is public

    def beside(self, commit: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A commit, which ends with this reader and not with who waits for it: the driver repeats it for ever."""
        task = asyncio.create_task(commit)
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)
        task.add_done_callback(_looked_at)
        return task

    async def let_go(self) -> None:
        """End commits that wait for a server. A request that is under way ends first: the driver shields it."""
        if self._commits:
            async with self.group._commit_lock:  # noqa: SLF001 - the driver has no word for it
                for task in self._commits:
                    task.cancel()


def _listener(reader: _Reader, commit: Callable[[_Reader], Any]) -> Any:
    """Says what is acknowledged before partitions go, and forgets what was taken of those."""
    from aiokafka.abc import ConsumerRebalanceListener

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc] # the driver has no types
        async def on_partitions_revoked(self, revoked: Any) -> None:
            await commit(reader)
            for place in revoked:
                reader.taken.pop(place, None)

        def on_partitions_assigned(self, assigned: Any) -> None:
            """The next fetch begins where the group is."""

    return Listener()


def _looked_at(done: asyncio.Future[Any]) -> None:
    """An error that nobody waits for any more is not one that was overlooked."""
    if not done.cancelled():
        done.exception()


def _connections(client: Any) -> Iterable[Any]:
    """The open connections of one of the driver's clients."""
    inner = getattr(client, "client", None) or getattr(client, "_client", None)
    return list(getattr(inner, "_conns", {}).values())


def _has_port(host: str) -> bool:
    return host.rpartition(":")[2].isdigit()


def _number(options: dict[str, str], name: str, default: int) -> int:
    given = options.get(name)
    if given is None:
        return default
    if not given.isdigit() or int(given) < 1:
        raise SettingError(f"{name} in the URL of the message queue is no number above 0", fix=f"give {name}=3")
    return int(given)
