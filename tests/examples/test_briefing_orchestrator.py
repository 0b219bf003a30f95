"""The briefing's orchestrator, as a pure function: whatever the order of answers, and wherever it is started again.

Services are a table of words here, the control plane is a few lines: it keeps the state as JSON between two calls, as
a restart would.
"""

from __future__ import annotations

import json
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orchestrator import STEPS, BriefingOrchestrator
from pydantic import ValidationError

from llama_deploy import QueueMessage, TaskDefinition, TaskResult, get_result_key

Value = TypeVar("Value")
Sent = tuple[str, str | None, dict[str, Any]]
"""A message without its random id: service, tag, data."""

DOCUMENTS = ["a.txt", "b.csv", "folder/c.html"]
TASK_ID = "the-task"


def value_of(coroutine: Coroutine[Any, Any, Value]) -> Value:
    """What a coroutine returns that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: Value = stop.value
        return value
    raise AssertionError("the orchestrator waited for something")


def as_json(state: dict[str, Any]) -> Any:
    """The state as the next call sees it: written down and read again."""
    return json.loads(json.dumps(state, default=lambda result: result.model_dump(mode="json")))


def answer_to(sent: Sent) -> TaskResult:
    """What a service says to a message: recognisable, and for a document long by its blocks."""
    service, tag, data = sent
    value: dict[str, Any] = {"said_by": service, "about": tag, "knowing": sorted(data)}
    if service == "read":
        value |= {"name": tag, "blocks": ["long"], "table": None}
    return TaskResult(
        task_id=TASK_ID, history=[], result=json.dumps(value), kind="json", value=value, service=service, tag=tag
    )


@dataclass
class Engine:
    """Folds answers and asks, and starts again from JSON before every call."""

    documents: list[str]
    state: dict[str, Any] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    open: list[Sent] = field(default_factory=list)

    def __post_init__(self) -> None:
        order = {"documents": self.documents, "title": "A title"}
        self.task = TaskDefinition(task_id=TASK_ID, agent_id="briefing", input=json.dumps(order))
        self.take(self.decided(self.state))

    def decided(self, state: dict[str, Any]) -> tuple[list[Sent], dict[str, Any]]:
        messages, after = value_of(BriefingOrchestrator().get_next_messages(self.task, as_json(state)))
        assert all(isinstance(message, QueueMessage) for message in messages)
        return [(message.type, message.tag, message.data) for message in messages], as_json(after)

    def folded(self, state: dict[str, Any], sent: Sent) -> dict[str, Any]:
        return value_of(BriefingOrchestrator().add_result_to_state(answer_to(sent), as_json(state)))

    def take(self, decision: tuple[list[Sent], dict[str, Any]]) -> None:
        messages, self.state = decision
        self.sent += messages
        self.open += messages

    def answer(self, number: int) -> None:
        answered = self.open.pop(number)
        self.take(self.decided(self.folded(self.state, answered)))

    @property
    def own(self) -> dict[str, Any]:
        own: dict[str, Any] = self.state[TASK_ID]
        return own


def run_in_order(choices: list[int], documents: list[str] = DOCUMENTS) -> Engine:
    """All the way, answering the open step that each number picks."""
    engine = Engine(documents)
    for choice in choices:
        if engine.open:
            engine.answer(choice % len(engine.open))
    while engine.open:
        engine.answer(0)
    return engine


def test_every_document_is_read_at_once() -> None:
    assert Engine(DOCUMENTS).sent == [("read", path, {"path": path}) for path in DOCUMENTS]


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), max_size=4 * len(DOCUMENTS) + 1))
def test_the_order_of_answers_changes_nothing_but_the_order(choices: list[int]) -> None:
    engine, in_turn = run_in_order(choices), run_in_order([])
    assert sorted(engine.sent[:-1], key=str) == sorted(in_turn.sent[:-1], key=str)
    assert engine.sent[-1] == in_turn.sent[-1], "what is written depends on no order"
    assert engine.state == in_turn.state
    for path in DOCUMENTS:
        assert [service for service, tag, _ in engine.sent if tag == path] == [step.service for step in STEPS]


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), max_size=4 * len(DOCUMENTS) + 1))
def test_asked_again_at_any_point_it_says_the_same(choices: list[int]) -> None:
    engine = Engine(DOCUMENTS)
    for choice in [*choices, *[0] * (4 * len(DOCUMENTS) + 1)]:
        if not engine.open:
            break
        number = choice % len(engine.open)
        before, answered = as_json(engine.state), engine.open[number]
        folded = engine.folded(before, answered)
        first, again = engine.decided(folded), engine.decided(engine.folded(before, answered))
        assert first == again, "a decision that was lost in a crash is made again"
        assert engine.decided(first[1]) == ([], first[1]), "one that was recorded is not made twice"
        engine.answer(number)
    assert engine.sent[-1][0] == "write"


def test_each_step_gets_what_it_needs_and_no_more() -> None:
    needs = {service: set(data) for service, _, data in run_in_order([]).sent}
    assert needs == {
        "read": {"path"},
        "analyse": {"document"},
        "summarise": {"document", "analysis"},
        "check": {"document", "summary"},
        "write": {"items", "title"},
    }


def test_the_writer_gets_everything_in_the_order_of_the_task_and_no_text() -> None:
    service, tag, data = run_in_order([5, 3, 8, 1]).sent[-1]
    assert (service, tag, data["title"]) == ("write", None, "A title")
    assert [item["document"]["name"] for item in data["items"]] == DOCUMENTS
    for item in data["items"]:
        assert set(item) == {"document", "analysis", "summary", "check"}
        assert "blocks" not in item["document"]
        assert "table" not in item["document"]


def test_what_is_written_is_the_outcome() -> None:
    engine = run_in_order([])
    stored = TaskResult.model_validate(engine.state[get_result_key(TASK_ID)])
    assert stored.output["said_by"] == "write"


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), max_size=4 * len(DOCUMENTS)))
def test_a_hop_changes_keys_of_its_own_document_alone(choices: list[int]) -> None:
    engine = Engine(DOCUMENTS)
    for choice in choices:
        if not engine.open or engine.open[0][0] == "write":
            break
        number = choice % len(engine.open)
        before, path = engine.own, engine.open[number][1] or ""
        engine.answer(number)
        changed = {key for key in before.keys() | engine.own.keys() if before.get(key) != engine.own.get(key)}
        assert changed
        assert {key for key in changed if not key.endswith(f" {path}")} <= {"sent"}


@pytest.mark.parametrize("wrong", ["not JSON", "{}", '{"documents": [], "titel": "x"}', '{"documents": "a.txt"}'])
def test_a_task_with_another_input_is_refused(wrong: str) -> None:
    task = TaskDefinition(task_id=TASK_ID, agent_id="briefing", input=wrong)
    with pytest.raises(ValidationError):
        value_of(BriefingOrchestrator().get_next_messages(task, {}))


def test_a_task_for_one_service_is_that_service_alone() -> None:
    task = TaskDefinition(task_id=TASK_ID, agent_id="read", input='{"path": "a.txt"}')
    messages, state = value_of(BriefingOrchestrator().get_next_messages(task, {}))
    assert [(message.type, message.data["task"]["input"]) for message in messages] == [("read", task.input)]
    assert value_of(BriefingOrchestrator().get_next_messages(task, as_json(state))) == ([], state)
    result = TaskResult(task_id=TASK_ID, history=[], result="a document", service="read")
    folded = value_of(BriefingOrchestrator().add_result_to_state(result, as_json(state)))
    assert folded[get_result_key(TASK_ID)] == result


def test_no_document_is_a_briefing_about_nothing() -> None:
    assert Engine([]).sent == [("write", None, {"items": [], "title": "A title"})]
