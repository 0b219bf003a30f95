"""Which control plane counts for a service that is limited over all of them, and how the others get to it.

Whoever leads the shard of the service's name counts: its gate is the gate of all, with the same fair turns, so that a
limit holds over all as it does over one. The gates of the others ask it (`asking`), over one connection to each. There
is one counter at a time because there is one leader at a time. A new one lets nothing go before it knows what runs:
everybody who lives has told it, and what changed hands has been brought back. A control plane that has its store to
itself has none of this, and services without such limits cost nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from llama_deploy.control_plane.asking import Asking
from llama_deploy.control_plane.counter import Counter
from llama_deploy.control_plane.gate import Gate, Standing, Visitor
from llama_deploy.control_plane.leadership import Leader, Member
from llama_deploy.messages import counting as said
from llama_deploy.runtime.clock import Timer

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine

REMIND_S = 1.0
"""Pause before others are reminded of what they have not told yet."""
AGAIN_S = 0.1
"""Pause before one is asked again who does not count yet."""


class Link(Protocol):
    """The way to one other control plane that counts for gates of this one; made again when it is lost."""

    def send(self, operations: list[Any]) -> None:
        """Tell it something, while there is a connection."""
        ...

    def close(self) -> None:
        """It is not needed any more."""
        ...


Connect = Callable[[Member, Callable[[], None], Callable[[list[said.CountingOp]], None], Callable[[], None]], Link]
"""Makes the way to a control plane: with what is to be called when there is a connection, when something is said, and
when the connection is lost."""


class _Way:
    """The link to one control plane, and the gates that it counts for."""

    def __init__(self, counting: Counting, member: Member, connect: Connect) -> None:
        self._counting = counting
        self.member = member
        self.gates: dict[str, Gate] = {}
        self._connected = False
        self._link = connect(member, self._opened, self._received, self._lost)

    def add(self, gate: Gate) -> None:
        """It counts for this gate."""
        self.gates[gate.service] = gate
        if self._connected:
            self._tell(gate)

    def remove(self, service: str) -> None:
        """It counts for this gate no more."""
        gate = self.gates.pop(service, None)
        if gate is not None and gate.asking is not None:
            gate.asking.lost()

    def close(self) -> None:
        self._lost()
        self._link.close()

    def _tell(self, gate: Gate) -> None:
        if gate.asking is not None:
            gate.standing = Standing()
            gate.asking.tell(self._link.send)

    def _opened(self) -> None:
        self._connected = True
        for gate in self.gates.values():
            self._tell(gate)

    def _lost(self) -> None:
        self._connected = False
        for gate in self.gates.values():
            if gate.asking is not None:
                gate.asking.lost()
            gate.standing = Standing()

    def _received(self, operations: list[said.CountingOp]) -> None:
        counting = self._counting
        for operation in operations:
            gate = self.gates.get(operation.service)
            if gate is None or gate.asking is None:
                continue
            if isinstance(operation, said.Admitted):
                counting.admission.admitted(gate, gate.asking.admitted(operation.numbers))
            elif isinstance(operation, said.Standing):
                opens_in_s = operation.opens_in_s
                opens_at = None if opens_in_s is None else counting.now() + opens_in_s
                gate.standing = Standing(operation.running, opens_at, operation.closed)
            elif isinstance(operation, said.MakeWay):
                counting.admission.make_way(gate)
            elif isinstance(operation, said.NotCounted):
                gate.asking.lost()
                counting.again(self, gate)


class CountingPort:
    """The connection of another control plane, for whose gates is counted here."""

    def __init__(self, counting: Counting, send: Callable[[list[Any]], None]) -> None:
        self._counting = counting
        self._send = send
        self._owners: dict[str, str] = {}
        """By service: who tells of it over this connection."""
        self._outgoing: list[Any] = []
        self._closed = False

    def post(self, operation: Any) -> None:
        """Send an operation with whatever else this turn of the loop sends."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(operation)

    def _flush(self) -> None:
        operations, self._outgoing = self._outgoing, []
        if not self._closed:
            self._send(operations)

    def receive(self, operations: list[said.TellingOp]) -> None:
        """What the other one tells, in order."""
        counting = self._counting
        told: dict[str, None] = {}
        for operation in operations:
            service = operation.service
            if isinstance(operation, said.Begin):
                self._owners[service] = operation.owner
            counter = counting.counters.get(service)
            owner = self._owners.get(service)
            if counter is None or owner is None:
                if isinstance(operation, said.Begin):
                    counting.spawn_look(lambda name=service: self.post(said.NotCounted(name)))  # type: ignore[misc]
                continue
            counter.take(owner, operation, self.post)
            told[service] = None
        for service in told:
            counting.settle(service)

    def close(self) -> None:
        """The connection has ended. Repeating it does nothing."""
        self._closed = True
        for service, owner in self._owners.items():
            counter = self._counting.counters.get(service)
            if counter is not None and counter.posts.get(owner) == self.post:
                counter.lost(owner)
                self._counting.settle(service)
        self._owners.clear()


class Counting:
    """Of one engine: for which services it counts, and who counts for the others."""

    def __init__(self, engine: Engine, connect: Connect) -> None:
        self._engine = engine
        self._leadership = engine.leadership
        self.admission = engine.admission
        self.connect = connect
        self.counters: dict[str, Counter] = {}
        """By service, for those that are counted here."""
        self._ways: dict[str, _Way] = {}
        """By owner."""
        self._seen: dict[int, tuple[str, int, float]] = {}
        """By shard: who leads it, in which epoch, and since when that is known here."""
        self._timer: Timer | None = None
        self._reminds = False
        self._stopped = False
        engine.admission.counting = self
        self._leadership.watchers.add(self.look)

    def now(self) -> float:
        return self._engine.clock.now()

    def attach(self, send: Callable[[list[Any]], None]) -> CountingPort:
        """A new connection of another control plane."""
        return CountingPort(self, send)

    def stop(self) -> None:
        """Count no more, and ask nobody."""
        self._stopped = True
        self._leadership.watchers.discard(self.look)
        if self._timer is not None:
            self._timer.cancel()
        for way in self._ways.values():
            way.close()
        self._ways.clear()

    # --- who counts -------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Members have come or gone, or shards have another leader."""
        if self._stopped:
            return
        now = self.now()
        for leader in self._leadership.leaders():
            known = self._seen.get(leader.shard)
            if known is None or known[:2] != (leader.member.owner, leader.epoch):
                self._seen[leader.shard] = (leader.member.owner, leader.epoch, now)
        for gate in list(self.admission.gates.values()):
            self.sort(gate)
        for service in list(self.counters):
            self.settle(service)
        living = {member.owner for member in self._leadership.members()}
        for owner in [owner for owner, way in self._ways.items() if owner not in living or not way.gates]:
            self._ways.pop(owner).close()

    def sort(self, gate: Gate) -> None:
        """A gate is new, or its limits are, or others lead: have it counted by whoever is to count for it."""
        if not gate.limits.over_sessions:
            self.forget(gate)
            return
        session_id = _session_of(gate.service)
        if self._leadership.keeps(session_id):
            self._count_here(gate)
        else:
            self._count_elsewhere(gate, session_id)

    def _count_here(self, gate: Gate) -> None:
        if gate.service in self.counters:
            return
        self._stop_asking(gate)
        gate.count_for_all()
        gate.sure = partial(self._leadership.leads, _session_of(gate.service))
        self.counters[gate.service] = Counter(gate, self.now)
        self.settle(gate.service)

    def _count_elsewhere(self, gate: Gate, session_id: str) -> None:
        self._stop_counting(gate)
        if gate.asking is None:
            gate.asking = Asking(gate, self._leadership.owner, self._engine.clock)
        leader = self._leadership.leader_of(session_id)
        member = None if leader is None or leader.member.owner == self._leadership.owner else leader.member
        for owner, way in self._ways.items():
            if member is None or owner != member.owner:
                way.remove(gate.service)
        if member is not None and member.url:
            way = self._ways.get(member.owner) or _Way(self, member, self.connect)
            self._ways[member.owner] = way
            if gate.service not in way.gates:
                way.add(gate)

    def forget(self, gate: Gate) -> None:
        """A gate counts for itself from now on, or is closed."""
        self._stop_counting(gate)
        self._stop_asking(gate)

    def _stop_asking(self, gate: Gate) -> None:
        if gate.asking is not None:
            for way in self._ways.values():
                way.remove(gate.service)
            gate.asking = None

    def _stop_counting(self, gate: Gate) -> None:
        counter = self.counters.pop(gate.service, None)
        if counter is not None:
            for post in counter.posts.values():
                post(said.NotCounted(gate.service))
            counter.close()
            gate.closed = False
            gate.sure = _always

    def again(self, way: _Way, gate: Gate) -> None:
        """Tell one again in a moment who does not count yet, if it is still him who is to."""

        def tell() -> None:
            if way.gates.get(gate.service) is gate and self._ways.get(way.member.owner) is way:
                way.add(gate)

        self._engine.clock.call_at(self.now() + AGAIN_S, tell)

    def spawn_look(self, then: Callable[[], None]) -> None:
        """Read what control planes have in common: somebody knows of limits that are not known here yet."""

        async def read() -> None:
            try:
                await self._engine.common.read()
                self.look()
            finally:
                then()

        self._engine.spawn(read())

    # --- counting here ----------------------------------------------------------------------------------------------

    def admit(self, gate: Gate, visitor: Visitor) -> None:
        """The turn of a step of another control plane has come."""
        counter = self.counters.get(gate.service)
        assert counter is not None, "there are visitors where is counted for them"
        counter.admit(visitor)

    def drained(self, gate: Gate) -> None:
        """Those whose turn it was have gone: tell the others."""
        counter = self.counters.get(gate.service)
        if counter is not None:
            counter.say()
            if counter.make_way():
                self.admission.make_way(gate)

    def settle(self, service: str) -> None:
        """Something was told, or is known now: let go what can go."""
        counter = self.counters.get(service)
        if counter is None:
            return
        gate, living = counter.gate, {member.owner for member in self._leadership.members()}
        for owner in set(counter.posts) - living:  # if it lives after all, it tells everything anew
            counter.posts[owner](said.NotCounted(service))
            counter.lost(owner)
        left = counter.let_go(living, partial(self._brought_back, counter))
        others = [member for member in self._leadership.members() if member.owner != self._leadership.owner]
        gate.waits_for = [member.name for member in others if not counter.told(member.owner)]
        if gate.closed and not gate.waits_for and self._all_brought_back():
            gate.closed = False
        self.admission.drain(gate)
        if gate.closed or left:
            self._look_again()

    def _brought_back(self, counter: Counter, owner: str, session_id: str) -> bool:
        """Whether whoever leads a session knows and has told of a step that `owner` does not speak of any more."""
        leader = self._leadership.leader_of(session_id)
        if leader is None:
            return False
        if leader.member.owner == owner:
            return counter.told(owner)
        told = leader.member.owner == self._leadership.owner or counter.told(leader.member.owner)
        return told and self._leads_for_long(leader)

    def _leads_for_long(self, leader: Leader) -> bool:
        """Whether instances had time to bring back what they hold to somebody who has begun to lead."""
        known = self._seen.get(leader.shard)
        return known is not None and known[:2] == (leader.member.owner, leader.epoch) and self._is_over(known[2])

    def _all_brought_back(self) -> bool:
        """Whether every shard has had its leader for long enough that instances have brought back what they hold."""
        leaders = self._leadership.leaders()
        return len(leaders) == self._leadership.shards_count and all(map(self._leads_for_long, leaders))

    def _is_over(self, since: float) -> bool:
        return self.now() >= since + self._engine.settings.recovery_grace_s

    def _look_again(self) -> None:
        """Look when the next grace is over: nothing else may happen then. Or in a while, and remind the others."""
        if self._timer is not None or self._stopped:
            return
        now, grace_s = self.now(), self._engine.settings.recovery_grace_s
        pending = [seen[2] + grace_s for seen in self._seen.values() if not self._is_over(seen[2])]
        self._reminds = not pending
        self._timer = self._engine.clock.call_at(min([*pending, now + REMIND_S]), self._due)

    def _due(self) -> None:
        self._timer = None
        if self._reminds:  # who has missed that there are limits has nothing to tell of them
            self._engine.common.changed()
        for service in list(self.counters):
            self.settle(service)

    # --- what changes hands -----------------------------------------------------------------------------------------

    def moved(self) -> None:
        """Steps run on that another control plane leads now: they count here until it has had time to count them."""
        self._look_again_for_moved()

    def _look_again_for_moved(self) -> None:
        when = self.now() + self._engine.settings.recovery_grace_s
        self._engine.clock.call_at(when, self._check_moved)

    def _check_moved(self) -> None:
        if not self._stopped and self.admission.let_moved_go(self._has_moved):
            self._look_again_for_moved()

    def _has_moved(self, gate: Gate, session_id: str) -> bool:
        """Whether another control plane leads a session for long enough, and has told of it where is counted here."""
        leader = self._leadership.leader_of(session_id)
        if leader is None or leader.member.owner == self._leadership.owner or not self._leads_for_long(leader):
            return False
        counter = self.counters.get(gate.service)
        return counter is None or counter.told(leader.member.owner)


def _always() -> bool:
    return True


def _session_of(service: str) -> str:
    """What stands for a service among sessions: whoever leads it counts."""
    return f"limits of {service}"
