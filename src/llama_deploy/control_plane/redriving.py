"""What operators do about dead letters: look at them, send them again, remove them.

A step of a task that has ended is sent again in a new task, which goes on from just before the step's first failure. A
task that paused because of it goes on. What only tells of an end is sent again by itself. A letter that was sent again
says where, and is not sent a second time.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from llama_deploy.control_plane.dead_letters import DeadFilter
from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.forks import Past
from llama_deploy.control_plane.forwarder import Forwarder, Many
from llama_deploy.control_plane.pauses import Pauses
from llama_deploy.control_plane.records import to_entry
from llama_deploy.control_plane.refusals import resolve
from llama_deploy.control_plane.repeats import LETTERS_MAX, Repeats
from llama_deploy.control_plane.tasks import step_of
from llama_deploy.errors import DeadLetterNotFoundError, LlamaDeployError, NotRepeatableError, ShardLostError
from llama_deploy.state_stores.base import DeadLetterRow, DeliveryRow, Transition
from llama_deploy.types.control import (
    DeadLetterAnswer,
    DeadLetterDetail,
    DeadLetterItem,
    DeadLetterPage,
    DeadLetterView,
)

PAGE_LETTERS = 200
"""Letters that are read from the store at a time."""


class DeadLetters:
    """The dead letters of one engine."""

    def __init__(self, engine: Engine, pauses: Pauses, repeats: Repeats, forwarder: Forwarder) -> None:
        self._engine = engine
        self._pauses = pauses
        self._repeats = repeats
        self._forwarder = forwarder

    async def page(self, *, service: str | None, task_id: str | None, limit: int, cursor: str | None) -> DeadLetterPage:
        """One page, newest first, those that were sent again included."""
        listing = await self._engine.store.list_dead(service=service, task_id=task_id, limit=limit, cursor=cursor)
        return DeadLetterPage(items=[self._view_of(row) for row in listing.rows], next=listing.next)

    async def detail(self, step_id: str) -> DeadLetterDetail:
        """One, with its message and its attempts. Raises `DeadLetterNotFoundError`."""
        row = await self._load(step_id)
        past = await self._repeats.past(row.task_id)
        message = past.records[past.sent_in(step_id, notifications=True) - 1]
        data = next(bytes(sent.data) for sent in message.messages if sent.step_id == step_id)
        tells = zip(past.history, past.records, strict=True)
        redact = self._engine.redact
        attempts = [to_entry(e.seq, e.at, e.kind, e.data, redact) for e, record in tells if record.step_id == step_id]
        return DeadLetterDetail(
            letter=self._view_of(row),
            task_state=past.row.state,
            message=redact.value(msgspec.json.decode(data)),
            attempts=[entry.model_dump(mode="json", exclude={"state_changes", "messages"}) for entry in attempts],
        )

    def _view_of(self, row: DeadLetterRow) -> DeadLetterView:
        view = view_of(row)
        view.error = self._engine.redact.text(view.error)
        return view

    async def redrive(self, step_id: str) -> str:
        """Send a step again; returns the id of the task in which that happens, also of one that did so before.

        Raises `DeadLetterNotFoundError`; `NotRepeatableError` where the task has completed or goes on without it.
        """
        row = await self._load(step_id)
        if row.redriven:
            return row.redriven
        past = await self._repeats.past(row.task_id)
        notification = past.is_notification(step_id)
        if past.row.ended_at is None and past.row.paused:
            await self._pauses.resume(row.task_id, reason=f"{step_id} is sent again")
        elif past.row.ended_at is None:
            raise NotRepeatableError(
                f"task {row.task_id} goes on without step {step_id}",
                why="its orchestrator has dealt with the failure",
                fix=f"llamactl tasks replay {row.task_id} --from {step_id}   makes a new task that runs it",
            )
        elif notification:
            await self._tell_again(past, row)
        else:
            return await self._in_new_task(past, row)
        await self._engine.store.mark_redriven(step_id, row.task_id)
        return row.task_id

    async def redrive_task(self, task_id: str) -> str:
        """Send everything of a task again that was given up and was not yet; the id of the task in which that happens.

        Each is tried, those that were given up first ahead of the others; the first refusal is raised after that.
        Raises `TaskNotFoundError`, `DeadLetterNotFoundError` where there is nothing to send, `NotRepeatableError`.
        """
        await self._engine.cache.get(task_id)
        letters = (await self._engine.store.list_dead(task_id=task_id, limit=LETTERS_MAX)).rows
        waiting = [row for row in reversed(letters) if not row.redriven]
        if not waiting:
            raise DeadLetterNotFoundError(
                f"nothing of task {task_id} waits to be sent again", fix="llamactl tasks list dead:yes"
            )
        made: list[str] = []
        refusals: list[LlamaDeployError] = []
        for row in waiting:  # one that is sent again with another one says so, and is found to be that
            try:
                made.append(await self.redrive(row.step_id))
            except LlamaDeployError as error:
                refusals.append(error)
        if refusals:
            raise refusals[0]
        return next((found for found in made if found != task_id), task_id)

    async def _in_new_task(self, past: Past, row: DeadLetterRow) -> str:
        """The whole task goes on from before the failure; other letters of it that are sent again with it say so."""
        if past.row.state == "completed":
            raise NotRepeatableError(
                f"task {row.task_id} has completed without step {row.step_id}",
                fix=f"llamactl tasks replay {row.task_id} --from {row.step_id}   makes a new task that runs it",
            )
        seq = past.uncounted(min(past.failed_step(row.step_id), past.before_failure()))
        key = hashlib.blake2b(f"redrive {row.step_id} {row.at!r}".encode(), digest_size=16).hexdigest()
        made, _ = await self._repeats.begin(past, "redrive", seq, keep_answers=True, key=key)
        await self._engine.store.mark_redriven(row.step_id, made.row.task_id)
        return made.row.task_id

    async def _tell_again(self, past: Past, row: DeadLetterRow) -> None:
        """Make an open step once more of one that tells of the end of its task."""
        engine = self._engine
        seq = past.sent_in(row.step_id, notifications=True)
        messages = past.records[seq - 1].messages
        index = next(i for i, message in enumerate(messages) if message.step_id == row.step_id)
        entry = await engine.cache.get(row.task_id)
        if row.step_id in entry.open:
            return
        step = step_of(messages[index], seq, index)
        now = engine.clock.now()
        step.due_since = now
        entry.open[row.step_id] = step
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        visible_at = now + engine.settings.overdue_s
        sent = DeliveryRow(row.step_id, row.task_id, step.service, 1, visible_at, seq, index)
        engine.recording.hand_over(
            Transition(settled=partial(resolve, future), shard_key=entry.row.session_id, sent=[sent])
        )
        try:
            await future
        except LlamaDeployError:
            entry.open.pop(row.step_id, None)
            raise
        engine.publish(entry, [step])

    async def redrive_all(self, where: DeadFilter, *, limit: int, dry_run: bool = False) -> DeadLetterAnswer:
        """Send those again that fit and were not yet, at most `limit`; what one refuses stands in its item."""
        rows, more = await self._fitting(where, limit, again=False)
        answer = DeadLetterAnswer(matched=len(rows), more=more)
        if not dry_run and rows:
            answer.items = await self._redrive_each([row.step_id for row in rows])
        return answer

    async def redrive_these(self, step_ids: Sequence[str], *, here_only: bool = False) -> DeadLetterAnswer:
        """Send these again; what became of each, in their order.

        With `here_only` those of tasks that this control plane leads: the items of the others say that it does not.
        """
        wanted = list(dict.fromkeys(step_ids))
        items = await (self._redrive_here(wanted) if here_only else self._redrive_each(wanted))
        return DeadLetterAnswer(matched=len(items), items=items)

    async def _redrive_each(self, step_ids: Sequence[str]) -> list[DeadLetterItem]:
        """Send steps again, by whoever leads their tasks: one request goes to each of the other control planes."""
        sessions: dict[str, str] = {}
        for task_id in dict.fromkeys(map(_task_of, step_ids)):
            sessions[task_id] = await self._forwarder.session_of(task_id) or task_id
        return await self._forwarder.each(
            Many(
                items=step_ids,
                session_of=lambda step_id: sessions[_task_of(step_id)],
                here=self._redrive_here,
                path="/v1/dead/redrive",
                body=lambda some: {"step_ids": some},
                there=lambda _, answer: DeadLetterAnswer.model_validate(answer).items,
                failed=lambda step_id, error: DeadLetterItem(step_id=step_id, problem=error.to_problem()),
                is_elsewhere=lambda item: item.problem is not None and item.problem["code"] == ShardLostError.code,
            )
        )

    async def _redrive_here(self, step_ids: Sequence[str]) -> list[DeadLetterItem]:
        """Send those again whose tasks are led here, one after the other: one may go with another of its task."""
        items = []
        for step_id in step_ids:
            try:
                items.append(DeadLetterItem(step_id=step_id, task_id=await self._redrive_led(step_id)))
            except LlamaDeployError as error:
                items.append(DeadLetterItem(step_id=step_id, problem=error.to_problem()))
        return items

    async def _redrive_led(self, step_id: str) -> str:
        session_id = await self._forwarder.session_of(_task_of(step_id))
        if session_id is not None and not self._engine.leadership.leads(session_id):
            raise self._engine.leadership.not_led(session_id)
        return await self.redrive(step_id)

    async def purge(self, step_id: str) -> DeadLetterView:
        """Remove one for good; its task stays. Raises `DeadLetterNotFoundError`."""
        row = await self._load(step_id)
        await self._engine.store.delete_dead([step_id])
        return self._view_of(row)

    async def purge_all(self, where: DeadFilter, *, limit: int, dry_run: bool = False) -> DeadLetterAnswer:
        """Remove those that fit, at most `limit`, those that were sent again included."""
        rows, more = await self._fitting(where, limit, again=True)
        answer = DeadLetterAnswer(matched=len(rows), more=more)
        if not dry_run and rows:
            await self._engine.store.delete_dead([row.step_id for row in rows])
            answer.items = [DeadLetterItem(step_id=row.step_id) for row in rows]
        return answer

    async def _fitting(self, where: DeadFilter, limit: int, *, again: bool) -> tuple[list[DeadLetterRow], bool]:
        """At most `limit` letters that fit, newest first, and whether there may be more."""
        now = self._engine.clock.now()
        found: list[DeadLetterRow] = []
        cursor: str | None = None
        while True:
            listing = await self._engine.store.list_dead(
                service=where.service, task_id=where.task_id, limit=PAGE_LETTERS, cursor=cursor
            )
            for row in listing.rows:
                if where.fits(row, now) and (again or not row.redriven):
                    if len(found) == limit:
                        return found, True
                    found.append(row)
            if (cursor := listing.next) is None:
                return found, False

    async def _load(self, step_id: str) -> DeadLetterRow:
        row = await self._engine.store.load_dead(step_id)
        if row is None:
            raise DeadLetterNotFoundError(f"there is no dead letter of step {step_id!r}", fix="llamactl queues dead")
        return row


def _task_of(step_id: str) -> str:
    return step_id.rpartition(":")[0]


def view_of(row: DeadLetterRow) -> DeadLetterView:
    """A dead letter as the API shows it."""
    fields: dict[str, Any] = msgspec.structs.asdict(row)
    error = fields.pop("message")
    return DeadLetterView(**{**fields, "redriven": row.redriven or None}, error=error)
