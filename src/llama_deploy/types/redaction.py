"""Leaving secrets out of what people look at: values under keys that fit a pattern are shown as `"[redacted]"`.

Only what is shown changes. What is recorded, what services get and what a client gets as its result are as they were.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Sequence
from typing import Any

from llama_deploy.errors import SettingError

REDACTED = "[redacted]"
PATTERN_LENGTH_MAX = 100
PATTERNS_MAX = 100


class Redaction:
    """Keys as patterns with `*` and `?`, in any case: `*password*`, `api_key`. Without patterns it is false.

    Raises `SettingError` for a pattern that fits no key, or would take too long to look for.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        for pattern in patterns:
            if not pattern.strip() or len(pattern) > PATTERN_LENGTH_MAX or pattern.count("*") > 3:  # noqa: PLR2004
                raise SettingError(
                    f"{pattern!r} cannot be a pattern of keys to redact",
                    why=f"it is empty, longer than {PATTERN_LENGTH_MAX} characters, or has more than three `*`",
                    fix="name keys as in *password*, api_key, *_token",
                )
        if len(patterns) > PATTERNS_MAX:
            raise SettingError(f"there are {len(patterns)} patterns of keys to redact, and {PATTERNS_MAX} are allowed")
        self.patterns = tuple(pattern.lower() for pattern in patterns)
        self._key = re.compile("|".join(fnmatch.translate(pattern) for pattern in self.patterns))
        words = "|".join(_as_word(pattern) for pattern in self.patterns)
        # In texts of people and of tracebacks: password=x, "password": "x", password: x
        self._assignment = re.compile(
            rf"""((?<![\w-])["']?(?:{words})["']?\s*[:=]\s*)(?!\[redacted\])("[^"]*"|'[^']*'|[^\s,;)}}\]]+)""",
            re.IGNORECASE,
        )

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def hides(self, key: str) -> bool:
        """Whether values under this key are left out."""
        return bool(self.patterns) and self._key.match(key.lower()) is not None

    def value(self, value: Any) -> Any:
        """The value with everything below such keys left out, also in texts that hold JSON. The original stays."""
        if not self.patterns:
            return value
        if isinstance(value, dict):
            return {
                key: REDACTED if isinstance(key, str) and self.hides(key) else self.value(inner)
                for key, inner in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.value(inner) for inner in value]
        return self._json_text(value) if isinstance(value, str) and value[:1] in ("{", "[") else value

    def fields(self, document: Any, *names: str) -> Any:
        """A document of ours whose own fields keep their meaning: only the values of those that are named change."""
        if not self.patterns or not isinstance(document, dict):
            return document
        return {key: self.value(inner) if key in names else inner for key, inner in document.items()}

    def result(self, result: Any) -> Any:
        """A `TaskResult` as a document without what is to be left out: its own fields keep their meaning."""
        if not self.patterns or not isinstance(result, dict):
            return result
        shown = self.fields(result, "result", "value", "history", "emitted")
        error = shown.get("error")
        if isinstance(error, dict):
            texts = {key: self.text(text) for key, text in error.items() if isinstance(text, str)}
            shown["error"] = {**error, **texts}
        if isinstance(shown.get("result"), str):
            shown["result"] = self.text(shown["result"])
        return shown

    def text(self, text: str) -> str:
        """A text for people with what is assigned to such keys left out; a key in other words is not found.

        What was left out before stays as it is.
        """
        return self._assignment.sub(rf"\g<1>{REDACTED}", text) if self.patterns else text

    def _json_text(self, text: str) -> str:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return self.text(text)
        shown = self.value(value)
        return text if shown == value else json.dumps(shown, ensure_ascii=False)


NO_REDACTION = Redaction()
"""Shows everything."""


def _as_word(pattern: str) -> str:
    """A pattern as it is found within a text: `*` and `?` stand for what a name may have."""
    return "".join({"*": r"[\w-]*", "?": r"[\w-]"}.get(char, re.escape(char)) for char in pattern)
