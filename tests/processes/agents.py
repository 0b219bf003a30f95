"""Agents of llama-index with a scripted model: one asks a person, two hand over to each other, one reasons.

The model answers by what it is sent alone, so an agent that goes on in another process must have everything with it.
Annotations are no text here: llama-index finds the parameter for the context by its class.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.workflow import Context, HumanResponseEvent, InputRequiredEvent


class Question(InputRequiredEvent):
    """What the person is asked."""

    prefix: str


def model(answer: Callable[[Sequence[ChatMessage]], ChatMessage]) -> MockFunctionCallingLLM:
    """A model that answers what a function says."""
    return MockFunctionCallingLLM(response_generator=lambda messages, **_: answer(messages), is_chat_model=True)


def call(name: str, **arguments: Any) -> ChatMessage:
    """The model wants a tool called."""
    block = ToolCallBlock(tool_call_id=f"call-{name}", tool_name=name, tool_kwargs=arguments)
    return ChatMessage(role="assistant", blocks=[block])


def say(text: str) -> ChatMessage:
    """The model says something."""
    return ChatMessage(role="assistant", content=text)


def heard(messages: Sequence[ChatMessage]) -> str:
    """What people and tools have said, in order, as the model was sent it."""
    return " | ".join(str(message.content) for message in messages if message.role.value in ("user", "tool"))


def refund_tool(effect: Callable[[], None]) -> Callable[..., Any]:
    """A tool that does something, then asks a person."""

    async def refund(ctx: Context, amount: int) -> str:
        """Give money back, once a person has agreed."""
        effect()
        question = Question(prefix=f"Refund {amount}?")
        reply = await ctx.wait_for_event(HumanResponseEvent, waiter_event=question, waiter_id=f"refund {amount}")
        return f"the person says {reply.response}"

    return refund


def desk(effect: Callable[[], None]) -> FunctionAgent:
    """Calls the tool, then says what it has heard."""

    def answer(messages: Sequence[ChatMessage]) -> ChatMessage:
        return say(heard(messages)) if messages[-1].role.value == "tool" else call("refund", amount=5)

    return FunctionAgent(
        name="desk", description="Refunds.", tools=[refund_tool(effect)], llm=model(answer), system_prompt="Be kind."
    )


def crew(effect: Callable[[], None]) -> AgentWorkflow:
    """`triage` hands over to `refunds`, which asks a person."""

    def sort(messages: Sequence[ChatMessage]) -> ChatMessage:
        return call("handoff", to_agent="refunds", reason="it is about money")

    def refund(messages: Sequence[ChatMessage]) -> ChatMessage:
        asked = any("the person says" in str(message.content) for message in messages)
        return say(heard(messages)) if asked else call("refund", amount=7)

    triage = FunctionAgent(name="triage", description="Sorts.", llm=model(sort), can_handoff_to=["refunds"])
    refunds = FunctionAgent(
        name="refunds", description="Refunds.", tools=[refund_tool(effect)], llm=model(refund), can_handoff_to=[]
    )
    return AgentWorkflow(agents=[triage, refunds], root_agent="triage")


def reasoner(effect: Callable[[], None]) -> ReActAgent:
    """Thinks aloud, calls the tool, thinks about what it said."""

    def answer(messages: Sequence[ChatMessage]) -> ChatMessage:
        said = [str(message.content) for message in messages if str(message.content).startswith("Observation: ")]
        if said:
            return say(f"Thought: I can answer.\nAnswer: {said[-1].removeprefix('Observation: ')}")
        return say('Thought: I need the tool.\nAction: refund\nAction Input: {"amount": 9}')

    return ReActAgent(name="reasoner", description="Thinks.", tools=[refund_tool(effect)], llm=model(answer))
