"""Tasks in flight are moved to the present version of their orchestrator, on purpose and as one recorded decision."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel
from tests.control_plane.harness import FakeInstance, history, outcome, submit, world

from llama_deploy import Deployment, service
from llama_deploy.errors import OrchestratorError, TaskEndedError
from llama_deploy.messages import QueueMessage
from llama_deploy.orchestrators import Action, Answer, BaseOrchestrator, Finish, Gate, Orchestrator, Run, Sequence, Turn
from llama_deploy.types import TaskDefinition, TaskOptions, TaskResult

pytestmark = pytest.mark.anyio

NAMED = TaskOptions(orchestrator="review")


class Words(BaseModel):
    said: str = ""


class First(Orchestrator[Words]):
    """Three steps; keeps what was said as a text."""

    State: ClassVar[type[BaseModel]] = Words

    def start(self, turn: Turn[Words]) -> Iterable[Action]:
        return [Run("echo", "1", tag="1")]

    def on_answer(self, turn: Turn[Words], answer: Answer) -> Iterable[Action]:
        turn.state.said += answer.output
        return [Finish(turn.state.said)] if answer.tag == "3" else [Run("echo", "x", tag=str(int(answer.tag) + 1))]


class List(BaseModel):
    said: list[str]


class Second(Orchestrator[List]):
    """The same with a list, which it can make of the text."""

    State: ClassVar[type[BaseModel]] = List
    version: ClassVar[int] = 2

    def start(self, turn: Turn[List]) -> Iterable[Action]:
        return [Run("echo", "1", tag="1")]

    def on_answer(self, turn: Turn[List], answer: Answer) -> Iterable[Action]:
        turn.state.said.append(answer.output)
        return [Finish(turn.state.said)] if answer.tag == "3" else [Run("echo", "x", tag=str(int(answer.tag) + 1))]

    def migrate(self, version: int, state: dict[str, Any]) -> dict[str, Any]:
        assert version == 1
        return {"said": list(state["said"])}


class Mute(Second):
    """Does not say how it reads the first version."""

    def migrate(self, version: int, state: dict[str, Any]) -> dict[str, Any]:
        return Orchestrator.migrate(self, version, state)


async def answer(here: Any, instance: FakeInstance, number: int, text: str) -> None:
    step = await instance.delivery(number)
    instance.answer(step, text)
    await instance.acknowledged(step)


async def test_a_task_goes_on_with_the_present_version_and_keeps_what_it_has(tmp_path: Path) -> None:
    async with world(tmp_path / "s.db", orchestrators={"review": First()}) as here:
        instance = FakeInstance()
        await instance.connect(here.plane)
        await submit(here.plane, options=NAMED, task_id="t1")
        await answer(here, instance, 1, "a")
        await here.crash()
        here.orchestrators = {"review": Second(), "review@1": First()}
        await here.start()
        await instance.connect(here.plane)
        assert (await here.plane.migrations.migrate("t1", reason="it is out", by="anna")).decided_by == "review@2"
        await here.plane.migrations.migrate("t1")  # nothing more happens
        entries = await history(here.plane, "t1")
        assert [entry.kind for entry in entries] == ["submitted", "answered", "migrated"]
        assert (entries[2].by, entries[2].reason, entries[2].step_id) == ("anna", "it is out", None)
        assert entries[2].state_changes is not None
        assert entries[2].state_changes["own"]["state"] == {"said": ["a"]}
        await here.crash()  # what was decided stands, wherever it dies
        await here.start()
        last = FakeInstance(instance_id="last")
        await last.connect(here.plane)
        await answer(here, last, 1, "b")
        await answer(here, last, 2, "c")
        assert (await outcome(here.plane, "t1")).output == ["a", "b", "c"]
        with pytest.raises(TaskEndedError):
            await here.plane.migrations.migrate("t1")


async def test_a_version_that_cannot_read_it_changes_nothing() -> None:
    async with world(orchestrators={"review": First()}) as here:
        instance = FakeInstance()
        await instance.connect(here.plane)
        await submit(here.plane, options=NAMED, task_id="t1")
        step = await instance.delivery()
        await here.crash()
        here.orchestrators = {"review": Mute(), "review@1": First()}
        await here.start()
        await instance.connect(here.plane, held=[(step.step_id, step.attempt)])
        with pytest.raises(OrchestratorError, match="Mute cannot take over task t1 from version 1") as told:
            await here.plane.migrations.migrate("t1")
        assert "say in its `migrate`" in (told.value.fix or "")
        assert [entry.kind for entry in await history(here.plane, "t1")] == ["submitted"]
        instance.answer(step, "a")
        await answer(here, instance, 2, "b")
        await answer(here, instance, 3, "c")
        assert (await outcome(here.plane, "t1")).output == "abc"
        here.plane.engine.policies._named.clear()
        await submit(here.plane, task_id="t2")
        assert (await here.plane.migrations.migrate("t2")).decided_by == ""  # the default is the present one


class Counts(BaseOrchestrator):
    """With the two published methods: counts to two."""

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        done = state.setdefault(task_def.task_id, {"done": 0})["done"]
        if done == 2:
            return [], {**state, f"result_{task_def.task_id}": {"result": type(self).__name__}}
        return [QueueMessage(type="echo", data={"text": "x"})], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        state[result.task_id]["done"] += 1
        return state


class CountsHalves(Counts):
    version = 2

    def migrate_task(self, task_def: TaskDefinition, state: dict[str, Any], *, version: int) -> dict[str, Any]:
        assert version == 1
        return {**state, task_def.task_id: {"done": state[task_def.task_id]["done"] + 1}}


async def test_a_published_orchestrator_says_it_with_the_whole_state_and_a_fork_goes_on_with_the_new_one() -> None:
    async with world(orchestrators={"review": Counts()}) as here:
        instance = FakeInstance()
        await instance.connect(here.plane)
        entry = await submit(here.plane, options=NAMED, task_id="t1")
        here.plane.engine.policies._named.update({"review": CountsHalves(), "review@1": Counts()})
        await here.plane.migrations.migrate("t1")
        made, _ = await here.plane.repeats.fork("t1", entry.row.version, new_task_id="t2")
        assert made.decided_by == "review@2"
        before, _ = await here.plane.repeats.fork("t1", 1, new_task_id="t3")
        assert before.decided_by == "review@1"
        await answer(here, instance, 1, "x")
        assert (await outcome(here.plane, "t1")).output == "CountsHalves"


@service
async def echo(text: str) -> str:
    """The text."""
    return text


async def test_many_are_moved_by_a_filter_and_nested_ones_with_their_parent(tmp_path: Path) -> None:
    class Held(First):
        def start(self, turn: Turn[Words]) -> Iterable[Action]:
            return [Run("gate", "1", tag="1")]

        def __init__(self) -> None:
            self.nodes = {"gate": Gate("go on?")}

    class HeldSecond(Second):
        def __init__(self) -> None:
            self.nodes = {"gate": Gate("go on?")}

    store = tmp_path / "s.db"
    async with Deployment([echo], orchestrators={"review": Sequence(inner=Held())}, store=store) as first:
        ids = [await first.client.submit("echo", input="x", options=NAMED) for _ in range(3)]
    later: dict[str, BaseOrchestrator] = {"review": Sequence(inner=HeldSecond()), "review@1": Sequence(inner=Held())}
    later["review"].version = 2  # type: ignore[attr-defined]
    later["review"].migrate = lambda version, state: state  # type: ignore[attr-defined]
    async with Deployment([echo], orchestrators=later, store=store) as second:
        counted = await second.client.bulk("migrate", "service:echo", dry_run=True)
        assert counted.matched == 3
        assert (await second.client.migrate(ids[0], reason="the first")).task_id == ids[0]
        moved = await second.client.bulk("migrate", "service:echo", reason="it is out")
        assert [item.problem for item in moved.items] == [None] * 3
        for task_id in ids:
            kinds = [entry.kind async for entry in second.client.history(task_id)]
            assert kinds == ["submitted", "migrated"]
            await second.client.send_input(task_id, "approve")
            assert (await second.client.wait(task_id)).output == ["1", "x", "x"]
