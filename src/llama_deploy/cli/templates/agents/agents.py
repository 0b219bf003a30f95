"""The agents of this deployment: plain functions that answer, or hand a question on.

Each is given `input`, and beside it who handed it on. Put your model where the comments say; agents of pydantic-ai,
LangGraph and the OpenAI Agents SDK can stand in the place of these functions as they are.
"""

from __future__ import annotations

from typing import Any

from llama_deploy import ServiceContext, service

INVOICES = {"1042": "paid on 3 May", "1043": "due on 1 June"}


@service
async def desk(input: str, context: ServiceContext, **_: Any) -> dict[str, str] | str:
    """Knows who knows: the first to hear a question."""
    words = input.lower()
    context.stream({"desk": "reads the question"})
    if "invoice" in words or "bill" in words:  # where a model would choose
        return {"handoff": "billing", "input": input}
    if "error" in words or "broken" in words:
        return {"handoff": "engineer", "input": input}
    return f"Thank you for writing: {input!r} is noted."


@service
async def billing(input: str, **_: Any) -> dict[str, str] | str:
    """Knows the invoices."""
    found = next((number for number in INVOICES if number in input), None)  # where a model would look things up
    return f"Invoice {found} was {INVOICES[found]}." if found else "Which invoice do you mean?"


@service
async def engineer(input: str, **_: Any) -> str:
    """Knows what breaks."""
    return f"We look into it: {input}"
