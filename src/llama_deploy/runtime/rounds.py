"""Work that serves all who asked for it before it began: one round at a time, and one more for who came since."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Rounds(Generic[Value]):
    """Carries out `work` for many who ask at once.

    Who asks is served by a round that begins afterwards, never by one that has begun; whoever else asks before it
    begins shares it, with what it returns or raises. A round goes on where whoever has asked for it is canceled.
    """

    def __init__(self, work: Callable[[], Awaitable[Value]]) -> None:
        self._work = work
        self._one_at_a_time = asyncio.Lock()
        self._next: asyncio.Task[Value] | None = None

    async def served(self) -> Value:
        """Wait for a whole round, and return what it returned."""
        if self._next is None:
            self._next = asyncio.create_task(self._round())
            self._next.add_done_callback(_looked_at)
        return await asyncio.shield(self._next)

    async def _round(self) -> Value:
        async with self._one_at_a_time:
            self._next = None
            return await self._work()


def _looked_at(task: asyncio.Task[Value]) -> None:
    """What a round has raised is for those who have asked, as far as they are still there."""
    if not task.cancelled():
        task.exception()
