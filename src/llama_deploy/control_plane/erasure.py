"""Erasing what belongs to a session: its tasks and all that came of them, its state, and the bytes in the files.

What runs is canceled first, as a client would cancel it. Everything may be repeated: a crash leaves the session there,
and who asks again goes on. What is left is one document that says who erased how much and when.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.forwarder import Forwarder
from llama_deploy.control_plane.signals import Signals
from llama_deploy.errors import (
    NoLeaderError,
    SessionNotFoundError,
    ShardLostError,
    StoreUnavailableError,
    TaskEndedError,
    TaskNotFoundError,
)
from llama_deploy.runtime import Rounds, failpoint
from llama_deploy.runtime.logs import get_logger
from llama_deploy.state_stores.base import Condition, TaskFilter, TaskRow
from llama_deploy.types.erasure import ErasureView

log = get_logger("llama_deploy.erasure")

DOCUMENTS = "erasure"
_DESCENT = ("child", "retry", "replay", "fork", "redrive", "import")
_AT_ONCE = 50
_SCRUB_TRIES = 50
_SCRUB_PAUSE_S = 0.1
_AGAIN_S = 0.5


class Erasure:
    """Erases sessions of one engine."""

    def __init__(self, engine: Engine, signals: Signals, forwarder: Forwarder) -> None:
        self._engine = engine
        self._signals = signals
        self._forwarder = forwarder
        self._under_way: set[str] = set()
        self._scrubs = Rounds(self._scrub)

    async def look(self, session_id: str) -> ErasureView:
        """What would be erased; nothing is changed. Raises `SessionNotFoundError`."""
        store = self._engine.store
        rows = await self._tasks(session_id)
        if not rows and await store.load_session(session_id) is None:
            raise SessionNotFoundError(f"there is no session {session_id!r}", fix="llamactl sessions list")
        state = [value for value in await store.load_shared(session_id) if value.value is not None]
        unfinished = sum(row.ended_at is None for row in rows)
        return ErasureView(session_id=session_id, tasks=len(rows), unfinished=unfinished, state_keys=len(state))

    async def erase(self, session_id: str, *, by: str = "") -> ErasureView:
        """Erase everything of a session. When it returns, no read finds any of it, also after a crash.

        `scrubbed` of the answer says whether the bytes are gone from the files too: a backup that is being written
        keeps them until it ends. Raises `SessionNotFoundError`.
        """
        try:
            view = await self.look(session_id)
        except SessionNotFoundError:
            left = [earlier for earlier in await self._unscrubbed() if earlier.session_id == session_id]
            if not left:
                raise
            return await self._carry_out(left[0])
        view.at, view.by = self._engine.clock.now(), by
        await self._note(view)  # from here on it is carried out, whatever becomes of this process
        failpoint("erasure.begun")
        return await self._carry_out(view)

    async def _carry_out(self, view: ErasureView) -> ErasureView:
        """Remove what is left of a session, note it, and scrub the files."""
        self._under_way.add(view.session_id)
        try:
            await self._remove_all(view)
            return await self._finish(view)
        finally:
            self._under_way.discard(view.session_id)

    async def _remove_all(self, view: ErasureView) -> None:
        """Remove what is left of a session, unless that is done, and note it."""
        if view.erased:
            return
        session_id = view.session_id
        while not view.erased:
            while rows := await self._tasks(session_id):  # again: tasks come while others go
                await self._cancel([row.task_id for row in rows if row.ended_at is None])
                await self._remove([row.task_id for row in rows])
            await self._engine.cache.drop_session(session_id)
            await self._engine.store.delete_session(session_id, if_unused=True)
            view.erased = not await self._tasks(session_id)
        failpoint("erasure.removed")
        await self._note(view)  # known from here on, whatever becomes of the rest
        failpoint("erasure.noted")
        log.info("erased a session", tasks=view.tasks)

    async def go_on(self) -> None:
        """Finish what an earlier run has begun to erase, or has not scrubbed, once the store is there."""
        while True:
            try:
                left = [view for view in await self._unscrubbed() if self._is_for_here(view)]
                await self._go_on(left)
            except (NoLeaderError, ShardLostError, StoreUnavailableError) as error:
                log.warning("what was left to erase is not erased yet, trying again", error=str(error))
                await self._engine.sleep(_AGAIN_S)
            else:
                return

    async def _go_on(self, left: Sequence[ErasureView]) -> None:
        names = {view.session_id for view in left}
        self._under_way |= names
        try:
            for view in left:
                await self._remove_all(view)
            await asyncio.gather(*(self._finish(view) for view in left))
        finally:
            self._under_way -= names

    def _is_for_here(self, view: ErasureView) -> bool:
        return self._engine.leadership.leads(view.session_id) and view.session_id not in self._under_way

    async def erasures(self) -> list[ErasureView]:
        """What was ever erased, the latest first."""
        found = await self._engine.store.load_documents(DOCUMENTS)
        return [ErasureView.model_validate_json(found[name]) for name in sorted(found, reverse=True)]

    async def _unscrubbed(self) -> list[ErasureView]:
        return [view for view in await self.erasures() if not view.scrubbed]

    async def _finish(self, view: ErasureView) -> ErasureView:
        view.scrubbed = await self._scrubs.served()
        if view.scrubbed:
            await self._note(view)
        return view

    async def _scrub(self) -> bool:
        """Scrub the files once for all sessions that were erased before: it takes its time, and reads a whole store."""
        for _ in range(_SCRUB_TRIES):
            if await self._engine.store.scrub():
                return True
            await self._engine.sleep(_SCRUB_PAUSE_S)
        return False

    async def _tasks(self, session_id: str) -> list[TaskRow]:
        """The session's tasks, and whatever came of them, in whichever session."""
        found = {row.task_id: row for row in await self._list(TaskFilter(session_id=session_id))}
        latest = list(found)
        while latest:
            origins = [f"{kind}:{task_id}" for task_id in latest for kind in _DESCENT]
            latest = []
            for first in range(0, len(origins), 500):
                values = tuple(origins[first : first + 500])
                for row in await self._list(TaskFilter(conditions=(Condition(column="origin", values=values),))):
                    if row.task_id not in found:
                        found[row.task_id] = row
                        latest.append(row.task_id)
        return list(found.values())

    async def _list(self, where: TaskFilter) -> list[TaskRow]:
        rows: list[TaskRow] = []
        cursor: str | None = None
        while True:
            page = await self._engine.store.list_tasks(where, limit=1_000, cursor=cursor)
            rows += page.rows
            cursor = page.next
            if cursor is None:
                return rows

    async def _cancel(self, task_ids: Sequence[str]) -> None:
        for task_id in task_ids:
            with contextlib.suppress(TaskEndedError, TaskNotFoundError):
                await self._forwarder.cancel(self._signals, task_id, reason="its session is erased", by="erasure")

    async def _remove(self, task_ids: Sequence[str]) -> None:
        store, cache = self._engine.store, self._engine.cache
        for first in range(0, len(task_ids), _AT_ONCE):
            some = task_ids[first : first + _AT_ONCE]
            await store.delete_tasks(some, erase=True)
            await cache.drop(some)
            self._engine.common.removed(some)
            await store.delete_tasks(some, erase=True)  # what was on its way to the store when memory let go of it

    async def _note(self, view: ErasureView) -> None:
        name = f"{view.at:020.6f} {view.session_id}"
        await self._engine.store.put_document(DOCUMENTS, name, view.model_dump_json().encode())
