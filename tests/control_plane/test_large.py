"""Large payloads: stored once under their hash, whole again wherever they are read, and gone with their tasks."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.control_plane.harness import LinkedRunner, World, history, outcome, submit, world

from llama_deploy.control_plane import EngineSettings
from llama_deploy.control_plane.large import cut, whole
from llama_deploy.control_plane.records import Record, SentMessage, encode_record
from llama_deploy.messages import QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator, get_result_key
from llama_deploy.services import service
from llama_deploy.state_stores.base import HistoryRow
from llama_deploy.types import ActionTypes, NewTask, TaskDefinition, TaskResult

CHARACTERS = 1_000_000
LARGE = "".join(chr(33 + number % 90) for number in range(CHARACTERS)).replace('"', "ü\n")
INLINE_MAX = EngineSettings().payload_inline_bytes_max


@service
async def echo(text: str) -> str:
    return text


@service
async def wrap(text: str) -> dict[str, Any]:
    return {"wrapped": text, "length": len(text)}


class Twice(BaseOrchestrator):
    """Sends the input to `echo`, its answer to `echo` again, and keeps it in its state meanwhile."""

    synchronous = True

    async def get_next_messages(
        self, task_definition: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        mine = state.setdefault(task_definition.task_id, {"answers": []})
        if len(mine["answers"]) >= 2:
            data = state[get_result_key(task_definition.task_id)]
            done = QueueMessage(type="human", action=ActionTypes.COMPLETED_TASK, data=data)
            return [done], state
        text = mine["answers"][-1] if mine["answers"] else task_definition.input
        task = task_definition.model_copy(update={"input": text})
        return [QueueMessage(type="echo", data=NewTask(task=task).model_dump())], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        state[result.task_id]["answers"].append(result.result)
        state[get_result_key(result.task_id)] = result.model_dump()
        return state


def stored_bytes(path: Path) -> tuple[int, int]:
    """How many bytes stand in contents, and how many in history entries."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        parts = connection.execute("SELECT coalesce(sum(length(data)), 0) FROM blob_parts").fetchone()[0]
        entries = connection.execute("SELECT coalesce(sum(length(data)), 0) FROM history").fetchone()[0]
    return int(parts), int(entries)


async def serve(made: World, *services: Any) -> None:
    await LinkedRunner(services or [echo, wrap]).connect(made.plane)


async def test_a_large_input_that_comes_back_is_stored_once(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        await serve(made)
        entry = await submit(made.plane, "echo", LARGE, task_id="t")
        assert (await outcome(made.plane, entry)).result == LARGE
        contents, entries = stored_bytes(tmp_path / "s.db")
        assert contents == len(json.dumps(LARGE, ensure_ascii=False).encode())
        assert entries < 10_000
        shown = await history(made.plane, "t")
        assert shown[0].messages[0]["data"]["task"]["input"] == LARGE
        assert shown[-1].outcome is not None
        assert shown[-1].outcome["result"] == LARGE


async def test_two_tasks_of_one_input_share_it(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        await serve(made)
        for number in range(2):
            await outcome(made.plane, await submit(made.plane, "echo", LARGE, task_id=f"t{number}"))
        assert stored_bytes(tmp_path / "s.db")[0] < len(LARGE) * 1.1


async def test_a_chain_of_steps_and_its_state_are_whole_after_a_crash(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", orchestrator=Twice()) as made:
        instance = LinkedRunner([wrap], instance_id="other")
        await instance.connect(made.plane)
        entry = await submit(made.plane, "echo", LARGE, task_id="t", wait_for_service=True)
        before = [one.model_dump() for one in await history(made.plane, entry)]
        await made.crash()
        await made.start()
        assert [one.model_dump() for one in await history(made.plane, "t")] == before
        await serve(made)
        assert (await outcome(made.plane, "t")).result == LARGE
        assert stored_bytes(tmp_path / "s.db")[1] < 10_000
        await made.crash()
        await made.start()
        assert (await outcome(made.plane, "t")).result == LARGE


async def test_other_large_values_are_whole_too(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        await serve(made)
        entry = await submit(made.plane, "wrap", json.dumps({"text": LARGE}), task_id="t")
        assert (await outcome(made.plane, entry)).value == {"wrapped": LARGE, "length": len(LARGE)}
        await made.crash()
        await made.start()
        assert (await outcome(made.plane, "t")).value == {"wrapped": LARGE, "length": len(LARGE)}
        assert stored_bytes(tmp_path / "s.db")[1] < 10_000


async def test_what_is_large_goes_with_its_task(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        await serve(made)
        for number in range(2):
            await outcome(made.plane, await submit(made.plane, "echo", LARGE, task_id=f"t{number}"))
        store = made.plane.store
        later = made.plane.engine.clock.now() + 1e6
        assert await store.delete_unused_blobs(later, 100) == 0
        await store.delete_tasks(["t0"])
        assert await store.delete_unused_blobs(later, 100) == 0
        assert await store.delete_tasks(["t1"]) == 1
        assert await store.delete_unused_blobs(later, 100) == 1
        assert stored_bytes(tmp_path / "s.db") == (0, 0)


async def test_small_payloads_are_left_alone(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        await serve(made)
        await outcome(made.plane, await submit(made.plane, "echo", "x" * (INLINE_MAX // 4), task_id="t"))
        assert stored_bytes(tmp_path / "s.db")[0] == 0


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=60),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(text=st.text(max_size=80), value=JSON, data=JSON, inline_max=st.integers(1, 60), same=st.booleans())
async def test_cutting_and_joining_gives_the_same_bytes(
    text: str, value: Any, data: Any, inline_max: int, *, same: bool
) -> None:
    result = TaskResult(task_id="t", history=[], result=text if same else repr(value), kind="json", value=value)
    record = Record(
        state="working",
        definition=msgspec.Raw(msgspec.json.encode({"input": text})),
        result=msgspec.Raw(msgspec.json.encode(result.model_dump())),
        messages=[SentMessage("t:1", "s", "new_task", msgspec.Raw(msgspec.json.encode({"d": data, "i": text})))],
        reason=text,
    )
    encoded = encode_record(record)
    stored, contents = cut(encoded, record, text, inline_max)

    async def load(hash_: str) -> bytes:
        return contents[hash_]

    (found,) = await whole([HistoryRow("t", 1, 0.0, "answered", stored)], load)
    assert found.data == encoded
    assert all(len(content) > inline_max for content in contents.values())
    untouched = HistoryRow("t", 1, 0.0, "answered", encoded)
    assert await whole([untouched], load) == [untouched]


@pytest.mark.parametrize("text", ["ü" * 100_000, '\\"' * 70_000, "\u2028" * 70_000])
async def test_any_text_is_stored_once(tmp_path: Path, text: str) -> None:
    async with world(tmp_path / "s.db") as made:
        await serve(made)
        assert (await outcome(made.plane, await submit(made.plane, "echo", text))).result == text
        assert stored_bytes(tmp_path / "s.db")[0] == len(msgspec.json.encode(text))


async def test_an_export_has_the_whole_of_it(tmp_path: Path) -> None:
    async with world(tmp_path / "a.db") as made:
        await serve(made)
        await outcome(made.plane, await submit(made.plane, "echo", LARGE, task_id="t"))
        lines = [line async for line in await made.plane.exports.one("t")]
    async with world(tmp_path / "b.db") as other:
        assert [row.task_id for row in await other.plane.imports.take(b"".join(lines))] == ["t"]
        assert (await outcome(other.plane, "t")).result == LARGE
        assert (await history(other.plane, "t"))[0].messages[0]["data"]["task"]["input"] == LARGE


async def test_a_fork_of_a_large_task_shares_its_bytes(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db") as made:
        await serve(made)
        await outcome(made.plane, await submit(made.plane, "echo", LARGE, task_id="t"))
        before = stored_bytes(tmp_path / "s.db")[0]
        made_of_it, _ = await made.plane.repeats.fork("t", 1)
        assert (await outcome(made.plane, made_of_it.row.task_id)).result == LARGE
        assert stored_bytes(tmp_path / "s.db")[0] < before * 1.1
