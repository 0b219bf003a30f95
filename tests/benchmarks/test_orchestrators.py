"""The orchestrators of the benchmark, driven as the contract says, so that what is measured is a correct job."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from benchmarks.ours.orchestrators import FanOut, TwoHop

from llama_deploy import BaseOrchestrator, QueueMessage, TaskDefinition, TaskResult, get_result_key

SERVICES: dict[str, Callable[[str], str]] = {"echo": str.upper, "exclaim": lambda text: text + "!"}


async def drive(orchestrator: BaseOrchestrator, text: str, order: random.Random) -> tuple[list[str], TaskResult]:
    """Plays control plane and services; answers open steps in random order. The services asked, and the result."""
    task = TaskDefinition(input=json.dumps({"text": text}), agent_id="echo")
    state: dict[str, Any] = {}
    asked: list[str] = []
    messages, state = await orchestrator.get_next_messages(task, state)
    waiting: list[QueueMessage] = list(messages)
    while waiting:
        message = waiting.pop(order.randrange(len(waiting)))
        asked.append(message.type)
        answer = SERVICES[message.type](json.loads(message.data["task"]["input"])["text"])
        result = TaskResult(task_id=task.task_id, history=[], result=answer, tag=message.tag)
        state = await orchestrator.add_result_to_state(result, state)
        messages, state = await orchestrator.get_next_messages(task, state)
        waiting += messages
    return asked, TaskResult.model_validate(state[get_result_key(task.task_id)])


async def test_two_hops_go_through_both_services() -> None:
    asked, result = await drive(TwoHop(), "hello", random.Random(1))
    assert asked == ["echo", "exclaim"]
    assert result.output == "HELLO!"


async def test_a_fan_out_brings_every_answer_back_in_order() -> None:
    asked, result = await drive(FanOut(), "20", random.Random(1))
    assert asked == ["echo"] * 20
    assert result.output == [f"STEP {index}" for index in range(20)]
