"""The programs of examples/llama_index, each run as a reader would run it: one command, no key, the promised output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.pages import ROOT
from tests.support import PROCESS_S

FOLDER = ROOT / "examples" / "llama_index"

PRINTED = {
    "desk.py": [
        "the agent asks: Refund 40 for order A7?",
        "everything is switched off, and on again",
        "the task is input_required",
        "You wrote: 'My kettle leaks'. We have refunded 40.",
    ],
}


def test_every_program_is_run_here() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.py")) == sorted(PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_it_prints_what_it_promises(name: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, FOLDER / name],
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
