"""What the tests of the examples share: the examples' own folders, found as a program started there finds them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BRIEFING = Path(__file__).resolve().parents[2] / "examples" / "briefing"
sys.path.insert(0, str(BRIEFING))


@pytest.fixture(scope="session")
def documents() -> Path:
    """The folder of documents that ships with the briefing."""
    return BRIEFING / "documents"
