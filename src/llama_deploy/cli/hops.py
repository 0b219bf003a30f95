"""A task's history as a person follows it: which step is where, which attempt it is, and what it waits for.

`Hops` folds history entries into one row per step and knows nothing of terminals. `PlainFollower` writes a line per
entry; `LiveFollower` redraws the rows in place, on a terminal.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from llama_deploy.cli.output import compact, duration
from llama_deploy.types import HistoryEntry, TaskState

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_SIGNS = {"answered": "✓", "failed": "✗", "again": "↻", "lost": "↻", "input": "?", "canceled": "✗"}


@dataclass(slots=True)
class Hop:
    """One step, as far as the history has told."""

    step_id: str
    service: str
    sent_at: float
    state: str = "sent"
    """`sent`, `answered`, `failed`, `canceled`, `input` (a person is asked), `again` (failed, a retry is due), or
    `lost` (its instance went silent, another one gets it)."""
    attempt: int = 1
    took_s: float | None = None
    note: str = ""


@dataclass(slots=True)
class Hops:
    """The steps of a task in the order in which they were sent."""

    rows: dict[str, Hop] = field(default_factory=dict)
    state: TaskState = TaskState.SUBMITTED
    submitted_at: float | None = None
    paused: bool = False

    @property
    def eventful(self) -> bool:
        """Whether there is more to see than one step that was answered at its first attempt."""
        return len(self.rows) > 1 or any(hop.attempt > 1 for hop in self.rows.values())

    def fold(self, entry: HistoryEntry) -> list[Hop]:
        """Take the next entry of the history; returns the rows that it changed or added."""
        if self.submitted_at is None:
            self.submitted_at = entry.at
        self.state = entry.state
        if entry.kind in {"paused", "resumed"}:
            self.paused = entry.kind == "paused"
        changed = [hop for hop in (self._about(entry),) if hop is not None]
        for message in entry.messages:
            hop = self._sent(message, entry)
            if hop is not None and hop not in changed:
                changed.append(hop)
        return changed

    def _about(self, entry: HistoryEntry) -> Hop | None:
        hop = self.rows.get(entry.step_id or "")
        if hop is None:
            return None
        hop.attempt = entry.attempt or hop.attempt
        if entry.kind == "answered":
            failed = (entry.result or {}).get("status", "completed") != "completed"
            hop.state = "failed" if failed else "answered"
            hop.note = _said((entry.result or {}).get("error")) if failed else ""
            hop.took_s = _span(entry, since=hop.sent_at)
        elif entry.kind in {"retrying", "lost", "paused"}:
            hop.state = "lost" if entry.kind == "lost" else "again"
            hop.note = _said(entry.error.model_dump() if entry.error is not None else None) or entry.reason or ""
        elif entry.kind == "input_requested":
            asked = _prompt(entry.prompt)
            if (hop.state, hop.note) == ("input", asked):
                return None  # the step that asked lets go of its instance: nothing new for a person
            hop.state, hop.note = "input", asked
        elif entry.kind == "input":
            hop.state, hop.note = "sent", ""
        elif entry.kind == "canceled":
            hop.state, hop.note = "canceled", entry.reason or ""
        elif entry.kind == "called":
            hop.state, hop.note = "sent", f"{entry.reason or 'calls'}  (task {entry.child})"
        elif entry.kind == "remembered":
            hop.state, hop.note = "sent", f"has {entry.key!r} remembered"
        return hop

    def _sent(self, message: dict[str, Any], entry: HistoryEntry) -> Hop | None:
        """The row of a step that is sent now; a message that ends the task is no step."""
        step_id = message.get("step_id")
        if not step_id or message.get("action") == "completed_task":
            return None
        known = self.rows.get(step_id)
        if known is not None:
            if known.state != "again":
                known.state = "again"
            return known
        hop = Hop(step_id, str(message.get("service") or ""), entry.at)
        self.rows[step_id] = hop
        return hop


class Follower(Protocol):
    """Shows a task's history as it grows."""

    hops: Hops
    """What it has been given so far."""

    def take(self, entry: HistoryEntry) -> None:
        """Show the next entry."""

    def tick(self) -> None:
        """Some time has passed."""

    def close(self) -> None:
        """Leave the display as it is."""


class PlainFollower:
    """One line per event, for files, pipes and dumb terminals."""

    def __init__(self, write: Callable[[str], None], task_id: str) -> None:
        self.hops = Hops()
        self._write = write
        self._task_id = task_id

    def take(self, entry: HistoryEntry) -> None:
        new = set(self.hops.rows)
        changed = self.hops.fold(entry)
        since = entry.at - (self.hops.submitted_at or entry.at)
        for hop in changed if entry.kind != "paused" else ():
            self._write(f"+{duration(since)}  {_line(hop, sent=hop.step_id not in new, task_id=self._task_id)}")
        if entry.kind in {"paused", "resumed", "migrated", "moved"}:
            by = f" by {entry.by}" if entry.by and not entry.step_id else ""
            self._write(f"+{duration(since)}  {entry.kind}{by}{f': {entry.reason}' if entry.reason else ''}")
        elif entry.outcome is not None or (entry.kind == "canceled" and not changed):
            told = entry.kind in {"canceled", "timed_out"} and entry.reason
            reason = f": {entry.reason}" if told else ""
            by = f" by {entry.by}" if entry.kind == "canceled" and entry.by not in {None, "http"} else ""
            self._write(f"+{duration(since)}  {entry.state.value}{by}{reason}")

    def tick(self) -> None:
        """Nothing moves here between two entries."""

    def close(self) -> None:
        """Every line has been written."""


class LiveFollower:
    """The rows of the task, redrawn in place."""

    def __init__(self, write: Callable[[str], None], task_id: str) -> None:
        self.hops = Hops()
        self._write = write
        self._task_id = task_id
        self._drawn = 0
        self._ticks = 0

    def take(self, entry: HistoryEntry) -> None:
        self.hops.fold(entry)
        self._draw()

    def tick(self) -> None:
        self._ticks += 1
        self._draw()

    def close(self) -> None:
        self._draw()
        self._drawn = 0

    def _draw(self) -> None:
        width = shutil.get_terminal_size().columns - 1
        lines = list(self._lines())
        back = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
        self._write(back + "".join(line[:width] + "\n" for line in lines))
        self._drawn = len(lines)

    def _lines(self) -> Iterator[str]:
        now = time.time()
        rows = list(self.hops.rows.values())
        width = max((len(hop.service) for hop in rows), default=0)
        for number, hop in enumerate(rows, start=1):
            branch = "└─" if number == len(rows) else "├─"
            sign = _SIGNS.get(hop.state) or _SPINNER[self._ticks % len(_SPINNER)]
            took_s = hop.took_s if hop.took_s is not None else max(0.0, now - hop.sent_at)
            attempt = f"  attempt {hop.attempt}" if hop.attempt > 1 or hop.state in {"again", "lost"} else ""
            note = f"  {hop.note}" if hop.note else ""
            yield f"{branch} {sign} {hop.service:<{width}}  {duration(took_s)}{attempt}{note}"
        yield self.hops.state.value.replace("_", " ") + (", paused" if self.hops.paused else "")


def follower(task_id: str, *, on_stderr: bool, live: bool = True) -> Follower:
    """The follower that fits where it writes: live on a terminal that can move its cursor, else plain.

    `live=False` says that something else writes to the terminal as well, which a redraw would wipe out.
    """
    import os

    stream = sys.stderr if on_stderr else sys.stdout

    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    if live and stream.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return LiveFollower(write, task_id)
    return PlainFollower(lambda line: write(line + "\n"), task_id)


def _line(hop: Hop, *, sent: bool, task_id: str) -> str:
    note = f": {hop.note}" if hop.note else ""
    if sent:
        return f"{hop.service}  sent"
    if hop.state == "answered":
        return f"{hop.service}  answered after {duration(hop.took_s or 0)}" + _attempt(hop)
    if hop.state == "failed":
        return f"{hop.service}  failed{_attempt(hop)}{note}"
    if hop.state == "again":
        return f"{hop.service}  attempt {hop.attempt} failed{note}; it is tried again"
    if hop.state == "lost":
        return f"{hop.service}  attempt {hop.attempt} lost{note}; it is tried again"
    if hop.state == "input":
        return f"{hop.service}  waits for input{note}  (llamactl tasks send {task_id} VALUE)"
    if hop.state == "canceled":
        return f"{hop.service}  canceled{note}"
    return f"{hop.service}  {hop.note or 'goes on'}"


def _attempt(hop: Hop) -> str:
    return f" (attempt {hop.attempt})" if hop.attempt > 1 else ""


def _span(entry: HistoryEntry, *, since: float) -> float:
    if entry.started_at is not None and entry.finished_at is not None:
        return max(0.0, entry.finished_at - entry.started_at)
    return max(0.0, entry.at - since)


def _said(error: dict[str, Any] | None) -> str:
    if not error:
        return ""
    said = ": ".join(part for part in (error.get("type"), error.get("message")) if part)
    return said.splitlines()[0] if said else str(error.get("code") or "")


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, dict) and isinstance(prompt.get("prompt"), str):
        problem = f"  (the answer before: {prompt['problem']})" if prompt.get("problem") else ""
        return str(prompt["prompt"]) + problem
    return prompt if isinstance(prompt, str) else compact(prompt)
