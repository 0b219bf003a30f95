"""Which shard a session is in, and ids that are made for one."""

from __future__ import annotations

from uuid import UUID, uuid5

import pytest

from llama_deploy.state_stores.shards import id_beside, shard_of
from llama_deploy.types import generate_id

NAMESPACE = UUID(int=7)


def test_sessions_spread_over_all_shards() -> None:
    counts = [0] * 64
    for _ in range(20_000):
        counts[shard_of(generate_id(), 64)] += 1
    assert min(counts) > 150


@pytest.mark.parametrize("shards", [1, 2, 16, 64, 997])
def test_an_id_beside_a_session_is_in_its_shard_and_always_the_same(shards: int) -> None:
    made = {str(uuid5(NAMESPACE, str(number))) for number in range(500)}
    for session in ("s", generate_id(), "ä/ö", ""):
        beside = {id_beside(one, session, shards) for one in made}
        assert {shard_of(one, shards) for one in beside} == {shard_of(session, shards)}
        assert beside == {id_beside(one, session, shards) for one in made}
        assert len(beside) == len(made), "none was given twice"
        assert all(str(UUID(one)) == one for one in beside)


def test_where_there_is_one_shard_an_id_stays_as_it_is() -> None:
    made = generate_id()
    assert id_beside(made, "s", 1) == made
