"""Fair turns: what waits for one service, by priority, then by key, then in the order of arrival.

A pure data structure, shared by the queue within one process and by the control plane's waiting rooms. It knows
names, priorities, keys and lanes; what waits here, and what happens when its turn comes, is its owner's business.
Every change costs the same however much waits.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

PRIORITIES = 10
"""Priorities are 0 to 9, 9 is the highest."""
PRIORITY_DEFAULT = 5
STRIDES = tuple(2 ** (PRIORITIES - 1 - priority) for priority in range(PRIORITIES))
"""How far a turn of a priority moves its next one: while both wait, each priority has twice the turns of the one below.
"""


class Waiting(Generic[Item]):
    """One thing that waits, and its place."""

    __slots__ = ("item", "name", "place", "since")

    def __init__(self, name: str, item: Item, since: float) -> None:
        self.name = name
        self.item = item
        self.place: _Lane[Item] | None = None
        """`None` while all that waits is alike."""
        self.since = since

    @property
    def priority(self) -> int:
        return PRIORITY_DEFAULT if self.place is None else self.place.line.level.priority

    @property
    def key(self) -> str:
        return "" if self.place is None else self.place.line.key

    @property
    def lane(self) -> str:
        return "" if self.place is None else self.place.name


class FairQueue(Generic[Item]):
    """What waits, in fair turns.

    *Priorities* have turns by weight: while two neighbours wait, the higher one goes twice as often; so none starves,
    and what is of higher priority than all that waits goes next. The *keys* within a priority take turns of one each.
    A key's *lanes* take turns in the same way. Within a lane it is first in, first out.

    A key or a lane may be `hold`-ed: what waits there keeps its place, is passed over, and goes at once after
    `let_go` if its turn has gone by meanwhile. So holding for a while, again and again, starves nobody either.

    While all that waits is alike (the default priority, no key, no lane) there are no turns to keep: first in, first
    out is all of it, and costs no more than that.
    """

    def __init__(self) -> None:
        self._levels: list[_Level[Item]] = [_Level(priority) for priority in range(PRIORITIES)]
        self._busy: list[_Level[Item]] = []
        """The priorities in which something waits."""
        self._now = 0
        """The tag of the latest turn of a priority."""
        self.by_name: OrderedDict[str, Waiting[Item]] = OrderedDict()
        """What waits, in the order in which it came; for looking, not for changing."""
        self._alike = True
        """All that waits is alike, and none of it has a place."""
        self._held_keys: set[str] = set()
        self._held_lanes: set[str] = set()
        self._lanes: dict[str, dict[_Lane[Item], None]] = {}
        """Where to find the lanes of a name, for those that have one."""

    def __len__(self) -> int:
        return len(self.by_name)

    def __contains__(self, name: object) -> bool:
        return name in self.by_name

    def get(self, name: str) -> Waiting[Item] | None:
        """What waits under this name."""
        return self.by_name.get(name)

    def oldest(self) -> Waiting[Item] | None:
        """What came first of all that waits, whatever its priority."""
        return next(iter(self.by_name.values()), None)

    def push(
        self,
        name: str,
        item: Item,
        *,
        priority: int = PRIORITY_DEFAULT,
        key: str = "",
        lane: str = "",
        since: float = 0.0,
        first: bool = False,
    ) -> None:
        """Let something wait, last in its lane, or `first` of it. The name must not wait already."""
        assert name not in self.by_name, name
        waiting = self.by_name[name] = Waiting(name, item, since)
        if first:
            self.by_name.move_to_end(name, last=False)
        if self._alike:
            if priority == PRIORITY_DEFAULT and not key and not lane:
                return
            self._tell_apart(besides=waiting)
        self._seat(waiting, priority, key, lane, first=first)

    def _tell_apart(self, *, besides: Waiting[Item] | None = None) -> None:
        """Give a place to what has waited without one: from now on turns are kept."""
        self._alike = False
        for waiting in self.by_name.values():
            if waiting is not besides:
                self._seat(waiting, PRIORITY_DEFAULT, "", "")

    def _seat(self, waiting: Waiting[Item], priority: int, key: str, lane: str, *, first: bool = False) -> None:
        level = self._levels[priority]
        line = level.lines.get(key)
        if line is None:
            line = level.lines[key] = _Line(level, key)
        found = line.lanes.get(lane)
        if found is None:
            found = line.lanes[lane] = _Lane(line, lane)
            if lane:
                self._lanes.setdefault(lane, {})[found] = None
            if lane not in self._held_lanes:
                line.ready.join(found)
        waiting.place = found
        found.items[waiting.name] = waiting
        if first:
            found.items.move_to_end(waiting.name, last=False)
        if not line.joined and line.ready and key not in self._held_keys:
            level.ready.join(line)
        if not level.count:
            level.tag = max(level.tag, self._now) + level.stride
            self._busy.append(level)
        level.count += 1

    def pop(self) -> Waiting[Item] | None:
        """Take what has its turn; `None` where nothing waits, or all of it is held."""
        if self._alike:
            return self.by_name.popitem(last=False)[1] if self.by_name else None
        level = self._next_level()
        if level is None:
            return None
        line = level.ready.first()
        lane = line.ready.first()
        _, waiting = lane.items.popitem(last=False)
        del self.by_name[waiting.name]
        self._now = level.tag = max(level.tag, self._now)
        line.ready.served(lane)
        level.ready.served(line)
        self._left(lane)
        if level.count:
            level.tag += level.stride
        return waiting

    def remove(self, name: str) -> Waiting[Item] | None:
        """Take something out of turn; `None` where it does not wait."""
        waiting = self.by_name.pop(name, None)
        if waiting is not None and waiting.place is not None:
            del waiting.place.items[name]
            self._left(waiting.place)
        return waiting

    @property
    def ready(self) -> bool:
        """Whether anything waits that is not held."""
        return bool(self.by_name) if self._alike else any(level.ready for level in self._busy)

    # --- holding ----------------------------------------------------------------------------------------------------

    def hold_key(self, key: str) -> None:
        """Pass over what waits under a key, in every priority, until `let_key_go`."""
        if key not in self._held_keys:
            if self._alike and not key:
                self._tell_apart()
            self._held_keys.add(key)
            for level in self._busy:
                line = level.lines.get(key)
                if line is not None:
                    level.ready.leave(line)

    def let_key_go(self, key: str) -> None:
        """What waits under a key has its turns again."""
        if key in self._held_keys:
            self._held_keys.discard(key)
            for level in self._busy:
                line = level.lines.get(key)
                if line is not None and line.ready:
                    level.ready.rejoin(line)

    def hold_lane(self, lane: str) -> None:
        """Pass over what waits in the lanes of a name, under every key, until `let_lane_go`."""
        if lane not in self._held_lanes:
            self._held_lanes.add(lane)
            for found in self._lanes.get(lane, ()):
                line = found.line
                line.ready.leave(found)
                if not line.ready:
                    line.level.ready.leave(line)

    def let_lane_go(self, lane: str) -> None:
        """What waits in the lanes of a name has its turns again."""
        if lane in self._held_lanes:
            self._held_lanes.discard(lane)
            for found in self._lanes.get(lane, ()):
                line = found.line
                line.ready.rejoin(found)
                if not line.joined and line.key not in self._held_keys:
                    line.level.ready.rejoin(line)

    def is_held(self, waiting: Waiting[Item]) -> bool:
        """Whether something is passed over for now."""
        return waiting.key in self._held_keys or waiting.lane in self._held_lanes

    # --- looking ----------------------------------------------------------------------------------------------------

    def in_order(self) -> Iterator[Waiting[Item]]:
        """What waits in the order in which it would go if nothing changed; at the end what is held."""
        yield from self._in_order(held=False)
        if self._held_keys or self._held_lanes:
            yield from (waiting for waiting in self._in_order(held=True) if self.is_held(waiting))

    def _in_order(self, *, held: bool) -> Iterator[Waiting[Item]]:
        if self._alike:
            yield from list(self.by_name.values())
            return
        levels = {level: (level.tag, deque(level.in_order(held=held))) for level in self._busy}
        levels = {level: found for level, found in levels.items() if found[1]}
        now = self._now
        while levels:
            level = min(levels, key=lambda level: (levels[level][0], -level.priority))
            tag, lines = levels[level]
            line = lines.popleft()
            waiting = next(line, None)
            if waiting is not None:
                lines.append(line)
                now = max(now, tag)
                levels[level] = (now + level.stride, lines)
                yield waiting
            elif not lines:
                del levels[level]

    # --- turns ------------------------------------------------------------------------------------------------------

    def _next_level(self) -> _Level[Item] | None:
        """The priority that has its turn: the lowest tag, the higher priority of two with the same."""
        busy = self._busy
        if len(busy) == 1:
            return busy[0] if busy[0].ready else None
        found: _Level[Item] | None = None
        for level in busy:
            if level.ready and (found is None or (level.tag, -level.priority) < (found.tag, -found.priority)):
                found = level
        return found

    def _left(self, lane: _Lane[Item]) -> None:
        """Something has left a lane: what is empty now is forgotten."""
        line, level = lane.line, lane.line.level
        if not lane.items:
            line.ready.leave(lane)
            del line.lanes[lane.name]
            if lane.name:
                lanes = self._lanes[lane.name]
                del lanes[lane]
                if not lanes:
                    del self._lanes[lane.name]
            if not line.ready:
                level.ready.leave(line)
                if not line.lanes:
                    del level.lines[line.key]
        level.count -= 1
        if not level.count:
            self._busy.remove(level)
            if not self._busy:  # nothing waits at all: numbers begin anew
                self._alike = "" not in self._held_keys
                self._now = 0
                for each in self._levels:
                    each.tag = 0


Member = TypeVar("Member", bound="_Member")


class _Member:
    """Something that takes turns with others of its kind."""

    __slots__ = ("joined", "round")

    joined: bool
    """Whether it takes turns now."""
    round: int
    """Its next turn, or the one that it left before."""


class _Rounds(Generic[Member]):
    """Members that take turns of one each. Who joins has a turn in the next round."""

    __slots__ = ("_later", "_now", "_round")

    def __init__(self) -> None:
        self._now: OrderedDict[Member, None] = OrderedDict()
        self._later: OrderedDict[Member, None] = OrderedDict()
        self._round = 0

    def __bool__(self) -> bool:
        return bool(self._now or self._later)

    def join(self, member: Member) -> None:
        member.joined = True
        member.round = self._round + 1
        self._later[member] = None

    def rejoin(self, member: Member) -> None:
        """Come back after `leave`: whoever has missed a whole round goes next."""
        member.joined = True
        if member.round > self._round:
            self._later[member] = None
            return
        self._now[member] = None
        if member.round < self._round:
            self._now.move_to_end(member, last=False)

    def leave(self, member: Member) -> None:
        member.joined = False
        self._now.pop(member, None)
        self._later.pop(member, None)

    def first(self) -> Member:
        """Whose turn it is."""
        if not self._now:
            self._now, self._later = self._later, self._now
            self._round += 1
        return next(iter(self._now))

    def served(self, member: Member) -> None:
        """`first()` has had its turn."""
        if not self._later and len(self._now) == 1:  # nobody to take turns with
            self._round += 1
            member.round = self._round
            return
        del self._now[member]
        member.round = self._round + 1
        self._later[member] = None

    def in_order(self) -> Iterator[Member]:
        yield from self._now
        yield from self._later


class _Level(Generic[Item]):
    """One priority."""

    __slots__ = ("count", "lines", "priority", "ready", "stride", "tag")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.stride = STRIDES[priority]
        self.tag = 0
        self.count = 0
        self.lines: dict[str, _Line[Item]] = {}
        self.ready: _Rounds[_Line[Item]] = _Rounds()

    def in_order(self, *, held: bool) -> Iterator[Iterator[Waiting[Item]]]:
        lines = self.lines.values() if held else self.ready.in_order()
        return (line.in_order(held=held) for line in lines)


class _Line(_Member, Generic[Item]):
    """What waits under one key in one priority."""

    __slots__ = ("key", "lanes", "level", "ready")

    def __init__(self, level: _Level[Item], key: str) -> None:
        self.level = level
        self.key = key
        self.joined = False
        self.round = 0
        self.lanes: dict[str, _Lane[Item]] = {}
        self.ready: _Rounds[_Lane[Item]] = _Rounds()

    def in_order(self, *, held: bool) -> Iterator[Waiting[Item]]:
        lanes = deque(
            iter(lane.items.values()) for lane in (self.lanes.values() if held else list(self.ready.in_order()))
        )
        while lanes:
            lane = lanes.popleft()
            waiting = next(lane, None)
            if waiting is not None:
                lanes.append(lane)
                yield waiting


class _Lane(_Member, Generic[Item]):
    """What waits under one key, in one priority, in one lane: first in, first out."""

    __slots__ = ("items", "line", "name")

    def __init__(self, line: _Line[Item], name: str) -> None:
        self.line = line
        self.name = name
        self.joined = False
        self.round = 0
        self.items: OrderedDict[str, Waiting[Item]] = OrderedDict()
