"""pydantic-ai agents as services: input, output, streams, usage, and tool calls that wait for a person."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, CallDeferred, RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from tests.services.agents.subjects_pydantic_ai import calls_in_order, clerk
from tests.services.attempts import Attempt
from tests.support import eventually

from llama_deploy.apiserver import Deployment
from llama_deploy.client import Client
from llama_deploy.errors import ArgumentsError, ServiceRaisedError
from llama_deploy.services import Parked, PydanticAIService, as_service, current_step
from llama_deploy.services.base import enter_step
from llama_deploy.types import TaskResult


class City(BaseModel):
    name: str
    people: int


async def finish(agent: Agent[Any, Any], *given: Any, **attempt: Any) -> tuple[TaskResult, Attempt]:
    made = Attempt(*given, **attempt)
    result = await as_service(agent).run(made)
    assert isinstance(result, TaskResult)
    return result, made


async def park(agent: Agent[Any, Any], *given: Any, **attempt: Any) -> Parked:
    parked = await as_service(agent).run(Attempt(*given, **attempt))
    assert isinstance(parked, Parked)
    return parked


def what_it_hears(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    told = [f"{part.part_kind}={part.content}" for message in messages for part in message.parts]  # type: ignore[union-attr]
    return ModelResponse(parts=[TextPart("; ".join(told))])


HEARS: Agent[None, str] = Agent(FunctionModel(what_it_hears), name="hears")


def test_an_agent_is_a_service_where_ever_one_is_taken() -> None:
    service = as_service(HEARS, name="ear", concurrency=2)
    assert isinstance(service, PydanticAIService)
    assert (service.definition.service_name, service.definition.kind, service.definition.concurrency) == (
        "ear",
        "agent",
        2,
    )
    assert as_service(Agent(TestModel())).definition.service_name == "agent"
    assert as_service(Agent(TestModel(), output_type=City)).definition.output_schema == City.model_json_schema(
        mode="serialization"
    )


async def test_text_in_text_out() -> None:
    result, _ = await finish(HEARS, "hello")
    assert result.result == "user-prompt=hello"


async def test_a_conversation_goes_in() -> None:
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and now?"},
    ]
    expected = "system-prompt=be kind; user-prompt=hi; text=hello; user-prompt=and now?"
    for given in ({"messages": messages}, {"messages": messages[:-1], "prompt": "and now?"}):
        result, _ = await finish(HEARS, given)
        assert result.result == expected


async def test_messages_in_the_librarys_own_form() -> None:
    run = await HEARS.run("first")
    result, _ = await finish(HEARS, {"messages": json.loads(run.all_messages_json()), "prompt": "second"})
    assert result.result == "user-prompt=first; text=user-prompt=first; user-prompt=second"


async def test_any_other_object_is_its_json_text() -> None:
    result, _ = await finish(HEARS, {"city": "Bergen"})
    assert result.result == 'user-prompt={"city": "Bergen"}'


@pytest.mark.parametrize(
    "given",
    [
        {"messages": "hi"},
        {"messages": ["hi"]},
        {"prompt": 3},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [1]}]},
        {"messages": [{"kind": "request", "parts": [{"part_kind": "nothing"}]}], "prompt": "x"},
    ],
)
async def test_input_that_is_no_conversation(given: Any) -> None:
    with pytest.raises(ArgumentsError):
        await as_service(HEARS).run(Attempt(given))


async def test_structured_output_and_usage() -> None:
    agent = Agent(TestModel(custom_output_args={"name": "Bergen", "people": 291_000}), output_type=City)
    result, _ = await finish(agent, "which?")
    assert result.value == {"name": "Bergen", "people": 291_000}
    usage = result.data["usage"]
    assert usage["tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0
    assert usage["requests"] == 1


async def test_dependencies_are_made_for_each_run() -> None:
    agent: Agent[str, str] = Agent(calls_in_order(("whose", {})), deps_type=str, name="a")

    @agent.tool
    def whose(run: RunContext[str]) -> str:
        return f"{run.deps} in {current_step().step_id}"

    service = PydanticAIService(agent, deps=lambda context: f"session {context.session_id}")
    attempt = Attempt("go")

    async def step() -> TaskResult | Parked:
        enter_step(attempt)
        return await service.run(attempt)

    result = await asyncio.create_task(step())  # in a context of its own, as a runner does it
    assert isinstance(result, TaskResult)
    assert result.result.strip() == "session session in task:1"


async def test_text_and_tool_calls_are_streamed() -> None:
    agent = clerk(model=calls_in_order(("size", {"path": "abc"}), ("size", {"path": "x"})))
    result, attempt = await finish(agent, "go")
    assert [event["type"] for event in attempt.events] == ["tool_call", "tool_result"] * 2 + ["text"] * 2
    assert attempt.events[0] == {"type": "tool_call", "tool": "size", "id": "call-0", "arguments": {"path": "abc"}}
    assert attempt.events[1] == {"type": "tool_result", "tool": "size", "id": "call-0", "result": "3"}
    assert "".join(event["text"] for event in attempt.events[4:]) == result.result


async def test_calls_that_need_approval_wait_and_go_on_elsewhere() -> None:
    first = await park(clerk(), "tidy up")
    assert (first.prompt["tool"], first.prompt["arguments"], first.consumed) == ("delete", {"path": "a"}, 0)
    second = await park(clerk(), "tidy up", inputs=["yes"], snapshot=first.snapshot)
    assert (second.prompt["arguments"], second.consumed) == ({"path": "b"}, 1)
    answers = ["yes", {"decision": "reject", "reason": "b is needed"}]
    result, _ = await finish(clerk(), "tidy up", inputs=answers, snapshot=second.snapshot)
    assert result.result.strip() == "1; deleted a; b is needed"
    assert result.data["usage"]["requests"] == 4, "also what was used before it waited"


async def test_an_attempt_after_a_crash_goes_on_from_the_same_snapshot() -> None:
    first = await park(clerk(), "tidy up")
    for _ in range(2):
        again = await park(clerk(), "tidy up", inputs=["yes"], snapshot=first.snapshot, number=2)
        assert again.prompt["arguments"] == {"path": "b"}


async def test_arguments_may_be_changed() -> None:
    agent = clerk(model=calls_in_order(("delete", {"path": "a"})))
    parked = await park(agent, "go")
    given = [{"decision": "edit", "value": {"path": "c"}}]
    result, _ = await finish(agent, "go", inputs=given, snapshot=parked.snapshot)
    assert result.result.strip() == "deleted c"


async def test_an_answer_that_is_none_is_asked_for_again() -> None:
    agent = clerk(model=calls_in_order(("delete", {"path": "a"})))
    parked = await park(agent, "go")
    again = await park(agent, "go", inputs=["perhaps"], snapshot=parked.snapshot)
    assert '"perhaps" is none of approve, reject, edit' in again.prompt["problem"]
    assert (again.consumed, again.snapshot) == (1, parked.snapshot)
    result, _ = await finish(agent, "go", inputs=["perhaps", True], snapshot=again.snapshot)
    assert result.result.strip() == "deleted a"


async def test_a_tool_that_is_carried_out_by_a_person() -> None:
    agent: Agent[None, str] = Agent(calls_in_order(("ask", {"question": "Which colour?"})))

    @agent.tool_plain
    def ask(question: str) -> str:
        raise CallDeferred(metadata={"urgent": True})

    parked = await park(agent, "go")
    assert parked.prompt["prompt"] == "Which colour?"
    assert parked.prompt["details"] == {"urgent": True}
    result, _ = await finish(agent, "go", inputs=["blue"], snapshot=parked.snapshot)
    assert result.result.strip() == "blue"


async def waits_for_a_person(client: Client, task_id: str) -> bool:
    return (await client.get_task(task_id)).state == "input_required"


async def test_a_tool_that_asks_and_a_tool_that_waits_get_each_its_own_answer() -> None:
    agent = clerk(model=calls_in_order(("why", {}), ("colour", {}), ("why", {})))

    @agent.tool_plain
    def colour() -> str:
        raise CallDeferred

    @agent.tool_plain
    async def why() -> str:
        return str(await current_step().ask("Why?"))

    async with Deployment([agent], store=":memory:") as deployment:
        client = deployment.client
        task_id = await client.submit("clerk", input="go")
        for answer in ["first", "blue", "second"]:
            await eventually(lambda: waits_for_a_person(client, task_id))
            await client.send_input(task_id, answer)
        assert (await client.result(task_id)).strip() == "first; blue; second"


async def test_output_validators_are_kept_and_tools_cannot_wait() -> None:
    agent = clerk(model=calls_in_order(("size", {"path": "a"})))

    @agent.output_validator
    def louder(output: str) -> str:
        return output.strip() + "!"

    result, _ = await finish(agent, "go")
    assert result.result == "1!"


async def test_a_run_is_cancelled_with_its_step() -> None:
    began, ended = asyncio.Event(), asyncio.Event()
    agent: Agent[None, str] = Agent(calls_in_order(("wait", {})))

    @agent.tool_plain
    async def wait() -> str:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return "never"

    before = asyncio.all_tasks()
    running = asyncio.create_task(as_service(agent).run(Attempt("go")))
    await began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()
    await eventually(lambda: asyncio.all_tasks() == before)


@pytest.mark.parametrize(
    "snapshot",
    [
        b"nonsense",
        b'{"version": 1, "library": "langgraph", "consumed": 0, "questions": [], "state": {}}',
        b'{"version": 9, "library": "pydantic-ai", "consumed": 0, "questions": [], "state": {}}',
        b'{"version": 1, "library": "pydantic-ai", "consumed": 0, "questions": [], "state": {"messages": [1]}}',
        b'{"version": 1, "library": "pydantic-ai"}',
    ],
)
async def test_a_snapshot_that_it_cannot_read(snapshot: bytes) -> None:
    with pytest.raises(ServiceRaisedError, match="cannot be resumed"):
        await as_service(clerk()).run(Attempt("go", snapshot=snapshot))
