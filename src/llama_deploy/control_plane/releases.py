"""Releases: a task finishes on the version of a deployment's code that it began with, for as long as that is there.

An instance may say which release it runs, in one word. Somebody says which release is current; a task is bound to the
one that is current when it is submitted, by a word in its first history entry, and its steps go to instances of that
release alone. A release that another one has followed is *finishing*: it goes on with its own tasks until somebody
retires it, or its time is over. What is left of them then, and what no instance of the release serves any more, goes on
with the current one, which is an entry of the task's history (`moved`). As long as nobody names a release nothing is
bound, and nothing here is asked.

Each release of a service has a topic of its own in the queue, so that fair turns and credits are per release as well.
Who starts and ends the processes of a release is not known here.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from llama_deploy.control_plane.records import Record
from llama_deploy.control_plane.refusals import check_id, clean
from llama_deploy.control_plane.registry import is_reserved
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry
from llama_deploy.errors import (
    InvalidRequestError,
    LlamaDeployError,
    ReleaseNotFoundError,
    ShardLostError,
    StoreUnavailableError,
)
from llama_deploy.message_queues import Envelope
from llama_deploy.message_queues.base import TopicStatistics
from llama_deploy.runtime.clock import Timer
from llama_deploy.runtime.logs import get_logger
from llama_deploy.state_stores.base import Condition, TaskFilter, Transition
from llama_deploy.types import FINAL_STATES, ReleasesView, ReleaseView, TaskDefinition, TaskState
from llama_deploy.types.reserved import ANSWERED_HERE, TIMER_SERVICE

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine

log = get_logger("llama_deploy.releases")

RELEASES, ALL = "releases", "all"
"""The kind and the name of the one document that says which releases there are."""
PAGE_TASKS = 500
AGAIN_S = 1.0
"""Pause before something is recorded that could not be."""
UNFINISHED = tuple(state.value for state in TaskState if state not in FINAL_STATES)


class Release(msgspec.Struct, omit_defaults=True, frozen=True):
    """A release as it is recorded; of all that are, the last one is current."""

    name: str
    since: float
    until: float | None = None
    finish_by: float | None = None
    services: list[str] = []
    """What it served when another one followed."""


_decode = msgspec.json.Decoder(list[Release]).decode
_encode = msgspec.json.Encoder().encode


def topic_of(service: str, release: str) -> str:
    """The topic of a service's steps for one release; empty for those of none. No service's name has a slash."""
    return f"{service}/{release}" if release else service


class Releases:
    """The releases of one engine, and which task is bound to which."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.current = ""
        """What new tasks are bound to; empty as long as nobody has named a release, which the hot path asks."""
        self._known: dict[str, Release] = {}
        """By name, in the order in which they became current."""
        self._changing = asyncio.Lock()
        self._timers: dict[str, Timer] = {}
        """By release: when its time is over."""
        self._looking = False
        self._look_until = 0.0
        self._look_timer: Timer | None = None

    # --- what is recorded -------------------------------------------------------------------------------------------

    async def restore(self) -> None:
        """Know what was recorded by an earlier run, or by now by somebody else."""
        async with self._changing:
            await self._read()

    async def _read(self) -> None:
        recorded = (await self._engine.store.load_documents(RELEASES)).get(ALL)
        known = _decode(recorded) if recorded is not None else []
        if known != list(self._known.values()):
            self._take(known)

    async def use(self, name: str, *, finish_within_s: float | None = None, by: str = "") -> ReleasesView:
        """Bind new tasks to a release; the one before goes on with its own for so long at most. On record then.

        One that has finished, or is about to, may be used again. Of those that finish, the oldest is retired where
        there are too many. Repeating it changes nothing. Raises `InvalidRequestError` for a name that is none.
        """
        check_id("release", name, self._engine.settings.id_length_max)
        within_s = self._engine.settings.release_finish_within_s if finish_within_s is None else finish_within_s
        async with self._changing:
            await self._read()  # somebody else may have changed it just now
            if name != self.current:
                log.info("release is current", release=name, before=self.current, by=clean(by))
                await self._record(self._with_current(name, within_s))
        return await self.view()

    def _with_current(self, name: str, within_s: float) -> list[Release]:
        now = self._engine.clock.now()
        known = list(self._known.values())
        if known:
            last = known.pop()
            served = [one for one, entry in self._engine.registry.services.items() if entry.releases[last.name]]
            known.append(Release(last.name, last.since, now, now + within_s, served))
        since = self._known[name].since if name in self._known else now
        finishing = [one for one in known if one.name != name and one.finish_by is not None and one.finish_by > now]
        most = self._engine.settings.releases_finishing_max
        return [*(finishing[-most:] if most else []), Release(name, since)]

    async def begin(self, name: str) -> None:
        """`use` beside whatever else starts; what keeps it from being recorded is tried again."""
        while True:
            try:
                await self.use(name)
            except StoreUnavailableError as error:
                log.warning("a release cannot be made current now, trying again", release=name, error=str(error))
                await self._engine.sleep(AGAIN_S)
            else:
                return

    async def retire(self, name: str, *, by: str = "") -> ReleasesView:
        """Have the tasks of a release go on with the current one, at once. Repeating it is an error, and harmless.

        What its instances hold is finished by them. Raises `ReleaseNotFoundError`, and `InvalidRequestError` for the
        current release.
        """
        async with self._changing:
            await self._read()
            if name not in self._known:
                known = ", ".join(self._known) or "none"
                raise ReleaseNotFoundError(
                    f"no task is bound to a release {name!r}",
                    why=f"releases: {known}",
                    fix="llamactl releases list",
                    known=list(self._known),
                )
            if name == self.current:
                raise InvalidRequestError(
                    f"release {name!r} is the current one", fix="llamactl releases use NAME   make another one current"
                )
            await self._retire(name, by)
        return await self.view()

    async def _retire(self, name: str, by: str) -> None:
        log.info("release is retired", release=name, by=clean(by))
        await self._record([one for one in self._known.values() if one.name != name])

    async def _record(self, known: list[Release]) -> None:
        await self._engine.store.put_document(RELEASES, ALL, _encode(known))
        self._engine.common.changed()
        self._take(known)

    def _take(self, known: list[Release]) -> None:
        """What is recorded counts from now on."""
        engine = self._engine
        first = not self.current
        self._known = {one.name: one for one in known}
        self.current = engine.registry.current = known[-1].name if known else ""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for one in known:
            if one.finish_by is not None:
                self._call_at(one.finish_by, one.name)
        for port in engine.registry.instances.values():
            if first:
                port.change_topics()
            if port.release == self.current:
                engine.learn(engine.registry.register(port, port.definitions))
        if self.current:
            engine.registry.watchers.add(self._instances_changed)
            self._look_at(engine.registry.expected_until)
        self._look_soon()

    def stop(self) -> None:
        """Let no time be over any more."""
        for timer in (*self._timers.values(), *([self._look_timer] if self._look_timer is not None else [])):
            timer.cancel()

    def _time_is_over(self, name: str) -> None:
        async def retire() -> None:
            if not self._in_charge:  # whoever is retires it, and says so; else this one is by then
                self._call_at(self._engine.clock.now() + AGAIN_S, name)
                return
            try:
                async with self._changing:
                    await self._read()
                    finish_by = self._known[name].finish_by if name in self._known else None
                    if finish_by is None:  # somebody else was first, or it is the current one again
                        return
                    if finish_by > self._engine.clock.now():  # it was used again meanwhile
                        self._call_at(finish_by, name)
                        return
                    await self._retire(name, "its time is over")
            except LlamaDeployError as error:
                log.warning("a release cannot be retired now, trying again", release=name, error=str(error))
                self._call_at(self._engine.clock.now() + AGAIN_S, name)

        self._engine.spawn(retire())

    def _call_at(self, when: float, name: str) -> None:
        if name in self._timers:
            self._timers[name].cancel()
        self._timers[name] = self._engine.clock.call_at(when, partial(self._time_is_over, name))

    @property
    def _in_charge(self) -> bool:
        """Whether what happens by itself happens here: of several control planes one looks after it."""
        leadership = self._engine.leadership
        return not leadership.shared or 0 in leadership.shards

    # --- what a task is bound to ------------------------------------------------------------------------------------

    def of_new(self, definition: TaskDefinition) -> str:
        """What a task is bound to that is submitted now.

        A task that a step has called is bound to its caller's release: the code that calls was written with the code
        that is called. All others are bound to the current one: who retries, replays or forks a task of an earlier
        release wants to know what the present code makes of it.
        """
        origin = definition.options.origin if definition.options is not None else None
        if origin is not None and origin.kind == "child" and origin.task_id is not None:
            caller = self._engine.cache.tasks.get(origin.task_id)
            if caller is not None and caller.release in self._known:
                return caller.release
        return self.current

    def serves(self, service: str, release: str) -> bool:
        """Whether a task of a release is accepted for a service: somebody would take its step, or is expected back."""
        registry = self._engine.registry
        entry = registry.services.get(service)
        if not self.current or entry is None or is_reserved(service) or service in ANSWERED_HERE:
            return registry.serves(service)
        if entry.releases[""] or (entry.kept and registry.returning):
            return True
        return any(entry.releases[one] or registry.expects(entry, one) for one in {release, self.current})

    # --- where a step goes ------------------------------------------------------------------------------------------

    def topic(self, entry: TaskEntry, step: OpenStep) -> str:
        """Where to publish a step now. A task that its release cannot go on with is moved to the current one."""
        release = self._release_for(entry, step.service)
        if release is None:
            self._move(entry, step.service)
            release = self.current
        step.topic = topic_of(step.service, release)
        return step.topic

    def would_be(self, entry: TaskEntry, step: OpenStep) -> str:
        """Where `topic` would have it published; nothing is changed."""
        if not self.current:
            return step.service
        release = self._release_for(entry, step.service)
        return topic_of(step.service, self.current if release is None else release)

    def _release_for(self, entry: TaskEntry, service: str) -> str | None:
        """Whose instances get a step: empty for those of no release, `None` where the task's own cannot go on."""
        registry, release = self._engine.registry, entry.release
        found = registry.services.get(service)
        if found is None or is_reserved(service):
            return release if found is None and release in self._known else ""
        here = found.releases
        if not release:  # bound to none: whoever is there
            if here[""] or not found.instances:
                return ""
            return self.current if here[self.current] else next(one for one in here if here[one])
        if here[release] or (release == self.current and not here[""]):
            return release if release in self._known else None
        known = self._known.get(release)
        if known is None:
            return None
        if registry.expects(found, release):
            return release
        if here[""]:
            return ""
        returning = registry.returning and service in known.services and release not in found.lost_of
        return release if returning else None

    def _move(self, entry: TaskEntry, service: str) -> None:
        """Bind a task to the current release, which its history says from then on."""
        engine, before = self._engine, entry.release
        why = f"no instance of it serves {service}" if before in self._known else "it is retired"
        entry.release = self.current
        if entry.final or entry.stale or engine.recording.history_refusal(entry) is not None:
            return
        reason = f"release {before} goes on no more: {why}"
        record = Record(state="", release=self.current, service=service, reason=reason)
        # Refused: the task is loaded again, and what of it waits is published again.
        transition = Transition(settled=lambda _: None)
        engine.recording.commit(entry, transition, "moved", record, now=engine.clock.now(), state=entry.row.state)

    # --- looking after what waits -----------------------------------------------------------------------------------

    def _instances_changed(self) -> None:
        """Instances have come or gone: what waits may have to wait elsewhere, now or when they are expected no more."""
        if self._known.keys() - {self.current}:
            self._look_at(self._engine.clock.now() + self._engine.settings.service_return_s)
        self._look_soon()

    def _look_at(self, when: float) -> None:
        """Look once more at that time; in between, whatever happens has it look as well."""
        clock = self._engine.clock
        self._look_until = max(self._look_until, when)
        if self._look_timer is None and when > clock.now():
            self._look_timer = clock.call_at(when, self._look_again)

    def _look_again(self) -> None:
        self._look_timer = None
        self._look_at(self._look_until)
        self._look_soon()

    def _look_soon(self) -> None:
        if not self._looking and self.current and not self._engine.stopping:
            self._looking = True
            self._engine.spawn(self._look())

    async def _look(self) -> None:
        """Publish again, where it belongs now, what waits in the queue for instances that are not to get it."""
        engine = self._engine
        await asyncio.sleep(0)  # whatever else changes in this turn of the loop
        self._looking = False
        for number, entry in enumerate(list(engine.cache.tasks.values()), start=1):
            steps = [step for step in entry.open.values() if self._is_misplaced(entry, step)]
            if steps:
                engine.queue.withdraw([step.step_id for step in steps])
                for step in steps:
                    step.published = False
                engine.publish(entry, steps)
            if number % engine.settings.sweep_batch_max == 0:
                await asyncio.sleep(0)

    def _is_misplaced(self, entry: TaskEntry, step: OpenStep) -> bool:
        if entry.stale or not step.published or step.parked or step.service == TIMER_SERVICE:
            return False
        if step.claimed_by is not None:
            return False
        return self.would_be(entry, step) != step.topic

    def missing(self, entry: TaskEntry, step: OpenStep) -> str | None:
        """Why nobody takes a step although its service is served, in words."""
        service, _, release = step.topic.partition("/")
        if not release or entry.release not in self._known or self._engine.registry.services[service].releases[release]:
            return None
        expected = self._engine.registry.expects(self._engine.registry.services[service], release)
        return f'nobody of release {release} serves "{service}" now' + (" (it is expected back)" if expected else "")

    # --- topics of a service ----------------------------------------------------------------------------------------

    def topics(self, service: str) -> list[str]:
        """Where steps of a service may wait."""
        return [service, *(topic_of(service, name) for name in self._known)]

    def depth(self, service: str) -> int:
        """How many steps wait in the queue for a service."""
        depth = self._engine.queue.depth
        return sum(map(depth, self.topics(service))) if self.current else depth(service)

    def statistics(self, service: str) -> TopicStatistics:
        """How a service stands in the queue."""
        found = [self._engine.queue.statistics(topic) for topic in self.topics(service)]
        ages = [one.oldest_s for one in found if one.oldest_s is not None]
        return TopicStatistics(
            sum(one.waiting for one in found), sum(one.consumers for one in found), max(ages, default=None)
        )

    def peek(self, service: str, *, limit: int) -> list[Envelope]:
        """What waits in the queue for a service, release by release."""
        found: list[Envelope] = []
        for topic in self.topics(service):
            found += self._engine.queue.peek(topic, limit=limit - len(found)) if limit > len(found) else []
        return found

    # --- what is shown ----------------------------------------------------------------------------------------------

    async def view(self) -> ReleasesView:
        """The releases that tasks are bound to."""
        items = [
            ReleaseView(
                release=one.name,
                state="current" if one.name == self.current else "finishing",
                since=one.since,
                until=one.until,
                finish_by=one.finish_by,
                tasks=await self._tasks_of(one),
                instances={
                    name: count
                    for name, entry in sorted(self._engine.registry.services.items())
                    if (count := entry.releases[one.name])
                },
            )
            for one in list(self._known.values())
        ]
        return ReleasesView(current=self.current or None, items=items)

    async def _tasks_of(self, release: Release) -> int:
        """Unfinished tasks that are bound to a release.

        Those in memory are counted. Only where there is none, the store is asked for what nobody has touched since the
        start (it waits for people, say), and what of it is led here is loaded: so it is done once.
        """
        count = self._in_memory(release.name)
        if count or release.until is None:
            return count
        conditions = (
            Condition(column="created_at", operator="ge", values=(release.since,)),
            Condition(column="created_at", operator="le", values=(release.until,)),
        )
        where = TaskFilter(states=UNFINISHED, conditions=conditions, oldest_first=True)
        cursor: str | None = None
        elsewhere = 0
        while True:
            page = await self._engine.store.list_tasks(where, limit=PAGE_TASKS, cursor=cursor)
            for row in page.rows:
                try:
                    if row.task_id not in self._engine.cache.tasks:
                        await self._engine.cache.load(row.task_id)
                except ShardLostError:
                    elsewhere += 1  # another control plane knows
            cursor = page.next
            if cursor is None:
                return self._in_memory(release.name) + elsewhere

    def _in_memory(self, name: str) -> int:
        return sum(entry.release == name and not entry.ended for entry in self._engine.cache.tasks.values())
