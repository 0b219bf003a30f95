"""The examples of deployments, as a reader would run them; what they print is what their page shows."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.docs.pages import ROOT, fences
from tests.support import PROCESS_S

FOLDER = ROOT / "examples" / "deployments"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("program", ["rolling_update.py", "from_git.py"])
def test_it_prints_what_its_page_shows(program: str) -> None:
    shown = [fence.text for fence in fences(FOLDER / "README.md") if fence.language == "text"]
    ran = subprocess.run(
        [sys.executable, str(FOLDER / program)], capture_output=True, text=True, timeout=PROCESS_S, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout in shown
