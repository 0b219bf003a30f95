"""The part of the store suite about shards: who leads them, and that nobody else's commit takes effect.

A third party's store runs it through `StoreConformance`, not by itself. A store for one control plane has to do nothing
for it; one that several share says in `make_follower` how another of them opens it.
"""

# ruff: noqa: PLR2004 - the numbers in a test are its facts

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llama_deploy.errors import CommitConflictError, ShardLostError
from llama_deploy.state_stores.base import SessionRow, StateStore
from llama_deploy.state_stores.shards import shard_of
from llama_deploy.testing.recording import (
    AT,
    DEADLINE_S,
    StoreSuite,
    chunk,
    completion,
    delivery,
    hand_over,
    move,
    record,
    submission,
    task_row,
)


def _session_of(store: StateStore, shard: int, *, instead_of: str = "") -> str:
    """Name a session of that shard, and not the given one."""
    names = (f"s{number}" for number in range(100_000))
    return next(name for name in names if shard_of(name, store.shards_count) == shard and name != instead_of)


class ShardConformance(StoreSuite):
    """What the contract promises of shards."""

    def make_follower(self) -> StateStore | None:
        """Make a store over the same data for another control plane, which claims nothing by itself; not open yet.

        `None` when the store has room for one control plane only.
        """
        return None

    @asynccontextmanager
    async def _two(self) -> AsyncIterator[tuple[StateStore, StateStore] | None]:
        async with self.opened() as store:
            follower = self.make_follower()
            if follower is None:
                yield None
                return
            await follower.open()
            try:
                yield store, follower
            finally:
                async with asyncio.timeout(DEADLINE_S):
                    await follower.close()

    async def test_every_session_has_a_shard_and_whoever_opens_the_store_leads_all(self) -> None:
        async with self.opened() as store:
            rows = await store.shards()
            assert [row.shard for row in rows] == list(range(store.shards_count))
            assert dict(store.held) == {row.shard: row.epoch for row in rows}
            assert {row.owner for row in rows} == {store.owner}
            assert await store.claim_shards() == {}
            assert await store.renew_shards() == dict(store.held)
            for number in range(100):
                assert shard_of(f"s{number}", store.shards_count) in store.held

    async def test_a_transition_may_name_its_session(self) -> None:
        async with self.opened() as store:
            await record(store, **submission("t", task=task_row("t", session_id="s")))
            await record(store, shard_key="s", chunks=[chunk("t", 0)], moved=[move("t:1")])
            await record(store, shard_key="s", sent=[delivery("t", 2)])
            assert len(await store.load_deliveries("t")) == 2

    # --- several control planes -------------------------------------------------------------------------------------

    async def test_what_is_led_is_not_claimed(self) -> None:
        async with self._two() as two:
            if two is None:
                return
            store, follower = two
            assert dict(follower.held) == {}
            assert await follower.claim_shards() == {}
            lost = await hand_over(follower, **submission("t"))
            assert isinstance(lost, ShardLostError)
            await record(store, **submission("t"))
            await store.release_shards([0, 1])
            assert sorted(await follower.claim_shards([1, 2])) == [1]
            assert sorted(follower.held) == [1]
            assert 1 not in store.held
            rows = await store.shards()
            assert [rows[shard].owner for shard in range(3)] == ["", follower.owner, store.owner]
            assert rows[1].epoch == rows[2].epoch + 1

    async def test_a_shard_is_taken_over_when_its_lease_has_ended_and_no_commit_of_its_owner_follows(self) -> None:
        async with self._two() as two:
            if two is None:
                return
            store, follower = two
            mine, other = _session_of(store, 3), _session_of(store, 4)
            await record(store, **submission("t", task=task_row("t", session_id=mine)))
            await store.renew_shards(lease_s=0)
            claimed = await follower.claim_shards([3])
            assert claimed == {3: dict(store.held)[3] + 1}
            outcomes = await asyncio.gather(
                hand_over(store, **completion("t", task=task_row("t", 2, session_id=mine, state="completed"))),
                hand_over(store, **submission("u", task=task_row("u", session_id=other))),
                hand_over(store, shard_key=mine, chunks=[chunk("t", 0)]),
                hand_over(store, session=SessionRow(_session_of(store, 3, instead_of=mine), AT)),
            )
            assert [type(outcome) for outcome in outcomes] == [
                ShardLostError,
                type(None),
                ShardLostError,
                ShardLostError,
            ]
            assert await follower.load_task("t") == task_row("t", session_id=mine)
            assert await follower.load_chunks("t") == []
            assert 3 not in await store.renew_shards()
            await record(store, **submission("v", task=task_row("v", session_id=other)))
            end = task_row("t", 2, session_id=mine, state="completed")
            await record(follower, **completion("t", task=end))
            assert await store.load_task("t") == end

    async def test_what_names_no_session_needs_every_shard_that_was_held(self) -> None:
        async with self._two() as two:
            if two is None:
                return
            store, follower = two
            await record(store, **submission("t", task=task_row("t", session_id=_session_of(store, 4))))
            await store.renew_shards(lease_s=0)
            await follower.claim_shards([3])
            assert isinstance(await hand_over(store, moved=[move("t:1")]), ShardLostError)
            await store.renew_shards()  # now it knows what it has lost
            await record(store, moved=[move("t:1")])

    async def test_what_is_due_is_of_the_shards_that_are_led(self) -> None:
        async with self._two() as two:
            if two is None:
                return
            store, follower = two
            for shard in (3, 4):
                name = f"t{shard}"
                await record(store, **submission(name, task=task_row(name, session_id=_session_of(store, shard))))
            await store.release_shards([3])
            await follower.claim_shards([3])
            assert [row.task_id for row in await store.due_deliveries(AT + 99, limit=9)] == ["t4"]
            assert [row.task_id for row in await follower.due_deliveries(AT + 99, limit=9)] == ["t3"]
            assert await follower.make_due(AT) == 1
            assert (await follower.next_due(), await store.next_due()) == (AT, AT + 60)

    async def test_a_key_is_used_once_whoever_leads(self) -> None:
        async with self._two() as two:
            if two is None:
                return
            store, follower = two
            await store.release_shards([3])
            await follower.claim_shards([3])
            row = task_row("u", session_id=_session_of(store, 3))
            other = task_row("t", session_id=_session_of(store, 4))
            outcomes = await asyncio.gather(
                hand_over(store, **submission("t", task=other, idempotency=("key", "digest"))),
                hand_over(follower, **submission("u", task=row, idempotency=("key", "digest"))),
            )
            assert sorted(outcome is None for outcome in outcomes) == [False, True]
            assert any(isinstance(outcome, CommitConflictError) for outcome in outcomes)
