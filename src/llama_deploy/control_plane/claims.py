"""Which steps were being worked on when a control plane died: known for every step that takes longer than a moment.

A claim is not recorded when it is made: most steps are answered before that would be worth a commit. What is still
held after `claim_recorded_after_s` is marked in its delivery, many at a time. A starting control plane thus knows an
attempt that was lost with it from one that never began, and a step that takes its process along cannot go on for ever
as attempt 1.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from llama_deploy.control_plane.deadlines import run_timeout_s
from llama_deploy.control_plane.open_steps import holder_mark
from llama_deploy.control_plane.records import Record
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry
from llama_deploy.errors import LlamaDeployError
from llama_deploy.messages.frames import HEARTBEAT_BYTES_MAX, HeldStep
from llama_deploy.runtime import failpoint
from llama_deploy.runtime.clock import Timer
from llama_deploy.state_stores.base import DeliveryMove, Transition

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine


class Claims:
    """The claims of one engine that are not recorded yet, oldest first."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._recent: deque[tuple[float, TaskEntry, OpenStep, int]] = deque()
        self._timer: Timer | None = None

    def note(self, entry: TaskEntry, step: OpenStep) -> None:
        """An instance has just taken this step."""
        self._recent.append((step.claimed_at, entry, step, step.attempt))
        if self._timer is None:
            self._arm()

    def run_ends_at(self, entry: TaskEntry, step: OpenStep) -> float:
        """When whoever holds a step should have answered, grace included.

        What it waited for people, for tasks that it called, and for its place after that, does not count.
        """
        waits = step.queued or step.asking or step.awaited
        if step.claimed_by is None or waits or self._engine.admission.waits(step.step_id):
            return math.inf
        definition = self._engine.registry.definition(step.service)
        since = max(step.claimed_at, step.resumed_at)
        return since + run_timeout_s(entry, step, definition) + self._engine.settings.run_timeout_grace_s

    def look_again_at(self, entry: TaskEntry, step: OpenStep, now: float) -> float:
        """When a step that is held now is to be looked at again."""
        return min(now + self._engine.settings.overdue_s, max(now, self.run_ends_at(entry, step)))

    def queued(self, step_id: str, attempt: int) -> None:
        """Whoever holds a step cannot begin it yet: its run deadline has not begun either."""
        step = self._held(step_id, attempt)
        if step is not None:
            step.queued = True

    def begun(self, step_id: str, attempt: int) -> None:
        """A step that had to wait at its instance begins now."""
        step = self._held(step_id, attempt)
        if step is not None and step.queued:
            step.queued = False
            step.resumed_at = self._engine.clock.now()

    def _held(self, step_id: str, attempt: int) -> OpenStep | None:
        entry = self._engine.cache.tasks.get(step_id.rpartition(":")[0])
        step = entry.open.get(step_id) if entry is not None else None
        return step if step is not None and step.attempt == attempt else None

    def beaten(self, held: HeldStep) -> None:
        """The code of a step has said how far it is. Known in memory, and recorded with the end of the attempt."""
        entry = self._engine.cache.tasks.get(held.step_id.rpartition(":")[0])
        step = entry.open.get(held.step_id) if entry is not None else None
        fits = held.heartbeat is not None and len(held.heartbeat) <= HEARTBEAT_BYTES_MAX
        if step is not None and step.attempt == held.attempt and fits:
            step.beat, step.beat_at = held.heartbeat, self._engine.clock.now()

    def stop(self) -> None:
        """Record nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        self._recent.clear()

    def _arm(self) -> None:
        when = self._recent[0][0] + self._engine.settings.claim_recorded_after_s
        self._timer = self._engine.clock.call_at(when, self._record)

    def _record(self) -> None:
        """Mark every step that is held for long enough, in one transition."""
        engine = self._engine
        self._timer = None
        now = engine.clock.now()
        moves: list[DeliveryMove] = []
        while self._recent and self._recent[0][0] <= now - engine.settings.claim_recorded_after_s:
            _, entry, step, attempt = self._recent.popleft()
            holder = step.claimed_by if step.attempt == attempt and not step.parked else None
            if holder and not entry.stale and entry.open.get(step.step_id) is step and step.started != attempt:
                move = self._begin(entry, step, holder, now)
                failpoint("claims.before_record")
                if entry.row.state == "submitted":
                    self._begun(entry, step, move, now)
                else:
                    moves.append(move)
        if moves:
            engine.store.record(Transition(settled=_unless_answered, moved=moves))
        if self._recent:
            self._arm()

    def _begin(self, entry: TaskEntry, step: OpenStep, holder: str, now: float) -> DeliveryMove:
        """The change of a delivery that says who works on the attempt."""
        step.started, step.begun_by, step.found = step.attempt, holder_mark(holder), False
        visible_at = self.look_again_at(entry, step, now)
        self._engine.arm_sweeper(visible_at)
        return DeliveryMove(step.step_id, step.attempt, step.attempt, visible_at, started=step.begun_by)

    def tells(self, entry: TaskEntry, step: OpenStep, holder: str) -> None:
        """Whoever holds an attempt, or held it until it answered, is about to be heard in the record, by its first
        stream event.

        Where others may have been given the attempt, the delivery says who it is before that: what is on record of an
        attempt is one instance's, and whoever leads the task next takes it back from no other one.
        """
        if step.found:
            move = self._begin(entry, step, holder, self._engine.clock.now())
            transition = Transition(settled=_unless_answered, shard_key=entry.row.session_id, moved=(move,))
            self._engine.store.record(transition)

    def _begun(self, entry: TaskEntry, step: OpenStep, move: DeliveryMove, now: float) -> None:
        """A task that had to wait for its beginning is seen to be worked on."""
        record = Record(
            state="",
            step_id=step.step_id,
            service=step.service,
            attempt=step.attempt,
            started_at=step.claimed_at,
            by=step.claimed_by,
        )
        transition = Transition(settled=_unless_answered, moved=(move,))
        self._engine.recording.commit(entry, transition, "begun", record, now=now, state=entry.working_state())


def _unless_answered(_: LlamaDeployError | None) -> None:
    """A refusal means that a task was loaded again meanwhile; its instance's answer tells all that is needed."""
    failpoint("claims.after_record")
