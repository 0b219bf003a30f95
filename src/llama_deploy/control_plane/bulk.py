"""One action on all tasks that fit a filter: counted first, then done page by page.

Each task is changed by the same operation that a request about it alone would use, in a commit of its own, by whoever
leads it. What cannot be done to one is told with it and keeps nobody else back. Nothing is remembered between pages:
whoever asks carries the cursor, and a key under which new tasks are made once however often a page is asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import msgspec

from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.filters import task_filter
from llama_deploy.control_plane.forwarder import Forwarder, Many
from llama_deploy.control_plane.migrations import Migrations
from llama_deploy.control_plane.pauses import Pauses
from llama_deploy.control_plane.redriving import DeadLetters
from llama_deploy.control_plane.repeats import Repeats
from llama_deploy.control_plane.signals import Signals
from llama_deploy.control_plane.views import Views
from llama_deploy.errors import InvalidRequestError, LlamaDeployError, NotRepeatableError, ShardLostError
from llama_deploy.state_stores.base import TaskFilter
from llama_deploy.types import generate_id
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
    "migrate": "state:unfinished",
    "retry": "state:failed,canceled,rejected",
    "replay": "",
    "redrive": "dead:yes",
    "export": "",
    "delete": "state:ended",
}
"""The tasks that each action is possible for, as a filter."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What is to be done to each."""

    action: str
    reason: str
    key: str | None
    by: str


@dataclass(frozen=True, slots=True)
class _Named:
    """A task, and the session whose leader does it."""

    task_id: str
    session_id: str


class Bulk:
    """Actions on many tasks of one engine."""

    def __init__(
        self,
        engine: Engine,
        *,
        signals: Signals,
        pauses: Pauses,
        migrations: Migrations,
        repeats: Repeats,
        dead_letters: DeadLetters,
        views: Views,
        forwarder: Forwarder,
    ) -> None:
        self._engine = engine
        self._signals = signals
        self._pauses = pauses
        self._migrations = migrations
        self._repeats = repeats
        self._dead_letters = dead_letters
        self._views = views
        self._forwarder = forwarder

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

        Under the same `key` no second task is made of one task, and a dead letter is sent again once. An `export` is
        only counted here: what it writes is a file. Raises `InvalidRequestError` for a filter that cannot
        be read or says nothing; what one task refuses stands in its item.
        """
        _check(action, dry_run=dry_run)
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
        named = [_Named(row.task_id, row.session_id) for row in listing.rows]
        answer.items = await self._act_on(_Said(action, reason, key, by), named)
        answer.next = listing.next
        return answer

    async def run_on(
        self,
        action: BulkAction,
        task_ids: Sequence[str],
        *,
        reason: str = "",
        key: str | None = None,
        by: str = "",
        here_only: bool = False,
    ) -> BulkAnswer:
        """Do `action` to these tasks; what became of each, in their order. What there is not says so, or is deleted.

        With `here_only` to those that this control plane leads: the items of the others say that it does not.
        """
        _check(action, dry_run=False)
        named = await self._named(list(dict.fromkeys(task_ids)))
        said = _Said(action, reason, key, by)
        items = await (self._act_here(said, named) if here_only else self._act_on(said, named))
        return BulkAnswer(action=action, dry_run=False, matched=len(items), items=list(items))

    async def _named(self, task_ids: Sequence[str]) -> list[_Named]:
        """The tasks with the sessions that say who leads them; those that there are not stand for themselves."""
        tasks = self._engine.cache.tasks
        rows = await self._views.rows_of([task_id for task_id in task_ids if task_id not in tasks])
        sessions = {task_id: row.session_id for task_id, row in rows.items()}
        sessions |= {task_id: tasks[task_id].row.session_id for task_id in task_ids if task_id in tasks}
        return [_Named(task_id, sessions.get(task_id, task_id)) for task_id in task_ids]

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

    async def _act_on(self, said: _Said, named: Sequence[_Named]) -> list[BulkItem]:
        """Do it to each, by whoever leads it: one request goes to each of the other control planes."""
        if self._forwarder.shared and said.key is None:  # who does not answer is asked again
            said = replace(said, key=generate_id())
        body = {"action": said.action, "reason": said.reason, "by": said.by, "idempotency_key": said.key}
        return await self._forwarder.each(
            Many(
                items=named,
                session_of=lambda one: one.session_id,
                here=partial(self._act_here, said),
                path="/v1/tasks/bulk",
                body=lambda some: body | {"task_ids": [one.task_id for one in some]},
                there=lambda _, answer: BulkAnswer.model_validate(answer).items,
                failed=lambda one, error: BulkItem(task_id=one.task_id, problem=error.to_problem()),
                is_elsewhere=lambda item: item.problem is not None and item.problem["code"] == ShardLostError.code,
            )
        )

    async def _act_here(self, said: _Said, named: Sequence[_Named]) -> list[BulkItem]:
        """Do it to those that are led here, a few at a time."""
        items: list[BulkItem] = []
        leads = self._engine.leadership.leads
        for first in range(0, len(named), AT_ONCE_MAX):
            some = named[first : first + AT_ONCE_MAX]
            if said.action == "delete":
                mine = [one.task_id for one in some if leads(one.session_id)]
                deleted = {item.task_id: item for item in await self._delete(mine)}
                items += [deleted.get(one.task_id) or self._not_led(one) for one in some]
            else:
                items += await asyncio.gather(*(self._one(said, one) for one in some))
        return items

    async def _one(self, said: _Said, one: _Named) -> BulkItem:
        try:
            if not self._engine.leadership.leads(one.session_id):
                return self._not_led(one)
            return BulkItem(task_id=one.task_id, new_task_id=await self._act(said, one.task_id))
        except LlamaDeployError as error:
            return BulkItem(task_id=one.task_id, problem=error.to_problem())

    def _not_led(self, one: _Named) -> BulkItem:
        error = self._engine.leadership.not_led(one.session_id)
        return BulkItem(task_id=one.task_id, problem=error.to_problem())

    async def _act(self, said: _Said, task_id: str) -> str | None:
        """Do it to one task; the id of the task that was made of it."""
        action, reason, by = said.action, said.reason, said.by
        if action == "cancel":
            await self._signals.cancel(task_id, reason=reason, by=by)
        elif action == "pause":
            await self._pauses.pause(task_id, reason=reason, by=by)
        elif action == "resume":
            await self._pauses.resume(task_id, reason=reason, by=by)
        elif action == "migrate":
            await self._migrations.migrate(task_id, reason=reason, by=by)
        elif action == "redrive":
            made_in = await self._dead_letters.redrive_task(task_id)
            return made_in if made_in != task_id else None
        else:
            do = self._repeats.retry if action == "retry" else self._repeats.replay
            made, _ = await do(task_id, key=_key(action, said.key, task_id))
            return made.row.task_id
        return None

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


def _check(action: str, *, dry_run: bool) -> None:
    """Raise `InvalidRequestError` for an action that there is not, or that is not done like this."""
    if action not in _POSSIBLE:
        raise InvalidRequestError(f"there is no action {action!r}", fix=f"actions: {', '.join(get_args(BulkAction))}")
    if action == "export" and not dry_run:
        raise InvalidRequestError(
            "an export is a file, and no list of what was done to each task",
            fix="GET /v1/export?filter=…, export_all of a client, or llamactl tasks export --filter",
        )


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
