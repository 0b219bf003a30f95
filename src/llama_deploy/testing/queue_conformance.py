"""The suite that every message queue must pass, for third parties too.

Subclass it under a name that your test runner collects, say how a queue is made, and run the async tests. A queue may
lose, repeat and reorder; this suite runs it where it has no reason to, and expects that it does not. It uses plain
`assert` and no test framework.
"""

# ruff: noqa: PLR2004 - the numbers in a test are its facts

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from llama_deploy.message_queues.base import Envelope, MessageQueue, Subscription

DEADLINE_S = 60.0
"""How long one test may take, unless a suite says otherwise."""


def envelopes(topic: str, numbers: Iterable[int], *, attempt: int = 1) -> list[Envelope]:
    """Make one envelope per number, each the first step of the task of that number."""
    return [Envelope(f"{topic}-{n}:1", attempt, topic, f"body {n}".encode()) for n in numbers]


class Consumer:
    """A consumer that keeps what it is given, and can be waited for."""

    def __init__(self, queue: MessageQueue, topic: str, *, credits: int, automatic: bool = False) -> None:
        self.given: list[Envelope] = []
        self._automatic = automatic
        self._changed = asyncio.Event()
        self.subscription: Subscription = queue.subscribe(topic, self._receive, credits=0)
        self.subscription.grant(credits)

    def _receive(self, batch: list[Envelope]) -> None:
        assert batch, "called with nothing"
        self.given += batch
        self._changed.set()
        if self._automatic:
            self.subscription.grant(len(batch))

    @property
    def steps(self) -> list[str]:
        """The step ids of what it was given."""
        return [envelope.step_id for envelope in self.given]

    async def has(self, count: int) -> list[Envelope]:
        """Wait until it was given that many."""
        while len(self.given) < count:
            await self.is_given_more()
        return self.given

    def is_given_more(self) -> Coroutine[Any, Any, Any]:
        """Wait until it is given something further than at this call."""
        self._changed.clear()
        return self._changed.wait()


async def have(consumers: Sequence[Consumer], count: int) -> None:
    """Wait until consumers of one topic were given that many between them."""
    while sum(len(consumer.given) for consumer in consumers) < count:
        more = [asyncio.ensure_future(consumer.is_given_more()) for consumer in consumers]
        await asyncio.wait(more, return_when=asyncio.FIRST_COMPLETED)
        for task in more:
            task.cancel()


class QueueConformance:
    """Every promise of `llama_deploy.message_queues.base`, one test each. Each test begins with an empty queue."""

    quiet_s = 0.0
    """For how long nothing must arrive until the suite believes that nothing will; a carrier outside of this process
    needs more than 0."""
    deadline_s = DEADLINE_S
    """How long one test may take before it counts as failed."""
    bounded_at: int | None = None
    """How many envelopes of a topic may wait in the queue that `make_queue` makes, where it knows a limit."""

    def make_queue(self) -> MessageQueue:
        """Make a queue that is not started yet."""
        raise NotImplementedError

    @asynccontextmanager
    async def started(self) -> AsyncIterator[MessageQueue]:
        """Start a queue for a test, stop it afterwards, and end a test that hangs."""
        async with asyncio.timeout(self.deadline_s):
            queue = self.make_queue()
            await queue.start()
            try:
                yield queue
            finally:
                await queue.stop()

    async def quiet(self) -> None:
        """Give the queue the time to carry what it should not."""
        for _ in range(3):
            await asyncio.sleep(self.quiet_s / 3)

    # --- carrying -------------------------------------------------------------------------------------------------

    async def test_an_envelope_arrives_as_it_was(self) -> None:
        async with self.started() as queue:
            consumer = Consumer(queue, "echo", credits=1)
            sent = Envelope("it's ü:;\U0001f999:1", 7, "echo", bytes(range(256)))
            assert queue.publish([sent]) == []
            assert await consumer.has(1) == [sent]

    async def test_what_was_published_first_waits_for_a_consumer(self) -> None:
        async with self.started() as queue:
            sent = envelopes("echo", range(10))
            assert queue.publish(sent[:4]) == []
            assert queue.publish(sent[4:]) == []
            consumer = Consumer(queue, "echo", credits=20)
            given = await consumer.has(10)
            assert sorted(given, key=sent.index) == sent
            if queue.capabilities.ordered:
                assert given == sent

    async def test_priorities_and_keys_have_fair_turns_where_it_is_promised(self) -> None:
        async with self.started() as queue:
            if not queue.capabilities.fair:
                return
            sent = [Envelope(f"big-{n}:1", 1, "echo", b"", key="big") for n in range(4)]
            sent += [Envelope(f"small-{n}:1", 1, "echo", b"", key="small") for n in range(2)]
            sent.append(Envelope("urgent:1", 1, "echo", b"", 9, "big"))
            assert queue.publish(sent) == []
            order = [envelope.step_id for envelope in queue.peek("echo", limit=10)]
            if queue.capabilities.lists:
                assert queue.peek("echo", limit=2) == [sent[6], sent[0]]
            consumer = Consumer(queue, "echo", credits=10)
            await consumer.has(7)
            names = [step_id.partition("-")[0] for step_id in consumer.steps]
            assert names == ["urgent:1", "big", "small", "big", "small", "big", "big"]
            if queue.capabilities.lists:
                assert consumer.steps == order
                assert queue.peek("echo", limit=10) == []

    async def test_order_is_kept_where_it_is_promised(self) -> None:
        async with self.started() as queue:
            consumer = Consumer(queue, "echo", credits=3, automatic=True)
            sent = envelopes("echo", range(300))
            for start in range(0, 300, 7):
                assert queue.publish(sent[start : start + 7]) == []
            given = await consumer.has(300)
            assert given == sent if queue.capabilities.ordered else sorted(given, key=sent.index) == sent

    async def test_topics_are_apart(self) -> None:
        async with self.started() as queue:
            first = Consumer(queue, "a", credits=9)
            second = Consumer(queue, "b", credits=9)
            mixed = [envelope for n in range(3) for topic in ("a", "b", "c") for envelope in envelopes(topic, [n])]
            assert queue.publish(mixed) == []
            assert {envelope.topic for envelope in await first.has(3)} == {"a"}
            assert {envelope.topic for envelope in await second.has(3)} == {"b"}
            assert queue.statistics("c").waiting == 3

    async def test_publishing_nothing_does_nothing(self) -> None:
        async with self.started() as queue:
            consumer = Consumer(queue, "echo", credits=1)
            assert queue.publish([]) == []
            await self.quiet()
            assert consumer.given == []

    async def test_a_later_attempt_arrives(self) -> None:
        async with self.started() as queue:
            consumer = Consumer(queue, "echo", credits=1, automatic=True)
            queue.publish(envelopes("echo", [1]))
            await consumer.has(1)
            queue.publish(envelopes("echo", [1], attempt=2))
            assert [envelope.attempt for envelope in await consumer.has(2)] == [1, 2]

    async def test_a_step_that_is_published_again_arrives_in_its_latest_attempt(self) -> None:
        async with self.started() as queue:
            queue.publish(envelopes("echo", [1]))
            queue.publish(envelopes("echo", [1], attempt=2))
            queue.publish(envelopes("echo", [2]))
            consumer = Consumer(queue, "echo", credits=9)
            while not {("echo-1:1", 2), ("echo-2:1", 1)} <= {(e.step_id, e.attempt) for e in consumer.given}:
                await consumer.is_given_more()

    # --- competing ------------------------------------------------------------------------------------------------

    async def test_a_consumer_is_given_no_more_than_its_credits(self) -> None:
        async with self.started() as queue:
            consumer = Consumer(queue, "echo", credits=2)
            queue.publish(envelopes("echo", range(10)))
            await consumer.has(2)
            await self.quiet()
            assert len(consumer.given) == 2
            consumer.subscription.grant(3)
            await consumer.has(5)
            await self.quiet()
            assert len(consumer.given) == 5
            assert queue.statistics("echo").waiting == 5

    async def test_unused_credits_can_be_taken_back(self) -> None:
        async with self.started() as queue:
            consumer = Consumer(queue, "echo", credits=5)
            consumer.subscription.grant(-3)
            queue.publish(envelopes("echo", range(10)))
            await consumer.has(2)
            consumer.subscription.grant(-100)
            await self.quiet()
            assert len(consumer.given) == 2
            consumer.subscription.grant(1)
            await consumer.has(3)
            await self.quiet()
            assert len(consumer.given) == 3, "credits never fall below 0"

    async def test_each_delivery_is_given_to_exactly_one_consumer(self) -> None:
        async with self.started() as queue:
            consumers = [Consumer(queue, "echo", credits=n + 1, automatic=True) for n in range(4)]
            sent = envelopes("echo", range(400))
            for start in range(0, 400, 23):
                assert queue.publish(sent[start : start + 23]) == []
            await have(consumers, 400)
            await self.quiet()
            steps = [step for consumer in consumers for step in consumer.steps]
            assert sorted(steps) == sorted(envelope.step_id for envelope in sent)
            assert all(consumer.given for consumer in consumers), "nobody is left out"

    async def test_a_closed_subscription_receives_nothing_more(self) -> None:
        async with self.started() as queue:
            leaving = Consumer(queue, "echo", credits=1)
            queue.publish(envelopes("echo", range(3)))
            await leaving.has(1)
            leaving.subscription.close()
            leaving.subscription.close()
            leaving.subscription.grant(5)
            await self.quiet()
            assert len(leaving.given) == 1
            staying = Consumer(queue, "echo", credits=5)
            await staying.has(2)
            await self.quiet()
            assert sorted(leaving.steps + staying.steps) == ["echo-0:1", "echo-1:1", "echo-2:1"]

    # --- the rest -------------------------------------------------------------------------------------------------

    async def test_withdrawn_steps_do_not_arrive(self) -> None:
        async with self.started() as queue:
            queue.publish(envelopes("a", range(4)) + envelopes("b", range(2)))
            removed = queue.withdraw(["a-1:1", "a-2:1", "b-0:1", "unknown:1"])
            assert 0 <= removed <= 3, "as far as the queue can"
            first, second = Consumer(queue, "a", credits=9), Consumer(queue, "b", credits=9)
            await first.has(2)
            await second.has(1)
            await self.quiet()
            assert len(first.given) + len(second.given) == 6 - removed
            assert {"a-0:1", "a-3:1", "b-1:1"} <= {*first.steps, *second.steps}
            assert queue.withdraw(["a-0:1"]) == 0, "what was given cannot be withdrawn"

    async def test_a_full_topic_refuses_the_rest_in_order(self) -> None:
        if self.bounded_at is None:
            return
        async with self.started() as queue:
            sent = envelopes("echo", range(self.bounded_at + 3))
            assert queue.publish(sent) == sent[self.bounded_at :]
            assert queue.publish(envelopes("other", [1])) == [], "topics do not share their limit"
            assert queue.publish(sent[-1:]) == sent[-1:]
            consumer = Consumer(queue, "echo", credits=1)
            await consumer.has(1)
            assert queue.publish(sent[-1:]) == []

    async def test_statistics(self) -> None:
        async with self.started() as queue:
            empty = queue.statistics("echo")
            assert (empty.waiting, empty.consumers, empty.oldest_s) == (0, 0, None)
            queue.publish(envelopes("echo", range(3)))
            standing = queue.statistics("echo")
            assert (standing.waiting, standing.consumers) == (3, 0)
            assert standing.oldest_s is not None
            assert standing.oldest_s >= 0
            consumers = [Consumer(queue, "echo", credits=2) for _ in range(2)]
            assert queue.statistics("echo").consumers == 2
            await have(consumers, 3)
            standing = queue.statistics("echo")
            assert (standing.waiting, standing.oldest_s) == (0, None)
            consumers[0].subscription.close()
            assert queue.statistics("echo").consumers == 1

    async def test_figures_are_made_new_without_harm(self) -> None:
        async with self.started() as queue:
            queue.publish(envelopes("echo", range(3)))
            await self.quiet()
            await queue.refresh(["echo"])
            while queue.statistics("echo").waiting != 3:  # a broker may be late with its figures
                await self.quiet()
                await queue.refresh(["echo"])
            health = queue.health()
            assert (health.connected, health.reconnects, health.error) == (True, 0, "")

    async def test_stopping_is_clean(self) -> None:
        async with self.started() as queue:
            consumer = Consumer(queue, "echo", credits=1)
            queue.publish(envelopes("echo", range(5)))
            await consumer.has(1)
            await queue.stop()
            consumer.subscription.close()
            assert len(consumer.given) == 1
