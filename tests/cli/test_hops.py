"""A task's history as a person follows it: the rows that it folds into, and how they are shown."""

from __future__ import annotations

import io
from typing import Any

import pytest

from llama_deploy.cli.hops import Hops, LiveFollower, PlainFollower, follower
from llama_deploy.types import HistoryEntry, TaskError, TaskState

AT = 1_700_000_000.0


def sends(*services: str) -> list[dict[str, Any]]:
    return [{"step_id": f"t:{name}", "service": name, "action": "new_task"} for name in services]


def entry(seq: int, kind: str, *, after_s: float = 0.0, state: str = "working", **fields: Any) -> HistoryEntry:
    return HistoryEntry(seq=seq, at=AT + after_s, kind=kind, state=TaskState(state), **fields)


COMPLETED = {"status": "completed"}
FAILED = {"status": "failed", "error": {"type": "ValueError", "message": "bad\nmore"}}

STORY = [
    entry(1, "submitted", messages=sends("read"), state="submitted"),
    entry(2, "retrying", after_s=0.5, step_id="t:read", attempt=1, error=TaskError(type="OSError", message="gone")),
    entry(3, "lost", after_s=1.0, step_id="t:read", attempt=2, reason="its instance went silent"),
    entry(4, "answered", after_s=2.0, step_id="t:read", attempt=3, result=COMPLETED, messages=sends("ask", "write")),
    entry(5, "input_requested", after_s=3.0, step_id="t:ask", prompt={"prompt": "May it?"}, state="input_required"),
    entry(6, "input", after_s=63.0, step_id="t:ask"),
    entry(7, "answered", after_s=64.0, step_id="t:ask", result=COMPLETED, started_at=AT, finished_at=AT + 0.25),
    entry(8, "answered", after_s=65.0, step_id="t:write", result=FAILED, outcome=FAILED, state="failed"),
]


def test_rows_tell_where_each_step_stands() -> None:
    hops = Hops()
    for part in STORY:
        hops.fold(part)
    assert [(hop.service, hop.state, hop.attempt, hop.note) for hop in hops.rows.values()] == [
        ("read", "answered", 3, ""),
        ("ask", "answered", 1, ""),
        ("write", "failed", 1, "ValueError: bad"),
    ]
    assert hops.rows["t:ask"].took_s == 0.25
    assert hops.state is TaskState.FAILED


def test_plain_lines_are_one_per_event() -> None:
    lines: list[str] = []
    shown = PlainFollower(lines.append, "t")
    for part in STORY:
        shown.take(part)
    assert lines == [
        "+0 ms  read  sent",
        "+500 ms  read  attempt 1 failed: OSError: gone; it is tried again",
        "+1.0 s  read  attempt 2 lost: its instance went silent; it is tried again",
        "+2.0 s  read  answered after 2.0 s (attempt 3)",
        "+2.0 s  ask  sent",
        "+2.0 s  write  sent",
        "+3.0 s  ask  waits for input: May it?  (llamactl tasks send t VALUE)",
        "+1 min 3 s  ask  goes on",
        "+1 min 4 s  ask  answered after 250 ms",
        "+1 min 5 s  write  failed: ValueError: bad",
        "+1 min 5 s  failed",
    ]


def test_what_the_code_of_a_step_has_recorded_is_told() -> None:
    lines: list[str] = []
    follower = PlainFollower(lines.append, "t")
    follower.take(entry(1, "submitted", messages=sends("read")))
    follower.take(entry(2, "called", step_id="t:read", attempt=1, child="c", reason="calls other"))
    follower.take(entry(3, "remembered", step_id="t:read", attempt=1, key="k"))
    assert lines[1:] == ["+0 ms  read  calls other  (task c)", "+0 ms  read  has 'k' remembered"]


def test_the_message_that_ends_a_task_is_no_step() -> None:
    hops = Hops()
    final = [{"step_id": "t:human", "service": "human", "action": "completed_task"}]
    assert hops.fold(entry(1, "answered", messages=final)) == []


def test_a_canceled_task_says_so() -> None:
    lines: list[str] = []
    shown = PlainFollower(lines.append, "t")
    shown.take(STORY[0])
    shown.take(entry(2, "canceled", after_s=1.0, reason="enough", outcome={"status": "canceled"}, state="canceled"))
    assert lines[-1] == "+1.0 s  canceled: enough"


def test_a_live_display_redraws_its_rows_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    written: list[str] = []
    shown = LiveFollower(written.append, "t")
    for part in STORY[:4]:
        shown.take(part)
    shown.tick()
    shown.close()
    assert written[1].startswith("\x1b[2F\x1b[J")
    lines = written[3].removeprefix("\x1b[2F\x1b[J").splitlines()
    assert lines[0] == "├─ ✓ read   2.0 s  attempt 3"
    assert lines[1].startswith("├─ ")
    assert lines[2].startswith("└─ ")
    assert lines[3] == "working"
    assert all(len(line) < 30 for line in lines)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("terminal", "term", "kind"),
    [(True, "xterm", LiveFollower), (True, "dumb", PlainFollower), (False, "xterm", PlainFollower)],
)
def test_only_a_terminal_gets_the_live_display(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, term: str, kind: type
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("sys.stderr", Terminal() if terminal else io.StringIO())
    assert isinstance(follower("t", on_stderr=True), kind)
    assert isinstance(follower("t", on_stderr=True, live=False), PlainFollower)


def test_a_question_is_told_once_and_again_with_the_problem_of_the_answer() -> None:
    lines: list[str] = []
    shown = PlainFollower(lines.append, "t")
    prompt = {"prompt": "May it?"}
    shown.take(entry(1, "submitted", messages=sends("ask")))
    shown.take(entry(2, "input_requested", step_id="t:ask", prompt=prompt, state="input_required"))
    shown.take(entry(3, "input_requested", step_id="t:ask", prompt=prompt, state="input_required"))
    shown.take(entry(4, "input", step_id="t:ask"))
    again = {**prompt, "problem": "no boolean"}
    shown.take(entry(5, "input_requested", step_id="t:ask", prompt=again, state="input_required"))
    asked = [line for line in lines if "waits for input" in line]
    assert len(asked) == 2
    assert "no boolean" in asked[1]
