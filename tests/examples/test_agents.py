"""The programs of examples/agents, each run as a reader would run it: one command, no key, the promised outcome."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.docs.pages import ROOT
from tests.support import PROCESS_S

AGENTS = ROOT / "examples" / "agents"

OUTPUTS = {
    "pydantic_ai_agent.py": [
        'asked: May `refund` be called with {"order": "A-17", "amount": 30}? -> approve',
        "refunded=30 note='refunded 30 EUR for A-17'",
        "used: ['input_tokens', 'output_tokens', 'requests', 'tokens', 'tool_calls']",
    ],
    "langgraph_graph.py": [
        "asked: May this go out? Dear all, the tide is high. -> be brief",
        "asked: May this go out? Dear all, the tide is high. be brief! -> yes",
        "sent: Dear all, the tide is high. be brief!",
    ],
    "openai_agent.py": [
        'asked: May `pay_back` be called with {"order": "A-17", "amount": 30}? -> approve',
        "told: billing",
        "told: 30 EUR for A-17 are on their way",
        "Your money is on its way.",
    ],
    "services_as_tools.py": ["Narvik, with 3.1 m against 1.2 m.", "called: tide", "called: tide"],
}


def test_every_program_is_run_here_and_in_the_list() -> None:
    names = sorted(path.name for path in AGENTS.glob("*.py") if path.name != "asking.py")
    assert names == sorted(OUTPUTS)
    page = (AGENTS / "README.md").read_text(encoding="utf-8")
    assert all(f"({name})" in page for name in names)


@pytest.mark.parametrize("name", OUTPUTS)
def test_it_says_what_it_promises(name: str) -> None:
    ran = subprocess.run(
        [sys.executable, AGENTS / name],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OPENAI_API_KEY": ""},
        stdin=subprocess.DEVNULL,
        check=False,
        capture_output=True,
        text=True,
        timeout=PROCESS_S,
    )
    assert ran.returncode == 0, ran.stderr
    printed = iter(ran.stdout.splitlines())
    assert [line for line in OUTPUTS[name] if line not in printed] == []
