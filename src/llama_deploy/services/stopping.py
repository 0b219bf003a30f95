"""How the code of an attempt is made to stop: at its deadline, when it is silent, when nobody wants its answer.

First it is asked: its coroutine is cancelled, code in a thread sees `context.canceled`. What has not ended after the
grace is left behind: it goes on, because nothing in this process can end it, but holds nobody up any more. It is
counted and shown until it ends. The runner decides what stops and what is answered.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from llama_deploy.errors import HeartbeatTimeoutError, LlamaDeployError, RunTimeoutError, StepCanceledError
from llama_deploy.messages.frames import Answer, LeftBehind, Stopped
from llama_deploy.runtime.logs import get_logger
from llama_deploy.services.base import Service
from llama_deploy.services.steps import RunningStep

log = get_logger("llama_deploy.runner")

CANCEL_GRACE_S = 4.0
"""Until a control plane has said its own."""


class Stopping:
    """What has to stop in one instance, and what has been left behind."""

    def __init__(
        self,
        services: Mapping[str, Service],
        *,
        post: Callable[[Any], None],
        fail: Callable[[RunningStep, LlamaDeployError], Answer | None],
    ) -> None:
        self._services = services
        self._post = post
        self._fail = fail
        self.grace_s = CANCEL_GRACE_S
        self.tasks: dict[asyncio.Task[None], RunningStep] = {}
        """Coroutines that have been asked to stop and have not, and whose they are."""
        self._left: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()
        self.watch: Callable[[RunningStep], None] = self._watch
        """Looks after a step that has to show signs of life; a link does so from a thread of its own."""

    def start(self) -> None:
        """Hear of threads that come back; called on the loop that services run on."""
        self._loop = asyncio.get_running_loop()
        for name, service in self._services.items():
            service.left_behind_changed = partial(self._changed, name)

    def _changed(self, service: str) -> None:
        """A thread has come back; called in that thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._report, service)

    def begin(self, step: RunningStep) -> None:
        """An attempt begins: its deadlines run."""
        if step.delivery.run_timeout_s:
            step.limit(step.delivery.run_timeout_s, self._overrun)
        if step.delivery.heartbeat_timeout_s:
            step.beat_at = self._loop.time()
            self.watch(step)

    # --- why code has to stop ---------------------------------------------------------------------------------------

    def take_away(self, step: RunningStep, reason: str) -> None:
        """Nobody wants the answer of an attempt any more; none is sent."""
        step.stopped = True
        step.end_limit()
        if step.context is not None:
            step.context.mark_canceled()
        if step.task is not None:
            log.info("step stopped", step_id=step.delivery.step_id, reason=reason)
            self._ask_to_stop(step, step.task, reason)
        elif step not in self.tasks.values():  # it has answered: there is nothing to stop
            self._tell_stopped(step)
        step.abandon(StepCanceledError("the attempt was canceled", why=reason))

    def _overrun(self, step: RunningStep) -> None:
        if step.task is None or step.answer is not None:
            return
        seconds = step.delivery.run_timeout_s
        step.failure = RunTimeoutError(
            f"{step.delivery.service} ran longer than {seconds:g} s",
            why=f"run_timeout_s is {seconds:g}",
            fix="make it faster, or raise run_timeout_s of the service or of the task",
        )
        if step.context is not None:
            step.context.mark_canceled()
        self._ask_to_stop(step, step.task, "run deadline")

    # --- signs of life ----------------------------------------------------------------------------------------------

    def _watch(self, step: RunningStep) -> None:
        quiet_s = step.quiet_for_s()
        if quiet_s is None:
            return
        if quiet_s > 0:
            self._loop.call_later(quiet_s, self._watch, step)
        elif (answer := self.silent(step)) is not None:
            step.post(answer)

    def silent(self, step: RunningStep) -> Answer | None:
        """Fail an attempt that shows no sign of life; the answer to send. Called from whatever thread watches."""
        seconds = step.delivery.heartbeat_timeout_s
        error = HeartbeatTimeoutError(
            f"{step.delivery.service} has shown no sign of life for {seconds:g} s",
            why=f"heartbeat_timeout_s is {seconds:g}",
            fix="call context.heartbeat() more often, or raise heartbeat_timeout_s",
        )
        task = step.task
        answer = self._fail(step, error)
        if answer is None:
            return None
        if step.context is not None:
            step.context.mark_canceled()
        self._loop.call_soon_threadsafe(step.abandon, StepCanceledError("the attempt has ended"))
        if task is None:
            return answer
        step.silent_task = task
        self._loop.call_soon_threadsafe(self._ask_to_stop, step, task, "no sign of life")
        return msgspec.structs.replace(answer, runs_on=True)

    # --- stopping ---------------------------------------------------------------------------------------------------

    def _ask_to_stop(self, step: RunningStep, task: asyncio.Task[None], reason: str) -> None:
        if task in self.tasks:
            return
        if task.done():  # since it was found that it has to stop
            self._tell_stopped(step)
            return
        self.tasks[task] = step
        task.cancel(reason)
        timer = self._loop.call_later(self.grace_s, self._leave, step, task)
        task.add_done_callback(partial(self._ended, step, timer))

    def _leave(self, step: RunningStep, task: asyncio.Task[None]) -> None:
        """The grace is over: the instance goes on without this code."""
        served = self._services.get(step.delivery.service)
        kill = served is not None and served.can_kill
        log.warning(
            "code that does not stop is killed"
            if kill
            else "code that does not stop is left behind; a process could be killed: @service(process=True)",
            service=step.delivery.service,
            step_id=step.delivery.step_id,
            after_s=self.grace_s,
        )
        if step.failure is not None and not step.stopped and (answer := self._fail(step, step.failure)) is not None:
            step.post(answer)
        step.abandon(StepCanceledError("the attempt has ended"))
        step.left_behind = True
        self._left[step.delivery.service] += 1
        self._tell_stopped(step)
        task.cancel("left behind")  # whoever waits for a thread lets go of it
        self._report(step.delivery.service)

    def _ended(self, step: RunningStep, timer: asyncio.TimerHandle, task: asyncio.Task[None]) -> None:
        timer.cancel()
        self.tasks.pop(task, None)
        if not task.cancelled():
            task.exception()  # whatever it was, nobody waits for it
        if step.left_behind:
            self._left[step.delivery.service] -= 1
            self._report(step.delivery.service)
        else:
            self._tell_stopped(step)

    def _tell_stopped(self, step: RunningStep) -> None:
        if step.stopped or step.silent_task is not None:
            step.post(Stopped(step.delivery.step_id, step.attempt))

    # --- what was left behind ---------------------------------------------------------------------------------------

    def _report(self, service: str) -> None:
        """Tell how much code of a service runs on that nobody waits for, where that has changed."""
        count = self._left[service] + self._services[service].left_behind if service in self._services else 0
        if count != self._reported[service]:
            self._reported[service] = count
            self._post(LeftBehind(service, count))

    def welcomed(self, grace_s: float) -> None:
        """A control plane is there: its grace counts, and it hears of what was left behind."""
        self.grace_s = grace_s
        for service, count in self._reported.items():
            if count:
                self._post(LeftBehind(service, count))
