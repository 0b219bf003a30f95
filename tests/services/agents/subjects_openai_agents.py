"""The agents of the OpenAI Agents SDK that the tests of this folder serve, and that processes serve.

Their model decides by what it has heard, so that an agent can be asked again in another process.
"""

from __future__ import annotations

from typing import Any

import agents
from agents.items import TResponseOutputItem
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call
from agents.usage import Usage

agents.set_tracing_disabled(disabled=True)


def heard(call: ModelCall) -> list[str]:
    """What tools have returned so far."""
    items: Any = call.input if isinstance(call.input, list) else []
    return [str(item["output"]) for item in items if item.get("type") == "function_call_output"]


def scripted(*calls: tuple[str, dict[str, Any]], turns: int = 20) -> ScriptedModel:
    """A model that calls tools one after the other, and tells at the end what they have returned."""

    def respond(call: ModelCall) -> list[TResponseOutputItem]:
        done = heard(call)
        if len(done) < len(calls):
            name, arguments = calls[len(done)]
            return [function_call(name, arguments, call_id=f"call-{len(done)}")]
        return [assistant_message("; ".join(done))]

    usage = Usage(requests=1, input_tokens=10, output_tokens=5, total_tokens=15)
    return ScriptedModel([ModelStep(responder=respond) for _ in range(turns)], default_usage=usage)


@agents.function_tool
def size(path: str) -> int:
    """How large it is."""
    return len(path)


@agents.function_tool(needs_approval=True)
def delete(path: str) -> str:
    """Deletes it."""
    return f"deleted {path}"


def officer(tools: Any = (), model: ScriptedModel | None = None) -> agents.Agent[Any]:
    """As `clerk`, of the other library."""
    calls = [("size", {"path": "a"}), ("delete", {"path": "a"}), ("delete", {"path": "b"})]
    return agents.Agent(name="officer", tools=[size, delete, *tools], model=model or scripted(*calls))
