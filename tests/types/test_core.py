"""The published models as programs use them: two names for one field, defaults of their own, and ids."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from llama_deploy.types import (
    CONTROL_PLANE_NAME,
    EventDefinition,
    ServiceDefinition,
    SessionDefinition,
    TaskDefinition,
    TaskError,
    TaskResult,
    generate_id,
)

BOTH_NAMES: list[dict[str, Any]] = [
    {"agent_id": "writer"},
    {"service_id": "writer"},
    {"agent_id": "writer", "service_id": "writer"},
    {"agent_id": None, "service_id": "writer"},
    {"agent_id": "writer", "service_id": None},
]


@pytest.mark.parametrize("names", BOTH_NAMES)
def test_a_task_takes_either_name_and_has_both(names: dict[str, Any]) -> None:
    for task in (
        TaskDefinition(input="x", **names),
        TaskDefinition.model_validate({"input": "x", **names}),
        TaskDefinition.model_validate_json(json.dumps({"input": "x", **names})),
    ):
        assert (task.agent_id, task.service_id) == ("writer", "writer")
        for written in (task.model_dump(), json.loads(task.model_dump_json())):
            assert (written["agent_id"], written["service_id"]) == ("writer", "writer")


@pytest.mark.parametrize("names", BOTH_NAMES)
def test_an_event_takes_either_name_and_has_both(names: dict[str, Any]) -> None:
    event = EventDefinition.model_validate({"event_obj_str": "{}", **names})
    assert (event.agent_id, event.service_id) == ("writer", "writer")
    written = json.loads(event.model_dump_json())
    assert (written["agent_id"], written["service_id"]) == ("writer", "writer")


def test_keyword_construction_is_known_to_type_checkers() -> None:
    assert TaskDefinition(input="x", service_id="writer").agent_id == "writer"
    assert EventDefinition(service_id="writer", event_obj_str="{}").agent_id == "writer"


def test_setting_one_name_sets_the_other() -> None:
    task = TaskDefinition(input="x", agent_id="writer")
    task.service_id = "editor"
    assert task.agent_id == "editor"
    task.agent_id = "printer"
    assert task.service_id == "printer"
    event = EventDefinition(service_id="writer", event_obj_str="{}")
    event.agent_id = "editor"
    assert event.service_id == "editor"


def test_two_different_names_are_refused_and_both_named() -> None:
    with pytest.raises(ValidationError, match=r"agent_id \('a'\) and service_id \('b'\)"):
        TaskDefinition.model_validate({"input": "x", "agent_id": "a", "service_id": "b"})
    with pytest.raises(ValidationError, match="same field"):
        EventDefinition.model_validate({"agent_id": "a", "service_id": "b", "event_obj_str": "{}"})


def test_an_event_without_a_service_is_refused() -> None:
    with pytest.raises(ValidationError, match="service_id"):
        EventDefinition.model_validate({"event_obj_str": "{}"})


def test_a_task_has_the_published_defaults_and_quiet_new_ones() -> None:
    task = TaskDefinition(input="x", task_id="t1")
    assert task.model_dump() == {
        "input": "x",
        "task_id": "t1",
        "session_id": None,
        "agent_id": None,
        "service_id": None,
        "wait_for_service": False,
        "idempotency_key": None,
        "metadata": {},
        "options": None,
    }


def test_defaults_are_not_shared() -> None:
    first, second = TaskDefinition(input="x"), TaskDefinition(input="x")
    first.metadata["k"] = "v"
    assert second.metadata == {}
    assert first.task_id != second.task_id


def test_the_current_task_is_the_last_one() -> None:
    assert SessionDefinition().current_task_id is None
    assert SessionDefinition(task_ids=["t1", "t2"]).current_task_id == "t2"
    assert "current_task_id" not in SessionDefinition().model_dump()


def test_a_service_brings_default_limits() -> None:
    service = ServiceDefinition(service_name="writer", description="")
    assert (service.kind, service.concurrency, service.run_timeout_s) == ("other", 8, 600.0)
    assert service.retry is None
    assert (service.host, service.port, service.prompt, service.input_schema) == (None, None, [], None)


def test_an_error_is_retryable_until_it_says_otherwise() -> None:
    assert TaskError().model_dump() == {
        "code": "LD502",
        "type": "",
        "message": "",
        "fix": "",
        "retryable": True,
        "traceback": None,
        "retry_after_s": None,
    }


def test_ids_are_unique_and_sort_by_time() -> None:
    ids = [generate_id() for _ in range(2_000)]
    assert len(set(ids)) == len(ids)
    assert ids == sorted(ids)
    assert CONTROL_PLANE_NAME == "control_plane"


RESULTS = [
    {"result": "text"},
    {"result": "", "kind": "json"},
    {"result": "[1]", "kind": "json", "value": [1, {"a": None}]},
    {"result": "no", "status": "failed", "error": {"message": "no", "retry_after_s": 1.5}},
    {"result": "x", "history": [{"role": "user", "content": "hello"}], "data": {"more": [1]}},
    {"result": "x", "step_id": "t:1", "service": "echo", "attempt": 3, "tag": "a"},
]


@pytest.mark.parametrize("fields", RESULTS)
def test_a_dumped_result_is_what_pydantic_dumps(fields: dict[str, Any]) -> None:
    result = TaskResult.model_validate({"task_id": "t", "history": [], **fields})
    copied = result.model_copy(update={"tag": "later", "attempt": 2})
    for one in (result, copied):
        assert json.dumps(one.dumped()) == json.dumps(one.model_dump())


@pytest.mark.parametrize(
    "fields",
    [{}, {"agent_id": "a", "metadata": {"k": "v"}}, {"options": {"priority": 3, "delay_s": 2.0}}, {"session_id": "s"}],
)
def test_a_dumped_task_is_what_pydantic_dumps(fields: dict[str, Any]) -> None:
    task = TaskDefinition.model_validate({"input": "x", **fields})
    assert list(task.dumped().items()) == list(task.model_dump().items())


def test_a_model_of_ones_own_is_dumped_whole() -> None:
    class Priced(TaskResult):
        price: TaskError = TaskError(message="none")

    assert Priced(task_id="t", history=[], result="x").dumped()["price"]["message"] == "none"
