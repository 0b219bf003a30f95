"""A message queue that does what the contract allows a queue to do: lose, repeat, reorder, be late, forget everything.

It stands before a queue that works. What it does to an envelope is drawn from a seeded `random.Random`, so a test that
fails can be repeated.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from llama_deploy.message_queues import Envelope, MessageQueue
from llama_deploy.message_queues.base import Capabilities, Subscription, TopicStatistics


class FaultyQueue(MessageQueue):
    """Carries envelopes through `inner`, badly.

    Every share is a probability from 0 to 1 and may be changed at any time. Delays pass on the running event loop.
    """

    def __init__(
        self,
        inner: MessageQueue,
        *,
        chance: random.Random | None = None,
        loss_share: float = 0.0,
        repeat_share: float = 0.0,
        delay_share: float = 0.0,
        delay_s_max: float = 1.0,
    ) -> None:
        self.inner = inner
        self.loss_share = loss_share
        """Of the envelopes, how many vanish."""
        self.repeat_share = repeat_share
        """Of the envelopes, how many are carried a second time, some time later."""
        self.delay_share = delay_share
        """Of the envelopes, how many are held up, and so overtaken by others."""
        self.delay_s_max = delay_s_max
        self.lost = 0
        self.repeated = 0
        self.delayed = 0
        self.capabilities = Capabilities(in_process=inner.capabilities.in_process, ordered=False)
        self._chance = chance or random.Random()
        self.held_up = 0
        """Envelopes that are still to come, late or for the second time."""
        self._published: dict[str, None] = {}
        self._stopped = False

    async def start(self) -> None:
        await self.inner.start()

    async def stop(self) -> None:
        self._stopped = True
        await self.inner.stop()

    def publish(self, envelopes: Sequence[Envelope]) -> list[Envelope]:
        chance = self._chance
        refused: list[Envelope] = []
        for envelope in envelopes:
            self._published[envelope.step_id] = None
            if chance.random() < self.loss_share:
                self.lost += 1
                continue
            if chance.random() < self.repeat_share:
                self.repeated += 1
                self._later(envelope)
            if chance.random() < self.delay_share:
                self.delayed += 1
                self._later(envelope)
                continue
            refused += self.inner.publish([envelope])
        return refused

    def _later(self, envelope: Envelope) -> None:
        delay_s = self._chance.uniform(0.0, self.delay_s_max)
        self.held_up += 1
        asyncio.get_running_loop().call_later(delay_s, self._carry, envelope)

    def _carry(self, envelope: Envelope) -> None:
        self.held_up -= 1
        if not self._stopped:
            self.inner.publish([envelope])

    def wipe(self) -> int:
        """Forget everything that waits, as a broker does that was restarted without its data; returns how much."""
        published, self._published = list(self._published), {}
        return self.inner.withdraw(published)

    def subscribe(self, topic: str, receive: Callable[[list[Envelope]], None], *, credits: int) -> Subscription:
        return self.inner.subscribe(topic, receive, credits=credits)

    def withdraw(self, step_ids: Sequence[str]) -> int:
        return self.inner.withdraw(step_ids)

    def statistics(self, topic: str) -> TopicStatistics:
        return self.inner.statistics(topic)
