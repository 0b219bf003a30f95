"""The envelope: published constructor, defaults, and the fields that were added to it."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from pydantic import ValidationError

from llama_deploy.messages import QueueMessage, QueueMessageStats
from llama_deploy.types import ActionTypes


def test_a_message_has_the_published_defaults_and_quiet_new_ones() -> None:
    message = QueueMessage(id_="m1")
    assert message.model_dump() == {
        "id_": "m1",
        "publisher_id": "default",
        "data": {},
        "action": None,
        "stats": {"publish_time": None, "process_start_time": None, "process_end_time": None},
        "type": "default",
        "step_id": None,
        "tag": None,
        "delay_s": 0.0,
        "options": None,
    }


def test_ids_and_defaults_are_each_messages_own() -> None:
    first, second = QueueMessage(), QueueMessage()
    assert first.id_ != second.id_
    first.data["k"] = 1
    first.stats.publish_time = "now"
    assert (second.data, second.stats.publish_time) == ({}, None)


def test_actions_are_written_as_their_text() -> None:
    message = QueueMessage(type="writer", action=ActionTypes.NEW_TASK, data={"task": {"input": "x"}})
    written = json.loads(message.model_dump_json())
    assert written["action"] == "new_task"
    assert QueueMessage.model_validate(written) == message


def test_an_unknown_action_is_refused() -> None:
    with pytest.raises(ValidationError, match="action"):
        QueueMessage.model_validate({"action": "explode"})


def test_timestamps_are_text_in_the_published_format() -> None:
    datetime.strptime(QueueMessageStats.timestamp_str(), "%Y-%m-%d %H:%M:%S").astimezone()
    assert len(QueueMessageStats.timestamp_str("%Y")) == 4
