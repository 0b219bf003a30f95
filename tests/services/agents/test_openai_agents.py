"""Agents of the OpenAI Agents SDK as services: input, output, streams, usage, approvals, handoffs, cancellation."""

from __future__ import annotations

import asyncio
from typing import Any

import agents
import pytest
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call
from pydantic import BaseModel
from tests.services.agents.subjects_openai_agents import officer, scripted
from tests.services.attempts import Attempt
from tests.support import eventually

from llama_deploy.errors import ServiceRaisedError
from llama_deploy.services import OpenAIAgentService, Parked, as_service
from llama_deploy.services.failures import error_from_exception
from llama_deploy.types import TaskResult


class City(BaseModel):
    name: str


async def finish(agent: agents.Agent[Any], *given: Any, **attempt: Any) -> tuple[TaskResult, Attempt]:
    made = Attempt(*given, **attempt)
    result = await as_service(agent).run(made)
    assert isinstance(result, TaskResult)
    return result, made


async def park(agent: agents.Agent[Any], *given: Any, **attempt: Any) -> Parked:
    parked = await as_service(agent).run(Attempt(*given, **attempt))
    assert isinstance(parked, Parked)
    return parked


def hears() -> agents.Agent[Any]:
    def respond(call: ModelCall) -> list[Any]:
        items: Any = [{"role": "user", "content": call.input}] if isinstance(call.input, str) else call.input
        return [assistant_message("; ".join(f"{item['role']}={item['content']}" for item in items))]

    return agents.Agent(name="hears", model=ScriptedModel([ModelStep(responder=respond)]))


def test_an_agent_is_a_service() -> None:
    service = as_service(officer(), name="clerk")
    assert isinstance(service, OpenAIAgentService)
    assert (service.definition.service_name, service.definition.kind) == ("clerk", "agent")
    assert (
        as_service(agents.Agent(name="cities", output_type=City)).definition.output_schema == City.model_json_schema()
    )


async def test_text_or_a_conversation_goes_in() -> None:
    result, _ = await finish(hears(), "hello")
    assert result.result == "user=hello"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    result, _ = await finish(hears(), {"messages": messages, "prompt": "and now?"})
    assert result.result == "user=hi; assistant=hello; user=and now?"
    result, _ = await finish(hears(), {"messages": messages[:1]})
    assert result.result == "user=hi"


async def test_structured_output() -> None:
    model = ScriptedModel([[assistant_message('{"name": "Bergen"}')]])
    result, _ = await finish(agents.Agent(name="cities", model=model, output_type=City), "which?")
    assert result.value == {"name": "Bergen"}


@pytest.mark.parametrize("stream", [True, False])
async def test_calls_that_need_approval_wait_and_go_on_elsewhere(stream: bool) -> None:
    def service() -> OpenAIAgentService:
        return OpenAIAgentService(officer(), stream=stream)

    first = await service().run(Attempt("tidy up"))
    assert isinstance(first, Parked)
    assert (first.prompt["tool"], first.prompt["arguments"], first.consumed) == ("delete", {"path": "a"}, 0)
    second = await service().run(Attempt("tidy up", inputs=["yes"], snapshot=first.snapshot))
    assert isinstance(second, Parked)
    assert (second.prompt["arguments"], second.consumed) == ({"path": "b"}, 1)
    answers = ["yes", {"decision": "reject", "reason": "b is needed"}]
    result = await service().run(Attempt("tidy up", inputs=answers, snapshot=second.snapshot))
    assert isinstance(result, TaskResult)
    assert result.result == "1; deleted a; b is needed"
    assert result.data["usage"] == {"tokens": 60, "input_tokens": 40, "output_tokens": 20, "requests": 4}


async def test_an_attempt_after_a_crash_goes_on_from_the_same_snapshot() -> None:
    first = await park(officer(), "tidy up")
    for number in (2, 3):
        again = await park(officer(), "tidy up", inputs=["yes"], snapshot=first.snapshot, number=number)
        assert again.prompt["arguments"] == {"path": "b"}


async def test_several_approvals_at_once() -> None:
    both = [function_call("delete", {"path": name}, call_id=name) for name in "ab"]

    def agent() -> agents.Agent[Any]:
        def respond(call: ModelCall) -> list[Any]:
            items: Any = call.input
            done = [str(item["output"]) for item in items if item.get("type") == "function_call_output"]
            return [assistant_message("; ".join(done))] if done else both

        return officer(model=ScriptedModel([ModelStep(responder=respond)] * 2))

    first = await park(agent(), {"messages": [{"role": "user", "content": "go"}]})
    second = await park(agent(), inputs=["no"], snapshot=first.snapshot)
    assert (first.prompt["arguments"], second.prompt["arguments"]) == ({"path": "a"}, {"path": "b"})
    result, _ = await finish(agent(), inputs=["no", "yes"], snapshot=second.snapshot)
    assert result.result.endswith("deleted b")
    assert "deleted a" not in result.result


async def test_text_tool_calls_and_handoffs_are_streamed() -> None:
    other = agents.Agent(name="other", model=ScriptedModel([[assistant_message("good day")]]))
    handoff = [function_call("transfer_to_other", {}, call_id="h")]
    model = ScriptedModel([[function_call("size", {"path": "a"}, call_id="c")], handoff])
    agent = officer(model=model)
    agent.handoffs = [other]
    result, attempt = await finish(agent, "go")
    assert result.result == "good day"
    assert {"type": "tool_result", "id": "c", "result": "1"} in attempt.events
    assert {"type": "agent", "agent": "other"} in attempt.events
    told = [event["text"] for event in attempt.events if event["type"] == "text"]
    assert "".join(told) == "good day"
    assert attempt.events[1] == {"type": "tool_call", "tool": "size", "id": "c", "arguments": '{"path":"a"}'}


async def test_the_context_is_made_for_each_attempt_and_not_stored() -> None:
    @agents.function_tool
    def whose(context: agents.RunContextWrapper[Any]) -> str:
        """Whose."""
        return str(context.context)

    class Secret:
        def __str__(self) -> str:
            return "of this attempt"

    def service() -> OpenAIAgentService:
        model = scripted(("delete", {"path": "a"}), ("whose", {}))
        return OpenAIAgentService(officer([whose], model), run_context=lambda context: Secret())

    parked = await service().run(Attempt("go"))
    assert isinstance(parked, Parked)
    result = await service().run(Attempt("go", inputs=[True], snapshot=parked.snapshot))
    assert isinstance(result, TaskResult)
    assert result.result == "deleted a; of this attempt"


async def test_a_guardrail_that_refuses_is_final() -> None:
    @agents.input_guardrail
    def refuse(context: Any, agent: Any, given: Any) -> agents.GuardrailFunctionOutput:
        return agents.GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

    agent = agents.Agent(name="a", model=ScriptedModel([[assistant_message("x")]]), input_guardrails=[refuse])
    with pytest.raises(agents.InputGuardrailTripwireTriggered) as caught:
        await as_service(agent).run(Attempt("go"))
    assert error_from_exception(caught.value).retryable is False


@pytest.mark.parametrize("stream", [True, False])
async def test_a_run_is_cancelled_with_its_step(stream: bool) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    @agents.function_tool
    async def wait() -> str:
        """Waits."""
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return "never"

    before = asyncio.all_tasks()
    service = OpenAIAgentService(officer([wait], scripted(("wait", {}))), stream=stream)
    running = asyncio.create_task(service.run(Attempt("go")))
    await began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await eventually(ended.is_set)
    await eventually(lambda: asyncio.all_tasks() == before)


async def test_a_snapshot_of_another_agent() -> None:
    first = await park(officer(), "go")
    with pytest.raises(ServiceRaisedError, match="cannot be resumed"):
        await as_service(hears()).run(Attempt("go", inputs=[True], snapshot=first.snapshot))
