"""What an agent asks a person, and what the person may answer.

A question is data, because it is stored with the step that waits. Decisions are said as at a `Gate` of the catalogue.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

APPROVE, REJECT = "approve", "reject"
_WORDS = {"approve": APPROVE, "yes": APPROVE, "reject": REJECT, "no": REJECT}


class UnreadableAnswerError(ValueError):
    """An answer is no answer to its question; the person is asked again, with the reason."""


@dataclass(frozen=True)
class Question:
    """One thing that a person is asked."""

    prompt: str
    kind: Literal["approval", "value"] = "value"
    """`approval`: whether a tool may be called. `value`: anything, such as what an interrupted graph goes on with."""
    schema: dict[str, Any] | None = None
    """JSON Schema of the answer to a `value` question, where one is known; it is shown, and not enforced here."""
    details: dict[str, Any] = field(default_factory=dict)
    """Shown beside the prompt."""
    edits: bool = False
    """Whether the arguments of the call may be changed with the approval."""

    def shown(self, problem: str = "") -> dict[str, Any]:
        """The prompt as a person's client gets it."""
        shown: dict[str, Any] = {"prompt": self.prompt, **self.details}
        if self.kind == "approval":
            shown["decisions"] = [APPROVE, REJECT, *(["edit"] if self.edits else [])]
        if self.schema is not None:
            shown["schema"] = self.schema
        if problem:
            shown["problem"] = problem
        return shown


@dataclass(frozen=True)
class Reply:
    """What a person answered to one question."""

    approved: bool = True
    value: Any = None
    """The answer to a `value` question; for an approval the changed arguments, or None."""
    reason: str = ""
    """Why a call was rejected, where the person said so."""


def read_reply(question: Question, given: Any) -> Reply:
    """The reply in what a person gave. Raises `UnreadableAnswerError` for what is no decision."""
    if question.kind == "value":
        return Reply(value=given)
    if isinstance(given, Mapping):
        decision, value, reason = given.get("decision"), given.get("value"), given.get("reason")
    else:
        decision, value, reason = given, None, None
    if isinstance(decision, bool):
        decision = APPROVE if decision else REJECT
    word = decision.strip().lower() if isinstance(decision, str) else ""
    if word == "edit" and question.edits:
        if not isinstance(value, Mapping):
            raise UnreadableAnswerError("an edit needs the changed arguments: {'decision': 'edit', 'value': {...}}")
        return Reply(value=dict(value))
    decided = _WORDS.get(word)
    if decided is None:
        told = json.dumps(given, ensure_ascii=False)[:200]
        raise UnreadableAnswerError(f"{told} is none of {', '.join(question.shown()['decisions'])}")
    return Reply(approved=decided == APPROVE, reason=str(reason or value or ""))


def approval(tool: str, arguments: Any, *, edits: bool, details: dict[str, Any] | None = None) -> Question:
    """The question whether a tool may be called."""
    told = json.dumps(arguments, ensure_ascii=False)
    return Question(
        prompt=f"May `{tool}` be called with {told}?",
        kind="approval",
        details={"tool": tool, "arguments": arguments, **({"details": details} if details else {})},
        edits=edits,
    )
