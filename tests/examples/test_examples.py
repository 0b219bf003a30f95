"""The small examples, each run as a reader would run it: one command, no key, and it prints what it promises."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.pages import ROOT, fences
from tests.support import PROCESS_S

EXAMPLES = ROOT / "examples"
LINES_MAX = 60

PRINTED = {
    "ten_lines.py": ["HELLO"],
    "streaming.py": [
        "event 0: 5",
        "event 1: 4",
        "the reader goes away; events are recorded all the same",
        "event 2: 3",
        "event 3: 2",
        "event 4: 1",
        "result: [5, 4, 3, 2, 1]",
    ],
    "human_in_the_loop.py": [
        "the task is input_required",
        "Publish 'Snow at noon'? yes",
        "published: Snow at noon",
    ],
    "workflow.py": [
        "Found {'fact': 'the history of tides'}",
        "Found {'fact': 'the causes of tides'}",
        "StopEvent {'result': 'there are two facts about tides'}",
        "there are two facts about tides",
    ],
    "memory.py": [
        "one: Hello Ada.",
        "two: Stranger, that was turn 1.",
        "everything is switched off, and on again",
        "one: Ada, that was turn 2.",
        "remembered: {'guide': {'turns': 2, 'name': 'Ada'}}",
        "one: Stranger, that was turn 1.",
    ],
    "own_orchestrator.py": [
        "The tide is high.",
        "  critic: 'really '",
        "  writer: 'The tide is very high.'",
        "  critic: 'very '",
        "  writer: 'The tide is high.'",
        "  critic: ''",
    ],
    "calls.py": [
        "booking a flight in Oslo",
        "booking a hotel in Oslo",
        "paying for flight in Oslo and hotel in Oslo",
        "Oslo, receipt 17, attempt 2",
        "  submitted",
        "  called #1",
        "  called #2",
        "  remembered pay",
        "  retrying",
        "  answered",
        "2 tasks were called",
    ],
    "files.py": [
        "uploaded table.csv, 313176 bytes of text/csv",
        "clean.csv has 4286 bytes less",
        "report.txt about 2 people:",
        "ada: 300000000",
        "grace: 149985000",
    ],
    "retries.py": [
        "rain in Bergen",
        "  submitted",
        "  retrying, attempt 1: ConnectionError: the weather station does not answer",
        "  retrying, attempt 2: ConnectionError: the weather station does not answer",
        "  answered, attempt 3",
        "NonRetryableError: there is no such place",
    ],
}


def test_every_example_is_run_here() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(PRINTED)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "retries.py" else name for name in PRINTED]
)
def test_it_prints_what_it_promises(name: str, tmp_path: Path) -> None:
    for _ in range(2):  # the second run finds what the first one left
        ran = subprocess.run(
            [sys.executable, EXAMPLES / name],
            cwd=tmp_path,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            check=False,
            capture_output=True,
            text=True,
            timeout=PROCESS_S,
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.splitlines() == PRINTED[name]


@pytest.mark.parametrize("name", PRINTED)
def test_it_is_small_and_says_how_to_run_it(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) < LINES_MAX
    assert f"python examples/{name}" in (ast.get_docstring(ast.parse(text)) or "")


def test_the_ten_lines_are_those_of_the_readme() -> None:
    text = (EXAMPLES / "ten_lines.py").read_text(encoding="utf-8")
    _, _, program = text.partition('"""\n\n')
    shown = [fence.text for fence in fences(ROOT / "README.md") if fence.language == "python"]
    assert program in shown
