"""The timeline of a task: what its history says about each hop, and how it looks in any width."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest
from tests.cli.conftest import Llamactl, ask_clerk

from llama_deploy.cli.timeline import Timeline
from llama_deploy.cli.timeline_picture import ASCII, drawn, print_timeline
from llama_deploy.types import HistoryEntry, TaskError, TaskState

AT = 1_700_000_000.0


def sends(*steps: str, delay_s: float = 0.0) -> list[dict[str, Any]]:
    """Messages; a step is called `service tag`."""
    sent = [(step, *step.split()) for step in steps]
    return [{"step_id": step, "service": service, "tag": tag, "delay_s": delay_s} for step, service, tag in sent]


def entry(seq: int, kind: str, at_s: float, **fields: Any) -> HistoryEntry:
    for name in ("started_at", "finished_at", "due_at"):
        if name in fields:
            fields[name] += AT
    state = TaskState(fields.pop("state", "working"))
    return HistoryEntry(seq=seq, at=AT + at_s, kind=kind, state=state, **fields)


def answered(seq: int, at_s: float, step: str, started_at: float, attempt: int = 1, **fields: Any) -> HistoryEntry:
    fields = {"result": {"status": "completed"}, **fields}
    return entry(
        seq, "answered", at_s, step_id=step, attempt=attempt, started_at=started_at, finished_at=at_s, **fields
    )


STORY = [
    entry(1, "submitted", 0.0, messages=sends("read a.txt", "read b.txt"), state="submitted"),
    answered(2, 1.0, "read a.txt", 0.5, messages=sends("check a.txt")),
    entry(3, "lost", 2.0, step_id="check a.txt", attempt=1, started_at=1.5, reason="its instance is gone"),
    entry(
        4, "retrying", 2.0, step_id="read b.txt", attempt=1, started_at=1.0, finished_at=1.5, due_at=3.0,
        error=TaskError(type="OSError", message="gone"),
    ),
    answered(5, 3.0, "check a.txt", 2.5, attempt=2),
    answered(6, 4.0, "read b.txt", 3.5, attempt=2, messages=sends("ask b.txt")),
    entry(7, "input_requested", 5.0, step_id="ask b.txt", state="input_required"),
    entry(8, "input", 9.0, step_id="ask b.txt"),
    answered(9, 10.0, "ask b.txt", 4.0, outcome={"status": "completed"}, state="completed"),
]  # fmt: skip


def told(story: list[HistoryEntry]) -> Timeline:
    timeline = Timeline()
    for part in story:
        timeline.fold(part)
    return timeline


def spans(timeline: Timeline) -> dict[str, list[tuple[str, float, float]]]:
    return {
        hop.step_id: [(span.kind, span.begin_at - AT, span.end_at - AT) for span in hop.spans]
        for hop in timeline.hops.values()
    }


def test_every_hop_says_what_it_did_and_when() -> None:
    assert spans(told(STORY)) == {
        "read a.txt": [("queued", 0.0, 0.5), ("running", 0.5, 1.0)],
        "read b.txt": [
            ("queued", 0.0, 1.0),
            ("failed", 1.0, 1.5),
            ("delayed", 1.5, 3.0),
            ("queued", 3.0, 3.5),
            ("running", 3.5, 4.0),
        ],
        "check a.txt": [("queued", 1.0, 1.5), ("lost", 1.5, 2.0), ("queued", 2.0, 2.5), ("running", 2.5, 3.0)],
        "ask b.txt": [("running", 4.0, 5.0), ("input", 5.0, 9.0), ("running", 9.0, 10.0)],
    }


def test_attempts_and_ends() -> None:
    timeline = told(STORY)
    assert {hop.step_id: (hop.attempt, hop.ended) for hop in timeline.hops.values()} == {
        "read a.txt": (1, "answered"),
        "read b.txt": (2, "answered"),
        "check a.txt": (2, "answered"),
        "ask b.txt": (1, "answered"),
    }
    assert (timeline.state, timeline.began_at, timeline.ended_at) == (TaskState.COMPLETED, AT, AT + 10.0)


def test_a_loss_of_which_nobody_knows_the_beginning_covers_the_whole_wait() -> None:
    story = [*STORY[:2], entry(3, "lost", 2.0, step_id="check a.txt", attempt=1)]
    assert spans(told(story))["check a.txt"] == [("lost", 1.0, 2.0)]


def test_what_is_open_when_the_task_ends_is_canceled() -> None:
    timeline = told([STORY[0], entry(2, "canceled", 3.0, reason="enough", outcome={}, state="canceled")])
    assert spans(timeline)["read a.txt"] == [("queued", 0.0, 3.0)]
    assert {hop.ended for hop in timeline.hops.values()} == {"canceled"}


def test_a_delayed_message_pauses_first() -> None:
    story = [
        entry(1, "submitted", 0.0, messages=sends("read a.txt", delay_s=2.0)),
        answered(2, 4.0, "read a.txt", 3.0),
    ]
    assert spans(told(story))["read a.txt"] == [("delayed", 0.0, 2.0), ("queued", 2.0, 3.0), ("running", 3.0, 4.0)]


def test_a_failed_answer_is_no_run() -> None:
    timeline = told([STORY[0], answered(2, 1.0, "read a.txt", 0.5, result={"status": "failed"})])
    assert timeline.hops["read a.txt"].ended == "failed"
    assert spans(timeline)["read a.txt"] == [("queued", 0.0, 0.5), ("failed", 0.5, 1.0)]


def test_clocks_that_differ_do_not_turn_time_around() -> None:
    timeline = told([STORY[0], answered(2, 1.0, "read a.txt", -5.0), answered(3, 2.0, "read b.txt", 7.0)])
    assert spans(timeline)["read a.txt"] == [("running", 0.0, 1.0)]
    assert spans(timeline)["read b.txt"] == [("queued", 0.0, 2.0)]


def test_a_message_for_a_step_that_failed_is_another_attempt_of_it() -> None:
    again = sends("read a.txt", delay_s=1.0)
    timeline = told(
        [
            STORY[0],
            answered(2, 1.0, "read a.txt", 0.5, result={"status": "failed"}, messages=again),
            answered(3, 3.0, "read a.txt", 2.5, attempt=2),
        ]
    )
    hop = timeline.hops["read a.txt"]
    assert (hop.attempt, hop.ended) == (2, "answered")
    assert [(span.kind, span.attempt) for span in hop.spans] == [
        ("queued", 1),
        ("failed", 1),
        ("delayed", 2),
        ("queued", 2),
        ("running", 2),
    ]


def test_a_question_that_is_asked_again_is_one_wait() -> None:
    asked = [
        entry(seq, "input_requested", at_s, step_id="read a.txt", state="input_required")
        for seq, at_s in ((2, 1), (3, 2))
    ]
    timeline = told([STORY[0], *asked, entry(4, "input", 9.0, step_id="read a.txt")])
    assert spans(timeline)["read a.txt"] == [("running", 0.0, 1.0), ("input", 1.0, 2.0), ("input", 2.0, 9.0)]


@pytest.mark.parametrize(
    ("story", "waits", "expected"),
    [
        (STORY[:1], True, {"read a.txt": [("queued", 0.0, 9.0)]}),
        (STORY[:1], False, {"read a.txt": [("sent", 0.0, 9.0)]}),
        (STORY[:4], False, {"read b.txt": [("delayed", 1.5, 3.0), ("sent", 3.0, 9.0)]}),
        (STORY[:7], True, {"ask b.txt": [("running", 4.0, 5.0), ("input", 5.0, 9.0)]}),
        (STORY, False, {"ask b.txt": [("input", 5.0, 9.0), ("running", 9.0, 10.0)]}),
    ],
)
def test_what_has_not_ended_goes_on_until_now(
    story: list[HistoryEntry], waits: bool, expected: dict[str, list[tuple[str, float, float]]]
) -> None:
    timeline = told(story)
    timeline.go_on(AT + 9.0, waits=waits)
    for step, last in expected.items():
        assert spans(timeline)[step][-len(last) :] == last


def test_a_row_as_json() -> None:
    assert told(STORY[:3]).hops["check a.txt"].document() == {
        "step_id": "check a.txt",
        "service": "check",
        "tag": "a.txt",
        "state": "lost",
        "attempt": 2,
        "waited_s": 0.5,
        "ran_s": 0.5,
        "spans": [
            {"kind": kind, "attempt": 1, "begin_at": f"2023-11-14T22:13:{begin}Z", "end_at": f"2023-11-14T22:13:{end}Z"}
            for kind, begin, end in (("queued", "21.000", "21.500"), ("lost", "21.500", "22.000"))
        ],
    }


# --- the picture ------------------------------------------------------------------------------------------------------


def test_the_picture() -> None:
    assert list(drawn(told(STORY), width=74)) == [
        "              0 s             5 s               waited      ran",
        "a.txt  read   ░██                               500 ms   500 ms",
        "       check     ░xx░██                          1.0 s    1.0 s  attempt 2",
        "b.txt  read   ░░░▓╌╌╌╌╌░██                       3.0 s    1.0 s  attempt 2",
        "       ask                ███????????????████    4.0 s    2.0 s",
        "░ waited  █ ran  ╌ paused before it was due  ? waited for a person",
        "▓ ran and failed  x was lost with its process",
    ]


def test_the_picture_in_ascii() -> None:
    lines = list(drawn(told(STORY), width=60, signs=ASCII))
    assert lines == [
        "              0 s               5 s",
        "a.txt  read   .###",
        "       check     ..xx.##                           attempt 2",
        "b.txt  read   ...!!-----..##                       attempt 2",
        "       ask                  ###??????????????####",
        ". waited  # ran  - paused before it was due",
        "? waited for a person  ! ran and failed",
        "x was lost with its process",
    ]


def test_the_picture_is_painted_by_kind() -> None:
    painted = list(drawn(told(STORY[:2]), width=74, paint=lambda text, kind: f"<{kind}>{text}</>"))
    assert "<queued>" in painted[1]
    assert painted[-1] == "<queued>░</> waited  <running>█</> ran"


def paused(*pauses_s: float) -> list[HistoryEntry]:
    """A step that runs for a second, a person is asked for so long, and so on."""
    story = [entry(1, "submitted", 0.0, messages=sends("ask a"))]
    at_s = 0.0
    for pause_s in pauses_s:
        story.append(entry(len(story) + 1, "input_requested", at_s + 1, step_id="ask a", state="input_required"))
        at_s += 1 + pause_s
        story.append(entry(len(story) + 1, "input", at_s, step_id="ask a"))
    return [*story, answered(len(story) + 1, at_s + 1, "ask a", at_s, outcome={}, state="completed")]


@pytest.mark.parametrize(
    ("pauses_s", "axis", "bar"),
    [
        (
            [4.0],
            "        0 s                  2 s                 4 s",
            "a  ask  ██████████?????????????????????????????????????????███████████",
        ),
        (
            [7230.0],
            "        0 s           0.5 s           ≈ 2 h 0 min      +0.5 s",
            "a  ask  █████████████████████████████?≈?██████████████████████████████",
        ),
        (
            [7230.0, 86_400.0 * 3],
            "        0 s                ≈ 2 h 0 min           ≈ 74 h 0 min",
            "a  ask  ██████████████████?≈?███████████████████?≈?███████████████████",
        ),
    ],
)
def test_long_gaps_are_cut_and_the_cut_is_marked(pauses_s: list[float], axis: str, bar: str) -> None:
    head, row, *_ = drawn(told(paused(*pauses_s)), width=70)
    assert (head, row) == (axis, bar)


def test_work_is_never_cut() -> None:
    story = [STORY[0], answered(2, 500.0, "read a.txt", 0.0), answered(3, 1000.0, "read b.txt", 900.0)]
    assert "≈" not in "".join(drawn(told(story), width=80))


def test_a_task_of_which_nothing_ran_yet_is_all_wait() -> None:
    timeline = told(STORY[:1])
    timeline.go_on(AT + 86_400.0, waits=True)
    head, row, *_ = drawn(timeline, width=70)
    assert "12 h" in head
    assert row.count("░") > 40
    assert "≈" not in row


@pytest.mark.parametrize(
    ("seconds", "labels"),
    [
        (0.02, ["0 ms", "5 ms", "10 ms", "15 ms"]),
        (50.0, ["0 s", "20 s", "40 s"]),
        (100.0, ["0 s", "30 s", "60 s", "90 s"]),
        (1000.0, ["0 min", "5 min", "10 min", "15 min"]),
        (40_000.0, ["0 h", "3 h", "6 h", "9 h"]),
        (1e7, ["0 d", "50 d", "100 d"]),
    ],
)
def test_the_axis_has_round_times(seconds: float, labels: list[str]) -> None:
    head = next(drawn(told([STORY[0], answered(2, seconds, "read a.txt", 0.0)]), width=70))
    assert [label.strip() for label in head.split("  ") if label.strip()] == labels


@pytest.mark.parametrize("width", [40, 60, 72, 80, 100, 133, 240])
@pytest.mark.parametrize(
    "story",
    [STORY, STORY[:1], STORY[:3], paused(1e4, 1e5, 1e6, 10, 1e7), paused(*[60.0] * 50)],
    ids=["all", "one", "some", "gaps", "many gaps"],
)
def test_it_fits_any_width(story: list[HistoryEntry], width: int) -> None:
    lines = list(drawn(told(story), width=width))
    assert max(map(len, lines)) <= width
    assert len(lines) > len(told(story).hops)


def test_long_names_are_shortened_and_wide_ones_measured() -> None:
    sent = [
        {"step_id": "1", "service": "a-service-with-a-very-long-name-indeed", "tag": "調査報告書" * 5},
        {"step_id": "2", "service": "b", "tag": "two\nlines\x1b[31m"},
    ]
    story = [entry(1, "submitted", 0.0, messages=sent)]
    story += [answered(2, 1.0, "1", 0.5, attempt=11), answered(3, 2.0, "2", 1.5, attempt=2)]
    assert list(drawn(told(story), width=40))[1:-1] == [
        "調査報…   a-service…  ░██     attempt 11",
        "two lin…  b           ░░░░██  attempt 2",
    ]


def test_what_happened_to_the_task_as_a_whole_is_noted_below() -> None:
    story = [
        STORY[0],
        entry(2, "moved", 1.5, release="2", service="read", reason="release 1 goes on no more: it is retired"),
        entry(3, "paused", 2.0, step_id="read a.txt", attempt=1, started_at=0.5, reason="of a step"),
        entry(4, "paused", 3.0),
    ]
    lines = list(drawn(told(story), width=100))
    assert lines[-2:] == [
        "+1.5 s  moved to release 2 (release 1 goes on no more: it is retired)",
        "+3.0 s  paused",
    ]
    assert max(map(len, drawn(told(story), width=40))) <= 40


def test_tags_that_are_paths_are_shown_without_their_folder() -> None:
    story = [entry(1, "submitted", 0.0, messages=sends("read /a/b/one.txt", "read /a/b/two.txt"))]
    assert [line.split()[0] for line in list(drawn(told(story), width=80))[1:3]] == ["one.txt", "two.txt"]


def test_a_very_short_run_is_seen_all_the_same() -> None:
    story = [STORY[0], answered(2, 5.0, "read a.txt", 4.9999), answered(3, 10.0, "read b.txt", 0.0)]
    row = next(line for line in drawn(told(story), width=80) if line.startswith("a.txt"))
    assert "█" in row


# --- where it is printed ----------------------------------------------------------------------------------------------


class Output(io.TextIOWrapper):
    """Standard output of some encoding, on a terminal or not."""

    def __init__(self, encoding: str = "utf-8", *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def printed(monkeypatch: pytest.MonkeyPatch, output: Output, width: int | None = None) -> str:
    monkeypatch.setattr("sys.stdout", output)
    print_timeline(told(STORY), width=width)
    output.flush()
    assert isinstance(output.buffer, io.BytesIO)
    return output.buffer.getvalue().decode(output.encoding)


@pytest.mark.parametrize(
    ("terminal", "term", "no_colour", "coloured"),
    [
        (True, "xterm", "", True),
        (True, "xterm", "1", False),
        (True, "dumb", "", False),
        (False, "xterm", "", False),
    ],
)
def test_colour_is_for_terminals_that_have_it_and_people_who_want_it(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, term: str, no_colour: str, coloured: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("NO_COLOR", no_colour)
    assert ("\x1b[" in printed(monkeypatch, Output(terminal=terminal))) is coloured


@pytest.mark.parametrize(("encoding", "ascii_only"), [("utf-8", False), ("latin-1", True), ("ascii", True)])
def test_without_utf8_it_is_ascii(monkeypatch: pytest.MonkeyPatch, encoding: str, ascii_only: bool) -> None:
    assert printed(monkeypatch, Output(encoding)).isascii() is ascii_only


@pytest.mark.parametrize(("columns", "width", "expected"), [("", None, 100), ("60", None, 60), ("60", 80, 80)])
def test_it_is_as_wide_as_the_terminal_or_as_asked_for(
    monkeypatch: pytest.MonkeyPatch, columns: str, width: int | None, expected: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(os, "get_terminal_size", _no_terminal)
    lines = printed(monkeypatch, Output(), width).splitlines()
    assert expected - 5 <= max(map(len, lines)) <= expected


def _no_terminal(descriptor: int) -> os.terminal_size:
    raise OSError(descriptor)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_draws_a_task_that_has_ended(ctl: Llamactl) -> None:
    task_id = ctl("run", "count", "-a", "to", "1", "-o", "name").out.strip()
    ran = ctl("tasks", "timeline", task_id, "--width", "60")
    assert (ran.code, ran.err) == (0, "")
    _, row, legend, blank, end = ran.out.splitlines()
    assert row.startswith("  count  ")
    assert "█ ran" in legend
    assert blank == ""
    assert end.startswith("completed after ")
    assert end.endswith(", 1 step")


def test_the_command_draws_a_task_that_goes_on(server: str, ctl: Llamactl) -> None:
    task_id = ask_clerk(server)
    out = ctl("tasks", "timeline", task_id).out
    assert "? waited for a person" in out
    assert out.splitlines()[-1].endswith(", 1 step; waits for a person's input for clerk: May it go out?")
    assert ctl("tasks", "timeline", task_id, "-o", "json").json["items"][0]["state"] == "input"
    ctl("tasks", "cancel", task_id)
    assert ctl("tasks", "timeline", task_id, "-o", "json").json["items"][0]["state"] == "canceled"


def test_the_rows_are_data_for_programs(ctl: Llamactl) -> None:
    task_id = ctl("run", "count", "-a", "to", "1", "-o", "name").out.strip()
    document = ctl("tasks", "timeline", task_id, "-o", "json").json
    assert document["next"] is None
    (row,) = document["items"]
    assert (row["service"], row["state"], row["attempt"]) == ("count", "answered", 1)
    assert [span["kind"] for span in row["spans"]][-1] == "running"
    assert ctl("tasks", "timeline", task_id, "-o", "jsonl").lines == [row]
    assert ctl("tasks", "timeline", task_id, "-o", "name").out.strip() == row["step_id"]


def test_a_task_with_more_to_see_is_told_to_have_a_timeline(ctl: Llamactl) -> None:
    simple = ctl("run", "count", "-a", "to", "1")
    assert "tasks timeline" not in simple.err
    again = ctl("run", "flaky")
    task_id = again.err.splitlines()[0].removeprefix("task ")
    hint = f"Next: llamactl tasks timeline {task_id}"
    assert again.err.splitlines()[-1] == hint
    assert ctl("tasks", "get", task_id).err.splitlines() == [hint]
    assert ctl("tasks", "get", task_id, "-q").err == ""
    assert ctl("tasks", "get", task_id, "-o", "json").err == ""
    assert "attempt 2" in ctl("tasks", "timeline", task_id).out
