"""Pausing a task and having it go on: while it is paused, no step of it is handed out.

What runs finishes and its answer is folded; what is decided on it waits. A pause is recorded like any other hop, so it
survives whatever the task survives. The clock of a step that waits for an instance begins anew when the task goes on;
the deadline of the whole task does not stand still. A paused task can be canceled and answered like any other.
"""

from __future__ import annotations

from functools import partial

from llama_deploy.control_plane.deadlines import look_again_at
from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.records import Record
from llama_deploy.control_plane.refusals import clean
from llama_deploy.control_plane.signals import Settled, Signals, ended_error, once_recorded
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry, paused_because
from llama_deploy.errors import LlamaDeployError
from llama_deploy.state_stores.base import DeliveryMove, Transition
from llama_deploy.types.reserved import TIMER_SERVICE


class Pauses:
    """Holds tasks back and lets them go."""

    def __init__(self, engine: Engine, signals: Signals) -> None:
        self._engine = engine
        self._signals = signals

    async def pause(self, task_id: str, *, reason: str = "", by: str = "") -> TaskEntry:
        """Hand out no further step of a task until it is resumed. When it returns, that is recorded.

        Repeating it on a paused task does nothing. Raises `TaskEndedError`, `TaskNotFoundError`.
        """
        work = partial(self._pause, clean(reason), clean(by))
        return await self._signals.record_in_turn(task_id, work, even_if_busy=True)

    async def resume(self, task_id: str, *, reason: str = "", by: str = "") -> TaskEntry:
        """Hand out again what waits. When it returns, that is recorded.

        Repeating it on a task that is not paused does nothing. Raises `TaskEndedError`, `TaskNotFoundError`.
        """
        work = partial(self._resume, clean(reason), clean(by))
        return await self._signals.record_in_turn(task_id, work, even_if_busy=True)

    def _pause(self, reason: str, by: str, entry: TaskEntry, settled: Settled) -> None:
        if entry.final or entry.row.paused:
            once_recorded(self._engine, entry, settled, ended_error(entry) if entry.final else None)
            return
        engine = self._engine
        refusal = engine.recording.history_refusal(entry)
        if refusal is not None:
            settled(refusal)
            return
        record = Record(state="", reason=reason or None, by=by or None)
        entry.paused_because = paused_because(record)
        engine.recording.commit(
            entry,
            Transition(settled=settled),
            "paused",
            record,
            now=engine.clock.now(),
            state=entry.row.state,
            paused=True,
        )
        engine.hold_back(entry)

    def _resume(self, reason: str, by: str, entry: TaskEntry, settled: Settled) -> None:
        if entry.final or not entry.row.paused:
            once_recorded(self._engine, entry, settled, ended_error(entry) if entry.final else None)
            return
        engine = self._engine
        now = engine.clock.now()
        waiting = [step for step in entry.open.values() if not step.parked and step.claimed_by is None]
        # What was begun before a crash is the sweeper's next attempt, as soon as nobody may come back with it.
        ready = [step for step in waiting if step.due_at <= now and not entry.was_begun(step)]
        ready = [step for step in ready if step.service != TIMER_SERVICE]  # the sweeper's, and its time is its answer
        moves = []
        for step in waiting:
            step.due_since = max(step.due_at, now)
            step.overdue_s = 0.0
            moves.append(_look_again(engine, entry, step, now))

        def recorded(error: LlamaDeployError | None) -> None:
            if error is None and not entry.row.paused:
                for step in ready:
                    step.due_at = 0.0
                engine.publish(entry, [step for step in ready if not step.published and step.claimed_by is None])
            settled(error)

        record = Record(state="", reason=reason or None, by=by or None)
        entry.paused_because = ""
        transition = Transition(settled=recorded, moved=moves)
        engine.recording.commit(entry, transition, "resumed", record, now=now, state=entry.row.state, paused=False)


def _look_again(engine: Engine, entry: TaskEntry, step: OpenStep, now: float) -> DeliveryMove:
    settings = engine.settings
    after_s = settings.recovery_grace_s if entry.was_begun(step) else settings.overdue_s
    visible_at = step.due_at if step.due_at > now else look_again_at(entry, step, now, after_s)
    return DeliveryMove(step.step_id, step.attempt, step.attempt, visible_at, started=step.recorded_holder)
