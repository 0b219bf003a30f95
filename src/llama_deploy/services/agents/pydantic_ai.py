"""A pydantic-ai agent as a service.

Tool calls that need an approval, or that are carried out elsewhere, are questions to a person: the messages so far are
stored with the step, and the run goes on from them with the answers, in whatever process.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_ai import Agent, ModelMessagesTypeAdapter, RunContext
from pydantic_ai.agent import AbstractAgent, AgentRunResult
from pydantic_ai.messages import (
    AgentStreamEvent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    SystemPromptPart,
    TextPart,
    TextPartDelta,
    UserPromptPart,
)
from pydantic_ai.models import Model
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolApproved, ToolDenied
from pydantic_ai.usage import RunUsage

from llama_deploy.errors import ArgumentsError
from llama_deploy.messages.values import encode_json
from llama_deploy.services.agents.hosted import (
    CHAT_SCHEMA,
    Finished,
    HostedAgent,
    Waiting,
    cannot_resume,
    conversation,
    remembered,
)
from llama_deploy.services.agents.questions import Question, Reply, approval
from llama_deploy.services.base import StepContext

_REQUESTS: TypeAdapter[DeferredToolRequests] = TypeAdapter(DeferredToolRequests)
_USAGE: TypeAdapter[RunUsage] = TypeAdapter(RunUsage)


class PydanticAIService(HostedAgent):
    """Runs `agent` once per step.

    The input is text, or an object with `prompt` and `messages` (of roles and texts, or of the library's own form). The
    output is the agent's, structured ones as JSON. Text and tool calls are streamed as they happen. `deps` makes the
    dependencies of one run; `usage` of the result counts tokens, requests and, where it is known, cost.
    """

    library = "pydantic-ai"

    def __init__(
        self,
        agent: AbstractAgent[Any, Any],
        *,
        name: str | None = None,
        description: str | None = None,
        deps: Callable[[StepContext], Any] | None = None,
        stream: bool | None = None,
        concurrency: int = 8,
        run_timeout_s: float = 600.0,
    ) -> None:
        """`stream=False` asks the model for whole answers; by default it streams where its class can."""
        super().__init__(
            name=name or agent.name or "agent",
            description=description or f"The pydantic-ai agent {agent.name or name or 'agent'}.",
            input_schema=CHAT_SCHEMA,
            output_schema=_output_schema(agent),
            concurrency=concurrency,
            run_timeout_s=run_timeout_s,
        )
        self._agent = agent
        self._deps = deps
        self._stream = _streams(agent) if stream is None else stream
        self._output_type = _output_type(agent)

    async def advance(self, context: StepContext, state: Any, replies: Sequence[Reply]) -> Finished | Waiting:
        """Run the agent from its input, or from the messages with which it waited."""
        prompt: str | None = None
        results: DeferredToolResults | None = None
        if state is None:
            history, prompt = _history(context)
            usage = RunUsage()
        else:
            try:
                history = ModelMessagesTypeAdapter.validate_python(state["messages"])
                requests = _REQUESTS.validate_python(state["requests"])
                usage = _USAGE.validate_python(state["usage"])
            except (ValidationError, KeyError, TypeError) as error:
                raise cannot_resume(error) from error
            results = _results(requests, replies)

        async def tell(run: RunContext[Any], events: AsyncIterable[AgentStreamEvent]) -> None:
            del run
            async for event in events:
                _tell(context, event)

        run: AgentRunResult[Any] = await self._agent.run(
            prompt,
            message_history=history or None,
            deferred_tool_results=results,
            usage=usage,
            deps=self._deps(context) if self._deps is not None else None,
            output_type=self._output_type,
            event_stream_handler=tell if self._stream else None,
        )
        if isinstance(run.output, DeferredToolRequests):
            waiting = {
                "messages": ModelMessagesTypeAdapter.dump_python(run.all_messages(), mode="json"),
                "requests": _REQUESTS.dump_python(run.output, mode="json"),
                "usage": _USAGE.dump_python(run.usage, mode="json"),
            }
            return Waiting(questions=_questions(run.output), state=waiting)
        said = ModelMessagesTypeAdapter.dump_python(run.all_messages(), mode="json") if context.kept_memory else None
        return Finished(output=run.output, usage=_used(run.usage), remember=said)


def _output_type(agent: AbstractAgent[Any, Any]) -> Any:
    """The agent's own output, or that tool calls wait for somebody; None where that cannot be added.

    The library takes no other output type for one run of an agent that has output validators.
    """
    given = agent.output_type
    outputs = list(given) if isinstance(given, list | tuple) else [given]
    if DeferredToolRequests in outputs or (isinstance(agent, Agent) and agent._output_validators):  # noqa: SLF001
        return None
    return [*outputs, DeferredToolRequests]


def _output_schema(agent: AbstractAgent[Any, Any]) -> dict[str, Any]:
    given = agent.output_type
    outputs = list(given) if isinstance(given, list | tuple) else [given]
    types = [output for output in outputs if isinstance(output, type) and output is not DeferredToolRequests]
    if len(types) != 1 or len(outputs) > len(types) + (DeferredToolRequests in outputs):
        return {}
    try:
        return TypeAdapter(types[0]).json_schema(mode="serialization")
    except (RuntimeError, TypeError, ValueError):  # pydantic's errors of definition: it has no schema
        return {}


def _streams(agent: AbstractAgent[Any, Any]) -> bool:
    model = agent.model
    if isinstance(model, FunctionModel):
        return model.stream_function is not None
    return not isinstance(model, Model) or type(model).request_stream is not Model.request_stream


def _history(context: StepContext) -> tuple[list[ModelMessage], str | None]:
    messages, prompt = conversation(context)
    if messages and prompt is None and messages[-1].get("role") == "user":
        prompt = _text(messages[-1])
        messages = messages[:-1]
    try:
        before = ModelMessagesTypeAdapter.validate_python(remembered(context) or [])
    except ValidationError as error:
        raise cannot_resume(error) from error
    try:
        if messages and "kind" in messages[0]:
            return [*before, *ModelMessagesTypeAdapter.validate_python(messages)], prompt
    except ValidationError as error:
        raise ArgumentsError("the messages are not those of pydantic-ai", why=str(error)) from error
    return [*before, *(_message(message) for message in messages)], prompt


def _message(message: dict[str, Any]) -> ModelMessage:
    text, role = _text(message), message.get("role", "user")
    if role in ("assistant", "model", "chatbot"):
        return ModelResponse(parts=[TextPart(content=text)])
    if role in ("system", "developer"):
        return ModelRequest(parts=[SystemPromptPart(content=text)])
    if role == "user":
        return ModelRequest(parts=[UserPromptPart(content=text)])
    raise ArgumentsError(
        f"a message has the role {role!r}",
        fix="give user, assistant and system messages, or all of them in pydantic-ai's own form",
    )


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if not isinstance(content, str):
        raise ArgumentsError(
            "the content of a message is no text",
            fix='give {"role": "user", "content": "…"}, or messages in pydantic-ai\'s own form',
        )
    return content


def _questions(requests: DeferredToolRequests) -> list[Question]:
    approvals = [
        approval(
            call.tool_name, call.args_as_dict(), edits=True, details=_details(requests.metadata.get(call.tool_call_id))
        )
        for call in requests.approvals
    ]
    values = []
    for call in requests.calls:
        arguments = call.args_as_dict()
        asked = next((arguments[key] for key in ("question", "prompt") if isinstance(arguments.get(key), str)), None)
        prompt = asked or f"What is the result of `{call.tool_name}` with {encode_json(arguments).decode()}?"
        details = {"tool": call.tool_name, "arguments": arguments}
        if metadata := _details(requests.metadata.get(call.tool_call_id)):
            details["details"] = metadata
        values.append(Question(prompt=prompt, details=details))
    return [*approvals, *values]


def _details(metadata: dict[str, Any] | None) -> dict[str, Any]:
    dumped: dict[str, Any] = TypeAdapter(dict[str, Any]).dump_python(metadata or {}, mode="json")
    return dumped


def _results(requests: DeferredToolRequests, replies: Sequence[Reply]) -> DeferredToolResults:
    results = DeferredToolResults()
    for call, reply in zip([*requests.approvals, *requests.calls], replies, strict=True):
        if call not in requests.approvals:
            results.calls[call.tool_call_id] = reply.value
        elif reply.approved:
            results.approvals[call.tool_call_id] = ToolApproved(override_args=reply.value)
        else:
            results.approvals[call.tool_call_id] = ToolDenied(reply.reason) if reply.reason else ToolDenied()
    return results


def _tell(context: StepContext, event: AgentStreamEvent) -> None:
    """Text as it comes, and what tools are called; the rest is of no use to somebody who watches."""
    if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
        if event.part.content:
            context.stream({"type": "text", "text": event.part.content})
    elif isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
        context.stream({"type": "text", "text": event.delta.content_delta})
    elif isinstance(event, FunctionToolCallEvent):
        call = event.part
        context.stream(
            {"type": "tool_call", "tool": call.tool_name, "id": call.tool_call_id, "arguments": call.args_as_dict()}
        )
    elif isinstance(event, FunctionToolResultEvent):
        part = event.part
        context.stream(
            {
                "type": "tool_result",
                "tool": part.tool_name,
                "id": part.tool_call_id,
                "result": part.model_response_str(),
            }
        )


def _used(usage: RunUsage) -> dict[str, float]:
    used: dict[str, float] = {
        "tokens": usage.input_tokens + usage.output_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "requests": usage.requests,
        "tool_calls": usage.tool_calls,
    }
    if usage.cost is not None:
        used["cost"] = float(usage.cost)
    return used
