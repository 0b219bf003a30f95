"""Services as tools: an agent calls other services, each call a task of its own that a crash does not repeat.

`python examples/agents/services_as_tools.py` needs no key: a scripted model stands in. With OPENAI_API_KEY in the
environment the real one is asked (OPENAI_MODEL names it).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator

from pydantic_ai import Agent, ModelMessage, ModelRequest, ToolReturnPart
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from llama_deploy import Deployment, ServiceAsTool, service


@service
async def tide(harbour: str) -> float:
    """The height of the tide in metres, in a harbour."""
    return {"Bergen": 1.2, "Narvik": 3.1}[harbour]


async def scripted(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    """What a model would do: ask for both harbours at once, then compare."""
    del info
    parts = [part for message in messages if isinstance(message, ModelRequest) for part in message.parts]
    heights = {part.tool_call_id: part.content for part in parts if isinstance(part, ToolReturnPart)}
    if heights:
        yield f"Narvik, with {heights['Narvik']} m against {heights['Bergen']} m."
        return
    for number, harbour in enumerate(["Bergen", "Narvik"]):
        arguments = json.dumps({"harbour": harbour})
        yield {number: DeltaToolCall(name="tide", json_args=arguments, tool_call_id=harbour)}


def model() -> Model | str:
    """The real model where there is a key."""
    if os.environ.get("OPENAI_API_KEY"):
        return f"openai:{os.environ.get('OPENAI_MODEL', 'gpt-4o-mini')}"
    return FunctionModel(stream_function=scripted)


pilot = Agent(model(), name="pilot", tools=[ServiceAsTool(tide).for_pydantic_ai()])


async def main() -> None:
    """One question, and the tasks that it became."""
    async with Deployment(services=[pilot, tide], store=":memory:", quiet=True) as deployment:
        print(await deployment.run("pilot", input="Where is the tide higher, in Bergen or in Narvik?"))
        async for task in deployment.client.list_tasks():
            if task.origin is not None:
                print("called:", task.service)


if __name__ == "__main__":
    asyncio.run(main())
