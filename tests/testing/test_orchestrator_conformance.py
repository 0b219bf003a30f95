"""The suite for orchestrators: ours pass it, and it finds what a control plane that restarts would trip over."""

from __future__ import annotations

import inspect
import itertools
import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import pytest
from pydantic import BaseModel, TypeAdapter

from llama_deploy.messages import QueueMessage
from llama_deploy.orchestrators import (
    Action,
    Answer,
    BaseOrchestrator,
    Budget,
    Cache,
    Edge,
    Fallback,
    Finish,
    Gate,
    Graph,
    GroupChat,
    Handoff,
    Map,
    NoState,
    Orchestrator,
    Parallel,
    Planner,
    Retry,
    Router,
    Run,
    Saga,
    Sequence,
    SimpleOrchestrator,
    Timeout,
    Turn,
    Vote,
)
from llama_deploy.testing import OrchestratorConformance, check_orchestrator
from llama_deploy.testing.random_answers import answers_of
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


class ReadsTheClock(FanOut):
    """By the day: two calls at the same time say the same."""

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        return {**await super().add_result_to_state(result, state), "day": int(time.time() // 86_400)}


class LosesABranch(FanOut):
    """What comes second is forgotten, as where a dictionary is overwritten."""

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        state["answers"].append("" if result.tag == "1" else result.result)
        return state


class KeepsKeysThatAreNoText(FanOut):
    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        counts = state.setdefault("counts", {})
        counts[1] = counts.get(1, 0) + 1
        state["seen"] = [*state.get("seen", []), counts[1]]
        assert state["seen"] == list(range(1, len(state["seen"]) + 1)), "the count was lost on its way through JSON"
        return await super().add_result_to_state(result, state)


class KnowsItsDictionary(FanOut):
    def __init__(self) -> None:
        self._known: Any = None

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        state = await super().add_result_to_state(result, state)
        state["again"] = self._known is not None
        self._known = state
        return state


class NeverGivesUp(FanOut):
    """Ends well, and tries for ever what fails."""

    handles_failures: ClassVar[bool] = True

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        if result.status == "failed":
            return {**state, "again": [*state.get("again", []), result.tag]}
        return await super().add_result_to_state(result, state)

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        if again := state.pop("again", []):
            return [QueueMessage(type="service", data={"text": "again"}, tag=tag) for tag in again], state
        return await super().get_next_messages(task_def, state)


class ForgetsTheTyped(Orchestrator[NoState]):
    """Two branches, of which it keeps one."""

    def start(self, turn: Turn[NoState]) -> Iterable[Action]:
        return [Run("service", "a", tag="a"), Run("service", "b", tag="b")]

    def on_answer(self, turn: Turn[NoState], answer: Answer) -> Iterable[Action]:
        if answer.tag == "a":
            turn.notes["a"] = answer.output
        turn.notes[f"done {answer.tag}"] = True
        return [Finish(turn.notes["a"])] if "done a" in turn.notes and "done b" in turn.notes else []


DEFECTIVE: Mapping[type[BaseOrchestrator], str] = {
    KeepsItsCount: "a new process folds otherwise",
    UsesChance: "a new process folds otherwise",
    SharesAList: "a new process decides otherwise",
    HasNoJson: "the state cannot be recorded",
    SendsNonsense: "a dict among the messages",
    NeverEnds: "does it end",
    GivesUp: "NO_PROGRESS",
    SaysItIsSynchronous: "waits for something",
    ReadsTheClock: "a new process folds otherwise",
    LosesABranch: "a branch is lost",
    KeepsKeysThatAreNoText: "the count was lost",
    KnowsItsDictionary: "a new process folds otherwise",
    NeverGivesUp: "does it end",
    ForgetsTheTyped: "a branch is lost",
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


class Verdict(BaseModel):
    good: bool
    why: str = ""


class Judgement(BaseModel):
    finished: bool
    worker: Literal["ann", "ben"]
    progress: bool
    output: str


def needs_work(output: Any) -> bool:
    return not output["good"]


REVIEW = Graph(
    {"write": "write", "review": "review"},
    [("start", "write"), ("write", "review"), Edge("review", "write", when=needs_work, at_most=2), ("review", "end")],
)
CATALOGUE: Mapping[str, tuple[BaseOrchestrator, dict[str, Any], Any]] = {
    "sequence": (Sequence("a", "b"), {"a": str, "b": int}, "x"),
    "parallel": (Parallel("a", "b", failures="keep"), {"a": str, "b": str}, "x"),
    "any": (Parallel("a", "b", want="any"), {"a": str, "b": str}, "x"),
    "quorum": (Parallel("a", "b", "c", want="quorum"), dict.fromkeys("abc", bool), "x"),
    "map": (Map("a", reduce="b", at_once=2, failures="skip"), {"a": str, "b": int}, [{"n": 1}, {"n": 2}, {"n": 3}]),
    "graph": (REVIEW, {"write": str, "review": Verdict}, "x"),
    "router": (Router("choose", {"a": "a", "b": "b"}), {"choose": Literal["a", "b", "c"], "a": str, "b": str}, "x"),
    "handoff": (Handoff({"a": "a", "b": "b"}), {"a": dict[Literal["handoff"], Literal["b"]], "b": str}, "x"),
    "group chat": (GroupChat({"a": "a", "b": "b"}, turns_max=6), {"a": str, "b": str}, "x"),
    "planner": (Planner("p", {"ann": "w", "ben": "w"}, judge="j"), {"p": str, "w": str, "j": Judgement}, "x"),
    "gate": (Gate("sure?"), {}, "x"),
    "wrapped": (
        Budget(Retry(Timeout(Fallback("a", Cache("b")), seconds=5)), steps=20),
        {"a": Literal["yes"], "b": str},
        "x",
    ),
    "vote": (Vote("a", times=3), {"a": bool}, "x"),
    "saga": (Saga(a=("a", "undo"), b=("b", None)), {"a": str, "b": str, "undo": str}, "x"),
}


@pytest.mark.parametrize("name", CATALOGUE)
async def test_the_catalogue_holds_under_random_answers_failures_and_orders(name: str) -> None:
    policy, services, task = CATALOGUE[name]
    await check_orchestrator(
        lambda: policy, services, task, runs=10, people=lambda prompt: "approve", unread_answers=["undo"]
    )


async def test_a_setting_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="has no setting 'rums'"):
        await check_orchestrator(SimpleOrchestrator, {}, rums=3)


def test_values_of_a_type_are_values_of_that_type() -> None:
    chance = random.Random(1)
    declared: Any
    for declared in (str, int, bool, float, list[Verdict], dict[str, int], Judgement | None, tuple[int, str], Any):
        adapter = TypeAdapter(declared)
        for _ in range(50):
            adapter.validate_python(answers_of(declared, chance)())
