"""The timeline of a task: what its history says about each hop, and how it looks in any width."""

from __future__ import annotations

from typing import Any

import pytest
from timeline import Timeline, drawn, duration

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
            ("pausing", 1.5, 3.0),
            ("queued", 3.0, 3.5),
            ("running", 3.5, 4.0),
        ],
        "check a.txt": [("queued", 1.0, 1.5), ("lost", 1.5, 2.0), ("queued", 2.0, 2.5), ("running", 2.5, 3.0)],
        "ask b.txt": [("running", 4.0, 5.0), ("asking", 5.0, 9.0), ("running", 9.0, 10.0)],
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
    assert spans(told(story))["read a.txt"] == [("pausing", 0.0, 2.0), ("queued", 2.0, 3.0), ("running", 3.0, 4.0)]


def test_a_failed_answer_is_no_run() -> None:
    timeline = told([STORY[0], answered(2, 1.0, "read a.txt", 0.5, result={"status": "failed"})])
    assert timeline.hops["read a.txt"].ended == "failed"
    assert spans(timeline)["read a.txt"] == [("queued", 0.0, 0.5), ("failed", 0.5, 1.0)]


def test_clocks_that_differ_do_not_turn_time_around() -> None:
    timeline = told([STORY[0], answered(2, 1.0, "read a.txt", -5.0), answered(3, 2.0, "read b.txt", 7.0)])
    assert spans(timeline)["read a.txt"] == [("running", 0.0, 1.0)]
    assert spans(timeline)["read b.txt"] == [("queued", 0.0, 2.0)]


def test_the_picture() -> None:
    assert list(drawn(told(STORY), width=74, label=str.upper)) == [
        "              0 s            5 s               waited      ran",
        "A.TXT  read   ░██                              500 ms   500 ms",
        "       check     ░xx░██                         1.0 s    1.0 s  attempt 2",
        "B.TXT  read   ░░░▓╌╌╌╌╌░██                      3.0 s    1.0 s  attempt 2",
        "       ask                ███????????????███    4.0 s    2.0 s",
        "░ waited  █ ran  ╌ paused before a retry  ? waited for a person",
        "▓ ran and failed  x was lost with its process",
    ]


def test_the_picture_is_painted_by_kind() -> None:
    painted = list(drawn(told(STORY[:2]), width=74, paint=lambda text, kind: f"<{kind}>{text}</>"))
    assert "<queued>" in painted[1]
    assert painted[-1] == "<queued>░</> waited  <running>█</> ran"


@pytest.mark.parametrize("width", [40, 60, 72, 80, 100, 133, 240])
@pytest.mark.parametrize("story", [STORY, STORY[:1], STORY[:3]])
def test_it_fits_any_width(story: list[HistoryEntry], width: int) -> None:
    lines = list(drawn(told(story), width=width))
    assert max(map(len, lines)) <= width
    assert len(lines) >= len(told(story).hops) + 2


def test_a_very_short_run_is_seen_all_the_same() -> None:
    story = [STORY[0], answered(2, 5.0, "read a.txt", 4.9999), answered(3, 10.0, "read b.txt", 0.0)]
    row = next(line for line in drawn(told(story), width=80) if line.startswith("a.txt"))
    assert "█" in row


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0, "0 ms"), (0.0124, "12 ms"), (0.9999, "1.0 s"), (12.34, "12.3 s"), (125, "2 min 5 s")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
