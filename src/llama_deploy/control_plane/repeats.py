"""Doing again: retry, replay and fork make a new task that names the one it came from; that one never changes.

Where a task begins in another one's life is worked out in `forks`; it is recorded like any submission, so repeating a
request under the same task id or key finds the first new task. The state of a session is not rewound.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.forks import Past, fork_at
from llama_deploy.control_plane.refusals import too_large
from llama_deploy.control_plane.task_cache import not_found
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry
from llama_deploy.errors import InvalidRequestError, NotRepeatableError
from llama_deploy.runtime import failpoint
from llama_deploy.state_stores.shards import id_beside
from llama_deploy.types import Origin, TaskDefinition, TaskOptions, generate_id
from llama_deploy.types.artifacts import hashes_in

Kind = Literal["retry", "replay", "fork", "redrive"]


class Edit(msgspec.Struct, frozen=True):
    """What is given in the place of what was; `UNSET` leaves it. One of the two at most."""

    input: Any = UNSET
    """The task's input: text as it is, any other value as its JSON."""
    data: Any = UNSET
    """All data of a step's message: an object."""

    @property
    def text(self) -> str:
        """The input as a task carries it."""
        return self.input if isinstance(self.input, str) else json.dumps(self.input, ensure_ascii=False)

    def __bool__(self) -> bool:
        return self.input is not UNSET or self.data is not UNSET


NO_EDIT = Edit()

LETTERS_MAX = 1_000
"""Dead letters of one task that are looked at."""


class Repeats:
    """Makes tasks from recorded ones, over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def retry(
        self, task_id: str, *, from_start: bool = False, new_task_id: str | None = None, key: str | None = None
    ) -> tuple[TaskEntry, bool]:
        """A task that did not end well, once more: from just before its first failed attempt, or from the start.

        What other branches have answered is kept; counters of failures begin anew, and so do deadlines. Returns the
        recorded new task, and whether this call made it. Raises `TaskNotFoundError`, and `NotRepeatableError` for a
        task that has not ended or has ended well.
        """
        past = await self.past(task_id)
        if past.row.ended_at is None:
            raise NotRepeatableError(
                f"task {task_id} has not ended: it is {past.row.state}",
                fix=f"llamactl tasks cancel {task_id}   ends it first",
            )
        if past.row.state == "completed":
            raise NotRepeatableError(
                f"task {task_id} has completed: there is nothing to retry",
                fix=f"llamactl tasks replay {task_id}   runs it once more as a new task",
            )
        seq = 0 if from_start else past.before_failure()
        return await self.begin(past, "retry", seq, keep_answers=True, new_task_id=new_task_id, key=key)

    async def replay(
        self,
        task_id: str,
        *,
        step_id: str | None = None,
        edit: Edit = NO_EDIT,
        new_task_id: str | None = None,
        key: str | None = None,
    ) -> tuple[TaskEntry, bool]:
        """A task once more from one of its steps, or from the start; the step's or the task's input may be another one.

        Steps that were open beside that step and have answered since keep their answers. Returns what `retry` does.
        Raises `TaskNotFoundError`, `NotRepeatableError` for a step that there is not, `InvalidRequestError`.
        """
        past = await self.past(task_id)
        seq = 0 if step_id is None else past.sent_in(step_id)
        return await self.begin(
            past, "replay", seq, step_id=step_id, edit=edit, keep_answers=True, new_task_id=new_task_id, key=key
        )

    async def fork(
        self,
        task_id: str,
        seq: int,
        *,
        step_id: str | None = None,
        edit: Edit = NO_EDIT,
        new_task_id: str | None = None,
        key: str | None = None,
    ) -> tuple[TaskEntry, bool]:
        """A task that goes on from where `task_id` stood after entry `seq`: every step that was open then runs anew.

        `edit` is about the step `step_id`, one of those. Returns and raises what `replay` does.
        """
        past = await self.past(task_id)
        if edit and step_id is None:
            raise InvalidRequestError("step_id is missing", why="several steps may be open at that entry")
        return await self.begin(past, "fork", seq, step_id=step_id, edit=edit, new_task_id=new_task_id, key=key)

    async def past(self, task_id: str) -> Past:
        """What is recorded of a task. Raises `TaskNotFoundError`."""
        row = await self._engine.store.load_task(task_id)
        if row is None:
            raise not_found(task_id)
        history = await self._engine.contents.history(task_id)
        return Past(row, history[: row.version])

    async def begin(
        self,
        past: Past,
        kind: Kind,
        seq: int,
        *,
        step_id: str | None = None,
        edit: Edit = NO_EDIT,
        keep_answers: bool = False,
        new_task_id: str | None = None,
        key: str | None = None,
    ) -> tuple[TaskEntry, bool]:
        """Record the new task; `seq` 0 is the start, where the policy is asked as for any submission."""
        if edit.input is not UNSET and edit.data is not UNSET:
            raise InvalidRequestError("both input and data were given", fix="give one of them")
        if kind != "fork" and seq == 0 and edit.data is not UNSET:
            raise InvalidRequestError("data is about a step", fix="name the step, or give input")
        if new_task_id == past.row.task_id:
            raise InvalidRequestError(f"the new task cannot have the id of the old one, {new_task_id!r}")
        definition = _definition(past, kind, seq, step_id, edit)
        definition.task_id = new_task_id or self._new_id(past)
        definition.idempotency_key = key
        fork = None
        if seq or kind == "fork":
            given = self._given(step_id, edit)
            fork = fork_at(past, seq, definition.task_id, keep_answers=keep_answers, anew=step_id, edit=given)
            await self._engine.contents.learn(hashes_in(msgspec.json.encode(fork)))
        entry = await self._engine.submissions.submit_and_wait(definition, fork=fork)
        failpoint("repeats.recorded")
        if kind in ("retry", "redrive"):
            await self._note_sent_again(past, seq, entry.row.task_id)
        failpoint("repeats.noted")
        return entry, entry.definition is definition

    def _new_id(self, past: Past) -> str:
        """An id for what comes of a task, such that who leads the old one leads the new one."""
        return id_beside(generate_id(), past.row.session_id, self._engine.store.shards_count)

    async def _note_sent_again(self, past: Past, seq: int, task_id: str) -> None:
        """Dead letters whose steps run again in the new task say so; what only tells of the old end does not."""
        store = self._engine.store
        letters = (await store.list_dead(task_id=past.row.task_id, limit=LETTERS_MAX)).rows
        waiting = [letter for letter in letters if not letter.redriven and not past.is_notification(letter.step_id)]
        runs = past.at(seq).open if seq and waiting else None
        for letter in waiting:
            if runs is None or letter.step_id in runs:
                await store.mark_redriven(letter.step_id, task_id)

    def _given(self, step_id: str | None, edit: Edit) -> Callable[[OpenStep], bytes]:
        """The data of the step that is to be sent anew."""

        def given(step: OpenStep) -> bytes:
            if not edit:
                return step.body
            data = edit.data if edit.data is not UNSET else msgspec.json.decode(step.body)
            if not isinstance(data, dict):
                raise InvalidRequestError("data is not an object", why="that is what a message carries")
            if edit.input is not UNSET:
                task = data.get("task")
                if not isinstance(task, dict) or "input" not in task:
                    raise InvalidRequestError(
                        f"the message of step {step_id} carries no task, so it has no input", fix="give data instead"
                    )
                data = {**data, "task": {**task, "input": edit.text}}
            encoded = msgspec.json.encode(data)
            limit = self._engine.settings.payload_bytes_max
            if len(encoded) > limit:
                raise too_large("data", len(encoded), limit)
            return encoded

        return given


def _definition(past: Past, kind: Kind, seq: int, step_id: str | None, edit: Edit) -> TaskDefinition:
    """What the old task asked for, as the new one's; times at which it was to begin are over."""
    definition = TaskDefinition.model_validate(msgspec.json.decode(bytes(past.records[0].definition)))
    edited = _hash(edit) if edit else None
    origin = Origin(kind=kind, task_id=past.row.task_id, step_id=step_id, seq=seq, edited=edited)
    options = definition.options or TaskOptions()
    definition.options = options.model_copy(update={"origin": origin, "run_at": None, "delay_s": None})
    if seq == 0 and edit.input is not UNSET:
        definition.input = edit.text
    return definition


def _hash(edit: Edit) -> str:
    """What tells one edit from another when a request is repeated."""
    given = {"input": edit.text} if edit.input is not UNSET else {"data": edit.data}
    return hashlib.blake2b(json.dumps(given, sort_keys=True).encode(), digest_size=8).hexdigest()
