"""Who leads which shards of a PostgreSQL store: registering, claiming, renewing, releasing.

An owner has one row with its lease, and shards name their owner. A takeover changes the rows of the shards, which every
commit locks: it waits for the commits that are under way, and what comes later is refused by its epoch. All times are
the database's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_deploy.errors import LlamaDeployError, StoreLockedError, StoreUnavailableError
from llama_deploy.runtime.logs import get_logger
from llama_deploy.state_stores.base import MemberRow, ShardRow
from llama_deploy.state_stores.postgres_connection import PostgresAddress
from llama_deploy.state_stores.postgres_keeping import PostgresKeeping

if TYPE_CHECKING:
    import asyncpg

log = get_logger("llama_deploy.store")

LEASE_S = 10.0
"""How long a store that claims by itself holds its shards after it was last heard of."""
RENEWALS_PER_LEASE = 4
SEAT_KEPT_S = 60.0
"""How long the seat of a member is kept for it that was not heard of."""
_SEATS_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('llama_deploy seats ' || $1, 0))"
CLAIM_TIMEOUT_S = 20.0
"""How long a store that wants every shard waits for the lease of an owner of which nobody knows whether it lives."""


def new_owner() -> str:
    """A name that no other owner has: host, process and chance."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


class PostgresShards(PostgresKeeping):
    """The shards of the store's contract."""

    def __init__(self, address: PostgresAddress, *, owner: str, claims: bool) -> None:
        super().__init__(address)
        self.owner = owner
        self._claims = claims
        self._held: dict[int, int] = {}
        self._releasing: set[int] = set()
        self.lost: dict[int, int] = {}
        """Shards that were taken over since the latest renewal, with the epochs that they were held in."""
        self.last_error = ""
        self._lease_s = LEASE_S

    @property
    def held(self) -> Mapping[int, int]:
        return dict(self._held)

    @property
    def _shards_read(self) -> list[int]:
        return sorted(self._held)

    async def shards(self) -> list[ShardRow]:
        return [ShardRow(*row) for row in await self._rows("shards")]

    async def claim_shards(self, shards: Sequence[int] | None = None, *, lease_s: float = LEASE_S) -> dict[int, int]:
        return await self._claim(shards, lease_s, silence_is_death=False)

    async def _claim(self, shards: Sequence[int] | None, lease_s: float, *, silence_is_death: bool) -> dict[int, int]:
        wanted = list(range(self.shards_count)) if shards is None else list(shards)

        async def work(connection: asyncpg.Connection[Any]) -> None:
            await connection.execute(self._sql["renew_owner"], self.owner, lease_s)
            await connection.fetch(self._sql["lock_free_shards"], self.owner, wanted, silence_is_death)
            await connection.fetch(self._sql["claim_shards"], self.owner, wanted, silence_is_death)

        before = dict(self._held)
        await self._with_connection(work, transaction=True)
        rows = await self._rows("held_shards", self.owner)  # an attempt whose answer was lost may have claimed some too
        recorded = {row[0]: row[1] for row in rows}  # and what took too long may be somebody else's by now
        self._lose(s for s, epoch in list(self._held.items()) if recorded.get(s) != epoch)
        self._held = recorded
        for shard in self._held:
            self.lost.pop(shard, None)
        return {shard: epoch for shard, epoch in recorded.items() if before.get(shard) != epoch}

    async def renew_shards(self, *, lease_s: float = LEASE_S) -> dict[int, int]:
        await self._run("renew_owner", self.owner, lease_s)
        await self._compare_held()
        if self._tables.unfinished:
            await self._with_connection(self._tables.finish_migrations)
        self.lost.clear()  # whoever asked is told by what is not there
        return dict(self._held)

    async def _compare_held(self) -> None:
        rows = await self._rows("held_shards", self.owner)
        recorded = {row[0]: row[1] for row in rows}
        held = list(self._held.items())
        self._lose(shard for shard, epoch in held if recorded.get(shard) != epoch and shard not in self._releasing)

    async def _look_for_losses(self) -> None:
        """Where one shard was taken over, others may have been, too; what is not found out now, a commit finds out."""
        with contextlib.suppress(LlamaDeployError):
            await self._compare_held()

    def _lose(self, shards: Iterable[int]) -> None:
        lost = {shard: epoch for shard in shards if (epoch := self._held.pop(shard, None)) is not None}
        if not lost:
            return
        self.lost |= lost
        self.last_error = "another control plane has taken over"
        log.error("shards were taken over by another control plane", count=len(lost), owner=self.owner)
        self.on_lost(list(lost))

    async def join(self, *, name: str, url: str) -> int:
        async def work(connection: asyncpg.Connection[Any]) -> int:
            await connection.execute(_SEATS_LOCK, self._address.schema)
            seat: int | None = await connection.fetchval(self._sql["seat"], self.owner, name, url, SEAT_KEPT_S)
            if seat is None:
                raise StoreUnavailableError("this owner is not registered any more", fix="open the store again")
            return seat

        await self._sweep_owners()
        return await self._with_connection(work, transaction=True)

    async def _sweep_owners(self) -> None:
        """Forget owners that are long gone; what they have counted is kept."""
        for (owner,) in await self._rows("long_gone"):
            await self._run("leave", owner)

    async def resign(self) -> None:
        await self._run("resign", self.owner)

    async def members(self, *, lease_s: float = LEASE_S) -> list[MemberRow]:
        before = dict(self._held)
        self._lease_s = lease_s
        found = [
            MemberRow(
                owner,
                shared,
                name,
                url,
                seat,
                lease,
                dict(zip(shards or (), epochs or (), strict=True)),
                dict(zip(shards or (), since or (), strict=True)),
            )
            for owner, shared, name, url, seat, lease, shards, epochs, since in await self._rows(
                "members", self.owner, lease_s
            )
        ]
        mine = next((row for row in found if row.owner == self.owner), None)
        if mine is None:  # swept away as long gone: it was away for a day
            await self._register()
        recorded = mine.epochs if mine is not None else {}
        still = [shard for shard, epoch in before.items() if self._held.get(shard) == epoch]
        self._lose(s for s in still if recorded.get(s) != before[s] and s not in self._releasing)
        if self._tables.unfinished:
            await self._with_connection(self._tables.finish_migrations)
        self.lost.clear()
        return found

    async def take_up(self, shards: Sequence[int], when: float) -> int:
        return await self._run("take_up", when, list(shards))

    async def release_shards(self, shards: Sequence[int] | None = None) -> None:
        wanted = list(self._held) if shards is None else list(shards)
        await self._settled()
        self._releasing.update(wanted)
        try:
            await self._run("release_shards", self.owner, wanted)
            for shard in wanted:
                self._held.pop(shard, None)
        finally:
            self._releasing.difference_update(wanted)

    async def _settled(self) -> None:
        """Until what was handed over so far is settled."""
        raise NotImplementedError

    # --- as whoever opens the store does it -------------------------------------------------------------------------

    async def _register(self) -> None:
        backend_known = not self._address.proxied
        await self._writer_execute("register", self.owner, self._lease_s, self._tables.known, backend_known)

    async def _writer_execute(self, name: str, *parameters: Any) -> None:
        """Run a statement on the connection that writes batches."""
        raise NotImplementedError

    async def _claim_all(self) -> None:
        """Take every shard. Raises `StoreLockedError` when somebody who lives has some."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + CLAIM_TIMEOUT_S
        while True:
            await self._claim(None, self._lease_s, silence_is_death=True)
            if len(self._held) == self.shards_count:
                break
            others = [row for row in await self._rows("live_owners") if row[0] != self.owner]
            alive = [row for row in others if row[2]]
            if alive or loop.time() > ends_at:
                names = ", ".join(row[0] for row in alive or others)
                raise StoreLockedError(
                    f"{self.location} is in use by another process" + (f" ({names})" if names else ""),
                    why="one control plane leads a session at a time",
                    fix="stop the other process, or name another schema with ?schema=NAME",
                )
            await asyncio.sleep(0.2)
        await self._sweep_owners()

    async def _renew_for_ever(self) -> None:
        """Prolong the lease; what fails is tried the next time."""
        while True:
            await asyncio.sleep(self._lease_s / RENEWALS_PER_LEASE)
            try:
                await self.renew_shards(lease_s=self._lease_s)
            except LlamaDeployError as error:
                log.warning("the lease could not be prolonged", error=str(error))

    async def _leave(self) -> None:
        """Give up everything; a server that is not there finds out when the lease ends."""
        try:
            async with asyncio.timeout(3.0):
                await self._run("release_shards", self.owner, list(range(self.shards_count)))
                await self._run("leave", self.owner)
        except (TimeoutError, StoreUnavailableError) as error:
            log.warning("the store was left without a word", error=str(error))
        self._held = {}
