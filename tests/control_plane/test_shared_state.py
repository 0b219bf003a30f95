"""A session's shared state under third-party policies: durable, never lost under concurrent tasks, copies only."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from tests.control_plane.harness import FakeInstance, LinkedRunner, outcome, recorded, submit, until, world

from llama_deploy.control_plane import EngineSettings
from llama_deploy.messages import QueueMessage
from llama_deploy.messages.frames import Deliver
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.services import service
from llama_deploy.types import ActionTypes, TaskDefinition, TaskResult

Change = Callable[[dict[str, Any], TaskResult], dict[str, Any] | None]


@service(concurrency=2000)
async def echo(text: str) -> str:
    """The text."""
    return text


class OneStep(BaseOrchestrator):
    """One step; `change` is what the policy does to the state when it is answered."""

    def __init__(self, change: Change) -> None:
        self._change = change

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        if f"result_{task_def.task_id}" in state:
            return [], state
        data = {"text": task_def.input}
        return [QueueMessage(type="echo", action=ActionTypes.NEW_TOOL_CALL, data=data)], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        changed = self._change(state, result)
        state = state if changed is None else changed
        state[f"result_{result.task_id}"] = result
        return state


class Synchronous(OneStep):
    """The same, and it promises never to wait."""

    synchronous: ClassVar[bool] = True


class Slow(OneStep):
    """The same, and it waits in the middle of each method."""

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        before = state.get("count", 0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert state.get("count", 0) == before, "a policy's copy changed under its hands"
        return await super().add_result_to_state(result, state)


async def run_all(plane: Any, texts: list[str], session_id: str | None = "s") -> list[TaskResult]:
    entries = await asyncio.gather(*[submit(plane, "echo", text, session_id=session_id) for text in texts])
    return await asyncio.gather(*[outcome(plane, entry) for entry in entries])


async def change_one(change: Change, given: dict[str, Any]) -> dict[str, Any]:
    """The session's state after a policy's change of `given`, read back from the store by another control plane."""
    policy = OneStep(lambda state, _: state.update(given))
    async with world(orchestrator=policy) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        await run_all(made.plane, ["set up"])
        policy._change = change
        assert [result.status for result in await run_all(made.plane, ["change"])] == ["completed"]
        after = await made.plane.views.session_state("s")
        await made.stop()
        plane = await made.start()
        assert await plane.views.session_state("s") == after
        await local.stop()
        return after


# --- many tasks at once ---------------------------------------------------------------------------------------------


def count(state: dict[str, Any], _: TaskResult) -> None:
    state["count"] = state.get("count", 0) + 1
    state.setdefault("seen", {})["n"] = state["count"]


@pytest.mark.parametrize("kind", [Synchronous, OneStep, Slow], ids=["synchronous", "plain", "slow"])
async def test_a_thousand_tasks_of_one_session_lose_no_update(kind: type[OneStep], tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", orchestrator=kind(count)) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        await run_all(made.plane, [str(number) for number in range(1000)])
        assert await made.plane.views.session_state("s") == {"count": 1000, "seen": {"n": 1000}}
        assert made.plane.engine.statistics.conflicts == 0
        assert made.plane.engine.statistics.ended == 1000
        assert not made.plane.engine.cache.sessions["s"].lock.locked()
        view = await made.plane.views.session("s")
        assert (view.task_count, view.open_task_count) == (1000, 0)
        await local.stop()


async def test_tasks_that_add_keys_of_their_own_at_once() -> None:
    """Each returns a new dictionary of what it was given and one key more: no other task's key is lost by that."""

    class Spread(Slow):
        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            given = {**state, f"key {result.result}": result.result}
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return {**given, f"result_{result.task_id}": result}

    async with world(orchestrator=Spread(lambda *_: None)) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        await run_all(made.plane, [str(number) for number in range(100)])
        expected = {f"key {number}": str(number) for number in range(100)}
        assert await made.plane.views.session_state("s") == expected
        await local.stop()


@pytest.mark.parametrize(
    "through",
    [
        lambda state: msgspec.json.decode(msgspec.json.encode(state)),
        lambda state: json.loads(json.dumps(state)),
        copy.deepcopy,
        dict,
        lambda state: {**state},
        lambda state: state | {},
        lambda state: {} | state,
        lambda state: state.copy(),
        copy.copy,
        lambda state: {key: state[key] for key in list(state)},
        lambda state: dict(state.items()),
        lambda state: dict(zip(state.keys(), state.values(), strict=True)),
    ],
    ids=[
        "msgspec",
        "json",
        "deepcopy",
        "dict",
        "spread",
        "or",
        "ror",
        "copy",
        "copy.copy",
        "comprehension",
        "items",
        "keys",
    ],
)
async def test_however_a_slow_policy_copies_the_state_no_update_is_lost(
    through: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    class Copies(OneStep):
        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            mine = through(state)
            await asyncio.sleep(0)
            mine["count"] = mine.get("count", 0) + 1
            await asyncio.sleep(0)
            mine[f"result_{result.task_id}"] = result
            return mine

    async with world(orchestrator=Copies(lambda *_: None)) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        await run_all(made.plane, [str(number) for number in range(30)])
        assert await made.plane.views.session_state("s") == {"count": 30}
        await local.stop()


async def test_what_is_read_late_is_as_old_as_what_is_read_early() -> None:
    """A policy that waits first and reads then sees one state all the same, or decides again."""

    class Late(OneStep):
        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            for _ in range(3):
                await asyncio.sleep(0)
            total = state.get("total", 0)
            state["total"] = total + 1
            await asyncio.sleep(0)
            state[f"saw {result.result}"] = state["total"]
            state[f"result_{result.task_id}"] = result
            return state

    async with world(orchestrator=Late(lambda *_: None)) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        await run_all(made.plane, [str(number) for number in range(30)])
        after = await made.plane.views.session_state("s")
        assert after.pop("total") == 30
        assert sorted(after.values()) == list(range(1, 31))
        await local.stop()


async def test_tasks_without_a_session_share_nothing() -> None:
    async with world(orchestrator=Synchronous(count)) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        await run_all(made.plane, ["a", "b"], session_id=None)
        assert (await made.plane.store.list_sessions(limit=5)).rows == []
        await local.stop()


async def test_the_sessions_own_counter_of_the_simple_orchestrator() -> None:
    async with world() as made:
        instance = FakeInstance(concurrency=100)
        await instance.connect(made.plane)
        entries = await asyncio.gather(*[submit(made.plane, session_id="s") for _ in range(20)])
        for number in range(20):
            instance.answer(await instance.delivery(number + 1))
        for entry in entries:
            await outcome(made.plane, entry)
        assert await made.plane.views.session_state("s") == {"retries": 19}


# --- what a policy may do -------------------------------------------------------------------------------------------


def nested(state: dict[str, Any], _: TaskResult) -> None:
    state["a"]["list"].append(3)
    state["a"]["more"] = {"deep": [1]}


def remove(state: dict[str, Any], _: TaskResult) -> None:
    del state["a"]
    state.pop("b")
    state.pop("never", None)


def replace_all(state: dict[str, Any], _: TaskResult) -> dict[str, Any]:
    return {"only": state["b"]}


def clear(state: dict[str, Any], _: TaskResult) -> None:
    state.clear()


def read_only(state: dict[str, Any], _: TaskResult) -> None:
    assert "a" in state
    assert list(state) == ["a", "b"]
    assert state == {"a": {"list": [1, 2]}, "b": "text"}
    assert min(state.items(), key=str)[0] == "a"
    assert len(state) == 2
    assert state.get("none") is None


def models(state: dict[str, Any], result: TaskResult) -> None:
    state["b"] = result


def pop_one(state: dict[str, Any], _: TaskResult) -> None:
    assert state.popitem() == ("b", "text")


GIVEN = {"a": {"list": [1, 2]}, "b": "text"}


@pytest.mark.parametrize(
    ("change", "after"),
    [
        (nested, {"a": {"list": [1, 2, 3], "more": {"deep": [1]}}, "b": "text"}),
        (remove, {}),
        (replace_all, {"only": "text"}),
        (clear, {}),
        (read_only, GIVEN),
        (pop_one, {"a": {"list": [1, 2]}}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_what_a_policy_does_to_the_state_is_what_is_recorded(change: Change, after: dict[str, Any]) -> None:
    assert await change_one(change, copy.deepcopy(GIVEN)) == after


async def test_models_in_the_state_are_recorded_as_their_json() -> None:
    after = await change_one(models, copy.deepcopy(GIVEN))
    assert after["b"]["result"] == "change"


async def test_a_removed_key_can_come_back() -> None:
    def toggle(state: dict[str, Any], _: TaskResult) -> None:
        if "flag" in state:
            del state["flag"]
        else:
            state["flag"] = True

    async with world(orchestrator=Slow(toggle)) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        for expected in ({"flag": True}, {}, {"flag": True}, {}):
            await run_all(made.plane, ["x"])
            assert await made.plane.views.session_state("s") == expected
        await made.stop()
        await local.connect(await made.start())
        await run_all(made.plane, ["x"] * 3)
        assert await made.plane.views.session_state("s") == {"flag": True}
        await local.stop()


async def test_the_state_goes_on_after_a_restart(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", orchestrator=Synchronous(count)) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        await run_all(made.plane, ["x"] * 10)
        await made.stop()
        await local.connect(await made.start())
        await run_all(made.plane, ["x"] * 10)
        assert (await made.plane.views.session_state("s"))["count"] == 20
        assert made.plane.engine.statistics.conflicts == 0
        await local.stop()


async def test_what_a_task_keeps_for_itself_is_nobody_elses_and_survives() -> None:
    """`state[task_id]`, `result_<id>` and `stream_<id>` are the task's; they are rebuilt from its history."""
    seen: list[dict[str, Any]] = []

    class Two(BaseOrchestrator):
        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            seen.append({key: value for key, value in state.items() if key != "other"})
            mine = state.setdefault(task_def.task_id, {"hops": 0, "drop": 1})
            if mine["hops"] == 2:
                data = {"result": state[f"stream_{task_def.task_id}"]}
                return [QueueMessage(type="x", action=ActionTypes.COMPLETED_TASK, data=data)], state
            return [QueueMessage(type="echo", action=ActionTypes.NEW_TOOL_CALL, data={"text": "x"})], state

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            state[result.task_id].pop("drop", None)
            state[result.task_id]["hops"] += 1
            state[f"stream_{result.task_id}"] = "mine"
            return state

    async with world(orchestrator=Two()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, None, task_id="t", session_id="s")
        await submit(made.plane, None, task_id="t2", session_id="s")
        instance.answer(await instance.delivery())
        await recorded(entry, 2)
        await made.crash()
        plane = await made.start()
        again = FakeInstance()
        await again.connect(plane, [("t:2", 1), ("t2:1", 1)])
        again.answer(Deliver("t:2", 1, "echo", "", "t", "s", b"", 0.0))
        assert (await outcome(plane, "t")).result == "mine"
        assert seen[-1] == {"t": {"hops": 2}, "stream_t": "mine"}
        assert await plane.views.session_state("s") == {}


async def test_a_policy_cannot_reach_the_cache_through_its_copy() -> None:
    kept: list[dict[str, Any]] = []

    def keep(state: dict[str, Any], _: TaskResult) -> None:
        state.setdefault("list", []).append(1)
        kept.append(state["list"])

    async with world(orchestrator=Synchronous(keep)) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        await run_all(made.plane, ["x"])
        kept[0].append("mischief")  # type: ignore[attr-defined]
        await run_all(made.plane, ["x"])
        assert await made.plane.views.session_state("s") == {"list": [1, 1]}
        await local.stop()


async def test_answers_that_arrive_during_a_decision_are_folded_in_order() -> None:
    gate = asyncio.Event()
    folded: list[str] = []

    class Gated(BaseOrchestrator):
        async def get_next_messages(
            self, task_def: TaskDefinition, state: dict[str, Any]
        ) -> tuple[list[QueueMessage], dict[str, Any]]:
            if not state.get(task_def.task_id):
                state[task_def.task_id] = {"sent": True}
                return [QueueMessage(type="echo", data={"text": str(n)}, tag=str(n)) for n in range(5)], state
            if len(folded) == 5:
                data = {"result": ",".join(folded)}
                return [QueueMessage(type="x", action=ActionTypes.COMPLETED_TASK, data=data)], state
            return [], state

        async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
            await gate.wait()
            folded.append(result.tag or "")
            return state

    async with world(orchestrator=Gated()) as made:
        instance = FakeInstance()
        await instance.connect(made.plane)
        entry = await submit(made.plane, None)
        for number in (3, 1, 5, 2, 4):
            instance.answer(await instance.delivery(number))
        assert folded == []
        gate.set()
        assert (await outcome(made.plane, entry)).result == "2,0,4,1,3"
        await until(lambda: not entry.mailbox)


async def test_a_session_outlives_the_smallest_memory() -> None:
    """It is loaded for a task that is about to use it, so it must not be the one that has to go."""

    def count(state: dict[str, Any], _: TaskResult) -> None:
        state["count"] = state.get("count", 0) + 1

    async with world(orchestrator=Synchronous(count), settings=EngineSettings(sessions_cached_max=0)) as made:
        local = LinkedRunner([echo])
        await local.connect(made.plane)
        for session_id in ("s", "t", "s"):
            await run_all(made.plane, ["a", "b"], session_id)
        shared = await made.plane.store.load_shared("s")
        assert [(value.key, value.value) for value in shared] == [("count", b"4")]
        await local.stop()
