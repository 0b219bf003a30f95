"""What is told of a description that makes no orchestrator: what is wrong, where, and what may have been meant."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

Path = tuple[str | int, ...]
"""Keys and positions that lead to a value."""


class DescriptionError(ValueError):
    """A description that makes no orchestrator, and where in it the mistake is."""

    def __init__(self, what: str, path: Path) -> None:
        super().__init__(f"{'.'.join(map(str, path))}: {what}" if path else what)
        self.what = what
        self.path = path


def close(word: str, known: Any) -> str:
    """The end of a sentence: the known word that this one may have been meant to be, if one is near."""
    close = get_close_matches(word.replace("-", "_"), [str(each) for each in known], 1)
    return f": did you mean `{close[0].replace('_', '-')}`?" if close else ""
