"""Agents of the OpenAI Agents SDK as a service: triage hands over to billing, which asks a person before it pays.

`python examples/agents/openai_agent.py` needs no key: scripted models stand in. With OPENAI_API_KEY in the environment
the real ones are asked (OPENAI_MODEL names them).
"""

from __future__ import annotations

import asyncio
import os

import agents
from agents.testing import ScriptedModel, assistant_message, function_call
from asking import answer_questions

from llama_deploy import Deployment

HAS_KEY = bool(os.environ.get("OPENAI_API_KEY"))
agents.set_tracing_disabled(not HAS_KEY)


def model(scripted: ScriptedModel) -> agents.Model | str:
    """The real model where there is a key."""
    return os.environ.get("OPENAI_MODEL", "gpt-4o-mini") if HAS_KEY else scripted


@agents.function_tool(needs_approval=True)
def pay_back(order: str, amount: int) -> str:
    """Pay an order back, in EUR."""
    return f"{amount} EUR for {order} are on their way"


billing = agents.Agent(
    name="billing",
    instructions="Pay the customer back, then say so.",
    tools=[pay_back],
    model=model(
        ScriptedModel(
            [
                [function_call("pay_back", {"order": "A-17", "amount": 30}, call_id="pay")],
                [assistant_message("Your money is on its way.")],
            ]
        )
    ),
)
triage = agents.Agent(
    name="triage",
    instructions="Hand over to billing when it is about money.",
    handoffs=[billing],
    model=model(ScriptedModel([[function_call("transfer_to_billing", {}, call_id="hand")]])),
)


async def main() -> None:
    """One request, from the question to the answer, and what was told on the way."""
    async with Deployment(services=[triage], store=":memory:", quiet=True) as deployment:
        task_id = await deployment.submit("triage", input="Please pay order A-17 back, 30 EUR.")
        await answer_questions(deployment.client, task_id, lambda _: "approve")
        async for event in deployment.client.stream(task_id):
            if event.data.get("type") in ("agent", "tool_result"):
                print("told:", event.data.get("agent") or event.data.get("result"))
        print(await deployment.client.result(task_id))


if __name__ == "__main__":
    asyncio.run(main())
