"""The services of this deployment: plain functions. `llamactl dev` starts them again when this file changes."""

from __future__ import annotations

import asyncio

from llama_deploy import ServiceContext, service


@service
async def shout(text: str) -> str:
    """Says it louder."""
    return text.upper() + "!"


@service
async def researcher(topic: str, context: ServiceContext) -> dict[str, object]:
    """Looks into a topic, and tells on the way what it is doing."""
    questions = [f"What is known about {topic}?", f"Who disagrees about {topic}?", f"What comes next for {topic}?"]
    for question in questions:
        context.stream({"looking_into": question})
        await asyncio.sleep(0.2)  # where a model, a search or a database would be asked
    return {"topic": topic, "questions": questions}
