"""The engine: decide, record, publish, fold back, end.

It holds the unfinished tasks in memory, ahead of the store by what is being committed. Every change of a task is one
transition, recorded in one commit; nobody acts on a decision before that commit. Decisions of one task are made one at
a time and in the order in which their triggers arrived. This module asks the policy and publishes; how tasks come in
is in `submissions`, how answers come back in `answers`, how anything is recorded in `recording`, what reaches a task
from outside in `signals`, what falls due in `sweeper`, streams in `streams`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from llama_deploy.control_plane.admission import Admission
from llama_deploy.control_plane.answers import Answers
from llama_deploy.control_plane.backpressure import Backpressure
from llama_deploy.control_plane.claims import Claims
from llama_deploy.control_plane.common import Common
from llama_deploy.control_plane.contents import Contents
from llama_deploy.control_plane.deadlines import heartbeat_timeout_s, run_timeout_s
from llama_deploy.control_plane.decisions import Decision, decide, drive
from llama_deploy.control_plane.gate import turn_of
from llama_deploy.control_plane.leadership import Leadership
from llama_deploy.control_plane.ledgers import Ledgers
from llama_deploy.control_plane.memory import Memory
from llama_deploy.control_plane.memos import Memos
from llama_deploy.control_plane.policies import Policies
from llama_deploy.control_plane.recording import Recording
from llama_deploy.control_plane.refusals import resolve
from llama_deploy.control_plane.registry import Registry, encode_definition
from llama_deploy.control_plane.releases import Releases
from llama_deploy.control_plane.session_state import Delta, SessionState
from llama_deploy.control_plane.settings import EngineSettings
from llama_deploy.control_plane.streams import Streams
from llama_deploy.control_plane.submissions import Submissions
from llama_deploy.control_plane.task_cache import TaskCache, not_found
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry
from llama_deploy.control_plane.webhooks import Webhooks
from llama_deploy.errors import LlamaDeployError, OrchestratorError
from llama_deploy.message_queues import Envelope, MessageQueue
from llama_deploy.messages.frames import Deliver, encode_op
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.runtime import Clock, SystemClock, failpoint
from llama_deploy.runtime.logs import get_logger
from llama_deploy.state_stores import StateStore
from llama_deploy.state_stores.base import Transition
from llama_deploy.types import TaskResult
from llama_deploy.types.redaction import NO_REDACTION
from llama_deploy.types.reserved import TIMER_SERVICE
from llama_deploy.types.webhooks import WebhookSettings

log = get_logger("llama_deploy.engine")


CONFLICTS_BEFORE_LOCK = 2
"""After so many conflicts over shared state, a decision is made under the session's lock."""


@dataclass
class EngineStatistics:
    """What an engine has done since it started."""

    submitted: int = 0
    ended: int = 0
    answers: int = 0
    answers_late: int = 0
    """Answers whose ticket was gone: another attempt answered first, or the task had ended."""
    retries: int = 0
    lost: int = 0
    """Attempts taken from instances that died, went silent or overran their deadline."""
    published: int = 0
    conflicts: int = 0
    decisions_repeated: int = 0
    removed: int = 0
    """Ended tasks that are not kept any more."""


class Engine:
    """One control plane's engine over one store and one queue."""

    def __init__(
        self,
        *,
        store: StateStore,
        queue: MessageQueue,
        orchestrator: BaseOrchestrator,
        orchestrators: Mapping[str, BaseOrchestrator] | None = None,
        settings: EngineSettings | None = None,
        clock: Clock | None = None,
        default_service: str | None = None,
        seed: int | None = None,
        webhooks: WebhookSettings | None = None,
        leadership: Leadership | None = None,
    ) -> None:
        self.store = store
        self.leadership = leadership or Leadership(store)
        self.ready = False
        """Whether what an earlier run has left was taken up, so that further shards are taken up one by one."""
        self.queue = queue
        self.policies = Policies(orchestrator, orchestrators or {})
        self.settings = settings or EngineSettings()
        self.clock = clock or SystemClock()
        self.default_service = default_service
        self.redact = NO_REDACTION
        """What is left out of what people look at."""
        self.registry = Registry(self.clock, self.settings)
        self.statistics = EngineStatistics()
        self.cache = TaskCache(self)
        self.submissions = Submissions(self)
        self.answers = Answers(self)
        self.claims = Claims(self)
        self.memos = Memos(self)
        self.ledgers = Ledgers(self)
        self.memory = Memory(self)
        self.admission = Admission(self)
        self.releases = Releases(self)
        self.started_at = self.clock.now()
        self.backpressure = Backpressure(self)
        self.recording = Recording(self)
        self.streams = Streams(self)
        self.contents = Contents(self)
        self.common = Common(self)
        self.webhooks = Webhooks(self, webhooks or WebhookSettings())
        self.parent_ended: Callable[[TaskEntry], None] = lambda _: None
        """Set by `Children`: a task that has called others has ended."""
        self.arm_sweeper: Callable[[float], None] = lambda _: None
        """Set by the sweeper: something falls due at that time."""
        self.stopping = False
        self.adopting = 0
        """How many instances are being asked right now about what they hold: nothing is taken for lost meanwhile."""
        self.deliveries_from = 0.0
        """Until then nothing is taken from a queue that an earlier run has published to."""
        self._background: dict[asyncio.Task[None], None] = {}
        self._random = random.Random(seed)  # noqa: S311 - jitter, not a secret

    def decide(
        self,
        entry: TaskEntry,
        answer: tuple[TaskResult, bytes] | None,
        decided: Callable[[Decision | LlamaDeployError], None],
        *,
        retries: int | None = None,
    ) -> None:
        """Ask the policy; `decided` is called at once where it never waits, else when it has answered."""
        session = entry.session
        at_once = session is None or not (session.stale or session.lock.locked())
        if entry.policy.synchronous and at_once:
            try:
                decision = drive(decide(entry.policy, entry.definition, entry.private, entry.session, answer))
            except LlamaDeployError as error:
                decided(error)
                return
            decided(decision)
            return
        entry.busy = True
        attempts = self.settings.decision_retries_max if retries is None else retries
        self.spawn(self._decide_slowly(entry, answer, decided, attempts))

    async def _decide_slowly(
        self,
        entry: TaskEntry,
        answer: tuple[TaskResult, bytes] | None,
        decided: Callable[[Decision | LlamaDeployError], None],
        retries: int,
    ) -> None:
        """A policy that takes time: decided outside of any commit, again when what it was based on has moved."""
        decision: Decision | LlamaDeployError = OrchestratorError("no decision")
        conflicts = failures = 0
        locked: SessionState | None = None
        try:
            while failures <= retries and not entry.moved:
                session = await self.cache.session_of(entry)
                if session is not None and locked is not session:
                    if locked is not None:
                        locked.lock.release()
                    locked = None
                    if conflicts >= CONFLICTS_BEFORE_LOCK or session.lock.locked():
                        await session.lock.acquire()
                        locked = session
                        continue  # it may have been loaded again meanwhile
                decision = await self._ask(entry, session, answer)
                if not isinstance(decision, Decision):
                    failures += 1
                    if failures <= retries:
                        await self.sleep(self.settings.decision_retry_s * 2 ** (failures - 1))
                elif session is None or (not session.stale and self._holds(session, decision.delta)):
                    break
                else:
                    conflicts += 1
                    self.statistics.decisions_repeated += 1
            entry.busy = False
            decided(decision)
        finally:
            if locked is not None:
                locked.lock.release()
            self.drain(entry)

    async def _ask(
        self, entry: TaskEntry, session: SessionState | None, answer: tuple[TaskResult, bytes] | None
    ) -> Decision | LlamaDeployError:
        """Ask the policy once, within its deadline; what it raises is its answer."""
        try:
            async with asyncio.timeout(self.settings.decision_timeout_s):
                return await decide(entry.policy, entry.definition, entry.private, session, answer)
        except TimeoutError:
            return OrchestratorError(
                f"the orchestrator {type(entry.policy).__name__} did not decide in time",
                why=f"decision_timeout_s is {self.settings.decision_timeout_s:g}",
            )
        except LlamaDeployError as error:
            return error

    def _holds(self, session: SessionState, delta: Delta) -> bool:
        """Whether every shared key that was read or is written still has the version that the policy saw."""
        return all(session.version(key) == version for key, version in delta.reads.items())

    def drain(self, entry: TaskEntry) -> None:
        """Work on what arrived for a task while it was being decided on."""
        try:
            while entry.mailbox and not entry.busy:
                entry.mailbox.popleft()()
        finally:
            if entry.mailbox and not entry.busy:  # one of them raised: the others have their turn all the same
                asyncio.get_running_loop().call_soon(self.drain, entry)

    def in_turn(self, entry: TaskEntry, work: Callable[[], None]) -> None:
        """Run `work` now, or after the decision that is being made."""
        if entry.busy or entry.mailbox:
            entry.mailbox.append(work)
        else:
            work()

    def jitter(self, delay_s: float, share: float = 0.2, *, least_s: float = 0.0) -> float:
        """The delay and up to a share of it more or less, but not less than what a service has asked for."""
        if delay_s <= 0:
            return 0.0
        jittered = delay_s * (1 + share * (2 * self._random.random() - 1))
        return jittered if jittered >= least_s else 2 * least_s - jittered

    def publish(self, entry: TaskEntry, steps: list[OpenStep]) -> None:
        """Hand the current attempt of these steps to the queue; those that a gate holds back follow in their turn."""
        if entry.row.paused or entry.moved:
            return
        failpoint("engine.before_publish")
        admission = self.admission if self.admission.gates else None
        memory = self.memory if self.memory.modes else None
        self._carry(
            [
                self._envelope(entry, step)
                for step in steps
                if step.step_id in entry.open
                and not entry.must_not_begin(step)
                and (step.known is None or not self.answers.recall(entry, step))
                and step.service != TIMER_SERVICE
                and (memory is None or memory.passes(entry, step))
                and (admission is None or admission.passes(entry, step))
            ]
        )

    def hand_out(self, steps: list[tuple[TaskEntry, OpenStep]]) -> None:
        """Hand steps to the queue whose turn has come at their gate."""
        failpoint("engine.before_publish")
        self._carry([self._envelope(entry, step) for entry, step in steps])

    def _envelope(self, entry: TaskEntry, step: OpenStep) -> Envelope:
        """A step on its way to whoever takes it."""
        step.published = True
        step.claimed_by = None
        body = self._delivery(entry, step)
        topic = self.releases.topic(entry, step) if self.releases.current else step.service
        if step.options is None and entry.definition.options is None:
            return Envelope(step.step_id, step.attempt, topic, body)
        return Envelope(step.step_id, step.attempt, topic, body, *turn_of(entry, step))

    def delivery_of(self, step_id: str) -> bytes:
        """The delivery of a step that was just claimed, for an envelope that a carrier could not carry whole."""
        entry = self.cache.tasks[step_id.rpartition(":")[0]]
        return self._delivery(entry, entry.open[step_id])

    def _delivery(self, entry: TaskEntry, step: OpenStep) -> bytes:
        definition = self.registry.definition(step.service)
        memory = self.memory.given(entry, step) if self.memory.modes else (None, 0)
        operation = Deliver(
            step.step_id,
            step.attempt,
            step.service,
            step.action,
            entry.row.task_id,
            entry.row.session_id,
            step.body,
            run_timeout_s(entry, step, definition, unknown_s=0.0),
            step.inputs,
            step.snapshot,
            0 if entry.stream is None else entry.stream.count_of(step.step_id, step.attempt),
            heartbeat_timeout_s(entry, step),
            step.memos,
            step.beat,
            *memory,
        )
        return encode_op(operation)

    def _carry(self, envelopes: list[Envelope]) -> None:
        self.statistics.published += len(envelopes)
        for refused in self.queue.publish(envelopes):
            entry = self.cache.tasks.get(refused.step_id.rpartition(":")[0])
            step = entry.open.get(refused.step_id) if entry is not None else None
            if step is not None and step.attempt == refused.attempt:
                step.published = False
            self.admission.release(refused.step_id)
        failpoint("engine.after_publish")

    def gave_back(self, transition: Transition) -> None:
        """A transition is committed: places and turns of steps that are not at work any more go to others."""
        if self.admission.gates:
            self.admission.settled(transition)
        if self.memory.modes:
            self.memory.settled(transition)

    def reclaimed(self, entry: TaskEntry, step: OpenStep) -> None:
        """An instance has come back with a step that it has worked on all the time."""
        if self.admission.gates:
            self.admission.reclaimed(entry, step)
        self.memory.reclaimed(entry, step)

    def hold_back(self, entry: TaskEntry) -> None:
        """Take back from the queue what no instance has taken of a task that is paused now."""
        waiting = [step for step in entry.open.values() if step.published and step.claimed_by is None]
        for step in waiting:
            step.published = False
        if waiting:
            self.queue.withdraw([step.step_id for step in waiting])
        if self.admission.gates:
            for step in entry.open.values():
                if step.claimed_by is None:
                    self.admission.release(step.step_id)

    def publish_again(self, step_id: str, attempt: int, entry: TaskEntry | None) -> None:
        """Who was to get a delivery left while its task was loaded: it goes out once more."""
        step = entry.open.get(step_id) if entry is not None else None
        if entry is None or step is None or entry.row.paused:
            return
        mine = step.published or self._left_by_earlier_run(entry, step)
        if mine and step.attempt == attempt and step.claimed_by is None and not step.parked:
            self.publish(entry, [step])

    def claim(self, instance_id: str, step_id: str, attempt: int, *, holds: bool = False) -> bool:
        """An instance is about to get a step, or `holds` it already; false when the delivery must be dropped."""
        task_id = step_id.rpartition(":")[0]
        entry = self.cache.tasks.get(task_id)
        if entry is None:
            return False
        step = entry.open.get(step_id)
        if step is None or step.attempt != attempt or step.parked:
            return False
        if entry.row.paused and not holds:
            return False
        if step.claimed_by not in (None, instance_id):
            if step.claimed_by in self.registry.instances or entry.was_begun(step):
                return False  # delivered twice
            step.found = True
        if step_id in self.recording.refusals:
            return False  # delivered twice, and answered: that answer is about to be recorded once more
        if self.admission.gates and not self.admission.may_be_claimed(step):
            return False  # taken back from the queue, which has delivered it all the same
        begun = entry.must_not_begin(step)
        if not holds and (begun or not (step.published or self._left_by_earlier_run(entry, step))):
            return False
        step.claimed_by = instance_id
        step.claimed_at = self.clock.now()
        step.queued = False
        self.claims.note(entry, step)
        return True

    def _left_by_earlier_run(self, entry: TaskEntry, step: OpenStep) -> bool:
        """Whether a step that this process has not published may be taken: it stood in a queue that outlives us.

        Not one that an earlier control plane gave to somebody who has begun it, which the sweeper makes the next
        attempt, nor one that has to wait for its turn. Where others share the store, whoever holds it may be about to
        say so: the sweeper publishes it when there was time for that.
        """
        if self.leadership.shared or step.due_at > self.clock.now() or entry.was_begun(step):
            return False
        step.published = not self.admission.gates or self.admission.passes(entry, step)
        return step.published

    def when_ended(self, entry: TaskEntry, callback: Callable[[TaskEntry], None]) -> None:
        """Call back once the end of the task is committed, at once if it is."""
        if entry.ended:
            callback(entry)
        else:
            entry.ended_callbacks.append(callback)

    def when_settled(self, entry: TaskEntry, callback: Callable[[], None]) -> None:
        """Call back once all that was decided for a task so far is committed or refused, at once if it is."""
        version = entry.row.version

        def watch() -> None:
            if entry.settled_seq >= version or entry.stale:
                entry.watchers.pop(watch, None)
                callback()

        if entry.settled_seq >= version or entry.stale:
            callback()
        else:
            entry.watchers[watch] = None

    def when_certain(self, entry: TaskEntry, certain: Callable[[], None], again: Callable[[], None]) -> None:
        """Call `certain` once all that was decided for a task so far is committed, `again` where it was refused."""
        self.when_settled(entry, lambda: again() if entry.stale else certain())

    async def wait_settled(self, entry: TaskEntry) -> None:
        """Wait until all that was decided for a task so far is committed or refused."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.when_settled(entry, partial(resolve, future))
        await future

    async def wait_ended(self, entry: TaskEntry, timeout_s: float | None) -> bool:
        """Wait until the task has ended; false when the time is over first. The task goes on either way.

        Raises `ShardLostError` when another control plane leads it by then, `TaskNotFoundError` when it was removed.
        """
        if entry.ended:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def ended(_: TaskEntry) -> None:
            if not future.done():
                future.set_result(None)

        def moved() -> None:
            if not future.done():
                session_id = entry.row.session_id
                removed = self.leadership.keeps(session_id)
                future.set_exception(not_found(entry.row.task_id) if removed else self.leadership.not_led(session_id))

        entry.ended_callbacks.append(ended)
        entry.when_moved(moved)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            return False
        finally:
            entry.forget_moved(moved)
            if ended in entry.ended_callbacks:
                entry.ended_callbacks.remove(ended)
        return True

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the flow; what it raises is logged, and the engine goes on."""
        task = asyncio.get_running_loop().create_task(work)
        self._background[task] = None
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._background.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            log.error("background work failed", exc_info=task.exception())

    async def sleep(self, seconds: float) -> None:
        """Let time pass on the engine's clock."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.clock.call_at(self.clock.now() + seconds, partial(resolve, future))
        try:
            await future
        finally:
            timer.cancel()

    def learn(self, definitions: list[Any]) -> None:
        """Make new or changed service definitions durable."""

        async def store() -> None:
            for definition in definitions:
                await self.store.put_service(definition.service_name, encode_definition(definition))
                failpoint("services.recorded")
            self.common.changed()

        for definition in definitions:
            self.admission.refresh(definition.service_name)
            self.memory.refresh(definition.service_name)
        if definitions:
            self.spawn(store())

    async def stop(self) -> None:
        """Take nothing new and end what runs beside the flow. The store is closed by whoever opened it."""
        self.stopping = True
        self.claims.stop()
        self.admission.stop()
        self.releases.stop()
        for task in tuple(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
