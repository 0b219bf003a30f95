"""What a step's code had remembered: values that are recorded once and given to every later attempt of the step.

The first value under a key stays, whoever asks again: a repetition after a lost connection, or an older attempt that
still runs. A value is in the task's history before the code that asked for it goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from llama_deploy.control_plane.records import Record
from llama_deploy.control_plane.refusals import not_current, too_large
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry
from llama_deploy.errors import InvalidRequestError, LimitExceededError, LlamaDeployError
from llama_deploy.messages.frames import Remember
from llama_deploy.runtime import failpoint
from llama_deploy.state_stores.base import Transition

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine

Told = Callable[[bytes, LlamaDeployError | None], None]
"""Called with the recorded value, or with why there is none."""


class Memos:
    """The remembered values of one engine's open steps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def remember(self, op: Remember, told: Told) -> None:
        """Record a value under a key of a step, unless there is one. `told` is called after the commit."""

        def use(entry: TaskEntry | None) -> None:
            if entry is None:
                told(b"", not_current(op.step_id))
            else:
                self._engine.in_turn(entry, partial(self._remember, entry, op, told))

        self._engine.cache.with_entry(op.step_id.rpartition(":")[0], use)

    def _remember(self, entry: TaskEntry, op: Remember, told: Told) -> None:
        if entry.stale:
            self.remember(op, told)
            return
        step = entry.open.get(op.step_id) if not entry.final else None
        known = step.memos.get(op.key) if step is not None and step.memos is not None else None
        if known is not None or step is None or step.attempt != op.attempt:
            # What is known, or ended the attempt, may be on its way to the store, and may yet be refused there.
            refusal = not_current(op.step_id) if known is None else None
            self._engine.when_settled(entry, partial(self._tell, entry, op, known or b"", refusal, told))
            return
        unfit = self._unfit(step, op)
        if unfit is not None:
            told(b"", unfit)
            return
        step.remember(op.key, op.value)
        record = Record(
            state="",
            step_id=step.step_id,
            service=step.service,
            attempt=step.attempt,
            by=step.claimed_by,
            key=op.key,
            value=msgspec.Raw(op.value),
        )

        def recorded() -> None:
            failpoint("memos.recorded")
            told(op.value, None)

        again = self._engine.recording.or_again(op.step_id, partial(self.remember, op, told), recorded)
        transition = Transition(settled=again)
        now = self._engine.clock.now()
        self._engine.recording.commit(entry, transition, "remembered", record, now=now, state=entry.working_state())

    def _tell(self, entry: TaskEntry, op: Remember, value: bytes, refusal: LlamaDeployError | None, told: Told) -> None:
        if entry.stale:
            self.remember(op, told)
        else:
            told(value, refusal)

    def _unfit(self, step: OpenStep, op: Remember) -> LlamaDeployError | None:
        """Why a value cannot be recorded."""
        settings = self._engine.settings
        memos = step.memos or {}
        if not 0 < len(op.key) <= settings.id_length_max:
            return InvalidRequestError(
                f"the key {op.key[:40]!r} cannot be used", why=f"a key has 1 to {settings.id_length_max} characters"
            )
        try:
            msgspec.json.decode(op.value)
        except (ValueError, RecursionError) as error:
            return InvalidRequestError("the value is not JSON", why=str(error))
        if len(memos) >= settings.remembered_per_step_max:
            return LimitExceededError(
                f"step {op.step_id} has {settings.remembered_per_step_max} remembered values",
                why=f"remembered_per_step_max is {settings.remembered_per_step_max}",
                fix="remember several things under one key, or raise the setting",
                setting="remembered_per_step_max",
                limit=settings.remembered_per_step_max,
            )
        size = len(op.value) + sum(map(len, memos.values()))
        if size > settings.remembered_bytes_max:
            return too_large(
                "remembered values of the step", size, settings.remembered_bytes_max, "remembered_bytes_max"
            )
        return None
