"""Typed orchestrators on the real engine: asking people, taking steps back, telling, state that is read on demand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from tests.control_plane.harness import FakeInstance, LinkedRunner, history, outcome, recorded, state_of, submit, world

from llama_deploy.control_plane import EngineSettings
from llama_deploy.control_plane.own_state import OwnState
from llama_deploy.messages import frames
from llama_deploy.orchestrators.actions import Action, Answer, Ask, Emit, Finish, Run, TakeBack
from llama_deploy.orchestrators.turn import Turn
from llama_deploy.orchestrators.typed import Orchestrator
from llama_deploy.services import service
from llama_deploy.state_stores import MemoryStore, StateStore
from llama_deploy.testing import ManualClock
from llama_deploy.types import RetryPolicy

pytestmark = pytest.mark.anyio


class Plain(BaseModel):
    done: int = 0


class Approval(Orchestrator[Plain]):
    """Asks twice, then finishes with both answers."""

    State = Plain

    def start(self, turn: Turn[Plain]) -> Iterable[Action]:
        return [Emit("asking"), Ask("first?", tag="1"), Ask("second?", tag="2")]

    def on_answer(self, turn: Turn[Plain], answer: Answer) -> Iterable[Action]:
        turn.state.done += 1
        turn.notes[answer.tag] = answer.output
        return [Finish([turn.notes["1"], turn.notes["2"]])] if turn.state.done == 2 else [Emit("one more")]


@pytest.mark.parametrize("place", ["memory", "file"])
async def test_an_orchestrator_asks_people_and_nothing_is_held_while_they_think(place: str, tmp_path: Path) -> None:
    store: StateStore | Path = MemoryStore() if place == "memory" else tmp_path / "store.sqlite"
    async with world(store, orchestrator=Approval()) as here:
        task = (await submit(here.plane, "nobody")).row.task_id
        assert await state_of(here.plane, task) == "input_required"
        await here.crash()
        await here.start()
        view = here.plane.views.task(await here.plane.engine.cache.get(task))
        assert view.waiting_for == "a person's input: first?; a person's input: second?"
        await here.plane.signals.send_input(task, {"yes": True}, step_id=f"{task}:2", by="anna")
        await here.crash()
        await here.start()
        await here.plane.signals.send_input(task, "no")
        assert (await outcome(here.plane, task)).output == ["no", {"yes": True}]
        kinds = [entry.kind for entry in await history(here.plane, task)]
        assert kinds == ["submitted", "answered", "answered"]
        chunks = await here.plane.store.load_chunks(task)
        assert [event for chunk in chunks for event in json.loads(chunk.data)] == ["asking", "one more"]


class Race(Orchestrator[Plain]):
    """The first of two answers is enough; the other step is taken back, and a last one follows."""

    def start(self, turn: Turn[Plain]) -> Iterable[Action]:
        return [Run("echo", "a", tag="a"), Run("echo", "b", tag="b")]

    def on_answer(self, turn: Turn[Plain], answer: Answer) -> Iterable[Action]:
        if answer.tag == "last":
            return [Finish(answer.output)]
        return [TakeBack("b" if answer.tag == "a" else "a"), Run("echo", "c", tag="last")]


async def test_a_step_that_is_taken_back_is_stopped_and_its_late_answer_counts_for_nothing() -> None:
    async with world(orchestrator=Race()) as here:
        instance = FakeInstance()
        await instance.connect(here.plane)
        task = (await submit(here.plane, "echo")).row.task_id
        first, second = await instance.delivery(1), await instance.delivery(2)
        instance.answer(second, "B")
        canceled = await instance.got(frames.CancelStep)
        assert canceled.step_id == first.step_id
        instance.answer(first, "A")
        instance.answer(await instance.delivery(3), "C")
        assert (await outcome(here.plane, task)).output == "C"
        entries = await history(here.plane, task)
        assert [entry.taken_back for entry in entries] == [[], [first.step_id], []]
        assert here.plane.engine.statistics.answers_late == 1
        assert not await here.plane.store.load_deliveries(task)


class Lenient(Orchestrator[Plain]):
    """Ends with what became of its one step, well or badly."""

    def start(self, turn: Turn[Plain]) -> Iterable[Action]:
        return [Run("echo", "a")]

    def on_answer(self, turn: Turn[Plain], answer: Answer) -> Iterable[Action]:
        return [Finish([answer.status, answer.attempt])]


async def test_a_typed_orchestrator_is_told_of_the_last_failure_alone() -> None:
    settings = EngineSettings(overdue_s=1e6, lease_s=1e6)
    async with world(orchestrator=Lenient(), settings=settings, clock=ManualClock()) as here:
        instance = FakeInstance()
        await instance.connect(here.plane)
        task = await submit(here.plane, "echo")
        for attempt in range(1, RetryPolicy().max_retries + 2):
            instance.fail(await instance.delivery(attempt))
            await recorded(task, attempt + 1)
            here.manual.advance(10.0)
        assert (await outcome(here.plane, task)).output == ["failed", RetryPolicy().max_retries + 1]


class Wide(Orchestrator[Plain]):
    """As many steps as the input says; every answer is kept on its own."""

    State = Plain

    def start(self, turn: Turn[Plain]) -> Iterable[Action]:
        return [Run("shout", {"text": str(number)}, tag=str(number)) for number in range(turn.input["count"])]

    def on_answer(self, turn: Turn[Plain], answer: Answer) -> Iterable[Action]:
        turn.notes[answer.tag] = answer.output
        turn.state.done += 1
        if turn.state.done == turn.input["count"]:
            return [Finish([turn.notes[str(number)] for number in range(turn.state.done)])]
        return []


async def test_a_wide_task_costs_as_much_per_answer_as_a_narrow_one() -> None:
    @service(concurrency=1000)
    async def shout(text: str) -> str:
        return text.upper() + "!"

    sizes = {}
    for count in (10, 400):
        async with world(orchestrator=Wide()) as here:
            runner = LinkedRunner([shout])
            await runner.connect(here.plane)
            task = (await submit(here.plane, "shout", json.dumps({"count": count}))).row.task_id
            assert (await outcome(here.plane, task)).output == [f"{number}!" for number in range(count)]
            rows = await here.plane.store.load_history(task)
            sizes[count] = sum(len(row.data) for row in rows[1:-1]) / count
            runner.die()
    assert sizes[400] < 1.1 * sizes[10] + 100


def test_own_state_decodes_what_is_looked_at_and_finds_what_changed() -> None:
    encoded = {"a": b"1", "b": b"[1,2]", "c": b'"x"', "never": b"not json at all"}
    own: Any = OwnState(encoded)
    assert own["a"] == 1
    own["b"].append(3)
    own["d"] = {"new": True}
    del own["c"]
    assert "c" not in own
    assert set(own) == {"a", "b", "d", "never"}
    assert own.changes(lambda _, value: json.dumps(value, separators=(",", ":")).encode()) == {
        "b": b"[1,2,3]",
        "c": None,
        "d": b'{"new":true}',
    }
    with pytest.raises(KeyError):
        own["c"]
    with pytest.raises(KeyError):
        del own["c"]
