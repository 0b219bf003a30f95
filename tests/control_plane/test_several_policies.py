"""Several orchestrators in one control plane: a task asks for one by name, and keeps the version that it began with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import pytest
from tests.control_plane.harness import FakeInstance, outcome, submit, world

from llama_deploy.control_plane import ControlPlane
from llama_deploy.errors import InvalidRequestError
from llama_deploy.orchestrators import Action, Answer, Finish, NoState, Orchestrator, Run, SimpleOrchestrator, Turn
from llama_deploy.orchestrators.base import BaseOrchestrator
from llama_deploy.types import TaskOptions

pytestmark = pytest.mark.anyio


class First(Orchestrator[NoState]):
    """One step; says which version ended the task."""

    def start(self, turn: Turn[NoState]) -> Iterable[Action]:
        return [Run("echo", turn.input)]

    def on_answer(self, turn: Turn[NoState], answer: Answer) -> Iterable[Action]:
        return [Finish([answer.output, self.version])]


class Second(First):
    version: ClassVar[int] = 2


class Reading(Second):
    """Reads what the first version has recorded."""

    def migrate(self, version: int, state: dict[str, Any]) -> dict[str, Any]:
        assert version == 1
        return state


NAMED = TaskOptions(orchestrator="review")


async def test_a_task_is_decided_on_by_whom_it_asks_for() -> None:
    async with world(orchestrators={"review": First()}) as here:
        instance = FakeInstance()
        await instance.connect(here.plane)
        plain, named = await submit(here.plane), await submit(here.plane, options=NAMED)
        instance.answer(await instance.delivery(1), "a")
        instance.answer(await instance.delivery(2), "b")
        assert (await outcome(here.plane, plain)).output == "a"
        assert (await outcome(here.plane, named)).output == ["b", 1]


async def test_a_name_that_is_not_there_is_refused_before_anything_is_recorded() -> None:
    async with world(orchestrators={"review": First(), "review@0": First()}) as here:
        with pytest.raises(
            InvalidRequestError, match="there is no orchestrator 'revue': did you mean 'review'"
        ) as told:
            await submit(here.plane, options=TaskOptions(orchestrator="revue"))
        assert told.value.why == "orchestrators by name: review"
        assert await here.plane.store.count_tasks() == {}


@pytest.mark.parametrize(
    ("later", "end"),
    [
        ({"review": Second(), "review@1": First()}, ["a", 1]),
        ({"review": Reading()}, ["a", 2]),
        ({"review": Second()}, "at version 2 and the task began with 1"),
        ({}, "the orchestrator 'review' that task t1 began with is not deployed any more"),
    ],
)
async def test_what_becomes_of_a_task_whose_orchestrator_changes(later: dict[str, BaseOrchestrator], end: Any) -> None:
    async with world(orchestrators={"review": First()}) as here:
        instance = FakeInstance()
        await instance.connect(here.plane)
        await submit(here.plane, options=NAMED, task_id="t1")
        step = await instance.delivery()
        await here.crash()
        here.orchestrators = later
        await here.start()
        await instance.connect(here.plane, held=[(step.step_id, step.attempt)])
        instance.answer(step, "a")
        result = await outcome(here.plane, "t1")
        assert result.output == end if isinstance(end, list) else end in result.result


async def test_a_default_in_its_first_version_says_nothing_in_the_history() -> None:
    async with world(orchestrator=SimpleOrchestrator()) as here:
        await FakeInstance().connect(here.plane)
        task = await submit(here.plane)
        row = (await here.plane.store.load_history(task.row.task_id))[0]
        assert b"orchestrator" not in row.data.replace(b'"options":null', b"")
        assert isinstance(here.plane, ControlPlane)
