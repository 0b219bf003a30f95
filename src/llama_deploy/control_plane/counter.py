"""Counting for all control planes what runs of one service: the gate here lets their steps in as visitors.

Nothing goes before everybody who lives has told what runs at his gate, and before what changed hands has been brought
back to whoever leads it now. What somebody who is gone has left running counts until then, too. It knows no transport.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llama_deploy.control_plane.gate import Place, Visitor, visiting
from llama_deploy.messages.counting import (
    IN_ORDER,
    RUNS,
    Admitted,
    Begin,
    Complete,
    Left,
    MakeWay,
    Seats,
    Standing,
    TellingOp,
)

if TYPE_CHECKING:
    from llama_deploy.control_plane.gate import Gate

Post = Callable[[Any], None]
"""Sends an operation to one control plane, with whatever else this turn of the loop sends."""


class Counter:
    """What other control planes have told of one service."""

    def __init__(self, gate: Gate, now: Callable[[], float]) -> None:
        self.gate = gate
        self._now = now
        self.posts: dict[str, Post] = {}
        """Who is connected, and how each is told."""
        self._telling: dict[str, set[str]] = {}
        """Who is telling everything, and the places that were known of him and were not told again so far."""
        self._places: dict[str, dict[str, str]] = {}
        """By owner: the names of the places of visitors, and their sessions."""
        self._orphans: dict[str, set[str]] = {}
        """By owner: places that it does not speak of any more, and that whoever leads them may not speak of yet."""
        self._admitted: dict[str, list[int]] = {}
        self._heard: set[str] = set()
        """Who has told how often what of his has begun."""
        self._returning: frozenset[str] = frozenset()
        """What has begun and waits to go on, as far as way was made for it."""
        self._told: dict[str, Standing] = {}

    # --- what others tell -------------------------------------------------------------------------------------------

    def told(self, owner: str) -> bool:
        """Whether a control plane has told everything, and goes on telling."""
        return owner in self.posts and owner not in self._telling

    def take(self, owner: str, operation: TellingOp, post: Post) -> None:
        """What one of them says; who is gone has said it over an earlier connection."""
        if isinstance(operation, Begin):
            self.lost(owner)
            self.posts[owner] = post
            self._telling[owner] = set(self._places.get(owner, ()))
            if self.gate.rate is not None and owner not in self._heard:  # what has begun since was admitted here
                self.gate.rate.remember(self._now() - ago for ago in operation.begun_s)
            self._heard.add(owner)
        elif self.posts.get(owner) != post:
            return
        elif isinstance(operation, Seats):
            self._seats(owner, operation)
        elif isinstance(operation, Left):
            for name in operation.names:
                if name in operation.moved:
                    self._orphans.setdefault(owner, set()).add(visiting(owner, name))
                else:
                    self._leave(owner, visiting(owner, name), begun=name not in operation.unbegun)
        elif isinstance(operation, Complete):
            self._orphans.setdefault(owner, set()).update(self._telling.pop(owner, ()))

    def _seats(self, owner: str, operation: Seats) -> None:
        now, gate = self._now(), self.gate
        for seat in operation.seats:
            guest = Visitor(owner, seat)
            if owner in self._telling:
                self._telling[owner].discard(guest.name)
            gate.forget(guest.name)
            if seat.turn == RUNS:
                self._orphans.get(owner, set()).discard(guest.name)
                self._places.setdefault(owner, {})[guest.name] = seat.session_id
                gate.take_place(guest.name, Place(0, seat.session_id, seat.key, owner), now, begins=False)
            else:
                self._leave(owner, guest.name, begun=True)
                gate.wait(guest, since=now - seat.waits_s, first=seat.turn != IN_ORDER)

    def _leave(self, owner: str, name: str, *, begun: bool) -> None:
        self.gate.forget(name)
        self._places.get(owner, {}).pop(name, None)
        self._orphans.get(owner, set()).discard(name)
        self.gate.leave_place(name, begun=begun)

    def lost(self, owner: str) -> None:
        """A connection is gone: what waits there is told again, what runs there goes on."""
        if self.posts.pop(owner, None) is not None:
            self._telling.pop(owner, None)
            self._told.pop(owner, None)
            self._admitted.pop(owner, None)
            waiting = [one.name for one in self.gate.room.in_order() if _is_of(one.item, owner)]
            for name in waiting:
                self.gate.forget(name)

    def let_go(self, living: set[str], brought_back: Callable[[str, str], bool]) -> bool:
        """Places that nobody speaks of any more count until they are brought back; those of who is gone, too.

        `brought_back(owner, session_id)` says so; true where some are not yet.
        """
        left = False
        for owner, places in self._places.items():
            names = places if owner not in living else self._orphans.get(owner, ())
            for name in list(names):
                if name not in places:
                    self._orphans[owner].discard(name)
                elif brought_back(owner, places[name]):
                    self._leave(owner, name, begun=True)
                else:
                    left = True
        return left

    # --- what they are told -----------------------------------------------------------------------------------------

    def admit(self, visitor: Visitor) -> None:
        """Its turn has come: it has a place."""
        seat, owner = visitor.seat, visitor.owner
        self._places.setdefault(owner, {})[visitor.name] = seat.session_id
        place = Place(0, seat.session_id, seat.key, owner)
        self.gate.take_place(visitor.name, place, self._now(), begins=not visitor.goes_on)
        self._admitted.setdefault(owner, []).append(seat.number)

    def say(self) -> None:
        """Tell everybody what of his may go, and those who wait how it stands."""
        gate, now = self.gate, self._now()
        admitted, self._admitted = self._admitted, {}
        for owner, numbers in admitted.items():
            if owner in self.posts:
                self.posts[owner](Admitted(gate.service, numbers))
        if not gate.visitors:
            return
        opens_at = gate.opens_at(now)
        opens_in_s = opens_at - now if opens_at is not None and opens_at > now else None
        closed = gate.closed or now < gate.closed_until
        standing = Standing(gate.service, len(gate.places), None if closed else opens_in_s, closed)
        for owner, post in self.posts.items():
            if self._told.get(owner) != standing:
                self._told[owner] = standing
                post(standing)

    def make_way(self) -> bool:
        """Something that has begun waits to go on: whoever has places gives back one that nobody has taken yet.

        Once for each that waits so; false where they have been asked before.
        """
        returning = self.gate.returning
        new, self._returning = returning - self._returning, returning
        for owner, post in self.posts.items() if new else ():
            if self._places.get(owner):
                post(MakeWay(self.gate.service))
        return bool(new)

    def close(self) -> None:
        """Another control plane counts from now on: those of the others are told there."""
        for owner in list(self.posts):
            self.lost(owner)
        for owner, places in list(self._places.items()):
            for name in list(places):
                self._leave(owner, name, begun=True)


def _is_of(guest: object, owner: str) -> bool:
    return isinstance(guest, Visitor) and guest.owner == owner
