"""What a person may answer to an agent's question, and what is asked again."""

from __future__ import annotations

from typing import Any

import pytest

from llama_deploy.services.agents.questions import Question, Reply, UnreadableAnswerError, approval, read_reply

CALL = approval("delete", {"path": "a"}, edits=True)


def test_an_approval_shows_the_call_and_the_decisions() -> None:
    assert CALL.shown() == {
        "prompt": 'May `delete` be called with {"path": "a"}?',
        "tool": "delete",
        "arguments": {"path": "a"},
        "decisions": ["approve", "reject", "edit"],
    }
    assert approval("delete", {}, edits=False).shown("why")["problem"] == "why"
    assert approval("delete", {}, edits=False).shown()["decisions"] == ["approve", "reject"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (True, Reply()),
        ("yes", Reply()),
        (" Approve ", Reply()),
        ({"decision": "approve"}, Reply()),
        (False, Reply(approved=False)),
        ("no", Reply(approved=False)),
        ({"decision": "reject", "reason": "too much"}, Reply(approved=False, reason="too much")),
        ({"decision": "edit", "value": {"path": "b"}}, Reply(value={"path": "b"})),
    ],
)
def test_decisions(given: Any, expected: Reply) -> None:
    assert read_reply(CALL, given) == expected


@pytest.mark.parametrize("given", ["perhaps", None, 3, {"decision": "edit"}, {"decision": "edit", "value": "b"}, {}])
def test_what_is_no_decision(given: Any) -> None:
    with pytest.raises(UnreadableAnswerError):
        read_reply(CALL, given)


def test_an_edit_where_none_is_possible() -> None:
    with pytest.raises(UnreadableAnswerError, match="approve, reject"):
        read_reply(approval("delete", {}, edits=False), {"decision": "edit", "value": {}})


def test_anything_answers_an_open_question() -> None:
    question = Question(prompt="Who?", schema={"type": "string"})
    assert question.shown() == {"prompt": "Who?", "schema": {"type": "string"}}
    for given in ("Ann", None, {"decision": "reject"}, [1]):
        assert read_reply(question, given) == Reply(value=given)
