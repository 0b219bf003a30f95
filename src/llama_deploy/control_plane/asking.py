"""What a gate tells whoever counts for it, where that is another control plane: its own state, as it changes.

Changes of one turn of the loop are told together, and only what differs from what was told before. What a gate has
admitted to it counts as told, so that a step costs one word when it begins to wait and one when it has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from llama_deploy.messages.counting import (
    FIRST,
    GOES_ON,
    IN_ORDER,
    RUNS,
    SEATS_AT_ONCE,
    Begin,
    Complete,
    Left,
    Seat,
    Seats,
)
from llama_deploy.runtime import Clock

if TYPE_CHECKING:
    from llama_deploy.control_plane.gate import Gate

Send = Callable[[list[Any]], None]


class Asking:
    """One gate's side of it."""

    def __init__(self, gate: Gate, owner: str, clock: Clock) -> None:
        self.gate = gate
        self._owner = owner
        self._clock = clock
        self._send: Send | None = None
        self._told: dict[str, tuple[int, bool]] = {}
        """By name: the number under which it was told, and whether it has a place."""
        self._names: dict[int, str] = {}
        """What was told to wait, by its number."""
        self._numbers = count(1)
        self._touched: dict[str, bool] = {}
        """What may have changed, and whether it is to go ahead of others."""
        self._unbegun: set[str] = set()
        self._moved: set[str] = set()
        self._flush_is_due = False

    # --- the gate's side --------------------------------------------------------------------------------------------

    def touch(self, name: str, *, first: bool = False, unbegun: bool = False, moved: bool = False) -> None:
        """Something is different about a step: it waits, runs, or neither."""
        if self._send is None:
            return  # all of it is told when there is somebody to tell
        self._touched[name] = first or self._touched.get(name, False)
        if unbegun:
            self._unbegun.add(name)
        if moved:
            self._moved.add(name)
        if not self._flush_is_due:
            self._flush_is_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_is_due = False
        if self._send is not None and (operations := self._changes()):
            self._send(operations)

    def _changes(self) -> list[Any]:
        gate, service = self.gate, self.gate.service
        left: list[str] = []
        seats: list[Seat] = []
        for name, first in self._touched.items():
            _, told_runs = self._told.get(name, (0, False))
            runs, waits = name in gate.places, name in gate.room
            if name in self._told and (told_runs != runs or not (runs or waits) or (waits and first and not runs)):
                left.append(name)
                self._forget(name)
            if (runs or waits) and name not in self._told:
                seats.append(self._seat(name, first=first))
        unbegun, moved = [[name for name in left if name in marked] for marked in (self._unbegun, self._moved)]
        for each in (self._touched, self._unbegun, self._moved):
            each.clear()
        return [*([Left(service, left, unbegun, moved)] if left else []), *self._in_parts(seats)]

    def _forget(self, name: str) -> None:
        number, _ = self._told.pop(name)
        self._names.pop(number, None)

    def _seat(self, name: str, *, first: bool = False) -> Seat:
        """How a step stands, under a new number."""
        gate, number = self.gate, next(self._numbers)
        place = gate.places.get(name)
        self._told[name] = (number, place is not None)
        if place is not None:
            return Seat(number, name, place.session_id, place.key, 0, RUNS)
        waiting = gate.room.get(name)
        assert waiting is not None
        self._names[number] = name
        guest = waiting.item
        priority, key = guest.turn
        turn = GOES_ON if guest.goes_on else FIRST if first else IN_ORDER
        waits_s = max(0.0, self._clock.now() - waiting.since)
        return Seat(number, name, guest.session_id, key, priority, turn, waits_s)

    def _in_parts(self, seats: Sequence[Seat]) -> list[Any]:
        service = self.gate.service
        return [Seats(service, list(seats[at : at + SEATS_AT_ONCE])) for at in range(0, len(seats), SEATS_AT_ONCE)]

    # --- the link's side --------------------------------------------------------------------------------------------

    def tell(self, send: Send) -> None:
        """There is somebody to tell: everything first, from now on what changes."""
        self._send = send
        for each in (self._told, self._names, self._touched, self._unbegun, self._moved):
            each.clear()
        gate, now = self.gate, self._clock.now()
        begun_s = [max(0.0, now - moment) for moment in gate.begun]
        runs = [self._seat(name) for name in gate.places]
        waits = [self._seat(waiting.name) for waiting in gate.room.in_order() if waiting.name not in gate.places]
        send([Begin(gate.service, self._owner, begun_s), *self._in_parts([*runs, *waits]), Complete(gate.service)])

    def lost(self) -> None:
        """There is nobody to tell any more. What has a place keeps it; what waits is told anew to the next one."""
        self._send = None

    def admitted(self, numbers: Iterable[int]) -> list[str]:
        """The names of those that were admitted and that still wait as they were told."""
        names = []
        for number in numbers:
            name = self._names.pop(number, None)
            if name is not None:
                self._told[name] = (number, True)
                names.append(name)
        return names

    def still_admitted(self, names: Iterable[str]) -> list[str]:
        """Those of these that were admitted and have not been told anew since."""
        return [name for name in names if self._told.get(name, (0, False))[1]]

    def give_back(self, name: str) -> None:
        """What was admitted cannot go: it waits again, and its place is free."""
        self.touch(name, unbegun=True)
