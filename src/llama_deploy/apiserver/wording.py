"""The few turns of phrase that messages about files, names and commands share.

Pure functions of text; no message is composed here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean `x`?)` for the known word that is closest to this one, or nothing."""
    by_plain = {_plain(name): name for name in known}
    matches = difflib.get_close_matches(_plain(word), list(by_plain), n=1, cutoff=0.6)
    return f" (did you mean `{by_plain[matches[0]]}`?)" if matches else ""


def listed(names: Iterable[str]) -> str:
    """Names as code, separated by commas; `none` when there are none."""
    return ", ".join(f"`{name}`" for name in names) or "none"


def shorten(text: str, *, length: int = 60) -> str:
    """The beginning of a text, for a message of one line."""
    line = text.replace("\n", "\\n")
    return line if len(line) <= length else line[: length - 1] + "…"


def _plain(word: str) -> str:
    return word.lower().replace("_", "-").replace(" ", "-")
