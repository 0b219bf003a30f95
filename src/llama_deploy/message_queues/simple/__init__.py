"""The queue within one process: topics with waiting envelopes, and consumers that take turns.

Nothing polls and nothing is scheduled: an envelope goes to a consumer inside the very call of `publish` or `grant`
that made it possible. It lives and dies with the control plane, whose store publishes again what was waiting here.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from llama_deploy._lazy import published_names
from llama_deploy.errors import SettingError
from llama_deploy.message_queues.base import Capabilities, Envelope, MessageQueue, Subscription, TopicStatistics
from llama_deploy.message_queues.fair import FairQueue
from llama_deploy.runtime import Clock, SystemClock

_logger = logging.getLogger(__name__)


class InProcessQueue(MessageQueue):
    """Carries envelopes within one process, in fair turns (`FairQueue`), evenly over the consumers with credits.

    It is `SimpleMessageQueue`, which takes the published arguments as well.

    `depth_max` is the number of envelopes that may wait per topic. A step waits at most once: published again, it
    keeps its place and takes the higher attempt.

    `receive` is called inside `publish`, `grant` and `subscribe` (with credits: before it returns) and may call
    anything here; what it causes is carried after it has returned, never inside it. It must not raise: what a
    raising `receive` was given counts as lost.
    """

    capabilities = Capabilities(in_process=True, ordered=True, fair=True, lists=True)

    def __init__(self, *, depth_max: int = 10_000, clock: Clock | None = None) -> None:
        if depth_max < 1:
            raise SettingError(f"depth_max must be 1 or more, not {depth_max}.")
        self._depth_max = depth_max
        self._clock: Clock = SystemClock() if clock is None else clock
        self._topics: dict[str, _Topic] = {}
        """Topics that have a consumer or something waiting; others are forgotten."""
        self._topic_of: dict[str, _Topic] = {}
        """Where each waiting step waits."""
        self._to_carry: deque[_Topic] = deque()
        self._perhaps_idle: list[_Topic] = []
        self._carrying = False

    async def start(self) -> None:
        """Do nothing: the queue works from the start."""

    async def stop(self) -> None:
        for topic in list(self._topics.values()):
            topic.waiting = FairQueue()
            for subscription in list(topic.subscriptions):
                subscription.close()
        self._topics.clear()
        self._topic_of.clear()

    def publish(self, envelopes: Sequence[Envelope]) -> list[Envelope]:
        refused: list[Envelope] = []
        at_once: dict[_Topic, list[Envelope]] = {}
        for envelope in envelopes:
            topic = self._topics.get(envelope.topic)
            if topic is None:
                topic = self._topics[envelope.topic] = _Topic(envelope.topic)
            batch = at_once.get(topic)
            if batch is None:
                batch = at_once[topic] = []
            if len(batch) < topic.credits and not topic.waiting.by_name and not self._carrying:
                batch.append(envelope)
            elif not self._place(topic, envelope):
                refused.append(envelope)
        self._carry(at_once)
        return refused

    def subscribe(self, topic: str, receive: Callable[[list[Envelope]], None], *, credits: int) -> Subscription:
        place = self._topics.get(topic)
        if place is None:
            place = self._topics[topic] = _Topic(topic)
        subscription = _Place(self, place, receive)
        place.subscriptions[subscription] = None
        subscription.grant(credits)
        return subscription

    def withdraw(self, step_ids: Sequence[str]) -> int:
        removed = 0
        for step_id in step_ids:
            topic = self._topic_of.pop(step_id, None)
            if topic is not None:
                topic.waiting.remove(step_id)
                removed += 1
                self._forget_if_idle(topic)
        return removed

    def peek(self, topic: str, *, limit: int) -> list[Envelope]:
        place = self._topics.get(topic)
        return [] if place is None else [waiting.item for waiting in islice(place.waiting.in_order(), limit)]

    def may_hold(self, topic: str, step_id: str, since: float) -> bool:  # noqa: ARG002 - it knows
        return step_id in self._topic_of

    def credits(self, topic: str) -> int:
        """How many deliveries the consumers of a topic would take at once."""
        place = self._topics.get(topic)
        return 0 if place is None else place.credits

    def depth(self, topic: str) -> int:
        place = self._topics.get(topic)
        return 0 if place is None else len(place.waiting.by_name)

    def statistics(self, topic: str) -> TopicStatistics:
        place = self._topics.get(topic)
        if place is None:
            return TopicStatistics(waiting=0, consumers=0, oldest_s=None)
        oldest = place.waiting.oldest()
        oldest_s = None if oldest is None else max(0.0, self._clock.now() - oldest.since)
        return TopicStatistics(waiting=len(place.waiting), consumers=len(place.subscriptions), oldest_s=oldest_s)

    def _place(self, topic: _Topic, envelope: Envelope) -> bool:
        """Let an envelope wait; false when its topic is full."""
        names = topic.waiting.by_name
        waiting = names.get(envelope.step_id)
        if waiting is not None:
            if waiting.item.attempt < envelope.attempt:
                waiting.item = envelope
            return True
        if len(names) >= self._depth_max:
            return False
        self._let_wait(topic, envelope)
        return True

    def _let_wait(self, topic: _Topic, envelope: Envelope, *, first: bool = False) -> None:
        topic.waiting.push(
            envelope.step_id,
            envelope,
            priority=envelope.priority,
            key=envelope.key,
            since=self._clock.now(),
            first=first,
        )
        self._topic_of[envelope.step_id] = topic

    def _carry(self, batches: Mapping[_Topic, list[Envelope]]) -> None:
        """Give each topic's batch, and then what waits there, to the consumers that have credits for it.

        Called by a consumer in the middle of that, with nothing to give at once, it leaves the work to the call that
        is going on.
        """
        if self._carrying:
            self._to_carry.extend(batches)
            return
        self._carrying = True
        try:
            for topic, batch in batches.items():
                if batch:
                    self._share(topic, batch)
                if topic.waiting.by_name:
                    self._share_waiting(topic)
            while self._to_carry:
                self._share_waiting(self._to_carry.popleft())
        finally:
            self._carrying = False
            while self._perhaps_idle:
                self._forget_if_idle(self._perhaps_idle.pop())

    def _share_waiting(self, topic: _Topic) -> None:
        waiting, names, topic_of = topic.waiting, topic.waiting.by_name, self._topic_of
        while names and topic.credits:
            batch: list[Envelope] = []
            while len(batch) < topic.credits and (found := waiting.pop()) is not None:
                topic_of.pop(found.name, None)
                batch.append(found.item)
            self._share(topic, batch)

    def _share(self, topic: _Topic, batch: list[Envelope]) -> None:
        """Share a batch among the consumers with credits, in rounds of one call of `receive` each.

        A round divides what is left by the consumers whose turn is still to come, so that shares differ by one at
        most; who came first in this round comes last in the next.
        """
        ready, given, count, turns = topic.ready, 0, len(batch), 0
        while given < count and ready:
            turns = turns or len(ready)
            subscription = ready.popleft()
            share = min(subscription.credits, -(-(count - given) // turns))
            turns -= 1
            topic.credits -= share
            subscription.credits -= share
            if subscription.credits:
                ready.append(subscription)
            try:
                subscription.receive(batch if share == count else batch[given : given + share])
            except Exception:
                _logger.exception("A consumer of %s lost %d deliveries; they fall due again.", topic.name, share)
            given += share
        for envelope in reversed(batch[given:]):  # credits were taken back by one of the calls
            self._let_wait(topic, envelope, first=True)

    def _forget_if_idle(self, topic: _Topic) -> None:
        if topic.waiting.by_name or topic.subscriptions:
            return
        if self._carrying:
            self._perhaps_idle.append(topic)
        elif self._topics.get(topic.name) is topic:
            del self._topics[topic.name]


class _Topic:
    """One service's waiting envelopes and its consumers."""

    __slots__ = ("credits", "name", "ready", "subscriptions", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: FairQueue[Envelope] = FairQueue()
        """By step id, each since the time of its first publishing."""
        self.subscriptions: dict[_Place, None] = {}
        self.credits = 0
        """The sum over all subscriptions."""
        self.ready: deque[_Place] = deque()
        """The subscriptions with credits, in the order of their turns."""


class _Place(Subscription):
    """A consumer's place: in its topic's `ready` exactly while it has credits."""

    __slots__ = ("_queue", "_topic", "credits", "receive")

    def __init__(self, queue: InProcessQueue, topic: _Topic, receive: Callable[[list[Envelope]], None]) -> None:
        self._queue = queue
        self._topic = topic
        self.receive = receive
        self.credits = 0

    def grant(self, credits: int) -> None:
        self._set_credits(max(0, self.credits + credits))
        if self.credits and self._topic.waiting.by_name:
            self._queue._carry({self._topic: []})  # noqa: SLF001 - the queue's own part

    def close(self) -> None:
        self._set_credits(0)
        self._topic.subscriptions.pop(self, None)
        self._queue._forget_if_idle(self._topic)  # noqa: SLF001 - the queue's own part

    def _set_credits(self, credits: int) -> None:
        topic, before = self._topic, self.credits
        if credits == before or self not in topic.subscriptions:
            return
        self.credits = credits
        topic.credits += credits - before
        if not before:
            topic.ready.append(self)
        elif not credits:
            topic.ready.remove(self)


if TYPE_CHECKING:
    SimpleMessageQueue = InProcessQueue
else:
    __getattr__, __dir__ = published_names(__name__)
