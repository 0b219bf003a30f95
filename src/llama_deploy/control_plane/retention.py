"""What is kept for how long: ended tasks, dead letters, sessions without tasks, contents that nobody uses.

It works in the background, a small piece at a time, so that the tasks on their way wait for no more than one piece. It
remembers nothing: what is to go is asked of the store, and a crash leaves it for the next time. Unfinished tasks are
never touched, nor ended ones of which something is still to be told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from llama_deploy.control_plane.engine import Engine
from llama_deploy.errors import LlamaDeployError
from llama_deploy.runtime import failpoint
from llama_deploy.runtime.logs import get_logger

log = get_logger("llama_deploy.retention")

PAUSE_S = 0.01
"""Between two pieces, so that the work of tasks has the greater part of the time."""

RARE_S = 3_600.0
"""How often the sessions and contents that nobody uses are looked for: that reads all of them."""


class Retention:
    """Removes from one engine's store what its settings do not keep."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._task: asyncio.Task[None] | None = None
        self._rarely_at = 0.0

    def start(self) -> None:
        """Look every `retention_look_s` from now on."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Remove nothing more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._engine.sleep(self._engine.settings.retention_look_s)
            try:
                await self.apply()
            except Exception as error:  # the edge of this task: what was to go is there the next time
                if isinstance(error, LlamaDeployError):
                    log.warning("removing old tasks failed, going on later", error=str(error))
                else:
                    log.exception("removing old tasks failed, going on later")

    async def apply(self) -> int:
        """Remove everything that is to go now; returns how many tasks that were.

        Where control planes share the store, sessions are removed by whoever leads them, all else by one of them.
        """
        now = self._engine.clock.now()
        first = self._engine.leadership.first
        removed = 0
        if first:
            await self._dead_letters(now)
            removed = await self._old_tasks(now) + await self._surplus_tasks()
        if now >= self._rarely_at:
            self._rarely_at = now + RARE_S
            await self._sessions(now)
            if first:
                await self._contents(now)
        while first and await self._engine.store.shrink():
            await self._engine.sleep(PAUSE_S)
        if removed:
            log.info("removed old tasks", count=removed)
        return removed

    async def _dead_letters(self, now: float) -> None:
        """A dead letter that is not kept any more does not hold its task back either."""
        kept_s, store = self._engine.settings.dead_letter_retention_s, self._engine.store
        if kept_s:
            batch = self._engine.settings.retention_batch_max
            await self._in_pieces(lambda: store.dead_before(now - kept_s, limit=batch), store.delete_dead)

    async def _old_tasks(self, now: float) -> int:
        kept_s, store = self._engine.settings.retention_s, self._engine.store
        if not kept_s:
            return 0
        batch = self._engine.settings.retention_batch_max
        return await self._in_pieces(lambda: store.ended_before(now - kept_s, limit=batch), self._remove)

    async def _surplus_tasks(self) -> int:
        settings, store = self._engine.settings, self._engine.store
        if not settings.ended_tasks_max:
            return 0

        async def oldest() -> list[str]:
            surplus = await store.count_ended() - settings.ended_tasks_max
            if surplus <= 0:
                return []
            return await store.ended_before(float("inf"), limit=min(surplus, settings.retention_batch_max))

        return await self._in_pieces(oldest, self._remove)

    async def _remove(self, task_ids: Sequence[str]) -> int:
        removed = await self._engine.store.delete_tasks(task_ids)
        failpoint("retention.removed")
        await self._engine.cache.drop(task_ids)
        self._engine.common.removed(task_ids)
        self._engine.statistics.removed += removed
        return removed

    async def _in_pieces(
        self, find: Callable[[], Awaitable[list[str]]], remove: Callable[[Sequence[str]], Awaitable[int]]
    ) -> int:
        removed = 0
        while found := await find():
            count = await remove(found)
            removed += count
            if not count:  # they were changed meanwhile; the next time looks again
                break
            await self._engine.sleep(PAUSE_S)
        return removed

    async def _sessions(self, now: float) -> None:
        """Sessions that no task is in any more, unless somebody has use for them right now."""
        kept_s, engine = self._engine.settings.session_retention_s, self._engine
        if not kept_s:
            return
        for session_id in await engine.store.unused_sessions(now - kept_s, limit=10_000):
            if not engine.leadership.keeps(session_id) or not engine.cache.let_go_of_session(session_id):
                continue
            await engine.store.delete_session(session_id, if_unused=True)
            engine.cache.let_go_of_session(session_id)
            await engine.sleep(PAUSE_S)

    async def _contents(self, now: float) -> None:
        kept_s, store = self._engine.settings.unused_content_s, self._engine.store
        while await store.delete_unused_blobs(now - kept_s, 20):
            await self._engine.sleep(PAUSE_S)
