"""A task's history as a timeline: one row for each hop, with when it waited and ran, attempt by attempt.

`Timeline` folds history entries and knows nothing of terminals; `drawn` draws it as lines of text for any width.
Neither knows what the task is about, so both serve any task of any deployment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from llama_deploy.types import HistoryEntry, TaskState

Kind = Literal["queued", "running", "pausing", "asking", "failed", "lost"]
"""`pausing` is the time before a retry, `asking` that of a person; `failed` and `lost` are attempts that ended so."""

SIGNS: dict[Kind, str] = {"queued": "░", "running": "█", "pausing": "╌", "asking": "?", "failed": "▓", "lost": "x"}
WORDS: dict[Kind, str] = {
    "queued": "waited",
    "running": "ran",
    "pausing": "paused before a retry",
    "asking": "waited for a person",
    "failed": "ran and failed",
    "lost": "was lost with its process",
}
BAR_WIDTH_MIN = 12
LABEL_WIDTH_MAX = 26
FIGURES_FROM_WIDTH = 72
"""A narrower picture has no columns of figures."""
TICK_WIDTH_MIN = 12

Paint = Callable[[str, str], str]
"""Gives a text the colour of a kind, or of `head`, `faint` or `again`."""


@dataclass(frozen=True, slots=True)
class Span:
    """What one hop did for a while. Times are seconds since the epoch."""

    kind: Kind
    begin_at: float
    end_at: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end_at - self.begin_at


@dataclass(slots=True)
class Hop:
    """One step of the task, in all its attempts."""

    step_id: str
    service: str
    tag: str
    """The orchestrator's own word for it; empty where it has none."""
    since: float
    """What was before this moment is in `spans`."""
    due_at: float = 0.0
    attempt: int = 1
    asking: bool = False
    ended: Literal["", "answered", "failed", "canceled"] = ""
    spans: list[Span] = field(default_factory=list)

    def did(self, kind: Kind, until: float | None) -> None:
        """Since the end of the last span it did this."""
        if until is not None and until > self.since:
            self.spans.append(Span(kind, self.since, until))
            self.since = until

    def total_s(self, *kinds: Kind) -> float:
        """Seconds that it did these things."""
        return sum(span.seconds for span in self.spans if span.kind in kinds)


@dataclass(slots=True)
class Timeline:
    """The hops of one task, in the order in which they were sent."""

    hops: dict[str, Hop] = field(default_factory=dict)
    state: TaskState = TaskState.SUBMITTED
    began_at: float = 0.0
    ended_at: float = 0.0
    """When the last entry was recorded; the end of the task once its state is final."""

    def fold(self, entry: HistoryEntry) -> Hop | None:
        """Take the next entry of the history; returns the hop that it is about, if it is about one."""
        self.began_at = self.began_at or entry.at
        self.ended_at, self.state = entry.at, entry.state
        hop = self.hops.get(entry.step_id or "")
        if hop is not None:
            self._about(hop, entry)
        for message in entry.messages:
            step_id = str(message.get("step_id") or "")
            if step_id and step_id not in self.hops and message.get("action") != "completed_task":
                due_at = entry.at + float(message.get("delay_s") or 0.0)
                service, tag = str(message.get("service") or ""), str(message.get("tag") or "")
                self.hops[step_id] = Hop(step_id, service, tag, since=entry.at, due_at=due_at)
        if entry.outcome is not None or entry.kind == "canceled":
            for left in self.hops.values():
                if not left.ended:
                    left.did("asking" if left.asking else "queued", entry.at)
                    left.ended = "canceled"
        return hop

    def _about(self, hop: Hop, entry: HistoryEntry) -> None:
        started_at = min(max(entry.started_at or entry.at, hop.since), entry.at)
        finished_at = min(max(entry.finished_at or entry.at, started_at), entry.at)
        if entry.kind != "input":
            hop.did("pausing", min(hop.due_at, started_at))
        if entry.kind == "answered":
            hop.did("asking" if hop.asking else "queued", started_at)
            hop.ended = "answered" if (entry.result or {}).get("status", "completed") == "completed" else "failed"
            hop.did("running" if hop.ended == "answered" else "failed", finished_at)
            hop.attempt = entry.attempt or hop.attempt
        elif entry.kind in {"retrying", "lost"}:
            if entry.started_at is not None:
                hop.did("queued", started_at)
            hop.did("failed" if entry.kind == "retrying" else "lost", finished_at)
            hop.due_at = entry.due_at or 0.0
            hop.attempt = (entry.attempt or hop.attempt) + 1
        elif entry.kind in {"input_requested", "input"}:
            hop.did("running" if entry.kind == "input_requested" else "asking", entry.at)
            hop.asking = entry.kind == "input_requested"


def drawn(
    timeline: Timeline,
    *,
    width: int,
    label: Callable[[str], str] = str,
    paint: Paint = lambda text, _kind: text,
) -> Iterator[str]:
    """The timeline in lines of at most `width` columns (40 at least); hops with one tag stand together.

    `label` is what a tag is called; `paint` adds colour.
    """
    groups: dict[str, list[Hop]] = {}
    for hop in timeline.hops.values():
        groups.setdefault(hop.tag, []).append(hop)
    labels = {tag: label(tag) for tag in groups}
    label_width = min(LABEL_WIDTH_MAX, width // 4, max((len(text) for text in labels.values()), default=0))
    service_width = max((len(hop.service) for hop in timeline.hops.values()), default=0)
    again = any(hop.attempt > 1 for hop in timeline.hops.values())
    figures = width >= FIGURES_FROM_WIDTH
    right = (18 if figures else 0) + (12 if again else 0)
    bar_width = max(BAR_WIDTH_MIN, width - label_width - service_width - 4 - right)
    scale = bar_width / max(timeline.ended_at - timeline.began_at, 1e-3)

    head = f"{'':<{label_width}}  {'':<{service_width}}  {_axis(bar_width, scale)}"
    yield paint((head + f"{'waited':>9}{'ran':>9}" if figures else head).rstrip(), "head")
    for tag, hops in groups.items():
        for number, hop in enumerate(hops):
            name = _cut(labels[tag], label_width) if number == 0 else ""
            line = f"{name:<{label_width}}  {hop.service:<{service_width}}  "
            for kind, cells in groupby(_cells(hop, timeline, bar_width, scale)):
                text = "".join(SIGNS[kind] if kind else " " for _ in cells)
                line += paint(text, kind) if kind else text
            if figures:
                waited_s, ran_s = hop.total_s("queued", "pausing", "asking"), hop.total_s("running", "failed", "lost")
                line += paint(f"{duration(waited_s):>9}", "faint") + f"{duration(ran_s):>9}"
            if hop.attempt > 1:
                line += paint(f"  attempt {hop.attempt}", "again")
            yield line.rstrip()
    seen = {span.kind for hop in timeline.hops.values() for span in hop.spans}
    legend = ""
    for kind, sign in SIGNS.items():
        if kind in seen:
            if len(legend) + len(WORDS[kind]) + 4 > width:
                yield _painted(legend, paint)
                legend = ""
            legend += f"{'  ' if legend else ''}{sign} {WORDS[kind]}"
    yield _painted(legend, paint)


def duration(seconds: float) -> str:
    """A span of time for a person: `12 ms`, `3.4 s`, `2 min 5 s`."""
    if seconds < 0.9995:  # noqa: PLR2004 - what rounds to a second
        return f"{seconds * 1000:.0f} ms"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _cells(hop: Hop, timeline: Timeline, width: int, scale: float) -> list[Kind | None]:
    """What to show in each column: of short spans at least one column, and work before waiting."""
    cells: list[Kind | None] = [None] * width
    for span in sorted(hop.spans, key=lambda span: span.kind != "queued"):
        first = min(width - 1, int((span.begin_at - timeline.began_at) * scale))
        last = max(first + 1, round((span.end_at - timeline.began_at) * scale))
        for column in range(first, min(width, last)):
            cells[column] = span.kind
    return cells


def _axis(width: int, scale: float) -> str:
    """Times at round intervals, each where it is."""
    wanted_s = TICK_WIDTH_MIN / scale
    power = 10 ** math.floor(math.log10(wanted_s))
    interval_s = next(step * power for step in (1, 2, 5, 10) if step * power >= wanted_s)
    line = ""
    for number in range(int(width / scale / interval_s) + 1):
        at = round(number * interval_s * scale)
        text = f"{number * interval_s:g} s"
        if at + len(text) <= width:
            line = f"{line:<{at}}{text}"
    return f"{line:<{width}}"


def _painted(legend: str, paint: Paint) -> str:
    for kind, sign in SIGNS.items():
        legend = legend.replace(f"{sign} {WORDS[kind]}", f"{paint(sign, kind)} {WORDS[kind]}")
    return legend


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
