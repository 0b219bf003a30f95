"""The support desk as a graph: who reads a letter, who looks into what, and when a person is asked."""

from __future__ import annotations

import os
from typing import Any

from llama_deploy.orchestrators import Edge, Gate, Graph, Parallel

DEADLINE_S = float(os.environ.get("DESK_DEADLINE_S", "4"))
"""How long a clerk may think before the manager is asked. At a real desk: hours."""


def pays_back(decided: dict[str, Any]) -> bool:
    """Whether money is to go back: then a person has to agree."""
    return bool(decided["refund_cents"])


approval = Gate(
    "Pay this back?",
    ask="the clerk",
    escalate_to=["the manager"],
    deadline_s=DEADLINE_S,
    on_deadline="reject",
    on_reject="output",
)
desk = Graph(
    {
        "triage": "triage",
        "specialists": Parallel("bookings", "rules", "tone"),
        "policy": "policy",
        "approval": approval,
        "reply": "reply",
    },
    [
        ("start", "triage"),
        ("triage", "specialists"),
        ("specialists", "policy"),
        Edge("policy", "approval", when=pays_back, label="money goes back"),
        ("policy", "reply"),
        ("approval", "reply"),
        ("reply", "end"),
    ],
)
