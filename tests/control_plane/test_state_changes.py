"""What a change of a task's own state costs in the store, and that reading it gives what was decided, byte by byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.control_plane.harness import LinkedRunner, history, outcome, state_of, submit, until, world

from llama_deploy.control_plane import state_changes
from llama_deploy.control_plane.records import Record, StateChange, encode_record, redacted_record, to_entry
from llama_deploy.control_plane.session_state import Delta, PrivateState
from llama_deploy.messages import QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.services import service
from llama_deploy.types import TaskDefinition, TaskResult
from llama_deploy.types.redaction import Redaction

encode = msgspec.json.Encoder().encode
texts = st.text(max_size=80)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=20,
)
states = st.dictionaries(st.sampled_from("abcd"), values | st.lists(texts, max_size=30))


def result_json(output: Any) -> bytes:
    text = isinstance(output, str)
    result = TaskResult(
        task_id="t",
        history=[],
        result=output if text else json.dumps(output),
        kind="text" if text else "json",
        value=None if text else output,
    )
    return encode(result.model_dump())


def decided(private: PrivateState, wanted: dict[str, Any]) -> Delta:
    delta = Delta()
    delta.own_present = True
    before = private.own or {}
    delta.own = {key: encode(value) for key, value in wanted.items() if before.get(key) != encode(value)}
    delta.own.update({key: None for key in before if key not in wanted})
    return delta


@given(st.lists(st.tuples(states, values), max_size=6), st.data())
def test_what_is_read_is_what_was_decided(steps: list[tuple[dict[str, Any], Any]], data: st.DataObject) -> None:
    memory, store = PrivateState("t"), PrivateState("t")
    wanted: dict[str, Any] = {}
    for chosen, output in steps:
        result = result_json(output)
        wanted = {**wanted, **chosen}
        for key, value in list(wanted.items()):
            if data.draw(st.booleans()):
                continue
            if isinstance(value, list):
                wanted[key] = [*value, {"said": output}]  # grows, around the output
            elif isinstance(value, dict):
                wanted[key] = {**value, "new": output}
        delta = decided(memory, wanted)
        change = msgspec.json.decode(encode(state_changes.written(delta, memory, result)), type=StateChange)
        memory.apply(delta)
        state_changes.read(change, store, result)
        store.settle()
        assert store.own == memory.own == {key: encode(value) for key, value in wanted.items()}


def test_a_list_that_grows_and_an_answer_that_is_kept_cost_what_is_new() -> None:
    private = PrivateState("t")
    kept = [f"turn {number} of many" for number in range(100)]
    private.apply(decided(private, {"turns": kept, "by": {f"name {number}": number for number in range(100)}}))
    answer = "what was said then, and what is long enough to be worth a mark"
    wanted = {
        "turns": [*kept, "one more"],
        "by": {**{f"name {n}": n for n in range(100)}, "x": 1},
        "last": {"said": answer},
    }
    change = state_changes.written(decided(private, wanted), private, result_json(answer))
    assert encode(change) == encode(
        StateChange(
            own_grown={"turns": msgspec.Raw(b'["one more"]'), "by": msgspec.Raw(b'{"x":1}')},
            own_around_output={"last": ('{"said":', "}")},
            own_present=True,
        )
    )


@pytest.mark.parametrize("end", [b"[1]", b'{"a":1}', b"7"])
def test_what_cannot_have_grown_is_told(end: bytes) -> None:
    private = PrivateState("t")
    private.apply(decided(private, {"a": "text"}))
    with pytest.raises(ValueError, match="nothing that can have grown"):
        state_changes.read(StateChange(own_grown={"a": msgspec.Raw(end)}, own_present=True), private, b"")


def test_what_is_shown_has_every_value_and_no_secret() -> None:
    answer = {"password": "open sesame, and some more of it so that it is long", "name": "ali"}
    change = StateChange(
        own_grown={"turns": msgspec.Raw(b'[{"password":"x"}]')},
        own_around_output={"last": ('{"said":', "}")},
        own_present=True,
    )
    data = encode_record(Record(state="working", result=msgspec.Raw(result_json(answer)), change=change))
    shown = to_entry(2, 0.0, "answered", data).state_changes
    assert shown is not None
    assert shown["own"] == {"last": {"said": answer}}
    assert shown["appended"] == {"turns": [{"password": "x"}]}
    secret = Redaction(["password"])
    hidden = redacted_record(data, secret)
    assert b"sesame" not in hidden
    assert b'"x"' not in hidden
    assert msgspec.json.decode(hidden)["change"]["own"]["last"]["said"]["name"] == "ali"
    assert "sesame" not in str(to_entry(2, 0.0, "answered", data, secret))


def test_a_grown_list_that_is_to_be_left_out_is_left_out_whole() -> None:
    change = StateChange(own_grown={"passwords": msgspec.Raw(b'["x"]')}, own_present=True)
    hidden = redacted_record(encode_record(Record(state="working", change=change)), Redaction(["password*"]))
    private = PrivateState("t")
    private.apply(decided(private, {"passwords": "[redacted]"}))
    state_changes.read(msgspec.json.decode(hidden, type=Record).change or StateChange(), private, b"")
    private.settle()
    assert private.own == {"passwords": b'"[redacted]"'}


@service
async def talk(number: int) -> str:
    """Two hundred characters."""
    return f"{number:04}" * 50


class Gathers(BaseOrchestrator):
    """As simple as it comes: one list in the state, to which every answer is added."""

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        mine = state.setdefault(task_def.task_id, {"answers": []})
        if len(mine["answers"]) == int(task_def.input):
            return [], {**state, f"result_{task_def.task_id}": {"result": "done"}}
        return [QueueMessage(type="talk", data={"number": len(mine["answers"])})], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        state[result.task_id]["answers"].append(result.output)
        return state


async def bytes_per_answer(plane: Any, answers: int) -> float:
    entry = await submit(plane, "talk", str(answers))
    await outcome(plane, entry)
    rows = await plane.store.load_history(entry.row.task_id)
    return sum(len(row.data) for row in rows) / answers


async def test_a_list_that_grows_costs_linear_bytes_whoever_keeps_it() -> None:
    async with world(orchestrator=Gathers()) as made:
        local = LinkedRunner([talk])
        await local.connect(made.plane)
        few, many = await bytes_per_answer(made.plane, 20), await bytes_per_answer(made.plane, 200)
        assert many < few * 1.1
        await local.stop()


async def test_a_state_that_has_grown_survives_a_crash(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", orchestrator=Gathers()) as made:
        local = LinkedRunner([talk])
        await local.connect(made.plane)
        entry = await submit(made.plane, "talk", "40")
        await until(lambda: len((entry.private.own or {}).get("answers", b"")) > 20 * 200)
        before = msgspec.json.decode((entry.private.own or {})["answers"])
        await local.stop()
        await made.crash()
        await made.start()
        loaded = await made.plane.engine.cache.get(entry.row.task_id)
        after = msgspec.json.decode((loaded.private.own or {})["answers"])
        assert after[: len(before)][:20] == [f"{number:04}" * 50 for number in range(20)]
        again = LinkedRunner([talk])
        await again.connect(made.plane)
        await outcome(made.plane, loaded)
        assert await state_of(made.plane, entry.row.task_id) == "completed"
        answered = [one for one in await history(made.plane, entry.row.task_id) if one.kind == "answered"]
        assert len(answered) == 40
        await again.stop()
