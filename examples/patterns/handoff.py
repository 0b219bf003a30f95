"""Handoff: the desk passes a question on to billing, and billing to the bookkeeper, who answers."""

from __future__ import annotations

from typing import Any

from show import show

from llama_deploy import service
from llama_deploy.orchestrators import Handoff


@service
def desk(input: str, **_: Any) -> dict[str, str]:
    """Knows who knows."""
    return {"handoff": "billing", "input": f"a customer asks: {input}"}


@service
def billing(input: str, **_: Any) -> dict[str, str]:
    """Knows the bills, not the books."""
    return {"handoff": "bookkeeper", "input": input}


@service
def bookkeeper(input: str, **came: Any) -> str:
    """Answers."""
    return f"It was paid in May ({input}; thanks to {came['from']})."


policy = Handoff(
    {"desk": "desk", "billing": "billing", "bookkeeper": "bookkeeper"},
    targets={"desk": ["billing"], "billing": ["desk", "bookkeeper"], "bookkeeper": []},
)
show(policy, [desk, billing, bookkeeper], "Was my bill paid?")
