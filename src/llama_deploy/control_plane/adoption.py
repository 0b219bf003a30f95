"""What becomes of the steps that an instance says it holds: at its hello, and when it offers what others have sent.

Those whose tasks are led here, and that are still its own, are adopted; what is not wanted any more is disowned; about
the rest others decide. Nothing is taken for lost while that is being looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.errors import ShardLostError
from llama_deploy.messages.frames import HeldStep

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine
    from llama_deploy.control_plane.port import Port

LOADED_AT_ONCE = 32

Sorted = tuple[list[str], list[str], list[tuple[str, int, bytes]]]
"""What is the instance's own, what is not any more, and the inputs of what is."""


class Adoption:
    """Sorts what one connected instance holds. `hold` notes a step that is its own."""

    def __init__(
        self, engine: Engine, port: Port, hold: Callable[[str, int, str], None], closed: Callable[[], bool]
    ) -> None:
        self._engine = engine
        self._port = port
        self._hold = hold
        self._closed = closed
        self._unsorted: dict[str, None] = {}
        """What the instance says it holds, as far as that is not looked at yet."""

    def claimed(self) -> list[str]:
        """What is to be taken for the instance's: what it holds, and what may yet turn out to be its own."""
        return list({**self._unsorted, **self._port.held})

    async def sort(self, held: Sequence[HeldStep]) -> Sorted:
        """Take back what the instance holds, as far as it is led here."""
        sorted_: Sorted = ([], [], [])
        self._unsorted |= dict.fromkeys(step.step_id for step in held)
        self._engine.adopting += 1
        try:
            await self._engine.leadership.certainty()
            for first in range(0, len(held), LOADED_AT_ONCE):
                some = held[first : first + LOADED_AT_ONCE]
                entries = await asyncio.gather(*(self._load(step) for step in some), return_exceptions=True)
                for step, entry in zip(some, entries, strict=True):
                    if self._closed():
                        return sorted_
                    self._unsorted.pop(step.step_id, None)
                    if isinstance(entry, ShardLostError) or (isinstance(entry, TaskEntry) and entry.moved):
                        continue
                    if isinstance(entry, BaseException):
                        raise entry
                    self._sort(step, entry, sorted_)
        finally:
            self._engine.adopting -= 1
        return sorted_

    async def _load(self, step: HeldStep) -> TaskEntry | None:
        """The task, once what is on its way to the store has decided whether the step is the instance's."""
        while True:
            entry = await self._engine.cache.load(step.step_id.rpartition(":")[0], patient=True)
            if entry is None:
                return None
            await self._engine.wait_settled(entry)
            if not entry.stale or entry.moved:
                return entry

    def _sort(self, step: HeldStep, entry: TaskEntry | None, sorted_: Sorted) -> None:
        adopted, disowned, inputs = sorted_
        known = entry.open.get(step.step_id) if entry is not None else None
        if entry is None or known is None or known.attempt != step.attempt or known.parked:
            disowned.append(step.step_id)
            return
        if entry.is_anothers(known, self._port.instance_id):
            disowned.append(step.step_id)
            return
        known.published = True
        self._engine.queue.withdraw([step.step_id])
        self._engine.reclaimed(entry, known)
        self._engine.claim(self._port.instance_id, step.step_id, step.attempt, holds=True)
        self._hold(step.step_id, step.attempt, known.service)
        adopted.append(step.step_id)
        inputs += [(step.step_id, number, value) for number, value in enumerate(known.inputs, start=1)]
