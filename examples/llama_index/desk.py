"""An agent of llama-index asks a person, and everything is switched off while the person thinks.

Its conversation is stored with the task when it waits: whatever serves the agent next goes on with it. A scripted model
stands in for a real one, so no key is needed. Run it: python examples/llama_index/desk.py
"""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.workflow import Context, HumanResponseEvent, InputRequiredEvent

from llama_deploy import Deployment


class Question(InputRequiredEvent):
    """What the person is asked."""

    prompt: str


async def refund(ctx: Context, order: str, amount: int) -> str:
    """Give money back for an order, once a person has agreed."""
    question = Question(prompt=f"Refund {amount} for order {order}?")
    reply = await ctx.wait_for_event(HumanResponseEvent, waiter_event=question, waiter_id=f"refund {order}")
    return f"refunded {amount}" if reply.response == "yes" else f"refused: {reply.response}"


def script(messages: Sequence[ChatMessage], **_: Any) -> ChatMessage:
    """What a model might answer: first it wants the tool, then it says what came of it."""
    last = messages[-1]
    if last.role.value == "tool":
        return ChatMessage(role="assistant", content=f"You wrote: {messages[-3].content!r}. We have {last.content}.")
    wanted = ToolCallBlock(tool_call_id="1", tool_name="refund", tool_kwargs={"order": "A7", "amount": 40})
    return ChatMessage(role="assistant", blocks=[wanted])


def desk() -> FunctionAgent:
    """The agent; in earnest, with a model of yours."""
    model = MockFunctionCallingLLM(response_generator=script, is_chat_model=True)
    return FunctionAgent(name="desk", description="Answers customers.", tools=[refund], llm=model)


async def main() -> None:
    """Ask, switch off, switch on, answer."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "desk.db"
        async with Deployment(services=[desk()], store=store, quiet=True) as deployment:
            task_id = await deployment.submit("desk", user_msg="My kettle leaks")
            prompts = []
            async for entry in deployment.client.history(task_id, follow=True):
                if entry.kind == "input_requested":
                    prompts.append(entry.prompt["prompt"])
                if prompts[1:]:  # asked, and then put away: the second entry has the agent's context
                    break
            print(f"the agent asks: {prompts[0]}")
        print("everything is switched off, and on again")
        async with Deployment(services=[desk()], store=store, quiet=True) as deployment:
            print(f"the task is {(await deployment.client.get_task(task_id)).state.value}")
            await deployment.client.send_input(task_id, "yes")
            result = await deployment.client.result(task_id)
            print(result["response"]["blocks"][0]["text"])


asyncio.run(main())
