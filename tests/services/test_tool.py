"""Tools as one service: by tool call and by task."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel
from tests.services.attempts import Attempt

from llama_deploy.errors import ArgumentsError, SettingError, ToolUnknownError
from llama_deploy.services import ServiceContext, ToolService, service
from llama_deploy.types import ToolCall, ToolCallBundle, ToolCallResult


class Place(BaseModel):
    city: str


async def weather(place: Place, days: int = 1) -> dict[str, Any]:
    """Tell the weather."""
    return {"city": place.city, "days": days}


def greet(name: str, context: ServiceContext) -> str:
    """Greet."""
    context.stream("greeting")
    return f"hello {name}"


class Schema(BaseModel):
    x: int


class ToolObject:
    """Shaped like the tool classes of llama-index."""

    metadata = SimpleNamespace(name="double", description="Doubles.", fn_schema=Schema)

    async def acall(self, x: int) -> Any:
        return SimpleNamespace(raw_output=x * 2, content=str(x * 2))


def tools() -> ToolService:
    return ToolService([weather, service(name="hi")(greet), ToolObject()])


def call(tool: str, /, *args: Any, **kwargs: Any) -> Attempt:
    bundle = ToolCallBundle(tool_name=tool, tool_args=list(args), tool_kwargs=kwargs)
    message = ToolCall(id_="call-1", tool_call_bundle=bundle, source_id="agent")
    return Attempt(action="new_tool_call", data=message.model_dump(mode="json"))


async def test_a_tool_call_is_answered_with_its_result() -> None:
    result = await tools().run(call("hi", name="Ann"))
    answer = ToolCallResult.model_validate(result.value)
    assert (answer.id_, answer.result) == ("call-1", "hello Ann")
    assert (answer.tool_message.role, answer.tool_message.content) == ("tool", "hello Ann")
    assert answer.tool_message.additional_kwargs == {"name": "hi", "tool_call_id": "call-1"}
    assert result.result == "hello Ann"


async def test_arguments_by_position() -> None:
    assert (await tools().run(call("hi", "Ann"))).result == "hello Ann"
    assert (await tools().run(call("double", 4))).result == "8"


async def test_a_value_that_is_not_text_is_json_text_in_the_answer() -> None:
    result = await tools().run(call("weather", place={"city": "Rome"}))
    assert result.result == '{"city":"Rome","days":1}'


@pytest.mark.parametrize("key", ["tool", "tool_name"])
async def test_a_task_names_a_tool(key: str) -> None:
    result = await tools().run(Attempt({key: "weather", "args": {"place": {"city": "Rome"}, "days": 2}}))
    assert result.value == {"city": "Rome", "days": 2}
    assert (await tools().run(Attempt({key: "weather", "args": [{"city": "Rome"}]}))).value["days"] == 1
    assert (await tools().run(Attempt({key: "double", "args": {"x": 3}}))).value == 6


async def test_a_tool_gets_the_context() -> None:
    attempt = Attempt({"tool": "hi", "args": {"name": "A"}})
    await tools().run(attempt)
    assert attempt.events == ["greeting"]


async def test_an_unknown_tool_is_named_beside_the_known_ones() -> None:
    for attempt in (call("wether"), Attempt({"tool": "wether"}), Attempt({"tool": 3}), Attempt({})):
        with pytest.raises(ToolUnknownError) as caught:
            await tools().run(attempt)
        assert caught.value.details["known"] == ["weather", "hi", "double"]
        assert "weather, hi, double" in caught.value.render()


async def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(ArgumentsError, match="weather"):
        await tools().run(Attempt({"tool": "weather", "args": {"days": 1}}))
    with pytest.raises(ArgumentsError, match="double"):
        await tools().run(Attempt({"tool": "double", "args": {"x": "many"}}))
    with pytest.raises(ArgumentsError, match="unknown keys: arg"):
        await tools().run(Attempt({"tool": "double", "arg": {}}))
    with pytest.raises(ArgumentsError, match="are 3"):
        await tools().run(Attempt({"tool": "double", "args": 3}))
    with pytest.raises(ArgumentsError, match="JSON object"):
        await tools().run(Attempt("double 3"))
    with pytest.raises(ArgumentsError, match="not a tool call"):
        await tools().run(Attempt(action="new_tool_call", data={"id_": "x"}))


def test_the_schema_describes_every_tool() -> None:
    schema = tools().definition.input_schema
    assert schema is not None
    by_title = {variant["title"]: variant for variant in schema["oneOf"]}
    assert by_title.keys() == {"weather", "hi", "double"}
    assert by_title["weather"]["description"] == "Tell the weather."
    reference = by_title["weather"]["properties"]["args"]["properties"]["place"]["$ref"]
    assert reference.removeprefix("#/$defs/") in schema["$defs"]
    assert by_title["double"]["properties"]["args"]["properties"].keys() == {"x"}


def test_what_cannot_be_a_tool() -> None:
    with pytest.raises(SettingError, match="not a tool"):
        ToolService([3])
    with pytest.raises(SettingError, match="two tools"):
        ToolService([weather, weather])
