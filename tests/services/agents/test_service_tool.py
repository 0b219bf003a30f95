"""A service as a tool: its schema, its call within a step and through a client, and what an agent hears of failures."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from llama_deploy import Deployment, NonRetryableError, ServiceContext, service
from llama_deploy.errors import InvalidRequestError, SettingError, TaskFailed
from llama_deploy.services import ServiceAsTool, ToolService
from llama_deploy.types import ServiceDefinition

CALLS: list[str] = []


@service
async def weather(city: str, days: int = 1) -> dict[str, Any]:
    """The weather of a city."""
    CALLS.append(city)
    if city == "nowhere":
        raise NonRetryableError("there is no such city", fix="name a real one")
    return {"city": city, "days": days}


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


@asynccontextmanager
async def deployed(*services: Any) -> AsyncIterator[Deployment]:
    async with Deployment(services=[weather, *services], store=":memory:", quiet=True) as deployment:
        yield deployment


def test_what_it_says_of_itself_is_what_the_service_says() -> None:
    tool = ServiceAsTool(weather)
    assert (tool.name, tool.description) == ("weather", "The weather of a city.")
    assert tool.schema == weather.definition.input_schema
    assert (tool.__name__, tool.__doc__) == ("weather", "The weather of a city.")
    parameters = inspect.signature(tool).parameters
    assert [(one.name, one.annotation) for one in parameters.values()] == [("city", str), ("days", int)]
    assert (parameters["city"].default, parameters["days"].default) == (inspect.Parameter.empty, 1)


def test_of_a_name_nothing_else_is_known() -> None:
    tool = ServiceAsTool("my service/2")
    assert tool.name == "my_service_2"
    assert list(tool.schema["properties"]) == ["input"]
    named = ServiceAsTool("x", name="look_up", description="Looks up.", schema={"type": "object", "properties": {}})
    assert (named.name, named.description, named.schema["properties"]) == ("look_up", "Looks up.", {})
    with pytest.raises(SettingError, match="name of a tool"):
        ServiceAsTool("x", name="no good")


def test_a_definition_will_do() -> None:
    tool = ServiceAsTool(ServiceDefinition(service_name="x", description="Does x."))
    assert tool.description == "Does x."


async def test_in_a_step_it_is_a_call_of_that_step() -> None:
    tool = ServiceAsTool(weather)

    @service
    async def plan(context: ServiceContext) -> list[Any]:
        return [await tool(city="Bergen"), await tool("Oslo", days=2)]

    @service
    def plan_in_a_thread() -> Any:
        return tool.blocking(city="Bergen")

    async with deployed(plan, plan_in_a_thread) as deployment:
        assert await deployment.run("plan") == [{"city": "Bergen", "days": 1}, {"city": "Oslo", "days": 2}]
        assert await deployment.run("plan_in_a_thread") == {"city": "Bergen", "days": 1}
        listed = [task async for task in deployment.client.list_tasks()]
        children = [task for task in listed if task.origin is not None and task.origin.startswith("child:")]
        assert len(children) == 3


async def test_a_later_attempt_finds_the_calls_of_an_earlier_one_in_any_order() -> None:
    tool = ServiceAsTool(weather)

    @service
    async def plan(context: ServiceContext) -> list[Any]:
        cities = ["Bergen", "Oslo", "Oslo"] if context.attempt == 1 else ["Oslo", "Bergen", "Oslo", "Narvik"]
        told = [(await tool(city=city))["city"] for city in cities]
        if context.attempt == 1:
            raise ConnectionError("the model is gone")
        return told

    async with deployed(plan) as deployment:
        told = await deployment.run("plan", options={"retry": {"initial_s": 0.01}})
        assert told == ["Oslo", "Bergen", "Oslo", "Narvik"]
    assert CALLS == ["Bergen", "Oslo", "Oslo", "Narvik"], "each call once, and the new one"


async def test_outside_of_a_step_it_goes_through_a_client() -> None:
    with pytest.raises(InvalidRequestError, match="outside of any step"):
        await ServiceAsTool(weather)(city="Bergen")
    async with deployed() as deployment:
        tool = await ServiceAsTool.published(deployment.client, "weather")
        assert (tool.description, tool.schema) == ("The weather of a city.", weather.definition.input_schema)
        assert await tool(city="Bergen") == {"city": "Bergen", "days": 1}
        with pytest.raises(InvalidRequestError, match="async client"):
            tool.blocking(city="Bergen")


async def test_text_goes_to_a_service_that_takes_anything() -> None:
    @service
    async def shout(text: str) -> str:
        return text.upper()

    async with deployed(shout) as deployment:
        assert await ServiceAsTool("shout", client=deployment.client)(input="hey") == "HEY"


async def test_an_agent_is_told_of_failures_or_they_are_raised() -> None:
    async with deployed() as deployment:
        told = await ServiceAsTool(weather, client=deployment.client)(city="nowhere")
        assert told.startswith("Error: weather failed: there is no such city")
        assert "name a real one" in told
        wrong = await ServiceAsTool(weather, client=deployment.client)(town="Bergen")
        assert "`city` is missing" in wrong
        unknown = await ServiceAsTool("wether", client=deployment.client)(input="Bergen")
        assert unknown.startswith("Error: wether failed:")
        with pytest.raises(TaskFailed):
            await ServiceAsTool(weather, client=deployment.client, on_error="raise")(city="nowhere")


def test_it_is_no_service_itself() -> None:
    with pytest.raises(SettingError, match="two tools"):
        ToolService([ServiceAsTool(weather), ServiceAsTool(weather)])
