"""Admission: whether a step may be handed to the queue now, or waits for its turn.

Here are the gates of the services that have limits or are paused; for all others nothing is kept and nothing is asked
but one look into an empty dictionary. Counts live in memory and come from the deliveries: a place is taken when a step
is handed to the queue, and given back after the commit that answers it, parks it, loses it or takes it back; where an
instance is to stop its code then, when that has ended. After a restart it is taken again by whoever comes back with
the step. What operators said is kept as documents in the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from llama_deploy.control_plane.gate import UNSURE_S, Gate, Guest, Place, Visitor, turn_of
from llama_deploy.control_plane.refusals import clean
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry
from llama_deploy.errors import ServiceNotFoundError
from llama_deploy.runtime.clock import Timer
from llama_deploy.runtime.logs import get_logger
from llama_deploy.state_stores.base import Transition
from llama_deploy.types import ServiceLimits
from llama_deploy.types.limits import NO_LIMITS
from llama_deploy.types.queues import LimitsView, PauseView

if TYPE_CHECKING:
    from llama_deploy.control_plane.counting import Counting
    from llama_deploy.control_plane.engine import Engine

log = get_logger("llama_deploy.admission")

PAUSED, LIMITS = "paused", "limits"
"""The kinds of the documents that operators' words are kept as; their names are those of the services."""

ADMITTED_AT_ONCE_MAX = 500
"""Steps that leave one waiting room in one turn of the loop."""


class Admission:
    """The gates of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.gates: dict[str, Gate] = {}
        """By service, for those that are limited or paused; the hot path asks whether there is any."""
        self._where: dict[str, Gate] = {}
        """By step id: the gate at which a step has its place, or waits."""
        self.counting: Counting | None = None
        """Who counts for which gates, where several control planes share the store."""
        self._moved: dict[str, tuple[Gate, str]] = {}
        """Steps, and their sessions, that another control plane leads by now and that count here for a while."""
        self.pauses: dict[str, PauseView] = {}
        self.overrides: dict[str, LimitsView] = {}
        self._words = asyncio.Lock()
        """Held while words are read or changed: what was read before a change never takes its place."""
        self._saying: set[asyncio.Future[None]] = set()
        self._closed_until = 0.0
        self._timers: dict[str, tuple[float, Timer]] = {}

    # --- what operators say -----------------------------------------------------------------------------------------

    async def restore(self) -> None:
        """Know again what operators have said; the services have been restored."""
        await self._read()
        for name in {*self.pauses, *self.overrides, *self._engine.registry.services}:
            self.refresh(name)

    async def reread(self) -> None:
        """Know what operators have said by now, also to other control planes."""
        async with self._words:
            pauses, overrides = self.pauses, self.overrides
            await self._read()
        for name in {*pauses, *overrides, *self.pauses, *self.overrides}:
            if pauses.get(name) != self.pauses.get(name) or overrides.get(name) != self.overrides.get(name):
                self.refresh(name)

    async def _read(self) -> None:
        store = self._engine.store
        pauses, overrides = await store.load_documents(PAUSED), await store.load_documents(LIMITS)
        self.pauses = {name: PauseView.model_validate_json(data) for name, data in pauses.items()}
        self.overrides = {name: LimitsView.model_validate_json(data) for name, data in overrides.items()}

    def close_until(self, when: float) -> None:
        """Let nothing through limits before: instances of an earlier run may come back with what they hold."""
        self._closed_until = when
        for gate in self.gates.values():
            gate.closed_until = when

    async def pause(self, service: str, *, reason: str = "", by: str = "") -> None:
        """Hand out no step of a service any more. It is on record when this returns; what runs goes on.

        Tasks are accepted and wait. Repeating it changes nothing, not even who and why. Raises `ServiceNotFoundError`.
        """
        await self._must_know(service)
        pause = PauseView(at=self._engine.clock.now(), by=clean(by), reason=clean(reason))

        async def say() -> None:
            async with self._words:
                if service in self.pauses:
                    return
                await self._engine.store.put_document(PAUSED, service, pause.model_dump_json().encode())
                log.info("service paused", service=service, by=pause.by, reason=pause.reason)
                self.pauses[service] = pause
            self._said(service)

        await self._to_its_end(say())

    async def resume(self, service: str, *, reason: str = "", by: str = "") -> None:
        """Hand out again what waits. Repeating it does nothing. Raises `ServiceNotFoundError`."""
        await self._must_know(service)

        async def say() -> None:
            async with self._words:
                if service not in self.pauses:
                    return
                await self._engine.store.delete_document(PAUSED, service)
                log.info("service resumed", service=service, by=clean(by), reason=clean(reason))
                self.pauses.pop(service, None)
            self._said(service)

        await self._to_its_end(say())

    async def set_limits(self, service: str, limits: ServiceLimits, *, by: str = "") -> None:
        """Limit a service in the place of what its definition says, until `reset_limits`; on record when this returns.

        What runs goes on, also where it is more than the new limits. Raises `ServiceNotFoundError`.
        """
        await self._must_know(service)
        view = LimitsView(limits=limits, at=self._engine.clock.now(), by=clean(by))

        async def say() -> None:
            async with self._words:
                await self._engine.store.put_document(LIMITS, service, view.model_dump_json().encode())
                self.overrides[service] = view
            self._said(service)

        await self._to_its_end(say())

    async def reset_limits(self, service: str) -> None:
        """The limits of the definition count again. Repeating it does nothing. Raises `ServiceNotFoundError`."""
        await self._must_know(service)

        async def say() -> None:
            async with self._words:
                if service not in self.overrides:
                    return
                await self._engine.store.delete_document(LIMITS, service)
                self.overrides.pop(service, None)
            self._said(service)

        await self._to_its_end(say())

    async def _to_its_end(self, saying: Coroutine[Any, Any, None]) -> None:
        """Say something; once it is on record it counts, also where whoever says it has given up meanwhile."""
        task = asyncio.ensure_future(saying)
        self._saying.add(task)
        task.add_done_callback(self._saying.discard)
        await asyncio.shield(task)

    def _said(self, service: str) -> None:
        self._engine.common.changed()
        self.refresh(service)

    def limits_of(self, service: str) -> ServiceLimits:
        """The limits that count for a service: the operator's, else those of its definition."""
        override = self.overrides.get(service)
        if override is not None:
            return override.limits
        definition = self._engine.registry.definition(service)
        return (definition.limits if definition is not None else None) or NO_LIMITS

    async def _must_know(self, service: str) -> None:
        """Raise `ServiceNotFoundError` for a service that nobody knows, wherever it was registered."""
        if self._engine.leadership.shared:
            await self._engine.common.read()
        known = self._engine.registry.services
        if service not in known:
            raise ServiceNotFoundError(
                f"there is no service {service!r}", why="known: " + (", ".join(sorted(known)) or "none")
            )

    def refresh(self, service: str) -> None:
        """A service's limits or its pause may have changed: have a gate that fits, or none."""
        limits, pause = self.limits_of(service), self.pauses.get(service)
        gate = self.gates.get(service)
        if gate is None:
            if limits.nothing and pause is None:
                return
            gate = self._open_gate(service)
        newly_paused = pause is not None and gate.paused is None
        gate.paused = pause
        if gate.set_limits(limits) or newly_paused:
            self._take_back(gate)
        if self.counting is not None:
            self.counting.sort(gate)
        self.drain(gate)

    def _open_gate(self, service: str) -> Gate:
        """A gate for a service that had none: what was handed out before counts."""
        gate = self.gates[service] = Gate(service)
        gate.closed_until = self._closed_until
        for entry in self._engine.cache.tasks.values():
            for step in entry.open.values():
                out = step.published or step.claimed_by is not None
                if step.service == service and out and not (step.asking or step.parked or step.awaited):
                    self._take_place(gate, entry, step, begins=False)
        return gate

    def _take_back(self, gate: Gate) -> None:
        """What stands in the queue and nobody has taken waits here instead, in the same order and ahead of the others.

        It was handed out before the service was paused or had other limits, and nobody works on it.
        """
        waiting, tasks = self._engine.releases, self._engine.cache.tasks
        listed = [envelope.step_id for envelope in waiting.peek(gate.service, limit=waiting.depth(gate.service))]
        for step_id in reversed(dict.fromkeys([*listed, *gate.places])):
            entry = tasks.get(step_id.rpartition(":")[0])
            step = entry.open.get(step_id) if entry is not None else None
            if entry is not None and step is not None and step.published and step.claimed_by is None:
                self._take_back_one(gate, entry, step, first=True)

    def _take_back_one(self, gate: Gate, entry: TaskEntry, step: OpenStep, *, first: bool) -> None:
        self._engine.queue.withdraw([step.step_id])
        step.published = False
        gate.leave_place(step.step_id, begun=False)
        self._let_wait(gate, Guest(entry, step), first=first)

    # --- steps ------------------------------------------------------------------------------------------------------

    def passes(self, entry: TaskEntry, step: OpenStep) -> bool:
        """Whether a step may be handed to the queue now; where not, it waits here and is handed over in its turn."""
        gate = self.gates.get(step.service)
        if gate is None:
            return True
        place = gate.places.get(step.step_id)
        if place is not None:
            if self._moved.pop(step.step_id, None) is not None:  # it is led here again
                self._where[step.step_id] = gate
            if place.attempt == step.attempt and gate.paused is None:
                return True  # published again
            gate.leave_place(step.step_id)
        now = self._engine.clock.now()
        waits = step.step_id in gate.room
        if not waits and not gate.room.ready and gate.has_room_for(entry.row.session_id, turn_of(entry, step)[1]):
            opens_at = gate.opens_at(now)
            if opens_at is not None and opens_at <= now:
                self._take_place(gate, entry, step)
                return True
        self._let_wait(gate, Guest(entry, step))
        if place is not None or not waits:
            self.drain(gate)
        return False

    def may_be_claimed(self, step: OpenStep) -> bool:
        """Whether a delivery of a step may go to an instance: not where the step was taken back from the queue."""
        gate = self.gates.get(step.service)
        return gate is None or step.step_id not in gate.room

    def reclaimed(self, entry: TaskEntry, step: OpenStep) -> None:
        """An instance has come back with a step: it counts, also where that is one too many."""
        gate = self.gates.get(step.service)
        if gate is not None and not step.asking:
            self._moved.pop(step.step_id, None)
            gate.forget(step.step_id)
            self._take_place(gate, entry, step, begins=False)

    def settled(self, transition: Transition) -> None:
        """A transition is committed: what it has answered, parked or put off gives its place back."""
        for step_id in transition.answered:
            self.release(step_id)
        for move in transition.moved:
            entry = self._engine.cache.tasks.get(move.step_id.rpartition(":")[0])
            step = entry.open.get(move.step_id) if entry is not None else None
            if step is None or not (step.published or step.claimed_by is not None or self.waits(move.step_id)):
                self.release(move.step_id)

    def waits(self, step_id: str) -> bool:
        """Whether a step stands in the room of its gate: to begin, or to go on."""
        gate = self._where.get(step_id)
        return gate is not None and step_id in gate.room

    def release(self, step_id: str) -> None:
        """A step neither runs nor waits any more. Repeating it does nothing.

        Also for a step that waits while it runs (for a person, for its children): `go_on` asks for its place again.
        """
        gate = self._where.pop(step_id, None)
        if gate is None:
            return
        gate.forget(step_id)
        if gate.leave_place(step_id):
            self.drain(gate)

    def keep(self, step_id: str, name: str) -> None:
        """A step is taken away whose code still runs: its place is counted under this name until `release(name)`."""
        gate = self._where.get(step_id)
        if gate is not None and gate.rename_place(step_id, name):
            del self._where[step_id]
            self._where[name] = gate

    def go_on(self, entry: TaskEntry, step: OpenStep, then: Callable[[], None]) -> None:
        """A step that runs has given its place away and goes on: `then` is called once it has one, often at once."""
        gate = self.gates.get(step.service)
        if gate is None or step.step_id in gate.places:
            then()
            return
        waiting = gate.room.get(step.step_id)
        earlier = waiting.item.go_on if waiting is not None else None

        def both() -> None:
            step.resumed_at = self._engine.clock.now()  # its run deadline stood still
            if earlier is not None:
                earlier()
            then()

        self._let_wait(gate, Guest(entry, step, both), first=True)
        self.drain(gate)
        self._make_way(gate, step)

    def _make_way(self, gate: Gate, step: OpenStep) -> None:
        """Let a step that has begun go on in the place of one that has not: who stands in the queue waits here again.

        Else each might wait for the other for ever: the one for a place here, the other for that at the instance.
        """
        tasks = self._engine.cache.tasks
        for step_id in reversed(tuple(gate.places)):
            if step.step_id not in gate.room or gate.paused is not None:
                return
            entry = tasks.get(step_id.rpartition(":")[0])
            unclaimed = entry.open.get(step_id) if entry is not None else None
            if entry is not None and unclaimed is not None and unclaimed.published and unclaimed.claimed_by is None:
                self._take_back_one(gate, entry, unclaimed, first=True)
                waiting = gate.room.get(step.step_id)
                assert waiting is not None
                gate.forget(step.step_id)
                assert isinstance(waiting.item, Guest)
                self._let_wait(gate, waiting.item, first=True)  # ahead of it
                self.drain(gate)

    def make_way(self, gate: Gate) -> None:
        """Have one step that nobody has taken yet wait again: at another control plane one is to go on."""
        for step_id in reversed(tuple(gate.places)):
            entry = self._engine.cache.tasks.get(step_id.rpartition(":")[0])
            step = entry.open.get(step_id) if entry is not None else None
            if entry is not None and step is not None and step.published and step.claimed_by is None:
                self._take_back_one(gate, entry, step, first=True)
                return

    # --- several control planes -------------------------------------------------------------------------------------

    def admitted(self, gate: Gate, names: Iterable[str]) -> None:
        """Whoever counts for this gate lets these go."""
        leadership, going = self._engine.leadership, []
        unsure: list[str] = []
        assert gate.asking is not None
        for name in names:
            waiting = gate.room.get(name)
            if waiting is None or not isinstance(waiting.item, Guest):
                gate.asking.give_back(name)
            elif not waiting.item.wanted:
                gate.forget(name)
                self._where.pop(name, None)
            elif gate.paused is not None:
                gate.asking.give_back(name)
            elif not leadership.certain:  # others may lead its session by now, and hand it out
                unsure.append(name)
            else:
                guest = waiting.item
                gate.forget(name)
                self._take_place(gate, guest.entry, guest.step, begins=not guest.goes_on)
                if guest.go_on is not None:
                    guest.go_on()
                else:
                    going.append((guest.entry, guest.step))
        if going:
            self._engine.hand_out(going)
        if unsure:
            when = self._engine.clock.now() + UNSURE_S
            self._engine.clock.call_at(when, lambda: self._ask_once_more(gate, unsure))

    def _ask_once_more(self, gate: Gate, names: list[str]) -> None:
        if gate.asking is not None and self.gates.get(gate.service) is gate and not self._engine.stopping:
            self.admitted(gate, gate.asking.still_admitted(names))

    def moved(self, entry: TaskEntry) -> None:
        """Another control plane leads a task now. What an instance works on counts here until that one counts it."""
        moved = False
        for step_id, step in entry.open.items():
            gate = self._where.get(step_id)
            runs = gate is not None and step_id in gate.places and step.claimed_by is not None
            if gate is None or not runs or self.counting is None or not gate.limits.over_sessions:
                self.release(step_id)
            else:
                del self._where[step_id]
                self._moved[step_id] = (gate, entry.row.session_id)
                moved = True
        if moved and self.counting is not None:
            self.counting.moved()

    def let_moved_go(self, has_moved: Callable[[Gate, str], bool]) -> bool:
        """What others have had time to count counts here no more; whether there is more of it."""
        for step_id, (gate, session_id) in list(self._moved.items()):
            if has_moved(gate, session_id):
                del self._moved[step_id]
                if gate.leave_place(step_id, moved=True):
                    self.drain(gate)
        return bool(self._moved)

    def replaced(self, entry: TaskEntry, fresh: TaskEntry | None) -> None:
        """A task was loaded again: places of steps that are not handed out any more are given back."""
        for step_id in entry.open:
            step = fresh.open.get(step_id) if fresh is not None else None
            if step is None or not (step.published or step.claimed_by is not None):
                self.release(step_id)

    def _take_place(self, gate: Gate, entry: TaskEntry, step: OpenStep, *, begins: bool = True) -> None:
        self._where[step.step_id] = gate
        place = Place(step.attempt, entry.row.session_id, turn_of(entry, step)[1])
        gate.take_place(step.step_id, place, self._engine.clock.now(), begins=begins)

    def _let_wait(self, gate: Gate, guest: Guest, *, first: bool = False) -> None:
        step = guest.step
        self._where[step.step_id] = gate
        gate.wait(guest, since=self._engine.clock.now(), first=first or step.attempt > 1)

    # --- turns ------------------------------------------------------------------------------------------------------

    def drain(self, gate: Gate) -> None:
        """Let those go whose turn it is; look again when time alone lets the next one go."""
        if self.gates.get(gate.service) is gate:
            self._let_go(gate)
            if self.counting is not None:
                self.counting.drained(gate)

    def _let_go(self, gate: Gate) -> None:
        now = self._engine.clock.now()
        going: list[tuple[TaskEntry, OpenStep]] = []
        visitors = 0
        again_at: float | None = None
        while gate.room.ready:
            again_at = gate.opens_at(now)
            if again_at is None or again_at > now:
                break
            if len(going) + visitors == ADMITTED_AT_ONCE_MAX:
                break
            waiting = gate.next_guest()
            assert waiting is not None
            guest = waiting.item
            if isinstance(guest, Visitor):
                assert self.counting is not None
                self.counting.admit(gate, guest)
                visitors += 1
                continue
            if not guest.wanted:
                self._where.pop(waiting.name, None)
                continue
            self._take_place(gate, guest.entry, guest.step, begins=guest.go_on is None)
            if guest.go_on is not None:
                guest.go_on()
            else:
                going.append((guest.entry, guest.step))
        if gate.room.ready and again_at is not None:
            self._look_again(gate, again_at)
        if not gate.needed and not len(gate.room):
            self._close_gate(gate)
        if going:
            self._engine.hand_out(going)

    def _close_gate(self, gate: Gate) -> None:
        """The service is limited no more, and nobody waits: nothing needs to be counted."""
        del self.gates[gate.service]
        if self.counting is not None:
            self.counting.forget(gate)
        for step_id in gate.places:
            self._where.pop(step_id, None)
        self._forget_timer(gate.service)

    def _look_again(self, gate: Gate, when: float) -> None:
        known = self._timers.get(gate.service)
        if known is not None and known[0] <= when:
            return
        self._forget_timer(gate.service)
        self._timers[gate.service] = (when, self._engine.clock.call_at(when, lambda: self._due(gate)))

    def _forget_timer(self, service: str) -> None:
        known = self._timers.pop(service, None)
        if known is not None:
            known[1].cancel()

    def _due(self, gate: Gate) -> None:
        self._timers.pop(gate.service, None)
        self.drain(gate)

    def stop(self) -> None:
        """Let nothing more go."""
        for service in tuple(self._timers):
            self._forget_timer(service)
