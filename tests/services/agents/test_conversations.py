"""Agents that go on with the conversation of their session: each library's own, kept in the memory of the service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import agents
import pytest
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message
from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from llama_index.core.agent.workflow import FunctionAgent
from pydantic_ai import Agent, ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, FunctionModel
from tests.processes.agents import model, say

from llama_deploy.services import as_service
from llama_deploy.testing import InMemorySystem

agents.set_tracing_disabled(disabled=True)


def pydantic_ai() -> Any:
    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        parts = [part for message in messages if isinstance(message, ModelRequest) for part in message.parts]
        said = [str(part.content) for part in parts if isinstance(part, UserPromptPart)]
        return ModelResponse(parts=[TextPart(", ".join(said))])

    return Agent(FunctionModel(answer), name="hears")


def openai_agents() -> Any:
    def respond(call: ModelCall) -> list[Any]:
        items: Any = [{"role": "user", "content": call.input}] if isinstance(call.input, str) else call.input
        return [assistant_message(", ".join(str(item["content"]) for item in items if item.get("role") == "user"))]

    return agents.Agent(name="hears", model=ScriptedModel([ModelStep(responder=respond) for _ in range(9)]))


def langgraph() -> Any:
    def answer(state: MessagesState) -> dict[str, Any]:
        said = [str(message.content) for message in state["messages"] if message.type == "human"]
        return {"messages": [AIMessage(", ".join(said))]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    return graph.compile(name="hears")


def llama_index() -> Any:
    def answer(messages: Any) -> Any:
        return say(", ".join(str(message.content) for message in messages if message.role.value == "user"))

    return FunctionAgent(name="hears", description="Says what it has heard.", llm=model(answer))


def text(result: Any) -> str:
    """What the agent said, in whichever form its library says it."""
    if not isinstance(result, dict):
        return str(result)
    return str(result["messages"][-1]["content"] if "messages" in result else result["response"]["blocks"][0]["text"])


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")  # the engine looks at all members
@pytest.mark.parametrize("make", [pydantic_ai, openai_agents, langgraph, llama_index], ids=lambda one: one.__name__)
async def test_an_agent_goes_on_with_the_conversation_of_its_session(make: Callable[[], Any]) -> None:
    async def asks(words: str, session_id: str, service: str = "hears") -> str:
        arguments: Any = {"user_msg": words} if make is llama_index else {"input": words}
        return text(await made.client.run(service, session_id=session_id, **arguments))

    services = [as_service(make(), memory="session"), as_service(make(), name="forgets")]
    async with InMemorySystem(services) as made:
        assert await asks("one", "a") == "one"
        assert await asks("two", "a") == "one, two"
        assert await asks("other", "b") == "other"
        assert await asks("three", "a", "forgets") == "three"
        await made.crash()
        await made.restart()
        assert await asks("three", "a") == "one, two, three"
        assert list(await made.client.get_session_memory("a")) == ["hears"]
        await made.client.clear_session_memory("a")
        assert await asks("four", "a") == "four"
