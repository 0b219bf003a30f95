"""The queue within one process: the conformance suite, and what it promises beyond the contract."""

from __future__ import annotations

import gc
import weakref

import pytest

from llama_deploy.errors import SettingError
from llama_deploy.message_queues import Envelope, MessageQueue, SimpleMessageQueue
from llama_deploy.testing import ManualClock, QueueConformance
from llama_deploy.testing.queue_conformance import Consumer, envelopes


class TestConformance(QueueConformance):
    bounded_at = 500

    def make_queue(self) -> MessageQueue:
        return SimpleMessageQueue(depth_max=500)


def shares(consumers: list[Consumer]) -> list[int]:
    return [len(consumer.given) for consumer in consumers]


async def test_a_batch_is_spread_evenly_in_one_call_each() -> None:
    queue = SimpleMessageQueue()
    calls: list[tuple[int, int]] = []
    for number in range(3):
        queue.subscribe("echo", lambda batch, number=number: calls.append((number, len(batch))), credits=8)  # type: ignore[misc]
    queue.publish(envelopes("echo", range(10)))
    assert calls == [(0, 4), (1, 3), (2, 3)]


async def test_single_deliveries_take_turns() -> None:
    queue = SimpleMessageQueue()
    consumers = [Consumer(queue, "echo", credits=100) for _ in range(3)]
    for number in range(30):
        queue.publish(envelopes("echo", [number]))
    assert shares(consumers) == [10, 10, 10]


async def test_who_has_few_credits_gets_few_and_the_others_the_rest() -> None:
    queue = SimpleMessageQueue()
    consumers = [Consumer(queue, "echo", credits=credits) for credits in (1, 20, 20)]
    queue.publish(envelopes("echo", range(21)))
    assert shares(consumers) == [1, 10, 10]
    assert queue.statistics("echo").waiting == 0


async def test_a_backlog_is_shared_as_credits_come() -> None:
    queue = SimpleMessageQueue()
    queue.publish(envelopes("echo", range(90)))
    consumers = [Consumer(queue, "echo", credits=1, automatic=False) for _ in range(3)]
    while queue.statistics("echo").waiting:
        for consumer in consumers:
            consumer.subscription.grant(1)
    assert shares(consumers) == [30, 30, 30]


async def test_nothing_is_carried_inside_a_consumers_call() -> None:
    queue = SimpleMessageQueue()
    depth = 0
    deepest = 0
    given: list[str] = []

    def receive(batch: list[Envelope]) -> None:
        nonlocal depth, deepest
        depth += 1
        deepest = max(deepest, depth)
        given.extend(envelope.step_id for envelope in batch)
        number = len(given)
        if number < 2000:
            queue.publish(envelopes("a" if number % 2 else "b", [number]))
        for subscription in (first, second):
            subscription.grant(1)
        depth -= 1

    first = queue.subscribe("a", receive, credits=0)
    second = queue.subscribe("b", receive, credits=0)
    first.grant(1)
    second.grant(1)
    queue.publish(envelopes("a", [0]))
    assert (len(given), deepest) == (2000, 1)


async def test_a_consumer_that_closes_another_one_loses_nothing() -> None:
    queue = SimpleMessageQueue()
    victim: list[Consumer] = []
    order: list[str] = []

    def receive(batch: list[Envelope]) -> None:
        order.extend(envelope.step_id for envelope in batch)
        victim[0].subscription.close()

    subscription = queue.subscribe("echo", receive, credits=2)
    victim.append(Consumer(queue, "echo", credits=2))
    sent = envelopes("echo", range(4))
    queue.publish(sent)
    assert victim[0].given == []
    assert queue.statistics("echo").waiting == 2
    subscription.grant(9)
    assert order == [envelope.step_id for envelope in sent]


async def test_the_last_consumers_leaving_in_the_middle_loses_nothing() -> None:
    queue = SimpleMessageQueue()
    other = Consumer(queue, "b", credits=9)

    def leave(_: list[Envelope]) -> None:
        first.close()
        other.subscription.close()

    first = queue.subscribe("a", leave, credits=9)
    queue.publish([*envelopes("a", [1]), *envelopes("b", range(3))])
    assert other.given == []
    assert queue.statistics("b").waiting == 3
    assert queue.publish(envelopes("b", [3])) == []
    assert len(await Consumer(queue, "b", credits=9).has(4)) == 4


async def test_a_raising_consumer_harms_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    queue = SimpleMessageQueue()

    def receive(_: list[Envelope]) -> None:
        raise RuntimeError("broken consumer")

    queue.subscribe("echo", receive, credits=9)
    sound = Consumer(queue, "echo", credits=9)
    assert queue.publish(envelopes("echo", range(4))) == []
    assert len(sound.given) == 2
    assert "broken consumer" in caplog.text
    assert queue.publish(envelopes("other", [1])) == []


async def test_a_waiting_step_waits_once_in_its_place_with_its_highest_attempt() -> None:
    queue = SimpleMessageQueue(depth_max=2)
    queue.publish(envelopes("echo", [1, 2]))
    for attempt in (2, 3, 1):
        assert queue.publish(envelopes("echo", [1], attempt=attempt)) == [], "it takes no further place"
    assert queue.statistics("echo").waiting == 2
    consumer = Consumer(queue, "echo", credits=9)
    assert [(envelope.step_id, envelope.attempt) for envelope in consumer.given] == [("echo-1:1", 3), ("echo-2:1", 1)]


async def test_withdrawing_is_exact_and_makes_room() -> None:
    queue = SimpleMessageQueue(depth_max=3)
    sent = envelopes("echo", range(3))
    queue.publish(sent)
    assert queue.withdraw(["echo-1:1", "echo-1:1", "none:1"]) == 1
    assert queue.publish(envelopes("echo", [7])) == []
    consumer = Consumer(queue, "echo", credits=9)
    assert consumer.steps == ["echo-0:1", "echo-2:1", "echo-7:1"]


async def test_a_batch_larger_than_the_limit_passes_when_there_are_credits() -> None:
    queue = SimpleMessageQueue(depth_max=2)
    consumer = Consumer(queue, "echo", credits=10)
    sent = envelopes("echo", range(14))
    assert queue.publish(sent) == sent[12:]
    assert len(consumer.given) == 10


async def test_the_age_of_the_oldest_is_taken_from_the_clock() -> None:
    clock = ManualClock()
    queue = SimpleMessageQueue(clock=clock)
    queue.publish(envelopes("echo", [1]))
    clock.advance(5)
    queue.publish(envelopes("echo", [2]))
    queue.publish(envelopes("echo", [1], attempt=2))
    clock.advance(2)
    assert queue.statistics("echo").oldest_s == 7
    queue.withdraw(["echo-1:1"])
    assert queue.statistics("echo").oldest_s == 2
    assert clock.timers_waiting == 0, "nothing polls"


async def test_nothing_is_kept_of_what_is_over() -> None:
    queue = SimpleMessageQueue()
    consumers: list[weakref.ref[Consumer]] = []
    for number in range(50):
        topic = f"topic-{number}"
        queue.publish(envelopes(topic, range(3)))
        queue.statistics(f"never-used-{number}")
        queue.withdraw([f"{topic}-0:1"])
        consumer = Consumer(queue, topic, credits=1, automatic=True)
        consumers.append(weakref.ref(consumer))
        await consumer.has(2)
        consumer.subscription.close()
        del consumer
        queue.publish(envelopes(topic, [9]))
        queue.withdraw([f"{topic}-9:1"])
    gc.collect()
    assert not queue._topics
    assert not queue._topic_of
    assert [consumer() for consumer in consumers] == [None] * 50


async def test_a_stopped_queue_forgets_and_can_start_again() -> None:
    queue = SimpleMessageQueue()
    queue.publish(envelopes("echo", range(3)))
    old = Consumer(queue, "a", credits=3)
    await queue.stop()
    assert queue.statistics("echo").waiting == 0
    await queue.start()
    fresh = Consumer(queue, "a", credits=3)
    queue.publish(envelopes("a", [1]))
    assert (len(old.given), len(fresh.given)) == (0, 1)


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(SettingError, match="depth_max"):
        SimpleMessageQueue(depth_max=0)
