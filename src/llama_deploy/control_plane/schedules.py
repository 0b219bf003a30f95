"""Recurring schedules: what is due is submitted like any other task, once for each time, whatever crashes in between.

A schedule and how far it has come is one document in the store. A time that has come is submitted under an id made of
the schedule's name and the time, then it is recorded that the time is over. Whoever dies in between submits it again
and finds the task that there is. Of control planes that share a store, the one that leads the first shard looks after
all schedules. Which times there are is in `schedule_times`; here is what follows from them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import islice
from typing import Any

from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.forwarder import Forwarder
from llama_deploy.control_plane.refusals import clean
from llama_deploy.control_plane.routing import Routing
from llama_deploy.control_plane.schedule_standing import KEPT, Standing, check_task, input_of, shown, task_id_of
from llama_deploy.control_plane.schedule_times import (
    CAUGHT_UP_MAX,
    check_timing,
    delay_of,
    missed,
    stamp,
    times_after,
    zone_of,
)
from llama_deploy.control_plane.signals import Signals
from llama_deploy.errors import (
    Category,
    InvalidRequestError,
    LimitExceededError,
    LlamaDeployError,
    ScheduleNotFoundError,
    ScheduleOfFileError,
    TaskConflictError,
    TaskEndedError,
)
from llama_deploy.runtime import failpoint
from llama_deploy.runtime.clock import Timer
from llama_deploy.runtime.logs import get_logger
from llama_deploy.types import Origin, TaskDefinition, TaskOptions
from llama_deploy.types.schedules import NAME_PATTERN, Schedule, ScheduleView

log = get_logger("llama_deploy.schedules")

KIND = "schedule"
"""The kind of the documents that schedules are kept as."""
SCHEDULES_MAX = 10_000
ON_TIME_S = 60.0
"""What is late by this at most was not missed: a restart takes a moment."""
AGAIN_S = 1.0
"""Pause before a task is submitted again that could not be recorded now."""
NEXT_TIMES_MAX = 1_000

_PASSING = frozenset({Category.UNAVAILABLE, Category.TOO_MANY})
"""Refusals after which a task is submitted again a little later."""


class Schedules:
    """The schedules of one control plane."""

    def __init__(self, engine: Engine, signals: Signals, forwarder: Forwarder, routing: Routing) -> None:
        self._engine = engine
        self._signals = signals
        self._forwarder = forwarder
        self._routing = routing
        self._of_file: Mapping[str, Schedule] | None = None
        self._charge: int | None = None
        """In which epoch they are this control plane's to look after; `None` where they are another's."""
        self._standing: dict[str, Standing] = {}
        self._watched: dict[str, str] = {}
        """By name: the task whose end is waited for."""
        self._look_at: dict[str, float] = {}
        """By name: when there is something to do; none for those with nothing to come."""
        self._timer: Timer | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    # --- start and stop ---------------------------------------------------------------------------------------------

    async def start(self, of_file: Mapping[str, Schedule] | None = None) -> None:
        """Know the schedules of an earlier run, take over those of the deployment file, and begin.

        `None` says that there is no file: what came from one stays. What was missed is caught up as each asks for.
        """
        self._of_file, self._charge = of_file, None
        self._routing.watch(self._wake.set)
        async with self._changing:
            await self._take_charge()
        self._task = asyncio.create_task(self._run())

    @property
    def in_charge(self) -> bool:
        """Whether they are this control plane's to look after, and not another's on the same store."""
        return self._charge is not None

    def _epoch(self) -> int | None:
        """In which epoch this control plane leads what all schedules belong to; `None` where it does not."""
        of_all = self._routing.of_all
        return self._engine.leadership.epoch_of(of_all) if self._routing.leads(of_all) else None

    async def _take_charge(self) -> None:
        """Begin to look after all of them, or leave that to another control plane, as who leads what has changed.

        What is known from an earlier epoch is known no more: another one may have been in charge between the two.
        """
        epoch = self._epoch()
        if epoch == self._charge:
            return
        self._leave_charge()
        if epoch is not None:
            self._charge = epoch
            try:
                await self._load()
            except BaseException:
                self._leave_charge()
                raise

    def _leave_charge(self) -> None:
        self._charge = None
        for known in (self._standing, self._watched, self._look_at):
            known.clear()

    async def _load(self) -> None:
        self._standing = await self._recorded()
        if self._of_file is not None:
            for name, standing in list(self._standing.items()):
                if standing.from_file and name not in self._of_file:
                    await self._forget(name)
            for name, schedule in self._of_file.items():
                await self._put(name, schedule, from_file=True)
        for name, standing in self._standing.items():
            await self._recover(name, standing)
            self._look_now(name)

    async def _recorded(self) -> dict[str, Standing]:
        found = await self._engine.store.load_documents(KIND)
        return {name: Standing.model_validate_json(data) for name, data in found.items()}

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Change something, one at a time. Raises `ShardLostError` where another control plane looks after them."""
        async with self._changing:
            await self._take_charge()
            if not self.in_charge:
                raise self._routing.not_led(self._routing.of_all)
            yield

    async def stop(self) -> None:
        """Submit nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _recover(self, name: str, standing: Standing) -> None:
        """A task that was submitted just before a crash is known again, also where its time would be over by now."""
        due_at = next(times_after(standing.schedule, standing.handled_at, standing.anchor), None)
        if due_at is None or due_at > self._engine.clock.now():
            return
        task_id = task_id_of(name, due_at)
        if await self._engine.store.load_task(task_id) is not None:
            standing.handled_at = due_at
            self._submitted(standing, due_at, task_id)
            await self._record(name, standing)

    # --- what people ask for ----------------------------------------------------------------------------------------

    async def put(self, name: str, schedule: Schedule) -> ScheduleView:
        """Create a schedule, or replace it; it is on record when this returns.

        Where the times stay the same, it goes on from where it is, paused if it was. Raises `InvalidRequestError`,
        `LimitExceededError`, and `ScheduleOfFileError` for one of the deployment file.
        """
        async with self._alone():
            self._refuse_of_file(name)
            await self._put(name, schedule, from_file=False)
            self._look_now(name)
            return await self._view(name)

    async def _put(self, name: str, schedule: Schedule, *, from_file: bool) -> None:
        if re.fullmatch(NAME_PATTERN, name) is None:
            raise InvalidRequestError(
                f"a schedule cannot be named {name[:40]!r}", why="1 to 100 letters, digits, `_`, `-` or `.`"
            )
        check_timing(schedule.cron, schedule.time_zone)
        check_task(schedule, self._engine)
        now = self._engine.clock.now()
        known = self._standing.get(name)
        if known is None and len(self._standing) >= SCHEDULES_MAX:
            raise LimitExceededError(f"there are {SCHEDULES_MAX} schedules", limit=SCHEDULES_MAX)
        if known is None:
            begun: dict[str, Any] = {"anchor": float(int(now)), "handled_at": now, "created_at": now, "updated_at": now}
            standing = Standing(schedule=schedule, **begun)
        elif known.schedule.timing == schedule.timing:
            standing = known.model_copy(update={"schedule": schedule, "updated_at": now})
        else:
            changes = {"schedule": schedule, "anchor": float(int(now)), "handled_at": now, "updated_at": now}
            standing = known.model_copy(update=changes)
        standing.from_file = from_file
        if known != standing:
            await self._record(name, standing)
        self._standing[name] = standing

    async def delete(self, name: str) -> ScheduleView:
        """Forget a schedule, not its tasks; how it stood. Raises `ScheduleNotFoundError`, `ScheduleOfFileError`."""
        async with self._alone():
            self._must(name)
            self._refuse_of_file(name)
            view = await self._view(name)
            await self._forget(name)
            return view

    async def pause(self, name: str, *, reason: str = "", by: str = "") -> ScheduleView:
        """Submit nothing until it is resumed. Repeating it changes nothing. Raises `ScheduleNotFoundError`."""
        async with self._alone():
            standing = self._must(name)
            if not standing.paused:
                because = (f"by {clean(by)}" if by else "") + (f": {clean(reason)}" if reason else "")
                await self._change(name, {"paused": True, "paused_because": because.strip(": ")})
            return await self._view(name)

    async def resume(self, name: str) -> ScheduleView:
        """Go on with the next time; what came while it was paused is over. Raises `ScheduleNotFoundError`."""
        async with self._alone():
            standing = self._must(name)
            if standing.paused:
                now = self._engine.clock.now()
                await self._change(name, {"paused": False, "paused_because": "", "handled_at": now})
                self._look_now(name)
            return await self._view(name)

    async def trigger(self, name: str) -> str:
        """Submit a task of the schedule now, whatever runs or is paused; returns its id.

        Raises `ScheduleNotFoundError`, and what refuses the task.
        """
        async with self._alone():
            standing = self._must(name)
            now = self._engine.clock.now()
            task_id = task_id_of(name, round(now, 3) + (0.001 if round(now, 3).is_integer() else 0.0))
            await self._submit(name, standing, now, task_id)
            self._submitted(standing, now, task_id)
            await self._record(name, standing)
            return task_id

    async def next_times(self, name: str, count: int) -> list[datetime]:
        """The next times of a schedule, in its own time zone, paused or not. Raises `ScheduleNotFoundError`."""
        async with self._alone():
            standing = self._must(name)
            times = times_after(standing.schedule, self._engine.clock.now(), standing.anchor)
            zone = zone_of(standing.schedule)
            return [datetime.fromtimestamp(time, zone) for time in islice(times, min(count, NEXT_TIMES_MAX))]

    async def get(self, name: str) -> ScheduleView:
        """One schedule. Raises `ScheduleNotFoundError`."""
        async with self._alone():
            self._must(name)
            return await self._view(name)

    async def list(self) -> list[ScheduleView]:
        """Every schedule, by name; as it is recorded, where another control plane looks after them."""
        async with self._changing:
            await self._take_charge()
            standing = self._standing if self.in_charge else await self._recorded()
            return [await self._view(name, standing[name]) for name in sorted(standing)]

    async def _view(self, name: str, standing: Standing | None = None) -> ScheduleView:
        standing = standing or self._standing[name]
        fields: dict[str, Any] = {key: getattr(standing, key) for key in ScheduleView.model_fields if key in KEPT}
        next_at = None if standing.paused else self._next_at(name, standing)
        running = standing.last_task_id is not None and await self._has_not_ended(standing.last_task_id)
        fields["schedule"] = shown(standing.schedule, self._engine.redact)
        return ScheduleView(name=name, next_at=next_at, running=running, **fields)

    async def _has_not_ended(self, task_id: str) -> bool:
        entry = self._engine.cache.tasks.get(task_id)
        if entry is not None:
            return not entry.ended
        row = await self._engine.store.load_task(task_id)
        return row is not None and row.ended_at is None

    def _must(self, name: str) -> Standing:
        standing = self._standing.get(name)
        if standing is None:
            known = ", ".join(sorted(self._standing)[:20]) or "none"
            raise ScheduleNotFoundError(f"there is no schedule {name!r}", why=f"known: {known}")
        return standing

    def _refuse_of_file(self, name: str) -> None:
        standing = self._standing.get(name)
        if standing is not None and standing.from_file:
            raise ScheduleOfFileError(
                f"the schedule {name!r} stands in the deployment file",
                fix="change it there; it can be paused, resumed and triggered from here",
            )

    async def _forget(self, name: str) -> None:
        await self._engine.store.delete_document(KIND, name)
        del self._standing[name]
        self._watched.pop(name, None)
        self._look_at.pop(name, None)

    async def _change(self, name: str, changes: dict[str, Any]) -> None:
        standing = self._standing[name].model_copy(update={**changes, "updated_at": self._engine.clock.now()})
        await self._record(name, standing)
        self._standing[name] = standing

    async def _record(self, name: str, standing: Standing) -> None:
        if self._epoch() != self._charge:  # by now; it may have taken long to submit a task
            raise self._routing.not_led(self._routing.of_all)
        await self._engine.store.put_document(KIND, name, standing.model_dump_json(exclude_defaults=True).encode())

    # --- what falls due ---------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._see_who_leads()
            now = self._engine.clock.now()
            for name in [name for name, when in self._look_at.items() if when <= now]:
                async with self._changing:
                    if name in self._standing:
                        await self._look_after(name, self._standing[name])
            self._arm()

    async def _see_who_leads(self) -> None:
        try:
            async with self._changing:
                await self._take_charge()
        except Exception as error:  # noqa: BLE001 - the edge of this task: of another version, say
            log.warning("the schedules cannot be read now, trying again", error=str(error))
            self._engine.clock.call_at(self._engine.clock.now() + AGAIN_S, self._wake.set)

    async def _look_after(self, name: str, standing: Standing) -> None:
        """Do what is due for one schedule; what goes wrong with it keeps no other one from going on."""
        self._look_at.pop(name, None)
        if standing.paused:
            return
        try:
            await self._submit_waiting(name, standing)
            await self._submit_due(name, standing)
            next_at = self._next_at(name, standing)
            if next_at is not None:
                self._look_at.setdefault(name, next_at)  # at once, where the task before has ended meanwhile
        except Exception as error:  # the edge of this task: whatever happened, what is due stays due
            self._look_at.setdefault(name, self._engine.clock.now() + AGAIN_S)
            if isinstance(error, LlamaDeployError):
                log.warning("a schedule's task cannot be submitted now", schedule=name, error=str(error))
            else:
                log.exception("a schedule failed, trying again", schedule=name)

    async def _submit_due(self, name: str, standing: Standing) -> None:
        now = self._engine.clock.now()
        due = missed(standing.schedule, name, standing.handled_at, now, anchor=standing.anchor, on_time_s=ON_TIME_S)
        left_out = due.missed
        for due_at in due.times:
            await self._come(name, standing, due_at)
            standing.handled_at = due_at
            standing.missed, left_out = standing.missed + left_out, 0
            await self._record(name, standing)
            failpoint("schedules.recorded")
        if due.handled is not None and due.handled > standing.handled_at:
            standing.handled_at = due.handled
            standing.missed += left_out
            await self._record(name, standing)

    async def _come(self, name: str, standing: Standing, due_at: float) -> None:
        """A time has come: submit its task, or what else follows where the one before has not ended."""
        overlap = standing.schedule.overlap
        running = await self._runs(standing) if overlap != "allow" else None
        if running is not None and overlap == "skip":
            standing.skipped += 1
            return
        if overlap == "queue" and (running is not None or standing.waiting):
            if due_at in standing.waiting:
                return
            if len(standing.waiting) < (CAUGHT_UP_MAX if standing.schedule.catch_up == "all" else 1):
                standing.waiting.append(due_at)
                self._watch(name, running)
            else:
                standing.skipped += 1
            return
        if running is not None:
            try:
                by = f"schedule:{name}"
                reason = "the next task of its schedule is due"
                await self._forwarder.cancel(self._signals, running, reason=reason, by=by)
            except TaskEndedError:
                log.info("the task before has ended by itself", schedule=name)
        await self._submit_time(name, standing, due_at)

    async def _submit_waiting(self, name: str, standing: Standing) -> None:
        """Submit what has waited for the end of the task before."""
        while standing.waiting:
            running = await self._runs(standing)
            if running is not None:
                self._watch(name, running)
                return
            await self._submit_time(name, standing, standing.waiting[0])
            del standing.waiting[0]
            await self._record(name, standing)
            failpoint("schedules.recorded")

    async def _submit_time(self, name: str, standing: Standing, due_at: float) -> None:
        """Submit the task of one time; a task that can never be recorded is noted, and the time is over."""
        task_id = task_id_of(name, due_at)
        failpoint("schedules.before_submit")
        try:
            await self._submit(name, standing, due_at, task_id)
        except TaskConflictError:
            log.info("the task of this time was submitted before", schedule=name, task_id=task_id)
        except LlamaDeployError as error:
            if error.category in _PASSING:
                raise
            standing.last_error = str(error)
            log.warning("a schedule's task was refused", schedule=name, error=str(error))
            return
        failpoint("schedules.submitted")
        self._submitted(standing, due_at, task_id)

    async def _submit(self, name: str, standing: Standing, due_at: float, task_id: str) -> None:
        schedule = standing.schedule
        options = schedule.options or TaskOptions()
        definition = TaskDefinition(
            input=input_of(schedule),
            task_id=task_id,
            session_id=schedule.session_id,
            agent_id=schedule.service,
            wait_for_service=True,
            metadata={**schedule.metadata, "schedule": name, "due_at": stamp(due_at)},
            options=options.model_copy(update={"origin": Origin(kind="schedule", schedule=name)}),
        )
        await self._forwarder.submit(definition)

    @staticmethod
    def _submitted(standing: Standing, due_at: float, task_id: str) -> None:
        standing.submitted += 1
        standing.last_due_at, standing.last_task_id, standing.last_error = due_at, task_id, ""

    async def _runs(self, standing: Standing) -> str | None:
        """The latest task of a schedule where it has not ended, as far as is recorded, and is kept."""
        task_id = standing.last_task_id
        if task_id is None:
            return None
        entry = self._engine.cache.tasks.get(task_id)
        if entry is not None:
            return None if entry.final else task_id
        row = await self._engine.store.load_task(task_id)
        return task_id if row is not None and row.ended_at is None else None

    def _watch(self, name: str, task_id: str | None) -> None:
        """Look again when the latest task has ended."""
        if task_id is None or self._watched.get(name) == task_id:
            return
        self._watched[name] = task_id
        self._engine.spawn(self._watch_end(name, task_id))

    async def _watch_end(self, name: str, task_id: str) -> None:
        try:
            await self._forwarder.ended(task_id)
        except LlamaDeployError as error:
            log.warning("the end of a schedule's task cannot be waited for, trying again", error=str(error))
            await self._engine.sleep(AGAIN_S)
        if self._watched.get(name) == task_id:  # else it is forgotten, or another control plane's by now
            del self._watched[name]
            self._look_now(name)

    # --- when to look again -----------------------------------------------------------------------------------------

    def _look_now(self, name: str) -> None:
        self._look_at[name] = 0.0
        self._wake.set()

    def _next_at(self, name: str, standing: Standing) -> float | None:
        due_at = next(times_after(standing.schedule, standing.handled_at, standing.anchor), None)
        return None if due_at is None else due_at + delay_of(standing.schedule, name, due_at)

    def _arm(self) -> None:
        """Wake up when the next time comes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._look_at:
            self._timer = self._engine.clock.call_at(min(self._look_at.values()), self._wake.set)
