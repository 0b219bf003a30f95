"""The sweeper: what is overdue is published again, whatever the reason.

One mechanism covers a retry whose backoff is over, a crash between commit and publication, a message that the queue
lost, and everything that was on its way when a control plane died. It sleeps until the next delivery falls due.
What an instance holds, or what stands in this process's queue, is not overdue: its time is extended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from llama_deploy.control_plane.deadlines import DEADLINE_INDEX, look_again_at, queue_ends_at
from llama_deploy.control_plane.decisions import Outcome, encode_result
from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.records import Record
from llama_deploy.control_plane.refusals import failure, resolve, step_failure
from llama_deploy.control_plane.signals import Signals
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry
from llama_deploy.errors import LlamaDeployError, QueueTimeoutError, ShardLostError, TaskTimeoutError
from llama_deploy.runtime import SilenceTimer, Timer, failpoint
from llama_deploy.runtime.logs import get_logger
from llama_deploy.state_stores.base import DeliveryMove, DeliveryRow, Transition
from llama_deploy.types import TaskResult
from llama_deploy.types.reserved import TIMER_SERVICE

log = get_logger("llama_deploy.sweeper")

LOOK_AGAIN_S = 0.05
"""Pause before the sweeper looks again at what was overdue and had a commit on its way."""


class Sweeper:
    """Publishes overdue deliveries of one engine."""

    def __init__(self, engine: Engine, signals: Signals) -> None:
        self._engine = engine
        self._signals = signals
        self._timer: Timer | None = None
        self._armed_for = float("inf")
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self._started_at = 0.0
        engine.arm_sweeper = self.arm

    def arm(self, when: float) -> None:
        """Sweep at this time at the latest."""
        when = max(when, self._not_before)
        if when >= self._armed_for:
            return
        self._armed_for = when
        if self._timer is not None:
            self._timer.cancel()
        again_s = self._engine.settings.recovery_grace_s
        self._timer = SilenceTimer(self._engine.clock, when, self._fire, again_s=again_s)

    def _fire(self) -> None:
        self._armed_for = float("inf")
        self._wake.set()

    async def start(self) -> int:
        """Take up what an earlier run has left: all of it is overdue, once its instances had time to come back.

        Returns the number of steps that are left.
        """
        now = self._engine.clock.now()
        self._started_at = now
        failpoint("sweeper.before_start")
        left = await self._engine.store.make_due(now)
        failpoint("sweeper.after_start")
        if left and not self._engine.queue.capabilities.in_process:
            self._engine.deliveries_from = now + self._engine.settings.recovery_grace_s
        if left:
            self._not_before = now + self._engine.settings.recovery_grace_s
            log.info("taking up unfinished work", steps=left)
            self.arm(self._not_before)
        self._task = asyncio.create_task(self._run())
        return left

    async def stop(self) -> None:
        """Sweep no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.sweep()
            except Exception as error:  # the edge of this task: whatever happened, what is overdue stays overdue
                if isinstance(error, LlamaDeployError):
                    log.warning("sweep failed, repeating it", error=str(error))
                else:
                    log.exception("sweep failed, repeating it")
                self.arm(self._engine.clock.now() + 1.0)

    async def sweep(self) -> int:
        """Publish or extend everything that is overdue now; returns how many deliveries that were."""
        engine = self._engine
        handled = 0
        while True:
            rows = await engine.store.due_deliveries(engine.clock.now(), limit=engine.settings.sweep_batch_max)
            count = await self._handle(rows) if rows else 0
            handled += count
            if count == 0 or len(rows) < engine.settings.sweep_batch_max:
                break
        due = await engine.store.next_due()
        if due is not None:  # what is left overdue has a commit on its way that will say when to look again
            now = engine.clock.now()
            self.arm(due if due > now else now + LOOK_AGAIN_S)
        return handled

    async def _handle(self, rows: Sequence[DeliveryRow]) -> int:
        """Take care of overdue rows; returns of how many."""
        engine = self._engine
        loaded = [(row, await self._entry(row.task_id)) for row in rows]
        now = engine.clock.now()
        moves: list[DeliveryMove] = []
        publications: list[tuple[TaskEntry, OpenStep, int]] = []
        lost = 0
        for row, entry in loaded:  # nothing is awaited from here until the moves are handed over
            if row.index == DEADLINE_INDEX:
                lost += self._at_deadline(entry, row, now, moves)
                continue
            step = entry.open.get(row.step_id) if entry is not None else None
            if entry is None or step is None or self._is_about_to_change(entry, step, row, now):
                continue
            if step.service == TIMER_SERVICE:
                if step.due_at <= now and not step.published:
                    self._fire_timer(entry, step)
                    lost += 1
                else:
                    moves.append(self._extended(entry, step, now))
                continue
            if not entry.busy and (self._waited_too_long(entry, step, now) or self._is_lost(entry, step, now)):
                lost += 1
                continue
            moves.append(self._extended(entry, step, now))
            held = step.claimed_by is not None and step.claimed_by in engine.registry.instances
            if not held and not entry.busy and step.due_at <= now:
                publications.append((entry, step, step.attempt))
        if moves:
            settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            failpoint("sweeper.before_extend")
            engine.store.record(Transition(settled=lambda _: resolve(settled), moved=moves))
            await settled
            failpoint("sweeper.after_extend")
        await engine.queue.refresh({step.topic for _, step, _ in publications})
        for entry, step, attempt in publications:
            waits = entry.open.get(step.step_id) is step and not step.parked and not entry.busy and not entry.stale
            if waits and step.attempt == attempt and step.claimed_by not in engine.registry.instances:
                step.due_at = 0.0
                if not self._stands(entry, step):
                    step.sent_again_at = now
                    engine.publish(entry, [step])
        return len(moves) + lost

    async def _entry(self, task_id: str) -> TaskEntry | None:
        """The task of an overdue row; `None` while its shard is being handed over."""
        try:
            return await self._engine.cache.load(task_id)
        except ShardLostError:
            return None

    def _is_about_to_change(self, entry: TaskEntry, step: OpenStep, row: DeliveryRow, now: float) -> bool:
        """Whether a step was parked or moved, which is on its way to the store; or an instance says what it holds."""
        if step.parked or step.attempt != row.attempt or entry.stale:
            return True
        return bool(self._engine.adopting and step.claimed_by is None and not step.published and step.due_at <= now)

    def _stands(self, entry: TaskEntry, step: OpenStep) -> bool:
        """Whether a step still waits in the queue, as far as that can tell: then it is not sent again.

        One that an earlier run has published stands there too, unless its service has a gate, where it has to be
        counted first. What another control plane has published stands in a queue of that one.
        """
        engine = self._engine
        if engine.leadership.shared and not step.published:
            return False
        since = max(step.due_since, step.sent_again_at)
        topic = step.topic if step.published else engine.releases.would_be(entry, step)
        if not engine.queue.may_hold(topic, step.step_id, since):
            return False
        if step.service not in engine.admission.gates:
            step.published = True
        return step.published

    def queue_returned(self, lost: bool) -> None:  # noqa: FBT001 - the queue's word
        """The queue can carry again: what it has lost goes out at once, or what it could not take meanwhile."""
        self._engine.spawn(self._publish_rest(lost=lost))

    async def _publish_rest(self, *, lost: bool) -> None:
        engine = self._engine
        now = engine.clock.now()
        for number, entry in enumerate(list(engine.cache.tasks.values()), start=1):
            if not (entry.final or entry.stale or entry.busy):
                steps = [step for step in entry.open.values() if self._waits_unsent(entry, step, now, lost=lost)]
                for step in steps:
                    step.sent_again_at = now
                if steps:
                    engine.publish(entry, steps)
            if number % engine.settings.sweep_batch_max == 0:
                await asyncio.sleep(0)

    def _waits_unsent(self, entry: TaskEntry, step: OpenStep, now: float, *, lost: bool) -> bool:
        held = step.parked or step.claimed_by in self._engine.registry.instances
        if held or step.due_at > now or step.service == TIMER_SERVICE:
            return False
        if step.published:
            return lost and not entry.must_not_begin(step)
        return now >= self._engine.deliveries_from and not entry.was_begun(step)

    def _extended(self, entry: TaskEntry, step: OpenStep, now: float) -> DeliveryMove:
        """When to look at a step again: what is not claimed is published again with growing pauses."""
        settings = self._engine.settings
        if step.due_at > now:
            visible_at = step.due_at
        elif step.claimed_by is not None and step.claimed_by in self._engine.registry.instances:
            visible_at = self._engine.claims.look_again_at(entry, step, now)
        else:
            step.overdue_s = min(settings.overdue_s_max, step.overdue_s * 2 or settings.overdue_s)
            visible_at = look_again_at(entry, step, now, step.overdue_s, settings.recovery_grace_s)
        return DeliveryMove(step.step_id, step.attempt, step.attempt, visible_at, started=step.recorded_holder)

    def _at_deadline(self, entry: TaskEntry | None, row: DeliveryRow, now: float, moves: list[DeliveryMove]) -> int:
        """End a task whose deadline is over, or look again when it is; returns how many were ended."""
        if entry is None or entry.final or entry.stale:
            return 0  # it has ended, or is loaded again
        if entry.deadline_at > now:
            moves.append(DeliveryMove(row.step_id, 1, 1, entry.deadline_at))
            return 0
        options = entry.definition.options
        seconds = options.total_timeout_s if options is not None else None
        error = TaskTimeoutError(
            f"the task had not ended {seconds:g} s after its beginning",
            why=f"total_timeout_s of the task is {seconds:g}",
            fix=f"llamactl tasks timeline {entry.row.task_id}   shows what took so long",
        )
        outcome = Outcome("failed", encode_result(failure(entry.row.task_id, error)))
        transition = Transition(settled=lambda _: None)  # refused: the task is loaded again and the row still stands
        record = Record(state="", reason=str(error))
        self._engine.recording.end(entry, transition, "timed_out", record, outcome, now=now)
        return 1

    def _fire_timer(self, entry: TaskEntry, step: OpenStep) -> None:
        """Answer a timer of the orchestrator that is due."""
        step.published = True  # once: a policy that thinks may keep it waiting

        def fire() -> None:
            if entry.stale or entry.final or entry.open.get(step.step_id) is not step:
                return
            result = TaskResult(
                task_id=entry.row.task_id,
                history=[],
                result="",
                data={"due_at": step.due_at},
                step_id=step.step_id,
                service=step.service,
                attempt=step.attempt,
                tag=step.tag,
            )
            self._engine.answers.conclude(entry, step, result, lambda _: None, finished_at=step.due_at)

        self._engine.in_turn(entry, fire)

    def _waited_too_long(self, entry: TaskEntry, step: OpenStep, now: float) -> bool:
        """Fail a step that no instance has taken in time."""
        engine = self._engine
        if step.claimed_by is not None or entry.row.paused or step.due_at > now:
            return False
        if queue_ends_at(entry, step) > now:
            return False
        begun_at = self._started_at
        if engine.leadership.shared:
            begun_at = max(begun_at, engine.leadership.begun_at.get(engine.leadership.shard(entry.row.session_id), 0.0))
        if step.due_since < begun_at and not (step.published or step.overdue_s):
            return False  # of an earlier run, or another one's: an instance may come back with it
        seconds = entry.option(step, "queue_timeout_s")
        error = QueueTimeoutError(
            f"no instance of {step.service} has taken step {step.step_id} within {seconds:g} s",
            why=f"queue_timeout_s is {seconds:g}",
            fix="start further instances of the service, or let it wait longer",
        )
        if step.published:
            self._engine.queue.withdraw([step.step_id])
        self._engine.answers.conclude(entry, step, step_failure(entry, step, error), lambda _: None)
        return True

    def _is_lost(self, entry: TaskEntry, step: OpenStep, now: float) -> bool:
        """Make a step that nobody will answer any more the next attempt."""
        if self._engine.claims.run_ends_at(entry, step) <= now:
            self._signals.lost([step.step_id], step.claimed_by, "its run deadline is over")
            return True
        if self._was_begun(entry, step):
            self._signals.lost([step.step_id], step.claimed_by, "it was lost together with the control plane")
            return True
        return False

    def _was_begun(self, entry: TaskEntry, step: OpenStep) -> bool:
        """Whether an instance of an earlier run has worked on this attempt, and nobody has come back with it."""
        if self._engine.admission.gates and not self._engine.admission.may_be_claimed(step):
            return False  # it waits for its turn, and has kept what it had begun before it was parked
        if step.claimed_by in self._engine.registry.instances or step.due_at > self._engine.clock.now():
            return False
        known = step.published or step.claimed_by is not None
        return entry.must_not_begin(step) if known else entry.was_begun(step)
