"""What is published and not yet the broker's: bounded, in order, each step once and in its latest attempt."""

from __future__ import annotations

import asyncio
from itertools import islice

from llama_deploy.message_queues.base import Envelope


class Outgoing:
    """A buffer between `publish`, which never waits, and the one who sends.

    A batch is taken, then either `done` or `put_back`. A step that is published again while it waits keeps its place.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[str, Envelope] = {}
        self._taken: dict[str, Envelope] = {}
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()
        self.refused = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._taken)

    def __contains__(self, step_id: object) -> bool:
        return step_id in self._waiting or step_id in self._taken

    def add(self, envelope: Envelope) -> bool | None:
        """Let an envelope wait: true where it is one more, false where its step waits already, `None`: no room."""
        known = self._waiting.get(envelope.step_id)
        if known is not None:
            if known.attempt < envelope.attempt:
                self._waiting[envelope.step_id] = envelope
            return False
        if len(self) >= self._most:
            self.refused += 1
            return None
        self._waiting[envelope.step_id] = envelope
        self._some.set()
        self._none.clear()
        return True

    def remove(self, step_id: str) -> Envelope | None:
        """Take out what waits and is not being sent."""
        envelope = self._waiting.pop(step_id, None)
        self._look()
        return envelope

    async def some(self) -> None:
        """Wait until there is something to take."""
        await self._some.wait()

    async def sent(self) -> None:
        """Wait until nothing is left."""
        await self._none.wait()

    def take(self, most: int) -> list[Envelope]:
        """Take the first ones, to send them."""
        assert not self._taken, "one batch at a time"
        for step_id in list(islice(self._waiting, most)):
            self._taken[step_id] = self._waiting.pop(step_id)
        self._look()
        return list(self._taken.values())

    def put_back_all_but(self, count: int) -> None:
        """Of what is taken, only the first `count` are sent now."""
        if count < len(self._taken):
            step_ids = list(self._taken)[count:]
            self._to_front({step_id: self._taken.pop(step_id) for step_id in step_ids})

    def put_back(self) -> list[Envelope]:
        """It was not sent; returns those for which a later publication waits, which takes their place."""
        taken, self._taken = self._taken, {}
        return self._to_front(taken)

    def done(self) -> None:
        """It was sent."""
        self._taken = {}
        self._look()

    def _to_front(self, envelopes: dict[str, Envelope]) -> list[Envelope]:
        superseded = [envelope for step_id, envelope in envelopes.items() if step_id in self._waiting]
        first = {step_id: envelope for step_id, envelope in envelopes.items() if step_id not in self._waiting}
        self._waiting = {**first, **self._waiting}
        self._look()
        return superseded

    def _look(self) -> None:
        if self._waiting:
            self._some.set()
        else:
            self._some.clear()
        if len(self):
            self._none.clear()
        else:
            self._none.set()
