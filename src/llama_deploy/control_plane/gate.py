"""The gate of one service: how many of its steps may be in the queue and at work, and what waits until then.

There is a gate only where a service has limits or is paused. Steps that may not go wait in its room, in fair turns;
they have been recorded and are tried again by nobody else. The counts are those of the step ids that have a place, so
that repeating anything counts nothing twice. What goes where is the engine's business.

Where several control planes share a store, the gate of one of them counts for all: steps of the others wait and have
places there as visitors. The gates of the others let nothing go by themselves (`asking`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from llama_deploy.control_plane.rates import RateWindow
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry
from llama_deploy.message_queues.fair import FairQueue, Waiting
from llama_deploy.messages.counting import GOES_ON, Seat
from llama_deploy.types import ServiceLimits
from llama_deploy.types.limits import NO_LIMITS
from llama_deploy.types.options import PRIORITY_DEFAULT
from llama_deploy.types.queues import PauseView

if TYPE_CHECKING:
    from llama_deploy.control_plane.asking import Asking

UNSURE_S = 0.2
"""Pause before it is looked at again whether this control plane is certain to be the one that counts."""


class Place(NamedTuple):
    """A step that counts as running."""

    attempt: int
    session_id: str
    key: str
    owner: str = ""
    """The other control plane at whose gate it runs; empty where it runs at this one."""


class Guest(NamedTuple):
    """A step in the waiting room."""

    entry: TaskEntry
    step: OpenStep
    go_on: Callable[[], None] | None = None
    """Where the step runs already and has only given its place away for a while: what to do once it has one again."""

    @property
    def name(self) -> str:
        return self.step.step_id

    @property
    def session_id(self) -> str:
        return self.entry.row.session_id

    @property
    def turn(self) -> tuple[int, str]:
        """Its priority and its key."""
        return turn_of(self.entry, self.step)

    @property
    def goes_on(self) -> bool:
        """Whether it has begun before."""
        return self.go_on is not None

    @property
    def wanted(self) -> bool:
        """Whether the step still waits for its turn."""
        if self.entry.stale or self.entry.open.get(self.step.step_id) is not self.step or self.step.parked:
            return False
        return self.go_on is not None or not self.entry.row.paused


class Visitor(NamedTuple):
    """A step that waits at the gate of another control plane, for which this gate counts."""

    owner: str
    """That control plane."""
    seat: Seat

    @property
    def name(self) -> str:
        return visiting(self.owner, self.seat.name)

    @property
    def session_id(self) -> str:
        return self.seat.session_id

    @property
    def turn(self) -> tuple[int, str]:
        """Its priority and its key."""
        return self.seat.priority, self.seat.key

    @property
    def goes_on(self) -> bool:
        """Whether it has begun before."""
        return self.seat.turn == GOES_ON

    @property
    def go_on(self) -> None:
        """It goes on at its own control plane."""
        return


def visiting(owner: str, name: str) -> str:
    """The name under which a step of another control plane waits, or has a place, where is counted for it."""
    return f"{owner}/{name}"


class Standing(NamedTuple):
    """How a service stands over all control planes, as whoever counts for it has said last."""

    running: int = 0
    opens_at: float | None = None
    """When the rate lets the next one go, where everybody waits for that."""
    closed: bool = True


def turn_of(entry: TaskEntry, step: OpenStep) -> tuple[int, str]:
    """The priority and the key of a step: its own, else its task's."""
    if step.options is None and entry.definition.options is None:
        return PRIORITY_DEFAULT, ""
    priority = entry.option(step, "priority")
    return PRIORITY_DEFAULT if priority is None else priority, entry.option(step, "key") or ""


class Gate:
    """One service's limits, places and waiting room."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.limits: ServiceLimits = NO_LIMITS
        self.paused: PauseView | None = None
        self.closed_until = 0.0
        """Nothing goes before: instances of an earlier run may still come back with what they hold."""
        self.closed = False
        """Nothing goes: what runs at other control planes is not known yet."""
        self.waits_for: list[str] = []
        """The names of those that have not told what runs."""
        self.sure: Callable[[], bool] = lambda: True
        """Whether this control plane is certain that nobody else counts in its place."""
        self.asking: Asking | None = None
        """Set where another control plane counts for this gate."""
        self.standing = Standing()
        """What that one has said."""
        self.visitors = 0
        """How many in the room are steps of other control planes."""
        self.room: FairQueue[Guest | Visitor] = FairQueue()
        self._returning: dict[str, None] = {}
        """Who in the room has begun and wants to go on, first come, first served; some may have left it."""
        self.places: dict[str, Place] = {}
        self._sessions: Counter[str] = Counter()
        self._keys: Counter[str] = Counter()
        self.rate: RateWindow | None = None
        self.begun: deque[float] = deque(maxlen=0)
        """When attempts of this control plane have begun, as far as the rate remembers, oldest first."""

    @property
    def needed(self) -> bool:
        """Whether this gate holds anything back at all."""
        return self.paused is not None or self.limits is not NO_LIMITS

    @property
    def waiting(self) -> int:
        """How many steps of this control plane wait in the room."""
        return len(self.room) - self.visitors

    @property
    def running(self) -> int:
        """How many steps have a place, at all control planes together."""
        return len(self.places) if self.asking is None else max(self.standing.running, len(self.places))

    def set_limits(self, limits: ServiceLimits) -> bool:
        """Other limits from now on: what runs goes on, and what waits is sorted anew. False where they are the same."""
        if limits == self.limits:
            return False
        self.limits = NO_LIMITS if limits.nothing else limits
        rate, self.rate = self.rate, RateWindow(limits.rate) if limits.rate is not None else None
        if rate is not None and self.rate is not None:
            self.rate.begun_before(rate)
        self.begun = deque(self.begun, maxlen=0 if limits.rate is None else limits.rate.count)
        guests = list(self.room.in_order())
        self.room = FairQueue()
        for place in self.places.values():
            self._hold_full(place)
        self.visitors = 0
        for waiting in guests:
            self._seat(waiting.item, since=waiting.since)
        return True

    def count_for_all(self) -> None:
        """Count for other control planes from now on: they tell what has begun there, and what runs."""
        self.closed = True
        if self.limits.rate is not None:
            self.rate = RateWindow(self.limits.rate)
            self.rate.remember(self.begun)

    # --- places -----------------------------------------------------------------------------------------------------

    def opens_at(self, now: float) -> float | None:
        """When the next step may go: `now`, later, or `None`: not before something else changes."""
        limits = self.limits
        if self.paused is not None or self.closed or self.asking is not None:
            return None
        if not self.sure():
            return now + UNSURE_S
        if limits.running_max is not None and len(self.places) >= limits.running_max:
            return None
        opens_at = max(now, self.closed_until)
        return opens_at if self.rate is None else self.rate.next_at(opens_at)

    def has_room_for(self, session_id: str, key: str) -> bool:
        """Whether the limits of a session and a key let one more go."""
        limits = self.limits
        per_session, per_key = limits.running_max_per_session, limits.running_max_per_key
        if per_session is not None and self._sessions[session_id] >= per_session:
            return False
        return not (per_key is not None and key and self._keys[key] >= per_key)

    def take_place(self, step_id: str, place: Place, now: float, *, begins: bool = True) -> None:
        """Count a step as running; one that counts already counts once. `begins`: an attempt, which the rate counts."""
        earlier = self.places.get(step_id)
        if earlier is None or (earlier.session_id, earlier.key) != (place.session_id, place.key):
            if earlier is not None:
                self._uncount(earlier)
            self._sessions[place.session_id] += 1
            self._keys[place.key] += 1
        self.places[step_id] = place
        self._hold_full(place)
        self._touch(step_id)
        if begins and self.rate is not None:
            self.rate.begin(now)
            if not place.owner:
                self.begun.append(now)

    def leave_place(self, step_id: str, *, begun: bool = True, moved: bool = False) -> bool:
        """Count a step as running no more; false where it did not. The rate forgets one that has not `begun`.

        `moved`: another control plane counts it.
        """
        place = self.places.pop(step_id, None)
        if place is None:
            return False
        self._touch(step_id, unbegun=not begun, moved=moved)
        if not begun and self.rate is not None:
            self.rate.give_back()
            if not place.owner and self.begun:
                self.begun.pop()
        self._uncount(place)
        return True

    def _uncount(self, place: Place) -> None:
        for counts, name in ((self._sessions, place.session_id), (self._keys, place.key)):
            counts[name] -= 1
            if not counts[name]:
                del counts[name]
        if self.has_room_for(place.session_id, ""):
            self.room.let_lane_go(place.session_id)
        if self.has_room_for("", place.key):
            self.room.let_key_go(place.key)

    def rename_place(self, step_id: str, name: str) -> bool:
        """Let a place go on under another name; false where there is none."""
        place = self.places.pop(step_id, None)
        if place is None:
            return False
        self.places[name] = place
        self._touch(step_id)
        self._touch(name)
        return True

    def _touch(self, name: str, *, first: bool = False, unbegun: bool = False, moved: bool = False) -> None:
        """Tell whoever counts for this gate, where that is another control plane."""
        if self.asking is not None:
            self.asking.touch(name, first=first, unbegun=unbegun, moved=moved)

    def _hold_full(self, place: Place) -> None:
        """Pass over those who wait for a session or a key that has reached its limit."""
        if not self.has_room_for(place.session_id, ""):
            self.room.hold_lane(place.session_id)
        if not self.has_room_for("", place.key):
            self.room.hold_key(place.key)

    # --- the waiting room -------------------------------------------------------------------------------------------

    def wait(self, guest: Guest | Visitor, *, since: float, first: bool = False) -> None:
        """Let a step wait, or what waits under its id already be this one."""
        waiting = self.room.get(guest.name)
        if waiting is None:
            self._seat(guest, since=since, first=first)
            return
        waiting.item = guest
        if guest.goes_on:
            self._returning[guest.name] = None
            self._touch(guest.name, first=True)

    def _seat(self, guest: Guest | Visitor, *, since: float, first: bool = False) -> None:
        priority, key = guest.turn
        # Sessions are told apart only where they have a limit: otherwise a key's work is first in, first out.
        lane = guest.session_id if self.limits.running_max_per_session is not None else ""
        if guest.goes_on:
            self._returning[guest.name] = None
        if isinstance(guest, Visitor):
            self.visitors += 1
        self.room.push(guest.name, guest, priority=priority, key=key, lane=lane, since=since, first=first)
        self._touch(guest.name, first=first)

    def forget(self, name: str) -> Waiting[Guest | Visitor] | None:
        """Take a step out of the room; `None` where it does not wait."""
        waiting = self.room.remove(name)
        if waiting is not None:
            self._gone(waiting)
        return waiting

    def _gone(self, waiting: Waiting[Guest | Visitor]) -> None:
        if isinstance(waiting.item, Visitor):
            self.visitors -= 1
        self._touch(waiting.name)

    def next_guest(self) -> Waiting[Guest | Visitor] | None:
        """Take whose turn it is out of the room; `None` where all of it is held.

        What has begun goes on before anything begins, whatever their priorities: it has a place at its instance, and
        what begins might wait for just that place.
        """
        waiting = self._next()
        if waiting is not None:
            self._gone(waiting)
        return waiting

    def _next(self) -> Waiting[Guest | Visitor] | None:
        for name in tuple(self._returning):
            waiting = self.room.get(name)
            if waiting is not None and waiting.item.goes_on and self.room.is_held(waiting):
                continue
            del self._returning[name]
            if waiting is not None and waiting.item.goes_on:
                return self.room.remove(name)
        return self.room.pop()

    @property
    def returning(self) -> frozenset[str]:
        """What has begun and waits to go on."""
        found = ((name, self.room.get(name)) for name in self._returning)
        return frozenset(name for name, waiting in found if waiting is not None and waiting.item.goes_on)

    def held_back(self, now: float) -> dict[str, int]:
        """How many wait in the room, by what keeps them there; those of this control plane."""
        count, limits = self.waiting, self.limits
        if not count:
            return {}
        if self.paused is not None:
            return {"paused": count}
        if self._unknown(now):
            return {"recovery": count}
        if limits.running_max is not None and self.running >= limits.running_max:
            return {"running_max": count}
        opens_at = self._rate_opens_at(now)
        if opens_at is not None and opens_at > now:
            return {"rate": count}
        own = [waiting for waiting in self.room.in_order() if isinstance(waiting.item, Guest)]
        keyed = sum(self._waits_for_key(waiting.key) for waiting in own)
        found = {"running_max_per_key": keyed, "running_max_per_session": count - keyed}
        return {name: number for name, number in found.items() if number}

    def _unknown(self, now: float) -> bool:
        """Whether it is not known yet what runs: of an earlier run, or at other control planes."""
        return self.closed or now < self.closed_until or (self.asking is not None and self.standing.closed)

    def _rate_opens_at(self, now: float) -> float | None:
        return self.opens_at(now) if self.asking is None else self.standing.opens_at

    def _waits_for_key(self, key: str) -> bool:
        """Whether the limit of a key keeps its steps waiting. Who is told by others only knows that it may."""
        if self.asking is not None:
            return bool(key) and self.limits.running_max_per_key is not None
        return not self.has_room_for("", key)

    # --- reasons ----------------------------------------------------------------------------------------------------

    def reason(self, waiting: Waiting[Guest | Visitor], now: float) -> str:
        """Which limit keeps something in the room, in words."""
        limits = self.limits
        session_id, key = waiting.item.session_id, waiting.key
        if self.paused is not None:
            return f"{self.service} is paused" + _by(self.paused)
        if not self.has_room_for(session_id, ""):
            count = self._sessions[session_id]
            most = limits.running_max_per_session
            return f"running_max_per_session of {self.service} is {most}: {count} of session {session_id} run"
        if not self.has_room_for("", key):
            return (
                f"running_max_per_key of {self.service} is {limits.running_max_per_key}: {self._keys[key]} of {key} run"
            )
        if now < self.closed_until:
            return f"instances of {self.service} that come back with what they hold, {self.closed_until - now:.1f} s"
        return self._reason_of_all(key, now)

    def _reason_of_all(self, key: str, now: float) -> str:
        """What keeps something in the room that depends on what runs at all control planes."""
        limits = self.limits
        if self._unknown(now):
            names = f" ({', '.join(self.waits_for)} did not yet)" if self.closed and self.waits_for else ""
            return f"all control planes to have said what runs of {self.service}{names}"
        if limits.running_max is not None and self.running >= limits.running_max:
            return f"running_max of {self.service} is {limits.running_max}: {self.running} run"
        opens_at = self._rate_opens_at(now)
        if opens_at is not None and self.rate is not None and opens_at > now:
            return f"rate of {self.service} is {self.rate.limit}: the next one in {opens_at - now:.1f} s"
        if self._waits_for_key(key):
            return f"running_max_per_key of {self.service} is {limits.running_max_per_key}: as many of {key} run"
        return f"its turn at {self.service}"


def _by(pause: PauseView) -> str:
    who = f" by {pause.by}" if pause.by else ""
    return f"{who}: {pause.reason}" if pause.reason else who
