"""The typed base: turns, actions, nodes within nodes, and what is undone after a failure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from llama_deploy.orchestrators.actions import (
    Action,
    Answer,
    Ask,
    Compensate,
    Emit,
    Fail,
    Finish,
    Run,
    TakeBack,
    Wait,
)
from llama_deploy.orchestrators.turn import Turn
from llama_deploy.orchestrators.typed import Orchestrator
from llama_deploy.testing.orchestrator_play import play
from llama_deploy.types import ActionTypes, TaskDefinition, TaskResult

pytestmark = pytest.mark.anyio


class Count(BaseModel):
    left: int = 0


class Chain(Orchestrator[Count]):
    """Runs its nodes one after the other."""

    State: ClassVar[type[BaseModel]] = Count

    def __init__(self, **nodes: Any) -> None:
        self.nodes = nodes

    def start(self, turn: Turn[Count]) -> Iterable[Action]:
        return [Run(next(iter(self.nodes)), turn.input)]

    def on_answer(self, turn: Turn[Count], answer: Answer) -> Iterable[Action]:
        if answer.failed:
            return [self.failure(answer)]
        turn.state.left += 1
        turn.notes[answer.tag] = answer.output
        names = list(self.nodes)
        if turn.state.left < len(names):
            return [Emit({"done": answer.tag}), Run(names[turn.state.left], answer.output)]
        return [Finish(answer.output)]


def up(text: str) -> str:
    return text.upper()


def bang(text: str) -> str:
    return text + "!"


def broken(text: str) -> str:
    raise ValueError(f"no {text}")


async def test_steps_follow_each_other_and_state_survives_between_them() -> None:
    seen = await play(Chain(a="up", b="bang", c="bang"), {"up": up, "bang": bang}, "tide")
    assert seen.output == "TIDE!!"
    assert seen.services == ["up", "bang", "bang"]
    assert [message.tag for message in seen.sent] == ["a", "b", "c"]
    assert seen.events == [{"done": "a"}, {"done": "b"}]


async def test_an_orchestrator_is_a_node_of_another_and_leaves_nothing_behind() -> None:
    inner = Chain(x="bang", y="up")
    seen = await play(Chain(first="up", middle=inner, last="bang"), {"up": up, "bang": bang}, "tide")
    assert seen.output == "TIDE!!"
    assert [message.tag for message in seen.sent] == ["first", "middle/x", "middle/y", "last"]
    assert not [key for key in seen.state["t1"] if key.startswith("middle/")]


async def test_a_failure_inside_is_the_answer_of_its_node_outside() -> None:
    seen = await play(Chain(first="up", middle=Chain(x="broken")), {"up": up, "broken": broken}, "tide")
    assert seen.outcome is not None
    assert (seen.outcome.status, seen.outcome.error and seen.outcome.error.message) == ("failed", "no TIDE")


class Both(Orchestrator[Count]):
    """Runs two nodes at the same time; the first answer ends it."""

    def __init__(self) -> None:
        self.nodes = {"slow": Chain(x="up", y="up"), "quick": "up"}

    def start(self, turn: Turn[Count]) -> Iterable[Action]:
        return [Run("slow", turn.input), Run("quick", turn.input), Wait(3600.0)]

    def on_answer(self, turn: Turn[Count], answer: Answer) -> Iterable[Action]:
        return [Finish([answer.tag, answer.output])]


async def test_what_is_still_open_when_a_node_ends_is_taken_back() -> None:
    seen = await play(Chain(race=Both()), {"up": up}, "tide")
    assert seen.output == ["quick", "TIDE"]
    assert sorted(seen.taken_back) == ["race/slow/x", "race/wait"] or seen.taken_back == ["race/slow/y", "race/wait"]


class Patient(Orchestrator[Count]):
    """Asks a person, but not for longer than a week."""

    def start(self, turn: Turn[Count]) -> Iterable[Action]:
        return [Ask("may I?", schema={"type": "boolean"}, details={"amount": 3}), Wait(7 * 86_400.0)]

    def on_answer(self, turn: Turn[Count], answer: Answer) -> Iterable[Action]:
        if answer.tag == "wait":
            return [TakeBack("ask"), Fail.because("nobody answered")]
        return [Finish(answer.output)]


async def test_a_person_is_asked_and_answers() -> None:
    seen = await play(Patient(), {}, "x", people=lambda prompt: prompt["amount"] == 3)
    assert seen.output is True
    assert seen.asked == [{"prompt": "may I?", "amount": 3, "schema": {"type": "boolean"}}]


class Trip(Orchestrator[Count]):
    """Books three things, and undoes what it booked when one fails."""

    def start(self, turn: Turn[Count]) -> Iterable[Action]:
        return [Run("book", {"what": "train"})]

    def on_answer(self, turn: Turn[Count], answer: Answer) -> Iterable[Action]:
        if answer.failed:
            return [self.failure(answer)]
        done = answer.output
        following = {"train": "hotel", "hotel": "museum"}.get(done)
        undo = Compensate("cancel", {"what": done})
        return [undo, Run("book", {"what": following})] if following else [undo, Finish("booked")]


async def test_a_failure_is_told_after_everything_was_undone_the_latest_first() -> None:
    undone: list[str] = []

    def book(what: str) -> str:
        if what == "museum":
            raise ValueError("closed")
        return what

    def cancel(what: str) -> None:
        undone.append(what)
        if what == "hotel":
            raise ValueError("no refund")

    seen = await play(Trip(), {"book": book, "cancel": cancel})
    assert undone == ["hotel", "train"]
    assert seen.outcome is not None
    assert seen.outcome.status == "failed"
    assert seen.outcome.error is not None
    assert seen.outcome.error.message == "closed (and cancel, which was to undo it, failed: no refund)"


async def test_neither_waiting_nor_ending_is_a_failure_that_says_so() -> None:
    class Idle(Orchestrator[Count]):
        def start(self, turn: Turn[Count]) -> Iterable[Action]:
            return [Emit("nothing to do")]

        def on_answer(self, turn: Turn[Count], answer: Answer) -> Iterable[Action]:
            return []

    seen = await play(Idle(), {})
    assert seen.outcome is not None
    assert seen.outcome.error is not None
    assert seen.outcome.error.message == "Idle neither waits nor ends"


async def test_a_task_keeps_its_version_or_is_migrated_on_purpose() -> None:
    class Old(Chain):
        version: ClassVar[int] = 1

    class New(Chain):
        version: ClassVar[int] = 2

    class Migrating(New):
        def migrate(self, version: int, state: dict[str, Any]) -> dict[str, Any]:
            return {**state, "left": state.get("left", 0) + 1}

    task = TaskDefinition(input="tide", task_id="t1")
    answer = TaskResult(task_id="t1", history=[], result="TIDE", tag="a", service="up")
    _, state = await Old(a="up", b="up", c="up").get_next_messages(task, {})
    with pytest.raises(ValueError, match="is at version 2 and the task began with 1"):
        await New(a="up", b="up", c="up").get_next_messages(
            task, await New(a="up", b="up", c="up").add_result_to_state(answer, {"t1": dict(state["t1"])})
        )
    policy = Migrating(a="up", b="up", c="up")
    messages, _ = await policy.get_next_messages(task, await policy.add_result_to_state(answer, state))
    assert [message.tag for message in messages if message.action is ActionTypes.NEW_TASK] == ["c"]
