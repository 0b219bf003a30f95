"""JSON as clients and services of the published system write it, and constructor calls as its programs make them.

The documents are written out here by hand: what parses today has to parse for ever.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from llama_deploy.messages import QueueMessage
from llama_deploy.types import (
    ActionTypes,
    ChatMessage,
    EventDefinition,
    HumanResponse,
    MessageRole,
    NewTask,
    ServiceDefinition,
    SessionDefinition,
    TaskDefinition,
    TaskResult,
    TaskStream,
    ToolCall,
    ToolCallResult,
)

DOCUMENTS: list[tuple[type[BaseModel], str]] = [
    (
        TaskDefinition,
        '{"input": "{\\"topic\\": \\"tides\\"}", "task_id": "t1", "session_id": null, "agent_id": "writer"}',
    ),
    (TaskDefinition, '{"input": "hello", "task_id": "t1", "session_id": "s1", "service_id": "writer"}'),
    (TaskDefinition, '{"input": "hello"}'),
    (SessionDefinition, '{"session_id": "s1", "task_ids": ["t1", "t2"], "state": {"retries": 0}}'),
    (
        NewTask,
        '{"task": {"input": "hello", "task_id": "t1", "session_id": "s1", "agent_id": "writer"}, "state": {"k": [1]}}',
    ),
    (
        TaskResult,
        (
            '{"task_id": "t1", "history": [{"role": "assistant", "content": "HELLO", "additional_kwargs": {}}],'
            ' "result": "HELLO", "data": {}}'
        ),
    ),
    (TaskStream, '{"task_id": "t1", "session_id": "s1", "data": {"progress": 0.5}, "index": 0}'),
    (EventDefinition, '{"service_id": "writer", "event_obj_str": "{}"}'),
    (EventDefinition, '{"agent_id": "writer", "event_obj_str": "{}"}'),
    (
        ToolCall,
        (
            '{"id_": "c1", "tool_call_bundle": {"tool_name": "add", "tool_args": [1, 2], "tool_kwargs": {"b": 3}},'
            ' "source_id": "agent"}'
        ),
    ),
    (
        ToolCallResult,
        (
            '{"id_": "c1", "tool_message": {"role": "tool", "content": "3", "additional_kwargs": {"name": "add"}},'
            ' "result": "3"}'
        ),
    ),
    (
        ServiceDefinition,
        '{"service_name": "writer", "description": "writes", "prompt": [], "host": "127.0.0.1", "port": 8002}',
    ),
    (HumanResponse, '{"result": "yes"}'),
    (
        QueueMessage,
        (
            '{"id_": "m1", "publisher_id": "control_plane", "data": {"task": {"input": "hello"}, "state": {}},'
            ' "action": "new_task", "stats": {"publish_time": "2024-10-01 12:00:00", "process_start_time": null,'
            ' "process_end_time": null}, "type": "writer"}'
        ),
    ),
]


@pytest.mark.parametrize(("model", "text"), DOCUMENTS)
def test_every_published_field_survives_reading_and_writing(model: type[BaseModel], text: str) -> None:
    written = json.loads(model.model_validate_json(text).model_dump_json())
    assert _holds(written, json.loads(text))


@pytest.mark.parametrize(("model", "text"), DOCUMENTS)
def test_unknown_fields_of_another_version_are_ignored(model: type[BaseModel], text: str) -> None:
    extended = {**json.loads(text), "a_field_of_tomorrow": {"deep": [1]}}
    assert _plain(model.model_validate(extended)).items() >= _plain(model.model_validate_json(text)).items()


@pytest.mark.parametrize(("model", "text"), DOCUMENTS)
def test_what_is_written_reads_back_equal(model: type[BaseModel], text: str) -> None:
    value = model.model_validate_json(text)
    again = model.model_validate_json(value.model_dump_json())
    assert again == value
    assert model.model_validate(value.model_dump()) == value


def _plain(value: BaseModel) -> dict[str, Any]:
    """The value's fields without the ids that are new each time."""
    fields: dict[str, Any] = json.loads(value.model_dump_json())
    return {key: field for key, field in fields.items() if key != "task_id"}


def _holds(written: Any, published: Any) -> bool:
    """Whether `written` has every value of `published` in its place; it may have more."""
    if isinstance(published, dict):
        return all(key in written and _holds(written[key], value) for key, value in published.items())
    return bool(written == published)


def test_a_published_result_is_a_completed_one() -> None:
    result = TaskResult(task_id="t1", history=[], result="HELLO")
    assert (result.status, result.error, result.attempt, result.output) == ("completed", None, 1, "HELLO")


def test_a_json_result_has_its_value_as_output_and_text_for_old_readers() -> None:
    result = TaskResult(task_id="t1", history=[], result='{"n": 1}', kind="json", value={"n": 1})
    assert result.output == {"n": 1}
    assert TaskResult(task_id="t1", history=[], result="null", kind="json", value=None).output is None


def test_chat_message_blocks_are_read_as_content() -> None:
    text = (
        '{"role": "user", "additional_kwargs": {}, "blocks": [{"block_type": "text", "text": "hel"}, {"text": "lo"}]}'
    )
    assert ChatMessage.model_validate_json(text).content == "hel\nlo"
    image = {"role": "user", "blocks": [{"block_type": "image", "url": "x"}]}
    assert ChatMessage.model_validate(image).content == ""
    assert ChatMessage.model_validate({"content": "kept", "blocks": [{"text": "not"}]}).content == "kept"


@pytest.mark.parametrize("blocks", [7, "text", None, [7, None], [{"text": 7}]])
def test_malformed_blocks_are_no_content(blocks: Any) -> None:
    assert ChatMessage.model_validate({"role": "user", "blocks": blocks}).content == ""


def test_chat_message_reads_as_role_and_content() -> None:
    assert str(ChatMessage.from_str("hello")) == "user: hello"
    message = ChatMessage.from_str("hi", "assistant", additional_kwargs={"name": "bot"})
    assert (str(message), message.additional_kwargs) == ("assistant: hi", {"name": "bot"})
    with pytest.raises(ValueError, match="nobody"):
        ChatMessage.from_str("hi", "nobody")


def test_enums_are_their_published_texts() -> None:
    assert {action.name: action.value for action in ActionTypes} == {
        "NEW_TASK": "new_task",
        "COMPLETED_TASK": "completed_task",
        "REQUEST_FOR_HELP": "request_for_help",
        "NEW_TOOL_CALL": "new_tool_call",
        "COMPLETED_TOOL_CALL": "completed_tool_call",
        "TASK_STREAM": "task_stream",
        "SEND_EVENT": "send_event",
    }
    roles = ["system", "developer", "user", "assistant", "function", "tool", "chatbot", "model"]
    assert [role.value for role in MessageRole] == roles
    assert json.dumps([ActionTypes.NEW_TASK, MessageRole.TOOL]) == '["new_task", "tool"]'
