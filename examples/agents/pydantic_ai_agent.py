"""A pydantic-ai agent as a service: it asks a person before it refunds anything, and answers with a typed result.

`python examples/agents/pydantic_ai_agent.py` needs no key: a scripted model stands in. With OPENAI_API_KEY in the
environment the real one is asked (OPENAI_MODEL names it).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator

from asking import answer_questions
from pydantic import BaseModel
from pydantic_ai import Agent, ModelMessage, ModelRequest, ToolReturnPart
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from llama_deploy import Deployment


class Settled(BaseModel):
    """How a complaint was settled."""

    refunded: int
    note: str


async def scripted(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    """What a model would say: refund first, then the result."""
    parts = [part for message in messages if isinstance(message, ModelRequest) for part in message.parts]
    done = [part.content for part in parts if isinstance(part, ToolReturnPart)]
    if done:
        arguments = json.dumps({"refunded": 30, "note": str(done[0])})
        yield {0: DeltaToolCall(name=info.output_tools[0].name, json_args=arguments, tool_call_id="settled")}
    else:
        arguments = json.dumps({"order": "A-17", "amount": 30})
        yield {0: DeltaToolCall(name="refund", json_args=arguments, tool_call_id="refund")}


def model() -> Model | str:
    """The real model where there is a key."""
    if os.environ.get("OPENAI_API_KEY"):
        return f"openai:{os.environ.get('OPENAI_MODEL', 'gpt-4o-mini')}"
    return FunctionModel(stream_function=scripted)


agent = Agent(
    model(), name="complaints", output_type=Settled, instructions="Settle the complaint. Refund what was paid."
)


@agent.tool_plain(requires_approval=True)
def refund(order: str, amount: int) -> str:
    """Pay an order back, in EUR."""
    return f"refunded {amount} EUR for {order}"


async def main() -> None:
    """One complaint, from the question to the typed answer."""
    async with Deployment(services=[agent], store=":memory:", quiet=True) as deployment:
        task_id = await deployment.submit("complaints", input="The oar of order A-17 (30 EUR) was broken.")
        await answer_questions(deployment.client, task_id, lambda _: "approve")
        print(await deployment.client.result(task_id, output_type=Settled))
        print("used:", sorted((await deployment.client.wait(task_id)).data["usage"]))


if __name__ == "__main__":
    asyncio.run(main())
