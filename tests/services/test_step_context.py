"""What a service's code is told of its step, whatever kind of message asked for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llama_deploy import service
from llama_deploy.services import StepContext


def context_of(data: dict[str, Any]) -> StepContext:
    return StepContext(
        step_id="task:1",
        attempt=1,
        task_id="task",
        session_id="task",
        service="shout",
        action="new_task",
        data=data,
        emit=lambda _event: None,
        ask=lambda _prompt: None,
        inputs=asyncio.Queue(),
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"task": {"input": "hello", "task_id": "task"}, "state": {}}, "hello"),
        ({"text": "hello"}, '{"text":"hello"}'),
        ({"task": {"priority": 3}}, '{"task":{"priority":3}}'),
        ({}, ""),
    ],
)
def test_the_input_is_the_tasks_or_the_messages_own_data(data: dict[str, Any], said: str) -> None:
    assert context_of(data).input == said


async def test_a_function_takes_the_data_of_a_plain_message_as_its_arguments() -> None:
    @service
    async def shout(text: str, times: int = 1) -> str:
        return text.upper() * times

    assert (await shout.run(context_of({"text": "hi", "times": 2}))).result == "HIHI"
