"""Whom to ask about a session, where several control planes share one store: this one, or the one that leads it.

It knows no protocol. Who asks elsewhere in vain comes back here and is told whom to ask next; while nobody leads a
session it waits, as long as a takeover may take.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING

from llama_deploy.control_plane.leadership import Leader, Leadership, Member
from llama_deploy.errors import LlamaDeployError, NoLeaderError, ShardLostError
from llama_deploy.state_stores.shards import id_beside
from llama_deploy.types import TaskDefinition, generate_id

if TYPE_CHECKING:
    from llama_deploy.control_plane.engine import Engine

AGAIN_S = 0.2
"""Pause before somebody is asked again who did not answer, or before what is led is looked at again."""


class Routing:
    """Whom one control plane asks about sessions."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._leadership: Leadership = engine.leadership
        self.shared = self._leadership.shared
        """Whether there may be other control planes at all."""
        self.patience_s = engine.settings.leader_wait_s
        """How long a request waits for a leader."""

    def leads(self, session_id: str) -> bool:
        """Whether this control plane leads a session."""
        return self._leadership.leads(session_id)

    def not_led(self, session_id: str) -> ShardLostError:
        """The refusal of what another control plane leads."""
        return self._leadership.not_led(session_id)

    def own_id(self) -> str:
        """A new id of a task, or of a session, that this control plane leads."""
        return self._leadership.own_id()

    def id_beside(self, session_id: str) -> str:
        """A new id of a task that whoever leads the session leads, too."""
        return id_beside(generate_id(), session_id, self._engine.store.shards_count)

    @cached_property
    def of_all(self) -> str:
        """A session that nobody has, of the first shard: whoever leads that is asked about what there is only once."""
        return next(name for name in map(str, count()) if self._leadership.shard(name) == 0)

    async def session_of(self, task_id: str) -> str | None:
        """The session of a task, or what stands for one; `None` for a task that there is not."""
        entry = self._engine.cache.tasks.get(task_id)
        if entry is not None:
            return entry.row.session_id
        row = await self._engine.store.load_task(task_id)
        return row.session_id if row is not None else None

    async def session_under(self, key: str) -> str | None:
        """The session of the task that was made under an idempotency key; `None` where there is none."""
        known = await self._engine.store.find_idempotent(key)
        return await self.session_of(known[0]) if known is not None else None

    async def session_of_new(self, definition: TaskDefinition) -> str:
        """The session of a task that is to be made: its own, or that of the task that was made under its key."""
        if not definition.session_id and definition.idempotency_key:
            known = await self.session_under(definition.idempotency_key)
            if known is not None:
                return known
        return definition.session_id or definition.task_id

    # --- whom to ask ------------------------------------------------------------------------------------------------

    async def place(self, session_id: str, *, ends_at: float, in_vain: Leader | None = None) -> Leader | None:
        """Whom to ask about a session: `None` means this control plane itself.

        `in_vain` did not answer, or does not lead it: somebody else is waited for, and that one asked again after a
        pause. `ends_at` is by the loop's clock; then it raises `NoLeaderError`.
        """
        while True:
            if self._leadership.leads(session_id):
                return None
            leader = self.leader(session_id)
            if leader is not None and not same(leader, in_vain):
                return leader
            left_s = ends_at - asyncio.get_running_loop().time()
            if left_s <= 0:
                raise no_leader()
            await self.changed(min(left_s, AGAIN_S))
            if leader is not None:
                in_vain = None

    def leader(self, session_id: str) -> Leader | None:
        """Which other control plane leads a session, as far as is known; `None` while nobody else is to be asked."""
        leader = self._leadership.leader_of(session_id)
        if leader is not None and (leader.member.owner == self._leadership.owner or not leader.member.url):
            return None
        return leader

    async def changed(self, timeout_s: float) -> None:
        """Wait until somebody has begun to lead something, or left; so long at most."""
        changed = asyncio.Event()
        self._leadership.watchers.add(changed.set)
        self._leadership.look_soon()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await changed.wait()
        finally:
            self._leadership.watchers.discard(changed.set)

    async def gone(self, member: Member) -> None:
        """Wait until a control plane is not among the living any more."""
        changed = asyncio.Event()
        self._leadership.watchers.add(changed.set)
        try:
            while any(one.owner == member.owner for one in self._leadership.members()):
                changed.clear()
                await changed.wait()
        finally:
            self._leadership.watchers.discard(changed.set)

    def living(self) -> set[str]:
        """All control planes that live, by their names in the store."""
        return {member.owner for member in self._leadership.members()}

    def watch(self, changed: Callable[[], None]) -> None:
        """Have `changed` called whenever members have come or gone, or shards have another leader."""
        self._leadership.watchers.add(changed)


class Search:
    """Whom to ask next about one session, until somebody answers.

    `patience_s` is how long nobody may answer; who was asked and did not answer at once has earned it anew.
    """

    def __init__(self, routing: Routing, session_id: str, *, patience_s: float) -> None:
        self._routing = routing
        self.session_id = session_id
        self._patience_s = patience_s
        self._asked: Leader | None = None
        now = asyncio.get_running_loop().time()
        self._ends_at = now + patience_s
        self._asked_at = now

    async def next(self) -> Leader | None:
        """The next one, when the one before did not answer; `None` is this control plane. Raises `NoLeaderError`."""
        now = asyncio.get_running_loop().time()
        if now - self._asked_at > self._patience_s:
            self._ends_at = now + self._patience_s
        if now > self._ends_at:
            raise no_leader()
        self._asked = await self._routing.place(self.session_id, ends_at=self._ends_at, in_vain=self._asked)
        self._asked_at = asyncio.get_running_loop().time()
        return self._asked


def same(leader: Leader, other: Leader | None) -> bool:
    """Whether both are one control plane that leads a shard in one epoch."""
    return other is not None and (leader.member.owner, leader.epoch) == (other.member.owner, other.epoch)


def no_leader() -> LlamaDeployError:
    """The refusal of what nobody could be asked about for too long."""
    return NoLeaderError(
        "no control plane that leads the session can be reached at the moment",
        why="its shard is changing hands, or the control plane that leads it does not answer",
        fix="ask again in a moment",
        retry_after_s=2,
    )
