"""An agent of the OpenAI Agents SDK as a service.

Tools that need an approval interrupt the run: its state, as the SDK writes it, is stored with the step, and the run
goes on from it with the decisions, in whatever process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from agents import (
    Agent,
    InputGuardrailTripwireTriggered,
    OutputGuardrailTripwireTriggered,
    RunConfig,
    Runner,
    RunResult,
    RunResultStreaming,
    RunState,
    UserError,
)
from agents.agent_output import AgentOutputSchema
from agents.items import ToolApprovalItem, ToolCallItem, ToolCallOutputItem
from agents.run import DEFAULT_MAX_TURNS
from agents.stream_events import AgentUpdatedStreamEvent, RawResponsesStreamEvent, RunItemStreamEvent, StreamEvent
from agents.usage import Usage

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
from llama_deploy.services.agents.questions import Reply, approval
from llama_deploy.services.base import StepContext

_FINAL = (InputGuardrailTripwireTriggered, OutputGuardrailTripwireTriggered, UserError)
"""What another attempt would not end differently."""


class OpenAIAgentService(HostedAgent):
    """Runs `agent`, and those that it hands over to, once per step.

    The input is text, or an object with `prompt` and `messages` (the SDK's input items). The output is the final
    output, structured ones as JSON. Text, tool calls and handoffs are streamed as they happen. `run_context` makes the
    SDK's context of one run; `usage` of the result counts tokens and requests.
    """

    library = "openai-agents"

    def __init__(
        self,
        agent: Agent[Any],
        *,
        name: str | None = None,
        description: str | None = None,
        run_context: Callable[[StepContext], Any] | None = None,
        run_config: RunConfig | None = None,
        max_turns: int = DEFAULT_MAX_TURNS,
        stream: bool = True,
        concurrency: int = 8,
        run_timeout_s: float = 600.0,
    ) -> None:
        """`stream=False` asks the model for whole answers; `run_config` and `max_turns` are those of `Runner.run`."""
        super().__init__(
            name=name or agent.name,
            description=description or agent.handoff_description or f"The agent {agent.name}.",
            input_schema=CHAT_SCHEMA,
            output_schema=_output_schema(agent),
            concurrency=concurrency,
            run_timeout_s=run_timeout_s,
        )
        self._agent = agent
        self._run_context = run_context
        self._run_config = run_config
        self._max_turns = max_turns
        self._stream = stream

    async def advance(self, context: StepContext, state: Any, replies: Sequence[Reply]) -> Finished | Waiting:
        """Run the agent from its input, or from the state with which it waited."""
        made = self._run_context(context) if self._run_context is not None else None
        given = _input(context) if state is None else await self._restored(state, replies, made)
        try:
            result = await self._run(given, made, context)
        except _FINAL as error:
            error.retryable = False  # type: ignore[union-attr]  # asked for by name, as of any exception
            raise
        if result.interruptions:
            waits = result.to_state()
            questions = [_question(item) for item in waits.get_interruptions()]
            # What `run_context` makes is made anew by every attempt.
            kept = waits.to_json(context_serializer=_nothing if self._run_context is not None else None)
            return Waiting(questions=questions, state=kept)
        said = json.loads(encode_json(result.to_input_list())) if context.kept_memory is not None else None
        return Finished(output=result.final_output, usage=_used(result.context_wrapper.usage), remember=said)

    async def _restored(self, state: Any, replies: Sequence[Reply], made: Any) -> RunState[Any, Any]:
        try:
            restored = await RunState.from_json(self._agent, state, context_override=made)
        except (UserError, ValueError, KeyError, TypeError) as error:
            raise cannot_resume(error) from error
        for item, reply in zip(restored.get_interruptions(), replies, strict=True):
            if reply.approved:
                restored.approve(item)
            else:
                restored.reject(item, rejection_message=reply.reason or None)
        return restored

    async def _run(self, given: Any, made: Any, context: StepContext) -> RunResult | RunResultStreaming:
        options: dict[str, Any] = {"max_turns": self._max_turns, "run_config": self._run_config}
        if not isinstance(given, RunState):
            options["context"] = made
        if not self._stream:
            return await Runner.run(self._agent, given, **options)
        result = Runner.run_streamed(self._agent, given, **options)
        try:
            async for event in result.stream_events():
                _tell(context, event)
        finally:
            await _ended(result)
        return result


async def _ended(result: RunResultStreaming) -> None:
    """The run goes on in a task of its own, which is not left behind."""
    if not result.is_complete:
        result.cancel()
    task = result.run_loop_task
    if task is not None and not task.done():
        await asyncio.wait([task])


def _input(context: StepContext) -> Any:
    messages, prompt = conversation(context)
    messages = [*(remembered(context) or ()), *messages]
    if not messages:
        return prompt or ""
    return messages if prompt is None else [*messages, {"role": "user", "content": prompt}]


def _question(item: ToolApprovalItem) -> Any:
    arguments: Any = item.arguments
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):  # a model's own words are shown as they are
            arguments = json.loads(arguments)
    return approval(item.name or "the tool", arguments, edits=False, details={"agent": item.agent.name})


def _tell(context: StepContext, event: StreamEvent) -> None:
    if isinstance(event, RawResponsesStreamEvent):
        if event.data.type == "response.output_text.delta":
            context.stream({"type": "text", "text": event.data.delta})
    elif isinstance(event, AgentUpdatedStreamEvent):
        context.stream({"type": "agent", "agent": event.new_agent.name})
    elif isinstance(event, RunItemStreamEvent):
        item = event.item
        if isinstance(item, ToolCallItem) and event.name == "tool_called":
            raw = item.raw_item
            context.stream(
                {
                    "type": "tool_call",
                    "tool": _part(raw, "name"),
                    "id": _part(raw, "call_id"),
                    "arguments": _part(raw, "arguments"),
                }
            )
        elif isinstance(item, ToolCallOutputItem):
            context.stream({"type": "tool_result", "id": _part(item.raw_item, "call_id"), "result": str(item.output)})


def _part(raw: Any, name: str) -> Any:
    value = raw.get(name) if isinstance(raw, dict) else getattr(raw, name, None)
    return value if isinstance(value, str | None) else str(value)


def _output_schema(agent: Agent[Any]) -> dict[str, Any]:
    kind = agent.output_type
    if kind is None:
        return {"type": "string"}
    schema = kind if not isinstance(kind, type) else AgentOutputSchema(kind, strict_json_schema=False)
    return schema.json_schema() if isinstance(schema, AgentOutputSchema) and not schema.is_plain_text() else {}


def _nothing(context: Any) -> dict[str, Any]:
    del context
    return {}


def _used(usage: Usage) -> dict[str, float]:
    return {
        "tokens": usage.total_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "requests": usage.requests,
    }
