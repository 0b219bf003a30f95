"""Errors survive the way from one process to the other."""

from __future__ import annotations

import errno
import json

import pytest

from llama_deploy.connections.problems import error_from_problem, error_from_refusal, why_unreachable
from llama_deploy.errors import CannotReachError, LlamaDeployError, ProtocolError, all_errors


@pytest.mark.parametrize("cls", all_errors(), ids=lambda cls: cls.code)
def test_every_error_comes_back_as_itself(cls: type[LlamaDeployError]) -> None:
    sent = cls("what", why="why", fix="fix", limit=3)
    got = error_from_refusal(json.dumps(sent.to_problem()).encode())
    assert type(got) is cls
    assert (got.what, got.why, got.fix, got.details) == ("what", "why", "fix", {"limit": 3})
    assert str(got) == str(sent)


def test_a_code_of_a_later_version_is_kept() -> None:
    got = error_from_problem({"code": "LD999", "what": "new"}, status=400)
    assert type(got) is LlamaDeployError
    assert (got.what, got.details) == ("new", {"remote_code": "LD999"})


def test_missing_members_are_filled() -> None:
    got = error_from_problem({"code": "LD203", "details": None}, status=404)
    assert (got.what, got.why, got.details) == ("task not found", "", {})


@pytest.mark.parametrize("document", [None, [], "text", {}, {"code": 7}])
def test_what_is_no_problem_of_ours(document: object) -> None:
    assert type(error_from_problem(document, status=404)) is ProtocolError
    assert type(error_from_problem(document, status=502, address="http://h")) is CannotReachError


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionRefusedError(), "Nothing is listening there (connection refused)."),
        (
            OSError(f"Multiple exceptions: [Errno {errno.ECONNREFUSED}] x"),
            "Nothing is listening there (connection refused).",
        ),
        (TimeoutError(), "It does not answer in time."),
        (OSError("no route"), "no route"),
        (OSError(), "OSError"),
    ],
)
def test_why_nothing_answers(error: OSError, told: str) -> None:
    assert why_unreachable(error) == told
    wrapped = OSError("wrapped")
    wrapped.__cause__ = error
    assert why_unreachable(wrapped) in {told, "wrapped"}
