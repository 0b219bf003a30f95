"""What every carrier outside of this process does alike; a broker's own file adds the calls of its driver.

One long-lived connection is kept up, with pauses drawn at random. Envelopes go out in batches from a bounded buffer, so
that publishing never waits. For each topic that is served here, as many deliveries are fetched as consumers have
credits. A message is acknowledged to the broker when a consumer is given it: from then on the store guards the step,
not the broker. What arrives and finds its consumer gone goes to another one here, or back to the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from llama_deploy.message_queues.base import Envelope, MessageQueue, QueueHealth, Subscription, TopicStatistics
from llama_deploy.message_queues.connection import KeptConnection
from llama_deploy.message_queues.sending import Outgoing
from llama_deploy.message_queues.settings import CarrierSettings
from llama_deploy.message_queues.simple import InProcessQueue
from llama_deploy.message_queues.topics import Fetched, Measured, Sealed, Topic, decode, encode
from llama_deploy.runtime import Clock, SystemClock
from llama_deploy.runtime.logs import get_logger

log = get_logger("llama_deploy.carrier")

GIVE_BACK_S = 0.5
"""How long something fetched may wait for another consumer here before it goes back to the broker."""
LEAVE_AFTER_S = 2.0
"""How long no consumer here may have a credit before the broker keeps nothing for this process any more."""
STOP_S = 5.0
"""How long stopping may take to send what is published and acknowledge what was given."""
GIVEN_UP_S = 1.0
"""How long stopping waits for calls of the driver that were given up."""
CLOCKS_APART_S = 1.0
"""How far the clocks of two machines may be apart before something is sent again that still waits."""
MEASURES_PASSED_OVER_MAX = 5
"""A figure that was taken while messages moved is passed over, but not more often than this in a row."""
TRIES_MAX = 3
"""How often an envelope alone may fail to be sent before it is dropped; it falls due again."""


class Carrier(KeptConnection, MessageQueue):
    """The base of the carriers outside of this process.

    A broker's class has `kind`, `capabilities`, and the calls below `connect`. Each call may raise whatever its driver
    does: the connection is made anew then, and what was not done is done again, so a call may be repeated.
    """

    body_bytes_max: int | None = None
    """A larger body is not sent: who gets the envelope takes it from the store."""

    def __init__(self, settings: CarrierSettings, *, clock: Clock | None = None) -> None:
        super().__init__(settings, clock or SystemClock())
        self.namespace = settings.namespace or ""
        self._local = InProcessQueue(depth_max=1_000_000_000, clock=self._clock)
        """Where fetched envelopes meet consumers; nothing waits here for long."""
        self._topics: dict[str, Topic] = {}
        self._outgoing = Outgoing(settings.outgoing_max)
        self._acknowledgements: dict[str, list[Any]] = {}
        self._to_acknowledge = asyncio.Event()
        self._acknowledging = asyncio.Lock()
        self._works: list[asyncio.Task[None]] = []
        self._unreadable = 0
        self._narrow = settings.batch_max
        self._tries = 0

    # --- what a broker's file says ----------------------------------------------------------------------------------

    @abstractmethod
    async def prepare(self, topic: str) -> str:
        """Have a place for a topic at the broker; returns a mark that changes when the place was made anew."""

    @abstractmethod
    async def send(self, batch: Sequence[tuple[Envelope, bytes]]) -> None:
        """Send messages whose topics are prepared; they are the broker's when this returns."""

    @abstractmethod
    async def fetch(self, topic: str, limit: int) -> list[Fetched]:
        """Take 1 to `limit` messages, waiting up to `wait_s` for the first; none when there was none."""

    @abstractmethod
    async def acknowledge(self, topic: str, tokens: list[Any]) -> None:
        """Messages are taken: the broker forgets them."""

    @abstractmethod
    async def give_back(self, topic: str, tokens: list[Any]) -> None:
        """Messages are for somebody else."""

    @abstractmethod
    async def put_aside(self, topic: str, messages: list[Fetched]) -> None:
        """Messages cannot be read: they leave the queue, to a place for such where the broker has one."""

    @abstractmethod
    async def measure(self, topic: str) -> Measured:
        """How much of a prepared topic waits at the broker."""

    async def leave(self, topic: str, *, consumers: int) -> None:
        """For `LEAVE_AFTER_S` no consumer here has had a credit, though so many are there; `fetch` comes back."""

    # --- the contract -----------------------------------------------------------------------------------------------

    def identify(self, namespace: str) -> None:
        self.namespace = (self.settings.namespace or namespace) + (f".{self.seat}" if self.seat else "")

    async def start(self) -> None:
        """Connect, and carry from then on. Where the broker cannot be reached now, that is tried again and again.

        Raises `CarrierRefusedError` where the broker does not let this process in.
        """
        assert self.namespace, "identify() comes first where the settings have no namespace"
        self._first = asyncio.get_running_loop().create_future()
        self._works = [asyncio.create_task(work()) for work in (self._keep, self._send_all, self._acknowledge_all)]
        try:
            await self._first
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        await self._local.stop()
        try:
            async with asyncio.timeout(STOP_S if self._connected.is_set() else 0):
                for topic in self._topics.values():
                    await self._return_unclaimed(topic)
                await self._outgoing.sent()
                if self._connected.is_set():
                    await self._acknowledge_batch()  # after the one that is under way
        except TimeoutError:
            log.warning("stopped with envelopes that could not be sent", unsent=len(self._outgoing))
        except Exception as error:  # noqa: BLE001 - the edge: whatever it was, the store has everything
            self._note(error)
        fetching = [topic.fetching for topic in self._topics.values() if topic.fetching is not None]
        for work in (*self._works, *fetching):
            work.cancel()
        self._connected.clear()
        await self._let_go()  # a driver may not let go of a read before its connection is closed
        await asyncio.gather(*self._works, *fetching, return_exceptions=True)
        if self._given_up:
            await asyncio.wait(self._given_up, timeout=GIVEN_UP_S)

    def publish(self, envelopes: Sequence[Envelope]) -> list[Envelope]:
        now = self._clock.now()
        refused = []
        for envelope in envelopes:
            added = self._outgoing.add(envelope)
            if added is None:
                refused.append(envelope)
            elif added:
                topic = self._topic(envelope.topic)
                if topic.oldest_at is None or self._waiting(topic) == 0:
                    topic.oldest_at = now
                topic.unsent += 1
        return refused

    def subscribe(self, topic: str, receive: Callable[[list[Envelope]], None], *, credits: int) -> Subscription:
        place = self._topic(topic)

        def take(batch: list[Envelope]) -> None:
            tokens = [place.held.pop(envelope.step_id) for envelope in batch if envelope.step_id in place.held]
            self._acknowledge_soon(topic, tokens)
            receive(batch)

        subscription = _Wanting(self, place, self._local.subscribe(topic, take, credits=0))
        if place.fetching is None:
            place.fetching = asyncio.create_task(self._fetch_all(place))
        subscription.grant(credits)
        return subscription

    def withdraw(self, step_ids: Sequence[str]) -> int:
        removed = self._local.withdraw(step_ids)
        for step_id in step_ids:
            envelope = self._outgoing.remove(step_id)
            if envelope is not None:
                self._topics[envelope.topic].unsent -= 1
                removed += 1
        if removed:
            for topic in self._topics.values():
                if topic.held:
                    tokens = [topic.held.pop(step_id) for step_id in step_ids if step_id in topic.held]
                    self._acknowledge_soon(topic.name, tokens)
        return removed

    def depth(self, topic: str) -> int:
        place = self._topics.get(topic)
        if place is None:
            return 0
        if self._clock.now() - place.measured_at > self.settings.statistics_s and place.measuring is None:
            self._measure_soon(place)
        return self._waiting(place)

    def statistics(self, topic: str) -> TopicStatistics:
        waiting = self.depth(topic)
        oldest_s: float | None = None
        if waiting:
            oldest_at = self._topics[topic].oldest_at
            oldest_s = None if oldest_at is None else max(0.0, self._clock.now() - oldest_at)
        consumers = self._local.statistics(topic).consumers
        return TopicStatistics(waiting=waiting, consumers=consumers, oldest_s=oldest_s)

    def may_hold(self, topic: str, step_id: str, since: float) -> bool:
        if step_id in self._outgoing or self._local.may_hold(topic, step_id, since):
            return True
        place = self._topics.get(topic)
        if place is None or self._waiting(place) == 0:
            return False
        return place.oldest_at is None or since >= place.oldest_at - CLOCKS_APART_S

    async def refresh(self, topics: Collection[str]) -> None:
        for name in topics:
            place = self._topic(name)
            if self._connected.is_set() and self._clock.now() - place.measured_at > self.settings.statistics_s:
                await asyncio.wait([place.measuring or self._measure_soon(place)])

    def health(self) -> QueueHealth:
        return QueueHealth(
            kind=self.kind,
            location=self.settings.location,
            namespace=self.namespace,
            connected=self._connected.is_set(),
            since=self._changed_at,
            reconnects=max(0, self._generation - 1),
            losses=self._losses,
            unsent=len(self._outgoing),
            refused=self._outgoing.refused,
            unreadable=self._unreadable,
            error=self._error,
        )

    # --- the connection ---------------------------------------------------------------------------------------------

    async def _prepare_again(self) -> bool:
        """Have every known topic's place after connecting; whether one of them was lost meanwhile."""
        lost = False
        for topic in tuple(self._topics.values()):
            if topic.mark:
                lost |= await self._within(self.settings.request_timeout_s, self._prepare(topic))
        return lost

    async def _prepare(self, topic: Topic) -> bool:
        """Have a topic's place; whether it was there before, and was lost."""
        mark = await self.prepare(topic.name)
        lost = bool(topic.mark) and mark != topic.mark
        topic.mark = mark
        if lost:
            topic.standing = 0
        return lost

    async def _be_prepared(self, topic: Topic) -> None:
        """Before a topic is used the first time."""
        if not topic.mark:
            async with topic.lock:
                if not topic.mark:
                    await self._within(self.settings.request_timeout_s, self._prepare(topic))

    def _forget_fetched(self) -> None:
        self._acknowledgements.clear()
        for topic in self._topics.values():
            if topic.held:
                self._local.withdraw(list(topic.held))
                topic.held.clear()

    def _returned(self, *, lost: bool) -> None:
        self.on_return(lost)

    # --- sending ----------------------------------------------------------------------------------------------------

    async def _send_all(self) -> None:
        while not self._stopped:
            await self._outgoing.some()
            await self._connected.wait()
            batch = self._next_batch()
            for envelope, _ in batch:
                self._topic(envelope.topic).sending += 1
            generation = self._generation
            try:
                for name in dict.fromkeys(envelope.topic for envelope, _ in batch):
                    await self._be_prepared(self._topic(name))
                await self._within(self.settings.request_timeout_s, self.send(batch))
            except Exception as error:  # noqa: BLE001 - the edge of this task
                self._not_sent(batch, error)
                self._fail(error, generation)
                continue
            self._tries = 0
            self._narrow = min(self.settings.batch_max, self._narrow * 2)
            self._sent(batch)

    def _next_batch(self) -> list[tuple[Envelope, bytes]]:
        now = self._clock.now()
        batch: list[tuple[Envelope, bytes]] = []
        size = 0
        for envelope in self._outgoing.take(self._narrow):
            most, whole = self.body_bytes_max, envelope
            if most is not None and len(envelope.body) > most:
                whole = msgspec.structs.replace(envelope, body=b"")
            data = encode(Sealed(now, whole))
            size += len(data)
            if batch and size > self.settings.batch_bytes_max:
                break
            batch.append((envelope, data))
        self._outgoing.put_back_all_but(len(batch))
        return batch

    def _sent(self, batch: Sequence[tuple[Envelope, bytes]]) -> None:
        self._outgoing.done()
        for envelope, _ in batch:
            topic = self._topic(envelope.topic)
            topic.unsent -= 1
            topic.sending = 0
            topic.standing += 1
            topic.moves += 1

    def _not_sent(self, batch: Sequence[tuple[Envelope, bytes]], error: Exception) -> None:
        """Send it again, in smaller batches; what fails alone again and again is dropped, so that others go on."""
        for envelope, _ in batch:
            self._topic(envelope.topic).sending = 0
        self._tries = self._tries + 1 if len(batch) == 1 else 0
        if self._tries < TRIES_MAX:
            superseded = self._outgoing.put_back()
            for envelope in superseded:
                self._topic(envelope.topic).unsent -= 1
            self._narrow = max(1, len(batch) // 2)
            return
        self._tries = 0
        self._outgoing.done()
        envelope = batch[0][0]
        self._topic(envelope.topic).unsent -= 1
        words = self.settings.hide(str(error))
        log.error("an envelope cannot be sent; it falls due again", step=envelope.step_id, error=words)

    # --- receiving --------------------------------------------------------------------------------------------------

    async def _fetch_all(self, topic: Topic) -> None:
        """Fetch for a topic while it has consumers with credits; what nobody takes any more goes back."""
        while not self._stopped:
            limit = min(self._local.credits(topic.name), self.settings.batch_max)
            if not limit:
                topic.wanted.clear()
                await self._until_wanted(topic)
                continue
            await self._connected.wait()
            generation = self._generation
            try:
                await self._be_prepared(topic)
                timeout_s = self.settings.wait_s + self.settings.request_timeout_s
                fetched = await self._within(timeout_s, self.fetch(topic.name, limit))
                if generation == self._generation and fetched:
                    await self._arrived(topic, fetched)
            except Exception as error:  # noqa: BLE001 - the edge of this task
                self._fail(error, generation)

    async def _until_wanted(self, topic: Topic) -> None:
        """Wait for credits; after a while the broker need not keep anything for this process."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_AFTER_S):
                await topic.wanted.wait()
                return
        generation = self._generation
        try:
            if self._connected.is_set():
                leaving = self.leave(topic.name, consumers=self._local.statistics(topic.name).consumers)
                await self._within(self.settings.request_timeout_s, leaving)
        except Exception as error:  # noqa: BLE001 - the edge of this task
            self._fail(error, generation)
        await topic.wanted.wait()

    async def _arrived(self, topic: Topic, fetched: list[Fetched]) -> None:
        envelopes: list[Envelope] = []
        unreadable: list[Fetched] = []
        replaced: list[Any] = []
        for message in fetched:
            try:
                sealed = decode(message.data)
            except msgspec.DecodeError:
                unreadable.append(message)
                continue
            envelope = sealed.envelope
            if envelope.topic != topic.name:
                unreadable.append(message)
                continue
            if envelope.step_id in topic.held:
                replaced.append(topic.held[envelope.step_id])
            topic.held[envelope.step_id] = message.token
            topic.oldest_at = max(topic.oldest_at or 0.0, sealed.sent_at)
            envelopes.append(envelope)
        topic.standing -= len(fetched)
        topic.moves += 1
        self._acknowledge_soon(topic.name, replaced)
        self._local.publish(envelopes)
        if topic.held and topic.giving_back is None:
            loop = asyncio.get_running_loop()
            topic.giving_back = loop.call_later(GIVE_BACK_S, self._give_back_soon, topic)
        if unreadable:
            self._unreadable += len(unreadable)
            log.error("messages that are none of ours are put aside", topic=topic.name, count=len(unreadable))
            await self._within(self.settings.request_timeout_s, self.put_aside(topic.name, unreadable))

    def _give_back_soon(self, topic: Topic) -> None:
        topic.giving_back = None
        if topic.held and not self._stopped:
            topic.returning = asyncio.create_task(self._return_unclaimed(topic))

    async def _return_unclaimed(self, topic: Topic) -> None:
        """What has found no consumer here is for those of other control planes."""
        if not topic.held:
            return
        generation, tokens = self._generation, list(topic.held.values())
        self._local.withdraw(list(topic.held))
        topic.held.clear()
        topic.standing += len(tokens)
        try:
            await self._within(self.settings.request_timeout_s, self.give_back(topic.name, tokens))
        except Exception as error:  # noqa: BLE001 - the broker gives them to somebody by itself
            self._fail(error, generation)

    def _acknowledge_soon(self, topic: str, tokens: list[Any]) -> None:
        if tokens:
            self._acknowledgements.setdefault(topic, []).extend(tokens)
            self._to_acknowledge.set()

    async def _acknowledge_all(self) -> None:
        while not self._stopped:
            await self._to_acknowledge.wait()
            self._to_acknowledge.clear()
            generation = self._generation
            try:
                await self._acknowledge_batch()
            except Exception as error:  # noqa: BLE001 - they come again, and are known
                self._fail(error, generation)

    async def _acknowledge_batch(self) -> None:
        async with self._acknowledging:
            due, self._acknowledgements = self._acknowledgements, {}
            for topic, tokens in due.items():
                await self._within(self.settings.request_timeout_s, self.acknowledge(topic, tokens))

    # --- figures ----------------------------------------------------------------------------------------------------

    def _topic(self, name: str) -> Topic:
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = Topic(name)
            topic.measured_at = 0.0
        return topic

    def _waiting(self, topic: Topic) -> int:
        return max(0, topic.standing + topic.unsent) + self._local.depth(topic.name)

    def _measure_soon(self, topic: Topic) -> asyncio.Task[None]:
        topic.measuring = asyncio.create_task(self._measure(topic))
        return topic.measuring

    async def _measure(self, topic: Topic) -> None:
        generation = self._generation
        try:
            if self._connected.is_set():
                await self._be_prepared(topic)
                moves = topic.moves
                measured = await self._within(self.settings.request_timeout_s, self.measure(topic.name))
                moved = topic.sending or moves != topic.moves
                topic.passed_over = topic.passed_over + 1 if moved else 0
                if topic.passed_over % MEASURES_PASSED_OVER_MAX == 0:  # else nobody knows of which moment it is
                    topic.standing = measured.waiting
                    topic.oldest_at = measured.oldest_at or topic.oldest_at
        except Exception as error:  # noqa: BLE001 - the figures stay as old as they are
            self._fail(error, generation)
        finally:
            topic.measured_at = self._clock.now()
            topic.measuring = None


class _Wanting(Subscription):
    """A local subscription whose credits make its topic fetch."""

    __slots__ = ("_carrier", "_local", "_topic")

    def __init__(self, carrier: Carrier, topic: Topic, local: Subscription) -> None:
        self._carrier = carrier
        self._topic = topic
        self._local = local

    def grant(self, credits: int) -> None:
        self._local.grant(credits)
        if credits > 0:
            self._topic.wanted.set()

    def close(self) -> None:
        self._local.close()
