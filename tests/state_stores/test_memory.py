"""The store in memory: the conformance suite, and what it promises beyond the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from llama_deploy.errors import StoreUnavailableError
from llama_deploy.runtime import failpoints
from llama_deploy.state_stores import MemoryStore, StateStore
from llama_deploy.state_stores.base import Transition
from llama_deploy.testing import StoreConformance
from llama_deploy.testing.recording import AT, completion, delivery, hand_over, move, record, submission


class TestConformance(StoreConformance):
    @pytest.fixture(autouse=True)
    def _one_store(self) -> None:
        self.store = MemoryStore()

    def make_store(self) -> StateStore:
        return self.store


@pytest.fixture
def _disarmed() -> Iterator[None]:
    yield
    failpoints.disarm()


async def test_what_one_iteration_hands_over_is_one_commit() -> None:
    store = MemoryStore()
    await store.open()
    for expected in (1, 2):
        await asyncio.gather(*[hand_over(store, **submission(f"{expected}-{number}")) for number in range(50)])
        assert store.statistics.commits == expected
    assert store.statistics.rows_written == 2 * 50 * 3


@pytest.mark.usefixtures("_disarmed")
@pytest.mark.parametrize(("failpoint", "recorded"), [("store.before_commit", False), ("store.after_commit", True)])
async def test_a_crash_at_a_commit_loses_the_batch_or_only_the_news_of_it(failpoint: str, recorded: bool) -> None:
    store = MemoryStore()
    await store.open()

    def crash() -> None:
        raise RuntimeError("crash")

    failpoints.arm(failpoint, crash)
    outcome = hand_over(store, **submission("t"))
    with pytest.raises(RuntimeError, match="crash"):
        await store.close()
    assert not outcome.done()
    assert (await store.load_task("t") is not None) is recorded


async def test_a_closed_store_takes_nothing() -> None:
    store = MemoryStore()
    with pytest.raises(StoreUnavailableError):
        hand_over(store, **submission("t"))


async def test_old_due_times_do_not_pile_up() -> None:
    store = MemoryStore()
    await store.open()
    for number in range(3000):
        await record(store, **submission(f"t{number}"))
        await record(store, **completion(f"t{number}"))
    await record(store, sent=[delivery("last")])
    for attempt in range(1, 3000):
        await record(store, moved=[move("last:1", attempt, attempt + 1, visible_at=AT + attempt)])
    assert len(store._deliveries._heap) < 1100
    assert await store.next_due() == AT + 2999


async def test_a_defect_in_what_follows_a_commit_keeps_nobody_else_from_theirs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = MemoryStore()
    await store.open()

    def defect(_: object) -> None:
        raise RuntimeError("a defect")

    store.record(Transition(settled=defect, **submission("a")))
    outcome = hand_over(store, **submission("b"))
    await store.close()
    assert outcome.done()
    assert store.backlog == 0
    assert "what follows a commit failed" in caplog.text
