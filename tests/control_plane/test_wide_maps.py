"""What a step of the catalogue's `Map` costs does not grow with how many steps there are."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from tests.control_plane.harness import LinkedRunner, outcome, submit, world

from llama_deploy.control_plane import own_state, session_state
from llama_deploy.orchestrators import Map
from llama_deploy.services import service

pytestmark = pytest.mark.anyio


@service(concurrency=64)
async def shout(text: str) -> str:
    """The text in upper case."""
    return text.upper()


async def costs_per_step(plane: Any, count: Counter[str], steps: int) -> dict[str, float]:
    """Bytes in the store, values of the state that are decoded and encoded, and their bytes; the end left out."""
    count.clear()
    entry = await submit(plane, "shout", json.dumps([{"text": f"step {number:05}"} for number in range(steps)]))
    assert len((await outcome(plane, entry)).output) == steps
    rows = await plane.store.load_history(entry.row.task_id)
    assert len(rows) == steps + 1
    count["stored"] = sum(len(row.data) for row in rows[1:-1])
    return {name: found / steps for name, found in count.items()}


async def test_a_step_of_a_wide_map_costs_what_one_of_a_narrow_map_does(monkeypatch: pytest.MonkeyPatch) -> None:
    count: Counter[str] = Counter()
    decode, encode = own_state._decode, session_state.encode_policy_value

    def decoded(value: bytes) -> Any:
        count["decoded"] += 1
        return decode(value)

    def encoded(value: Any, where: str) -> bytes:
        found = encode(value, where)
        if where.startswith("state["):
            count["encoded"] += 1
            count["encoded bytes"] += len(found)
        return found

    monkeypatch.setattr(own_state, "_decode", decoded)
    monkeypatch.setattr(session_state, "encode_policy_value", encoded)
    async with world(orchestrator=Map("shout")) as made:
        local = LinkedRunner([shout])
        await local.connect(made.plane)
        narrow = await costs_per_step(made.plane, count, 100)
        wide = await costs_per_step(made.plane, count, 1000)
        assert set(wide) == {"stored", "decoded", "encoded", "encoded bytes"}
        assert {name: wide[name] / narrow[name] for name in wide} == pytest.approx(dict.fromkeys(wide, 1.0), abs=0.1)
        await local.stop()
