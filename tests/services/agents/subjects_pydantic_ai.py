"""The pydantic-ai agents that the tests of this folder serve, and that processes serve in tests/processes.

Their model decides by what it has heard, so that an agent can be asked again in another process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from pydantic_ai import Agent, ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel


def returned(messages: list[ModelMessage]) -> dict[str, Any]:
    """What tools have returned so far, by the id of the call."""
    parts = [part for message in messages if isinstance(message, ModelRequest) for part in message.parts]
    return {part.tool_call_id: part.content for part in parts if isinstance(part, ToolReturnPart)}


def calls_in_order(*calls: tuple[str, dict[str, Any]]) -> FunctionModel:
    """A model that calls tools one after the other, and tells at the end what they have returned."""

    def decide(messages: list[ModelMessage]) -> ToolCallPart | str:
        done = returned(messages)
        if len(done) < len(calls):
            name, arguments = calls[len(done)]
            return ToolCallPart(tool_name=name, args=arguments, tool_call_id=f"call-{len(done)}")
        return "; ".join(str(one) for one in done.values())

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        decided = decide(messages)
        return ModelResponse(parts=[TextPart(decided) if isinstance(decided, str) else decided])

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        decided = decide(messages)
        if isinstance(decided, str):
            for word in decided.split(" "):
                yield word + " "
        else:
            arguments = decided.args_as_json_str()
            yield {0: DeltaToolCall(name=decided.tool_name, json_args=arguments, tool_call_id=decided.tool_call_id)}

    return FunctionModel(answer, stream_function=stream)


def clerk(tools: Any = (), model: FunctionModel | None = None) -> Agent[Any, Any]:
    """Looks something up, deletes it when somebody agrees, then does it again."""
    calls = [("size", {"path": "a"}), ("delete", {"path": "a"}), ("delete", {"path": "b"})]
    agent: Agent[Any, Any] = Agent(model or calls_in_order(*calls), name="clerk", tools=tools)

    @agent.tool_plain
    def size(path: str) -> int:
        return len(path)

    @agent.tool_plain(requires_approval=True)
    def delete(path: str) -> str:
        return f"deleted {path}"

    return agent
