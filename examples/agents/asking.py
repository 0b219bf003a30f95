"""What the examples here share: a person who answers whatever a task asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llama_deploy import Client


async def answer_questions(client: Client, task_id: str, person: Callable[[dict[str, Any]], Any]) -> None:
    """Follow a task to its end, and give each question that it waits with to `person`."""
    async for entry in client.history(task_id, follow=True):
        if entry.state.value != "input_required":
            continue
        prompt = (await client.get_task(task_id)).prompt
        if prompt is not None:
            answer = person(prompt)
            print(f"asked: {prompt['prompt']} -> {answer}")
            await client.send_input(task_id, answer, step_id=prompt["step_id"])
