"""Gate: a refund waits for a person, who edits the sum; the second question in the same task is a choice."""

from __future__ import annotations

from typing import Any

from show import show

from llama_deploy import service
from llama_deploy.orchestrators import Gate, Sequence


@service
def propose(case: str) -> str:
    """What to pay back."""
    return f"80 EUR for {case}"


@service
def pay(method: str) -> str:
    """Pays."""
    return f"paid by {method}"


def person(prompt: dict[str, Any]) -> Any:
    """What a person would say; asked again after nonsense."""
    if "choices" in prompt["prompt"]:
        return "transfer"
    return {"decision": "edit", "value": "60 EUR"} if "problem" in prompt else "maybe"


approve = Gate("Pay this back?", deadline_s=7 * 86_400, escalate_to=["the manager"])
how = Gate("How? The choices are transfer and cash.", choices=["transfer", "cash"])
show(Sequence("propose", approve, how, "pay"), [propose, pay], "a broken oar", person=person)
