"""Services as tools in the agents of every library, and what agents use counted by a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.mock import MockFunctionCallingLLM
from tests.services.agents.subjects_openai_agents import officer, scripted
from tests.services.agents.subjects_pydantic_ai import calls_in_order, clerk

from llama_deploy import Deployment, ServiceAsTool, TaskFailed, service
from llama_deploy.orchestrators import Budget
from llama_deploy.services import as_service


@service
async def weather(city: str, days: int = 1) -> dict[str, Any]:
    """The weather of a city."""
    return {"city": city, "days": days}


TOOL = ServiceAsTool(weather)
ASKED = ("weather", {"city": "Bergen", "days": 2})


async def run(agent: Any, name: str, given: str = "go") -> Any:
    async with Deployment(services=[weather, agent], store=":memory:", quiet=True) as deployment:
        output = await deployment.run(name, input=given)
        children = [task async for task in deployment.client.list_tasks() if task.origin is not None]
        assert len(children) == 1
        return output


async def test_in_pydantic_ai() -> None:
    for tool in (TOOL.for_pydantic_ai(), TOOL):
        output = await run(clerk([tool], calls_in_order(ASKED)), "clerk")
        assert output.strip() == "{'city': 'Bergen', 'days': 2}"


async def test_in_openai_agents() -> None:
    output = await run(officer([TOOL.for_openai_agents()], scripted(ASKED)), "officer")
    assert output == '{"city":"Bergen","days":2}'


async def test_in_langgraph() -> None:
    def decide(state: MessagesState) -> dict[str, Any]:
        call = {"name": ASKED[0], "args": ASKED[1], "id": "c", "type": "tool_call"}
        return {"messages": [AIMessage("", tool_calls=[call])]}

    graph = StateGraph(MessagesState)
    graph.add_node("decide", decide)
    graph.add_node("tools", ToolNode([TOOL.for_langchain()]))
    graph.add_edge(START, "decide")
    graph.add_edge("decide", "tools")
    graph.add_edge("tools", END)
    output = await run(graph.compile(name="graph"), "graph")
    assert output["messages"][-1]["content"] == '{"city": "Bergen", "days": 2}'


def test_a_model_of_langchain_is_shown_the_services_own_schema() -> None:
    shown = convert_to_openai_tool(TOOL.for_langchain())["function"]
    assert (shown["name"], shown["description"]) == ("weather", "The weather of a city.")
    assert shown["parameters"]["properties"]["days"] == {"default": 1, "type": "integer"}
    assert shown["parameters"]["required"] == ["city"]


def say(messages: Sequence[ChatMessage]) -> ChatMessage:
    if messages[-1].role.value == "tool":
        return ChatMessage(role="assistant", content=messages[-1].content)
    block = ToolCallBlock(tool_call_id="c", tool_name=ASKED[0], tool_kwargs=ASKED[1])
    return ChatMessage(role="assistant", blocks=[block])


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")  # a workflow is looked through
async def test_in_llama_index() -> None:
    tool = TOOL.for_llama_index()
    assert tool.metadata.get_parameters_dict()["required"] == ["city"]
    model = MockFunctionCallingLLM(response_generator=lambda messages, **_: say(messages), is_chat_model=True)
    agent = FunctionAgent(name="sailor", description="Asks.", tools=[tool], llm=model)
    output = await run(as_service(agent, name="sailor"), "sailor", '{"user_msg": "go"}')
    assert output["response"]["blocks"][0]["text"] == "{'city': 'Bergen', 'days': 2}"


@pytest.mark.parametrize(("make", "name"), [(clerk, "clerk"), (officer, "officer")])
async def test_a_budget_counts_what_agents_use(make: Any, name: str) -> None:
    model = calls_in_order(("size", {"path": "a"})) if name == "clerk" else scripted(("size", {"path": "a"}))
    agent = make(model=model)
    for tokens, ends in ((100_000, True), (5, False)):
        policy = Budget(name, tokens=tokens)
        async with Deployment(services=[agent], orchestrator=policy, store=":memory:", quiet=True) as deployment:
            if ends:
                assert (await deployment.run(None, input="go")).strip() == "1"
            else:
                with pytest.raises(TaskFailed, match="tokens of 5 are used"):
                    await deployment.run(None, input="go")
