"""The suite for orchestrators: ours pass it, and it finds what a control plane that restarts would trip over."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest

from llama_deploy.messages import QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator, SimpleOrchestrator
from llama_deploy.testing import OrchestratorConformance
from llama_deploy.types import ActionTypes, TaskDefinition, TaskResult


class TestSimple(OrchestratorConformance):
    def make_orchestrator(self) -> BaseOrchestrator:
        return SimpleOrchestrator()


class FanOut(BaseOrchestrator):
    """Three steps side by side, then the end."""

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        if "answers" not in state:
            state["answers"] = []
            return [QueueMessage(type="service", data={"text": str(n)}, tag=str(n)) for n in range(3)], state
        if len(state["answers"]) < 3:
            return [], state
        data = {"result": "".join(sorted(state["answers"]))}
        return [QueueMessage(type="human", action=ActionTypes.COMPLETED_TASK, data={**END, **data})], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        state["answers"].append(result.result)
        return state


END = {"task_id": "t1", "history": []}


class TestFanOut(OrchestratorConformance):
    def make_orchestrator(self) -> BaseOrchestrator:
        return FanOut()


class KeepsItsCount(FanOut):
    def __init__(self) -> None:
        self._answers = 0

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        self._answers += 1
        return {**await super().add_result_to_state(result, state), "count": self._answers}


class UsesChance(FanOut):
    numbers = itertools.count()

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        state["number"] = next(self.numbers)
        return await super().add_result_to_state(result, state)


class SharesAList(FanOut):
    answers: ClassVar[list[str]] = []

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        messages, state = await super().get_next_messages(task_def, state)
        self.answers.extend(state["answers"])
        return messages, {**state, "answers": self.answers}


class HasNoJson(FanOut):
    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        return {**await super().add_result_to_state(result, state), "lock": object()}


class SendsNonsense(FanOut):
    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        return [{"type": "service"}], state


class NeverEnds(FanOut):
    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        return [QueueMessage(type="service", data={"text": "again"})], state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        return state


class GivesUp(FanOut):
    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        return [], state


class SaysItIsSynchronous(FanOut):
    synchronous: ClassVar[bool] = True

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        import asyncio

        await asyncio.sleep(0)
        return await super().get_next_messages(task_def, state)


DEFECTIVE: Mapping[type[BaseOrchestrator], str] = {
    KeepsItsCount: "a new process folds otherwise",
    UsesChance: "a new process folds otherwise",
    SharesAList: "a new process decides otherwise",
    HasNoJson: "the state cannot be recorded",
    SendsNonsense: "a dict among the messages",
    NeverEnds: "does it end",
    GivesUp: "NO_PROGRESS",
    SaysItIsSynchronous: "waits for something",
}


@pytest.mark.parametrize("made", DEFECTIVE)
async def test_what_a_restart_would_trip_over_is_found(made: Callable[[], BaseOrchestrator]) -> None:
    class Suite(OrchestratorConformance):
        steps_max = 50

        def make_orchestrator(self) -> BaseOrchestrator:
            return made()

    found = []
    for name, test in inspect.getmembers(Suite(), inspect.iscoroutinefunction):
        if name.startswith("test_"):
            try:
                await test()
            except (AssertionError, KeyError) as error:
                found.append(str(error))
    assert any(DEFECTIVE[made] in text for text in found), found  # type: ignore[index]
