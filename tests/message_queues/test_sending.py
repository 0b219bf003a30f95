"""What waits to be sent: each step once, in order, in its latest attempt, and not too much."""

from __future__ import annotations

from llama_deploy.message_queues.sending import Outgoing
from llama_deploy.testing.queue_conformance import envelopes


def test_batches_leave_in_order_and_come_back_to_the_front() -> None:
    outgoing, sent = Outgoing(10), envelopes("echo", range(5))
    assert [outgoing.add(envelope) for envelope in sent] == [True] * 5
    assert outgoing.take(3) == sent[:3]
    outgoing.put_back_all_but(2)
    assert outgoing.put_back() == []
    assert outgoing.take(9) == sent
    outgoing.done()
    assert len(outgoing) == 0


def test_a_later_attempt_takes_the_place() -> None:
    outgoing, (first, second) = Outgoing(10), envelopes("echo", [1, 2])
    (later,) = envelopes("echo", [1], attempt=2)
    outgoing.add(first)
    outgoing.add(second)
    assert outgoing.add(later) is False
    assert outgoing.add(first) is False, "an earlier attempt changes nothing"
    assert outgoing.take(1) == [later]
    (latest,) = envelopes("echo", [1], attempt=3)
    assert outgoing.add(latest) is True
    assert outgoing.put_back() == [later], "what waits is newer than what was not sent"
    assert outgoing.take(9) == [second, latest]


def test_what_is_too_much_is_refused_and_counted() -> None:
    outgoing, sent = Outgoing(2), envelopes("echo", range(3))
    assert [outgoing.add(envelope) for envelope in sent] == [True, True, None]
    assert outgoing.add(sent[0]) is False, "it waits already"
    assert outgoing.refused == 1
    assert outgoing.remove(sent[0].step_id) == sent[0]
    assert outgoing.remove(sent[0].step_id) is None
    assert outgoing.add(sent[2]) is True
