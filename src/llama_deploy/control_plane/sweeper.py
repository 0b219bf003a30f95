"""The sweeper: what is overdue is published again, whatever the reason.

One mechanism covers a retry whose backoff is over, a crash between commit and publication, a message that the queue
lost, and everything that was on its way when a control plane died. It sleeps until the next delivery falls due.
What an instance holds, or what stands in this process's queue, is not overdue: its time is extended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.refusals import resolve
from llama_deploy.control_plane.signals import Signals
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry
from llama_deploy.errors import LlamaDeployError
from llama_deploy.runtime.clock import Timer
from llama_deploy.runtime.logs import get_logger
from llama_deploy.state_stores.base import DeliveryMove, DeliveryRow, Transition

log = get_logger("llama_deploy.sweeper")


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
        engine.arm_sweeper = self.arm

    def arm(self, when: float) -> None:
        """Sweep at this time at the latest."""
        when = max(when, self._not_before)
        if when >= self._armed_for:
            return
        self._armed_for = when
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._engine.clock.call_at(when, self._wake.set)

    async def start(self) -> int:
        """Take up what an earlier run has left: all of it is overdue, once its instances had time to come back.

        Returns the number of steps that are left.
        """
        now = self._engine.clock.now()
        left = await self._engine.store.make_due(now)
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
            self._armed_for = float("inf")
            try:
                await self.sweep()
            except LlamaDeployError as error:
                log.warning("sweep failed, repeating it", error=str(error))
                self.arm(self._engine.clock.now() + 1.0)

    async def sweep(self) -> int:
        """Publish or extend everything that is overdue now; returns how many deliveries that were."""
        engine = self._engine
        handled = 0
        while True:
            rows = await engine.store.due_deliveries(engine.clock.now(), limit=engine.settings.sweep_batch_max)
            if rows:
                handled += len(rows)
                await self._handle(rows)
            if len(rows) < engine.settings.sweep_batch_max:
                break
        due = await engine.store.next_due()
        if due is not None:
            self.arm(due)
        return handled

    async def _handle(self, rows: Sequence[DeliveryRow]) -> None:
        engine = self._engine
        now = engine.clock.now()
        moves: list[DeliveryMove] = []
        publications: list[tuple[TaskEntry, OpenStep]] = []
        for row in rows:
            entry = await engine.cache.load(row.task_id)
            step = entry.open.get(row.step_id) if entry is not None else None
            if entry is None or step is None or step.parked or step.due_at > now or entry.stale:
                continue  # answered, parked or moved while this sweep was reading
            if self._overran(step, now):
                self._signals.lost([step.step_id], step.claimed_by or "", "its run deadline is over")
                continue
            if self._was_begun(entry, step):
                self._signals.lost([step.step_id], None, "it was lost together with the control plane")
                continue
            held = step.claimed_by is not None and step.claimed_by in engine.registry.instances
            if not held and not step.published:
                publications.append((entry, step))
            settings = engine.settings
            step.overdue_s = min(settings.overdue_s_max, step.overdue_s * 2 or settings.overdue_s)
            wait_s = settings.overdue_s if held else step.overdue_s
            begun = int(step.started == step.attempt)
            moves.append(DeliveryMove(step.step_id, step.attempt, step.attempt, now + wait_s, started=begun))
        if moves:
            settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            # A refusal only means that one of them was answered meanwhile: the next sweep looks again.
            engine.store.record(Transition(settled=lambda _: resolve(settled), moved=moves))
            await settled
        for entry, step in publications:
            if not step.published and not step.parked and not step.claimed_by:
                step.due_at = 0.0
                engine.publish(entry, [step])

    def _was_begun(self, entry: TaskEntry, step: OpenStep) -> bool:
        """Whether an instance of an earlier run has worked on this attempt, and nobody has come back with it."""
        if step.claimed_by is not None or step.published:
            return False
        streamed = entry.stream is not None and entry.stream.count_of(step.step_id, step.attempt) > 0
        return step.started == step.attempt or streamed

    def _overran(self, step: OpenStep, now: float) -> bool:
        """Whether an instance holds a step for longer than the step may run, and a grace."""
        if step.claimed_by is None or step.asking:
            return False
        definition = self._engine.registry.definition(step.service)
        run_timeout_s = definition.run_timeout_s if definition is not None else 600.0
        return now - step.claimed_at > run_timeout_s + self._engine.settings.run_timeout_grace_s
