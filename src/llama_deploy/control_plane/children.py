"""Services that call services: a call is a task of its own, and the step that made it waits for its outcome.

The id of a child follows from the step and the call's key, so an attempt after a crash finds the child that an earlier
one has started; it is such that whoever leads the parent leads the child. The call is in the parent's history before
the child is submitted; when the parent has ended, whatever it called and has not ended is canceled, after a crash
between the two as well. Places and connections are the gateway's.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import msgspec
from pydantic import ValidationError

from llama_deploy.control_plane.records import Record
from llama_deploy.control_plane.refusals import digest, not_current
from llama_deploy.control_plane.signals import Signals
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry
from llama_deploy.errors import (
    CallConflictError,
    InvalidRequestError,
    LimitExceededError,
    LlamaDeployError,
    ShardLostError,
    ShuttingDownError,
    StoreUnavailableError,
    TaskConflictError,
    TaskEndedError,
    TaskNotFoundError,
)
from llama_deploy.messages.frames import Call, EndCall, Returned
from llama_deploy.runtime import failpoint
from llama_deploy.runtime.logs import get_logger
from llama_deploy.state_stores.base import Condition, TaskFilter, Transition
from llama_deploy.state_stores.shards import id_beside
from llama_deploy.types import FINAL_STATES, Origin, TaskDefinition, TaskOptions, TaskState

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine

log = get_logger("llama_deploy.engine")

NAMESPACE = uuid.UUID("6f0d8c1e-31a5-5d0b-9d5e-0f8a3f5b6c27")
"""Under which the ids of children are made."""
AGAIN_S = 1.0
"""Pause before something is tried again for which the store is needed."""
PAGE_TASKS = 500
UNFINISHED = tuple(state.value for state in TaskState if state not in FINAL_STATES)


class Caller(Protocol):
    """The connection of the instance that holds the calling step."""

    def lend(self, step_id: str, key: str) -> None:
        """The step waits: its place is free for others."""

    def ask_back(self, step_id: str, key: str, go_on: Callable[[], None]) -> None:
        """A call has ended; `go_on` is called once the step has a place again, where that was the last one."""

    def tell(self, returned: Returned) -> None:
        """Tell the step what came of a call."""


class Children:
    """The calls that the steps of one engine's tasks make."""

    def __init__(self, engine: Engine, signals: Signals) -> None:
        self._engine = engine
        self._signals = signals
        engine.parent_ended = self._parent_ended

    # --- calling ----------------------------------------------------------------------------------------------------

    def call(self, op: Call, caller: Caller) -> None:
        """Record a call, submit its task unless that exists, and give its outcome to the caller when it has one."""

        def use(entry: TaskEntry | None) -> None:
            if entry is None:
                self._refuse(op, caller, not_current(op.step_id))
            else:
                self._engine.in_turn(entry, partial(self._call, entry, op, caller))

        self._engine.cache.with_entry(op.step_id.rpartition(":")[0], use)

    def _call(self, entry: TaskEntry, op: Call, caller: Caller) -> None:
        if entry.stale:
            self.call(op, caller)
            return
        step = _current(entry, op)
        if step is None:  # what made it so may be on its way to the store, and may yet be refused there
            self._engine.when_settled(entry, partial(self._not_current, entry, op, caller))
            return
        child_id = id_beside(child_of(op.step_id, op.key), entry.row.session_id, self._engine.store.shards_count)
        try:
            definition = self._definition(entry, op, child_id)
        except LlamaDeployError as error:
            self._refuse(op, caller, error)
            return
        if entry.children is not None and child_id in entry.children:
            self._engine.when_settled(entry, partial(self._find, entry, op, caller, definition))
            return
        entry.call(child_id)
        record = Record(
            state="",
            step_id=step.step_id,
            service=step.service,
            attempt=step.attempt,
            by=step.claimed_by,
            key=op.key,
            child=child_id,
            called=definition.agent_id,
            reason=f"calls {definition.agent_id}" if definition.agent_id else None,
        )

        def recorded() -> None:
            failpoint("children.called")
            self._submit(entry, op, caller, definition)

        settled = self._engine.recording.or_again(op.step_id, partial(self.call, op, caller), recorded)
        transition = Transition(settled=settled)
        now = self._engine.clock.now()
        self._engine.recording.commit(entry, transition, "called", record, now=now, state=entry.working_state())

    def _not_current(self, entry: TaskEntry, op: Call, caller: Caller) -> None:
        if entry.stale:
            self.call(op, caller)
        else:
            self._refuse(op, caller, not_current(op.step_id))

    def _definition(self, entry: TaskEntry, op: Call, child_id: str) -> TaskDefinition:
        """The task that a call is. Raises for what no task can be made of, and beyond the limits."""
        settings = self._engine.settings
        if not 0 < len(op.key) <= settings.id_length_max:
            raise InvalidRequestError(
                f"the key {op.key[:40]!r} cannot be used", why=f"a key has 1 to {settings.id_length_max} characters"
            )
        try:
            definition = TaskDefinition.model_validate_json(op.definition)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
            raise InvalidRequestError("the call is not valid", why="; ".join(problems)) from error
        above = entry.definition.options.origin if entry.definition.options is not None else None
        depth = above.depth + 1 if above is not None and above.kind == "child" else 1
        if depth > settings.call_depth_max:
            raise _limit("call_depth_max", settings.call_depth_max, f"calls of services are nested {depth} deep")
        calls = entry.children or {}
        if child_id not in calls and len(calls) >= settings.calls_per_task_max:
            raise _limit("calls_per_task_max", settings.calls_per_task_max, "the task has called too many services")
        options = definition.options or TaskOptions()
        origin = Origin(kind="child", task_id=entry.row.task_id, step_id=op.step_id, depth=depth)
        changes: dict[str, object] = {"origin": origin}
        if options.priority is None and (step := entry.open.get(op.step_id)) is not None:
            changes["priority"] = entry.option(step, "priority")  # what is urgent must not wait for what is not
        definition.task_id = child_id
        definition.session_id = definition.idempotency_key = None
        definition.options = options.model_copy(update=changes)
        return definition

    def _find(self, entry: TaskEntry, op: Call, caller: Caller, definition: TaskDefinition) -> None:
        """The call was made before: its task is there, unless everything stopped between the two commits."""
        if entry.stale:
            self.call(op, caller)
            return

        def use(child: TaskEntry | None) -> None:
            if child is None:
                self._submit(entry, op, caller, definition)
            elif digest(child.definition) != digest(definition):
                self._refuse(op, caller, _differs(op, child.definition))
            else:
                self._wait(entry, op, caller, child)

        self._engine.cache.with_entry(definition.task_id, use)

    def _submit(self, entry: TaskEntry, op: Call, caller: Caller, definition: TaskDefinition) -> None:
        if entry.stale or _current(entry, op) is None:
            self._not_current(entry, op, caller)
            return

        def done(child: TaskEntry | None, error: LlamaDeployError | None) -> None:
            if child is not None:
                failpoint("children.submitted")
                self._wait(entry, op, caller, child)
            elif isinstance(error, StoreUnavailableError | ShuttingDownError):  # asked again here, or after the restart
                self._engine.spawn(self._submit_later(entry, op, caller, definition))
            elif isinstance(error, TaskConflictError):
                self._refuse(op, caller, _differs(op, None))
            elif error is not None:
                self._refuse(op, caller, error)

        self._engine.submissions.submit(definition, done)

    async def _submit_later(self, entry: TaskEntry, op: Call, caller: Caller, definition: TaskDefinition) -> None:
        await self._engine.sleep(AGAIN_S)
        self._submit(entry, op, caller, definition)

    # --- waiting ----------------------------------------------------------------------------------------------------

    def _wait(self, entry: TaskEntry, op: Call, caller: Caller, child: TaskEntry) -> None:
        """The child is on record: its end is the answer to the call."""
        if entry.stale and not entry.final:

            def use(present: TaskEntry | None) -> None:
                if present is not None:
                    self._wait(present, op, caller, child)
                else:  # removed, which only an ended one is
                    self._engine.spawn(self._cancel(child.row.task_id, _because(entry)))

            self._engine.cache.with_entry(entry.row.task_id, use)
            return
        step = _current(entry, op)
        if entry.final:  # it was canceled in between, and could not know of this child
            self._engine.spawn(self._cancel(child.row.task_id, _because(entry)))
        if step is not None and not child.ended:
            step.awaited = {**(step.awaited or {}), op.key: child.row.task_id}
            caller.lend(op.step_id, op.key)
            if self._engine.admission.gates:
                self._engine.admission.release(op.step_id)
            entry.notify()
        self._engine.when_ended(child, partial(self._child_ended, entry, op, caller))

    def _child_ended(self, entry: TaskEntry, op: Call, caller: Caller, child: TaskEntry) -> None:
        entry = self._engine.cache.tasks.get(entry.row.task_id, entry)  # it may have been loaded again meanwhile
        if entry.children is not None:
            entry.children[child.row.task_id] = True
        outcome = child.outcome or b"null"
        returned = Returned(op.step_id, op.attempt, op.key, child.row.task_id, child.row.state, outcome)
        step = _current(entry, op)
        if step is not None and step.awaited is not None and op.key in step.awaited:
            step.awaited[op.key] = ""
        caller.ask_back(op.step_id, op.key, partial(self._go_on, entry, op, caller, returned))

    def _go_on(self, entry: TaskEntry, op: Call, caller: Caller, returned: Returned) -> None:
        """The step has its place at the instance; then one at the limit of its service.

        In this order: who has asked a person keeps the former and wants the latter back, so that the other way round
        two steps could wait for each other.
        """
        entry = self._engine.cache.tasks.get(entry.row.task_id, entry)
        step = self._waits_no_more(entry, op)
        if step is not None and self._engine.admission.gates:
            self._engine.admission.go_on(entry, step, partial(caller.tell, returned))
        else:
            caller.tell(returned)

    def _waits_no_more(self, entry: TaskEntry, op: Call | EndCall) -> OpenStep | None:
        """The step, where this was the last call that it has waited for."""
        step = _current(entry, op)
        if step is None or step.awaited is None or step.awaited.pop(op.key, None) is None:
            return None
        step.resumed_at = self._engine.clock.now()
        entry.notify()
        return None if step.awaited else step

    def stop_waiting(self, op: EndCall) -> None:
        """The step goes on without the outcome of a call; the child goes on, too, as long as its parent."""
        entry = self._engine.cache.tasks.get(op.step_id.rpartition(":")[0])
        step = self._waits_no_more(entry, op) if entry is not None else None
        if entry is not None and step is not None and self._engine.admission.gates:
            self._engine.admission.go_on(entry, step, lambda: None)

    def _refuse(self, op: Call, caller: Caller, error: LlamaDeployError) -> None:
        problem = msgspec.json.encode(error.to_problem())
        caller.tell(Returned(op.step_id, op.attempt, op.key, problem=problem))

    # --- ending -----------------------------------------------------------------------------------------------------

    def _parent_ended(self, entry: TaskEntry) -> None:
        """Cancel what a task has called and did not wait for."""
        failpoint("children.parent_ended")
        for child_id, ended in (entry.children or {}).items():
            if not ended:
                self._engine.spawn(self._cancel(child_id, _because(entry)))

    async def _cancel(self, child_id: str, reason: str) -> None:
        """Cancel a child, once the store can be asked; one that has ended or never was is left alone."""
        while True:
            try:
                if child_id not in self._engine.cache.tasks:
                    row = await self._engine.store.load_task(child_id)
                    if row is None or row.ended_at is not None:
                        return
                await self._signals.cancel(child_id, reason=reason, by="its caller")
            except (TaskEndedError, TaskNotFoundError, ShardLostError):
                return  # whoever leads it by now looks after it
            except LlamaDeployError as error:
                log.warning("a called task cannot be canceled, trying again", task_id=child_id, error=str(error))
                await self._engine.sleep(AGAIN_S)
            else:
                return

    async def recover(self) -> None:
        """Cancel children whose parents ended just before an earlier control plane stopped."""
        of_children = Condition(column="origin", operator="prefix", values=("child:",))
        where = TaskFilter(states=UNFINISHED, conditions=(of_children,), oldest_first=True)
        cursor: str | None = None
        while True:
            try:
                page = await self._engine.store.list_tasks(where, limit=PAGE_TASKS, cursor=cursor)
                for row in page.rows:
                    if not self._engine.leadership.keeps(row.session_id):
                        continue
                    parent_id = row.origin.partition(":")[2]
                    parent = await self._engine.store.load_task(parent_id)
                    if parent is None or parent.ended_at is not None:
                        state = parent.state if parent is not None else "removed"
                        await self._cancel(row.task_id, f"task {parent_id}, which called it, has ended: {state}")
            except LlamaDeployError as error:
                log.warning("called tasks cannot be looked through, trying again", error=str(error))
                await self._engine.sleep(AGAIN_S)
                continue
            cursor = page.next
            if cursor is None:
                return


def child_of(step_id: str, key: str) -> str:
    """The id of the task that a step calls under a key, before its place; the same in every attempt."""
    return str(uuid.uuid5(NAMESPACE, f"{step_id}\n{key}"))


def _current(entry: TaskEntry, op: Call | EndCall) -> OpenStep | None:
    """The calling step, while it is open in the attempt that called."""
    step = entry.open.get(op.step_id) if not entry.final else None
    return step if step is not None and step.attempt == op.attempt else None


def _because(entry: TaskEntry) -> str:
    return f"task {entry.row.task_id}, which called it, has ended: {entry.row.state}"


def _differs(op: Call, recorded: TaskDefinition | None) -> CallConflictError:
    what = f"call {op.key}" if op.key.startswith("#") else f"the call with the key {op.key!r}"
    before = f" of {recorded.agent_id!r}" if recorded is not None and recorded.agent_id else ""
    return CallConflictError(
        f"{what} of step {op.step_id} was made before{before} with another input or other options",
        why="calls without a key are counted, and are the same call in every attempt by their number",
        fix="give each call a key= of its own where the order of calls, or what is asked, may differ between attempts",
        key=op.key,
    )


def _limit(setting: str, limit: int, what: str) -> LimitExceededError:
    return LimitExceededError(
        what, why=f"{setting} is {limit}", fix=f"call less, or raise {setting}", setting=setting, limit=limit
    )
