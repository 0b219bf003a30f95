"""Which sessions this control plane leads, which others there are, and who leads the rest.

Control planes that share a store divide its shards evenly. Each holds its part under one lease, which it prolongs four
times in its length. Who joins is given the surplus of the others, a few shards at a time, each after what was decided
about it is settled; what belongs to somebody whose lease is over, or who has left, is claimed by those who have less
than their part. Everything is jittered and counted, and nobody is asked anything: the rows of the store say it all.

What it means to lead a shard, or to lead it no more, is for others: they are told. A control plane that has its store
to itself leads everything, always, and none of this costs it anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_deploy.errors import LlamaDeployError, ShardLostError, SharedStoreError, StoreLockedError
from llama_deploy.runtime import failpoint
from llama_deploy.runtime.logs import get_logger
from llama_deploy.state_stores import StateStore
from llama_deploy.state_stores.base import MemberRow
from llama_deploy.state_stores.shards import shard_of
from llama_deploy.types import generate_id

log = get_logger("llama_deploy.leadership")

LOOKS_PER_LEASE = 4
HANDED_OVER_AT_ONCE = 8
"""Shards that are given up, or claimed, in one piece."""
SOON_S = (0.01, 0.06)
"""When something has happened, everybody looks within this time, each at another moment."""
AGAIN_S = (0.1, 0.3)
"""Pause before the store is asked again that could not be read."""
_WORD = "members"


@dataclass(frozen=True, slots=True)
class Member:
    """A control plane on the store."""

    owner: str
    """Its name in the store, which nobody else has."""
    name: str
    url: str
    """Where it is reached; empty where it does not say."""
    seat: int
    shards: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads one shard."""

    member: Member
    shard: int
    epoch: int
    since: float
    """When it began to, by the store's clock, in seconds since the epoch."""


@dataclass(slots=True)
class LeadershipStatistics:
    """What has happened since the start."""

    looks: int = 0
    """How often the rows of the members were read, which prolongs the lease."""
    claimed: int = 0
    """Shards that this control plane has begun to lead."""
    takeovers: int = 0
    """Those of them whose earlier leader had not given them up."""
    handed_over: int = 0
    """Shards given up, for others that have less or at the stop."""
    lost: int = 0
    """Shards that others have taken over, because this one was not heard of in time."""
    commits_refused: int = 0
    """Changes that were not recorded because another leads the session by now."""


@dataclass(kw_only=True, slots=True)
class Sharing:
    """How a control plane shares its store with others."""

    name: str = ""
    """What people call it; the name of its owner in the store where it is empty."""
    url: str = ""
    """Where the others, their clients and all service instances reach it."""


class Leadership:
    """The shards of one control plane. Without `sharing` it leads every session."""

    def __init__(self, store: StateStore, sharing: Sharing | None = None, *, lease_s: float = 6.0) -> None:
        self._store = store
        self._lease_s = lease_s
        self._sharing = sharing or Sharing()
        self.shared = sharing is not None
        """Whether other control planes may lead sessions of the store."""
        self.statistics = LeadershipStatistics()
        self.seat = 0
        """A small number that no other living control plane has."""
        self.gained: Callable[[Sequence[int]], Any] = lambda _: None
        """Called when this control plane has begun to lead shards."""
        self.lost: Callable[[Sequence[int]], Any] = lambda _: None
        """Called when it leads shards no more, before anybody is told that they are free: forget what belongs to them,
        and hand over nothing further to the store."""
        self.heard: Callable[[str], Any] = lambda _: None
        """Called with what other control planes announce, and with `""` when anything may have been missed."""
        self.watchers: set[Callable[[], None]] = set()
        """Called whenever members have come or gone, or shards have another leader."""
        self._led: dict[int, int] = {}
        self.begun_at: dict[int, float] = {}
        """When this control plane began to lead each shard, by the engine's clock; written by who takes them up."""
        self._valid_until = 0.0
        self._patient_until = 0.0
        """Until then a lease that is over says nothing about its owner: nobody could prolong any."""
        self._members: dict[str, Member] = {}
        self._leaders: dict[int, Leader] = {}
        self._wake = asyncio.Event()
        self._look_at = 0.0
        self._looking = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._leaving = False

    # --- what others ask --------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What people call this control plane."""
        return self._sharing.name or self._store.owner

    @property
    def url(self) -> str:
        """Where others reach it."""
        return self._sharing.url

    @property
    def owner(self) -> str:
        """Its name in the store."""
        return self._store.owner

    @property
    def shards(self) -> Mapping[int, int]:
        """The shards that it leads, and the epoch of each."""
        return self._led if self.shared else self._store.held

    @property
    def certain(self) -> bool:
        """Whether nobody can have taken over by now: the lease is not over, by this process's own clock."""
        return not self.shared or asyncio.get_running_loop().time() < self._valid_until

    def shard(self, session_id: str) -> int:
        """The shard of a session, or of a task without one."""
        return shard_of(session_id, self._store.shards_count)

    def leads(self, session_id: str) -> bool:
        """Whether this control plane decides about a session, or about the task without a session that has this id."""
        return not self.shared or (self.certain and self.shard(session_id) in self._led)

    def keeps(self, session_id: str) -> bool:
        """Whether what is in memory of a session is this control plane's to work on.

        Other than `leads` it stays true when the lease is over and nobody is known to have taken over: what is decided
        then is recorded, or refused by the store.
        """
        return not self.shared or self.shard(session_id) in self._led

    @property
    def first(self) -> bool:
        """Whether this control plane does what is to be done once for all: it leads the first shard."""
        return not self.shared or (self.certain and 0 in self._led)

    def epoch_of(self, session_id: str) -> int | None:
        """In which epoch this control plane leads a session; `None` where it does not."""
        return self._led.get(self.shard(session_id)) if self.shared else 0

    def leader_of(self, session_id: str) -> Leader | None:
        """Who leads a session, as far as is known; `None` while nobody does, and without others."""
        leader = self._leaders.get(self.shard(session_id))
        if leader is not None and leader.member.owner == self.owner and leader.shard not in self._led:
            return None
        return leader

    def leaders(self) -> list[Leader]:
        """Who leads each shard, as far as is known."""
        return list(self._leaders.values())

    @property
    def shards_count(self) -> int:
        """Into how many shards sessions are divided."""
        return self._store.shards_count

    def members(self) -> list[Member]:
        """Every control plane that lives, this one included, by seat."""
        return sorted(self._members.values(), key=lambda member: member.seat)

    def own_id(self) -> str:
        """A new id of a task without a session, or of a session, that this control plane leads."""
        for _ in range(10_000 if self._led else 0):
            made = generate_id()
            if self.shard(made) in self._led:
                return made
        return generate_id()

    def not_led(self, session_id: str) -> ShardLostError:
        """The refusal of what another control plane decides about. Its details name that one, where it is known."""
        leader = self.leader_of(session_id)
        if leader is None or leader.member.owner == self.owner:
            return ShardLostError(
                "no control plane leads the session at the moment",
                why="its shard is changing hands",
                fix="ask again in a moment",
                session_id=session_id,
            )
        where = leader.member.url or leader.member.name
        return ShardLostError(
            f"the session is led by {where}",
            why=f"{self.name} leads other shards of the store",
            fix=f"ask {where}",
            session_id=session_id,
            leader=leader.member.url,
        )

    def refused(self, error: LlamaDeployError) -> None:
        """A change was not recorded; counted where that is because another leads the session."""
        if isinstance(error, ShardLostError):
            self.statistics.commits_refused += 1

    async def certainty(self) -> None:
        """Wait until it is certain what is led, where the lease is over: one look tells, once the store can be read."""
        while not self.certain:
            try:
                await self.look()
            except LlamaDeployError:  # whoever looks again and again says so
                await asyncio.sleep(random.uniform(*AGAIN_S))  # noqa: S311 - jitter

    def status(self) -> dict[str, Any] | None:
        """How the store is shared, in numbers; `None` where this control plane has it to itself."""
        if not self.shared:
            return None
        loop = asyncio.get_running_loop()
        counts = {name: getattr(self.statistics, name) for name in LeadershipStatistics.__slots__}
        return {
            "name": self.name,
            "url": self.url,
            "seat": self.seat,
            "shards": len(self._led),
            "shards_count": self._store.shards_count,
            "lease_s": self._lease_s,
            "lease_left_s": round(max(0.0, self._valid_until - loop.time()), 3),
            "members": [
                {
                    "name": member.name,
                    "url": member.url,
                    "seat": member.seat,
                    "shards": list(member.shards),
                    "epochs": [self._leaders[shard].epoch for shard in member.shards if shard in self._leaders],
                    "since": max((one.since for one in self._leaders.values() if one.member == member), default=None),
                }
                for member in self.members()
            ],
            "unled": self._store.shards_count - sum(len(member.shards) for member in self._members.values()),
            **counts,
        }

    # --- start and stop ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Become known to the others and take what nobody leads, up to this one's part.

        Raises `SharedStoreError` for a store that cannot be shared, `StoreLockedError` where somebody has it for
        himself.
        """
        self._store.on_lost = self._taken_over
        if not self.shared:
            return
        if self._store.shards_count == 1:
            raise SharedStoreError(
                f"{self._store.location} cannot be shared by control planes",
                why="it has one shard, which one control plane leads",
                fix="use a PostgreSQL store, made with more than one shard",
            )
        await self._join()
        self._store.listen(self._heard)
        await self.look()
        self._store.announce(_WORD)
        self._task = asyncio.create_task(self._run())

    async def _join(self) -> None:
        self.seat = await self._store.join(name=self.name, url=self.url)

    async def leave(self) -> None:
        """Give up everything, so that the others need not wait for the lease. Nothing of it may be in use any more."""
        if not self.shared or self._leaving:
            return
        self._leaving = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(self._lease_s):
                await self._hand_over(list(self._led), tell=False)
                await self._store.resign()
            self._store.announce(_WORD)
        except (TimeoutError, LlamaDeployError) as error:
            log.warning("the shards could not be handed over; others wait for the lease", error=str(error))

    # --- looking ----------------------------------------------------------------------------------------------------

    def look_soon(self) -> None:
        """Something has happened: look in a moment, not when everybody else does."""
        self._arm(asyncio.get_running_loop().time() + random.uniform(*SOON_S))  # noqa: S311 - jitter

    def _heard(self, word: str) -> None:
        if word in ("", _WORD):
            self.look_soon()
        if word != _WORD:
            self.heard(word)

    def _arm(self, when: float) -> None:
        if when < self._look_at:
            self._look_at = when
            self._wake.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while (left := self._look_at - loop.time()) > 0:
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._wake.wait()
            try:
                await self.look()
            except LlamaDeployError as error:
                log.warning("the lease could not be prolonged", error=str(error))
                self._look_at = loop.time() + random.uniform(0.1, 0.2) * self._lease_s  # noqa: S311 - jitter
            except Exception:  # the edge of this task: without it, everything would go to others for good
                log.exception("looking at the members failed")
                self._look_at = loop.time() + random.uniform(0.1, 0.2) * self._lease_s  # noqa: S311 - jitter

    async def look(self) -> None:
        """Prolong the lease, see who there is, take or give what is to be."""
        async with self._looking:
            loop = asyncio.get_running_loop()
            lease_s = self._lease_s
            begun_at = loop.time()
            if self.statistics.looks and not self.certain:  # the store was away, for the others as well
                self._patient_until = begun_at + lease_s / 2
            self._look_at = begun_at + lease_s / LOOKS_PER_LEASE * random.uniform(0.8, 1.0)  # noqa: S311 - jitter
            rows = await self._store.members(lease_s=lease_s)
            self.statistics.looks += 1
            held = self._store.held
            self._taken_over([shard for shard, epoch in self._led.items() if held.get(shard) != epoch])
            self._valid_until = begun_at + lease_s
            mine = next((row for row in rows if row.owner == self.owner), None)
            if mine is None or mine.seat is None or mine.seat != self.seat:
                await self._sit_down_again()
            alone = next((row for row in rows if row.lease_s > 0 and not row.shared and row.epochs), None)
            if alone is not None and alone.owner not in ("", self.owner) and not self._led:
                raise StoreLockedError(
                    f"{self._store.location} is in use by a control plane that does not share it ({alone.owner})",
                    why="it leads every session",
                    fix="stop it, and start it again with `shared: true` of the control plane",
                )
            self._note(rows)
            if not self._leaving:
                await self._level(rows, mine)

    async def _sit_down_again(self) -> None:
        """The lease was over for so long that somebody else has the seat."""
        before = self.seat
        await self._join()
        if self.seat != before:  # what is carried meets that of another one until this process starts again
            log.warning("another control plane has the seat", before=before, seat=self.seat)

    def _note(self, rows: Sequence[MemberRow]) -> None:
        """Keep what the rows say about the others."""
        alive = [row for row in rows if row.shared and (row.lease_s > 0 or row.owner == self.owner)]
        members: dict[str, Member] = {}
        leaders: dict[int, Leader] = {}
        for row in alive:
            member = Member(row.owner, row.name, row.url, row.seat or 0, tuple(row.epochs))
            members[row.owner] = member
            for shard, epoch in row.epochs.items():
                leaders[shard] = Leader(member, shard, epoch, row.since.get(shard, 0.0))
        changed = members != self._members or leaders != self._leaders
        self._members, self._leaders = members, leaders
        if changed:
            for watcher in tuple(self.watchers):
                watcher()

    # --- taking and giving ------------------------------------------------------------------------------------------

    async def _level(self, rows: Sequence[MemberRow], mine: MemberRow | None) -> None:
        """Claim what is missing to this one's part, or give up what is beyond it."""
        others = [row for row in rows if row.shared and row.lease_s > 0 and row.owner != self.owner]
        part = -(-self._store.shards_count // (len(others) + 1))
        patient = asyncio.get_running_loop().time() < self._patient_until
        gone = [row for row in rows if row.owner != self.owner and row.lease_s <= 0 and not (patient and row.owner)]
        free = [s for row in gone for s in row.epochs]
        orphaned = {s for row in rows if row.owner not in ("", self.owner) and row.lease_s <= 0 for s in row.epochs}
        forgotten = [] if mine is None else [s for s in mine.epochs if s not in self._led]
        if forgotten:  # an answer of the store was lost: it is ours, and nobody knows what it stood for
            await self._store.claim_shards(forgotten, lease_s=self._lease_s)
            self._begin({s: e for s, e in self._store.held.items() if s in forgotten}, set())
        missing, surplus = part - len(self._led), len(self._led) - part
        if missing > 0 and free:
            random.shuffle(free)
            chosen = sorted(free[:missing])
            claimed = await self._store.claim_shards(chosen, lease_s=self._lease_s)
            self._begin({shard: epoch for shard, epoch in claimed.items() if shard not in self._led}, orphaned)
            if len(claimed) < len(chosen):  # others were first with some; there may be more
                self.look_soon()
        elif surplus > 0 and any(len(row.epochs) < part for row in others):
            await self._hand_over(random.sample(sorted(self._led), min(surplus, HANDED_OVER_AT_ONCE)))
            if surplus > HANDED_OVER_AT_ONCE:
                self.look_soon()
        ends = [row.lease_s for row in others if row.epochs]
        if ends and len(self._led) < self._store.shards_count:  # look when a lease that is not prolonged has ended
            soonest = asyncio.get_running_loop().time() + min(ends)
            self._arm(soonest + random.uniform(0.01, 0.05) * self._lease_s)  # noqa: S311 - jitter

    def _begin(self, claimed: Mapping[int, int], orphaned: set[int]) -> None:
        """Lead these from now on."""
        if not claimed:
            return
        failpoint("leadership.claimed")
        self._led.update(claimed)
        self.statistics.claimed += len(claimed)
        self.statistics.takeovers += len(orphaned & claimed.keys())
        log.info("leading further shards", count=len(claimed), taken_over=len(orphaned & claimed.keys()))
        me = Member(self.owner, self.name, self.url, self.seat, tuple(sorted(self._led)))
        self._members[self.owner] = me
        for shard, epoch in claimed.items():
            self._leaders[shard] = Leader(me, shard, epoch, 0.0)
        self.gained(list(claimed))
        self._store.announce(_WORD)
        for watcher in tuple(self.watchers):
            watcher()

    async def _hand_over(self, shards: Sequence[int], *, tell: bool = True) -> None:
        """Give these up: nothing new is decided about them, what was decided is settled, then others may have them."""
        if not shards:
            return
        for shard in shards:
            self._led.pop(shard, None)
            self._leaders.pop(shard, None)
        self.lost(shards)
        failpoint("leadership.before_release")
        await self._store.release_shards(shards)
        failpoint("leadership.released")
        self.statistics.handed_over += len(shards)
        log.info("handed shards over", count=len(shards))
        if tell:
            self._store.announce(_WORD)

    def _taken_over(self, shards: Sequence[int]) -> None:
        """The store has found that others have claimed shards: what is in memory of them is not true any more."""
        lost = [shard for shard in shards if self._led.pop(shard, None) is not None]
        if not lost:
            return
        self.statistics.lost += len(lost)
        for shard in lost:
            self._leaders.pop(shard, None)
        self.lost(lost)
        self.look_soon()
