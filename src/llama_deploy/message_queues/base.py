"""The contract of a message queue: it carries deliveries to competing consumers, and nothing else.

Durability is not its business. The store has every delivery until it is answered and publishes it again when it is
overdue, so a queue may lose, repeat or reorder anything; a good one seldom does. Answers, stream events, heartbeats
and control travel on the instances' own connections and never through a queue.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import msgspec

from llama_deploy._lazy import published_names


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """One attempt of one step on its way to a service."""

    step_id: str
    attempt: int
    topic: str
    """The service's name."""
    body: bytes
    """The encoded `Deliver` operation."""
    priority: int = 5
    """0 to 9: what waits goes by it, the higher first, and none starves (`llama_deploy.message_queues.fair`)."""
    key: str = ""
    """What waits under different keys takes turns; empty for what has none, which takes turns as one key does."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a queue can do by itself; the engine does the rest."""

    in_process: bool
    """The queue lives and dies with the control plane: nothing that was published survives it."""
    ordered: bool
    """Deliveries of one topic, priority and key reach consumers in the order in which they were published."""
    fair: bool = False
    """It goes by priority and key. Where it does not, only what waits at a gate of the control plane does."""
    lists: bool = False
    """`peek` shows what waits, and `withdraw` takes it back."""
    priority: bool = False
    """Of what waits, the highest priority goes first; `fair` says more."""
    delay: bool = False
    """The broker could hold something back until a time. Nobody needs it to: only what is due is published."""
    dead_letter: bool = False
    """What cannot be read is put aside in a place of its own, where a person finds it."""
    backpressure: bool = True
    """`publish` refuses what is too much."""


class TopicStatistics(msgspec.Struct, frozen=True):
    """How a topic stands."""

    waiting: int
    consumers: int
    oldest_s: float | None
    """Age of the longest waiting delivery in seconds; `None` when nothing waits."""


class QueueHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How a queue does, as `llamactl status` shows it. Never with a password."""

    kind: str
    location: str = ""
    """Where it is, without credentials."""
    namespace: str = ""
    connected: bool = True
    since: float | None = None
    """Since when it is connected, or is not."""
    reconnects: int = 0
    losses: int = 0
    """How often the broker was found without what had been published to it."""
    unsent: int = 0
    """Envelopes that wait to be sent to the broker."""
    refused: int = 0
    """Envelopes that did not fit into what waits to be sent."""
    unreadable: int = 0
    """Messages that were put aside because they are none of ours."""
    error: str = ""
    """The latest trouble, in words."""


class Subscription(ABC):
    """One consumer's place at a topic. It is given at most as many deliveries as it has granted credits."""

    @abstractmethod
    def grant(self, credits: int) -> None:
        """Let the consumer be given this many further deliveries (negative: take unused credits back, down to 0)."""

    @abstractmethod
    def close(self) -> None:
        """Stop receiving. Deliveries already given stay with the consumer. Repeating it does nothing."""


class MessageQueue(ABC):
    """Carries envelopes from the control plane to competing consumers of a topic."""

    capabilities: Capabilities
    on_return: Callable[[bool], None] = staticmethod(lambda _: None)
    """Called when the queue can carry again after it could not; with true, what had been published to it is lost."""

    seat: int = 0
    """Set before `identify`. Of control planes that share a store each has a small number of its own, and carries apart
    from the others: it is given what it has published, and what somebody has left who had the seat before."""

    def identify(self, namespace: str) -> None:
        """Called before `start` with a name that no other deployment has: what is carried stays below it."""

    @abstractmethod
    async def start(self) -> None:
        """Connect. Afterwards `publish` and `subscribe` work."""

    @abstractmethod
    async def stop(self) -> None:
        """Disconnect. What was published and not received may be lost; the store has it."""

    @abstractmethod
    def publish(self, envelopes: Sequence[Envelope]) -> list[Envelope]:
        """Send a batch; returns the envelopes that the queue refused because a topic is full, in order.

        After a crash an envelope may have been carried, or not. Publishing it again may deliver it twice; the
        engine recognises that by step id and attempt. Refused envelopes stay in the store and fall due again.
        """

    @abstractmethod
    def subscribe(self, topic: str, receive: Callable[[list[Envelope]], None], *, credits: int) -> Subscription:
        """Compete for the deliveries of a topic: each is given to exactly one subscription that has a credit."""

    @abstractmethod
    def withdraw(self, step_ids: Sequence[str]) -> int:
        """Remove waiting envelopes of these steps, as far as the queue can; returns how many were removed."""

    def peek(self, topic: str, *, limit: int) -> list[Envelope]:  # noqa: ARG002 - for those that can
        """The envelopes that wait, in the order in which they would go now, as far as the queue can tell."""
        return []

    def depth(self, topic: str) -> int:
        """How many envelopes of a topic wait."""
        return self.statistics(topic).waiting

    def may_hold(self, topic: str, step_id: str, since: float) -> bool:  # noqa: ARG002 - for those that can tell
        """Whether a step that was published at that time or later may still be waiting: then it is not sent again.

        Where the queue cannot tell, the answer is no, and the step is sent again with growing pauses.
        """
        return False

    async def refresh(self, topics: Collection[str]) -> None:
        """Make `statistics` and `may_hold` of these topics as new as can be. Never raises."""

    def health(self) -> QueueHealth:
        """How the queue itself does."""
        return QueueHealth(kind="simple")

    @abstractmethod
    def statistics(self, topic: str) -> TopicStatistics:
        """How a topic stands now."""


if not TYPE_CHECKING:
    __getattr__, __dir__ = published_names(__name__)
