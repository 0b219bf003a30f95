"""One action on all tasks that fit a filter: counted first, then done page by page.

Each task is changed by the same operation that a request about it alone would use, in a commit of its own. What cannot
be done to one is told with it and keeps nobody else back. Nothing is remembered between pages: whoever asks carries
the cursor, and a key under which new tasks are made once however often a page is asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, get_args

import msgspec

from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.filters import task_filter
from llama_deploy.control_plane.pauses import Pauses
from llama_deploy.control_plane.repeats import Repeats
from llama_deploy.control_plane.signals import Signals
from llama_deploy.control_plane.views import Views
from llama_deploy.errors import InvalidRequestError, LlamaDeployError, NotRepeatableError
from llama_deploy.state_stores.base import TaskFilter
from llama_deploy.types.control import BulkAction, BulkAnswer, BulkItem
from llama_deploy.types.filters import parse_filter

FIRST_SHOWN = 10
"""Tasks that the answer to a dry run shows."""
AT_ONCE_MAX = 50
"""Tasks of one action that are on their way at the same time."""
PAGE_TASKS_MAX = 1_000
"""Tasks of one request."""

_POSSIBLE: dict[str, str] = {
    "cancel": "state:unfinished",
    "pause": "state:unfinished paused:no",
    "resume": "paused:yes",
    "retry": "state:failed,canceled,rejected",
    "replay": "",
    "delete": "state:ended",
}
"""The tasks that each action is possible for, as a filter."""

Act = Callable[[str], Coroutine[Any, Any, str | None]]
"""Does it to one task; returns the id of the task that was made."""


class Bulk:
    """Actions on many tasks of one engine."""

    def __init__(self, engine: Engine, *, signals: Signals, pauses: Pauses, repeats: Repeats, views: Views) -> None:
        self._engine = engine
        self._signals = signals
        self._pauses = pauses
        self._repeats = repeats
        self._views = views

    async def run(
        self,
        action: BulkAction,
        filter_: str,
        *,
        dry_run: bool = False,
        limit: int = 100,
        cursor: str | None = None,
        reason: str = "",
        key: str | None = None,
        by: str = "",
    ) -> BulkAnswer:
        """Do `action` to at most `limit` of the tasks that fit, newest first from `cursor` on; or only count them.

        Under the same `key` no second task is made of one task. Raises `InvalidRequestError` for a filter that cannot
        be read or says nothing; what one task refuses stands in its item.
        """
        if action not in _POSSIBLE:
            raise InvalidRequestError(
                f"there is no action {action!r}", fix=f"actions: {', '.join(get_args(BulkAction))}"
            )
        if not parse_filter(filter_).terms:
            raise InvalidRequestError(
                "an action on many tasks needs a filter", why="without one all tasks are meant", fix="id:* means all"
            )
        now = self._engine.clock.now()
        where = task_filter(f"{filter_} {_POSSIBLE[action]}", now=now)
        answer = BulkAnswer(action=action, dry_run=dry_run, matched=await self._engine.store.count_matching(where))
        if dry_run:
            answer.first = await self._first(where)
            return answer
        listing = await self._engine.store.list_tasks(where, limit=limit, cursor=cursor)
        task_ids = [row.task_id for row in listing.rows]
        act = self._act(action, reason, key, by)
        for start in range(0, len(task_ids), AT_ONCE_MAX):
            some = task_ids[start : start + AT_ONCE_MAX]
            if action == "delete":
                answer.items += await self._delete(some)
            else:
                answer.items += await asyncio.gather(*(_one(act, task_id) for task_id in some))
        answer.next = listing.next
        return answer

    async def delete(self, task_id: str) -> None:
        """Remove an ended task for good. Raises `TaskNotFoundError`, `NotRepeatableError` while it has not ended."""
        await self._engine.cache.get(task_id)
        item = (await self._delete([task_id]))[0]
        if item.problem is not None:
            raise _undeletable(task_id)

    async def _first(self, where: TaskFilter) -> list[Any]:
        listing = await self._engine.store.list_tasks(where, limit=FIRST_SHOWN)
        tasks = self._engine.cache.tasks
        return [self._views.task(tasks[r.task_id]) if r.task_id in tasks else self._views.row(r) for r in listing.rows]

    def _act(self, action: str, reason: str, key: str | None, by: str) -> Act:
        async def act(task_id: str) -> str | None:
            if action == "cancel":
                await self._signals.cancel(task_id, reason=reason, by=by)
            elif action == "pause":
                await self._pauses.pause(task_id, reason=reason, by=by)
            elif action == "resume":
                await self._pauses.resume(task_id, reason=reason, by=by)
            else:
                do = self._repeats.retry if action == "retry" else self._repeats.replay
                made, _ = await do(task_id, key=_key(action, key, task_id))
                return made.row.task_id
            return None

        return act

    async def _delete(self, task_ids: Sequence[str]) -> list[BulkItem]:
        """Remove ended tasks in one commit; one of which something is still to be told stays."""
        store = self._engine.store
        removed = await store.delete_tasks(task_ids)
        self._engine.statistics.removed += removed
        left = set()
        if removed < len(task_ids):
            left = {task_id for task_id in task_ids if await store.load_task(task_id) is not None}
        await self._engine.cache.drop([task_id for task_id in task_ids if task_id not in left])
        return [
            BulkItem(task_id=task_id, problem=_undeletable(task_id).to_problem() if task_id in left else None)
            for task_id in task_ids
        ]


async def _one(act: Act, task_id: str) -> BulkItem:
    try:
        return BulkItem(task_id=task_id, new_task_id=await act(task_id))
    except LlamaDeployError as error:
        return BulkItem(task_id=task_id, problem=error.to_problem())


def _undeletable(task_id: str) -> NotRepeatableError:
    return NotRepeatableError(
        f"task {task_id} cannot be deleted",
        why="it has not ended, or somebody is still to be told of its end",
        fix=f"llamactl tasks cancel {task_id}   ends it first",
    )


def _key(action: str, key: str | None, task_id: str) -> str | None:
    """The idempotency key of the task that is made of one task by one action under a key."""
    if key is None:
        return None
    return hashlib.blake2b(msgspec.json.encode([action, key, task_id]), digest_size=16).hexdigest()
