"""The gate of one service: how many of its steps may be in the queue and at work, and what waits until then.

There is a gate only where a service has limits or is paused. Steps that may not go wait in its room, in fair turns;
they have been recorded and are tried again by nobody else. The counts are those of the step ids that have a place, so
that repeating anything counts nothing twice. What goes where is the engine's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from llama_deploy.control_plane.rates import RateWindow
from llama_deploy.control_plane.tasks import OpenStep, TaskEntry
from llama_deploy.message_queues.fair import FairQueue, Waiting
from llama_deploy.types import ServiceLimits
from llama_deploy.types.limits import NO_LIMITS
from llama_deploy.types.options import PRIORITY_DEFAULT
from llama_deploy.types.queues import PauseView


class Place(NamedTuple):
    """A step that counts as running."""

    attempt: int
    session_id: str
    key: str


class Guest(NamedTuple):
    """A step in the waiting room."""

    entry: TaskEntry
    step: OpenStep
    go_on: Callable[[], None] | None = None
    """Where the step runs already and has only given its place away for a while: what to do once it has one again."""

    @property
    def wanted(self) -> bool:
        """Whether the step still waits for its turn."""
        if self.entry.stale or self.entry.open.get(self.step.step_id) is not self.step or self.step.parked:
            return False
        return self.go_on is not None or not self.entry.row.paused


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
        self.room: FairQueue[Guest] = FairQueue()
        self.places: dict[str, Place] = {}
        self._sessions: Counter[str] = Counter()
        self._keys: Counter[str] = Counter()
        self.rate: RateWindow | None = None

    @property
    def needed(self) -> bool:
        """Whether this gate holds anything back at all."""
        return self.paused is not None or self.limits is not NO_LIMITS

    def set_limits(self, limits: ServiceLimits) -> bool:
        """Other limits from now on: what runs goes on, and what waits is sorted anew. False where they are the same."""
        if limits == self.limits:
            return False
        self.limits = NO_LIMITS if limits.nothing else limits
        rate, self.rate = self.rate, RateWindow(limits.rate) if limits.rate is not None else None
        if rate is not None and self.rate is not None:
            self.rate.begun_before(rate)
        guests = list(self.room.in_order())
        self.room = FairQueue()
        for place in self.places.values():
            self._hold_full(place)
        for waiting in guests:
            self._seat(waiting.item, since=waiting.since)
        return True

    # --- places -----------------------------------------------------------------------------------------------------

    def opens_at(self, now: float) -> float | None:
        """When the next step may go: `now`, later, or `None`: not before something else changes."""
        limits = self.limits
        if self.paused is not None:
            return None
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
        if step_id not in self.places:
            self._sessions[place.session_id] += 1
            self._keys[place.key] += 1
        self.places[step_id] = place
        self._hold_full(place)
        if begins and self.rate is not None:
            self.rate.begin(now)

    def leave_place(self, step_id: str, *, begun: bool = True) -> bool:
        """Count a step as running no more; false where it did not. The rate forgets one that has not `begun`."""
        place = self.places.pop(step_id, None)
        if place is None:
            return False
        if not begun and self.rate is not None:
            self.rate.give_back()
        for counts, name in ((self._sessions, place.session_id), (self._keys, place.key)):
            counts[name] -= 1
            if not counts[name]:
                del counts[name]
        if self.has_room_for(place.session_id, ""):
            self.room.let_lane_go(place.session_id)
        if self.has_room_for("", place.key):
            self.room.let_key_go(place.key)
        return True

    def _hold_full(self, place: Place) -> None:
        """Pass over those who wait for a session or a key that has reached its limit."""
        if not self.has_room_for(place.session_id, ""):
            self.room.hold_lane(place.session_id)
        if not self.has_room_for("", place.key):
            self.room.hold_key(place.key)

    # --- the waiting room -------------------------------------------------------------------------------------------

    def wait(self, guest: Guest, *, since: float, first: bool = False) -> None:
        """Let a step wait, or what waits under its id already be this one."""
        waiting = self.room.get(guest.step.step_id)
        if waiting is not None:
            waiting.item = guest
        else:
            self._seat(guest, since=since, first=first)

    def _seat(self, guest: Guest, *, since: float, first: bool = False) -> None:
        priority, key = turn_of(guest.entry, guest.step)
        # Sessions are told apart only where they have a limit: otherwise a key's work is first in, first out.
        lane = guest.entry.row.session_id if self.limits.running_max_per_session is not None else ""
        step_id = guest.step.step_id
        self.room.push(step_id, guest, priority=priority, key=key, lane=lane, since=since, first=first)

    def held_back(self, now: float) -> dict[str, int]:
        """How many wait in the room, by what keeps them there."""
        count, limits = len(self.room), self.limits
        if not count:
            return {}
        if self.paused is not None:
            return {"paused": count}
        if limits.running_max is not None and len(self.places) >= limits.running_max:
            return {"running_max": count}
        opens_at = self.opens_at(now)
        if opens_at is not None and opens_at > now:
            return {"rate" if now >= self.closed_until else "recovery": count}
        keyed = sum(not self.has_room_for("", waiting.key) for waiting in self.room.in_order())
        found = {"running_max_per_key": keyed, "running_max_per_session": count - keyed}
        return {name: number for name, number in found.items() if number}

    # --- reasons ----------------------------------------------------------------------------------------------------

    def reason(self, waiting: Waiting[Guest], now: float) -> str:
        """Which limit keeps something in the room, in words."""
        limits, places = self.limits, self.places
        session_id, key = waiting.item.entry.row.session_id, waiting.key
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
        if limits.running_max is not None and len(places) >= limits.running_max:
            return f"running_max of {self.service} is {limits.running_max}: {len(places)} run"
        opens_at = self.opens_at(now)
        if opens_at is not None and self.rate is not None and now >= self.closed_until and opens_at > now:
            return f"rate of {self.service} is {self.rate.limit}: the next one in {opens_at - now:.1f} s"
        if now < self.closed_until:
            return f"instances of {self.service} that come back with what they hold, {self.closed_until - now:.1f} s"
        return f"its turn at {self.service}"


def _by(pause: PauseView) -> str:
    who = f" by {pause.by}" if pause.by else ""
    return f"{who}: {pause.reason}" if pause.reason else who
