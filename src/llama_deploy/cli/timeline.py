"""A task's history as a timeline: when each hop waited, for what, and when it ran, attempt by attempt.

`Timeline` folds history entries and knows nothing of terminals; `timeline_picture.py` draws it. Neither knows what the
task is about, so both serve any task of any deployment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from llama_deploy.cli.output import duration, iso_time
from llama_deploy.types import FINAL_STATES, HistoryEntry, TaskState
from llama_deploy.types.reserved import PERSON_SERVICE, TIMER_SERVICE

Kind = Literal["queued", "sent", "running", "delayed", "input", "failed", "lost"]
"""What a hop did for a while: waited to be taken, waited for its time (a retry's pause, a delay) or for a person, or
ran; `failed` and `lost` are attempts that ended so. `sent` is now, before anything is recorded: it is held or waits."""

WAITING: tuple[Kind, ...] = ("queued", "delayed", "input")
WORKING: tuple[Kind, ...] = ("running", "failed", "lost")

_ANSWERED_HERE = {PERSON_SERVICE: "(a person)", TIMER_SERVICE: "(time)"}
"""What is shown for the names that the control plane answers itself."""


@dataclass(frozen=True, slots=True)
class Span:
    """What one hop did for a while. Times are seconds since the epoch."""

    kind: Kind
    begin_at: float
    end_at: float
    attempt: int = 1

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
            self.spans.append(Span(kind, self.since, until, self.attempt))
            self.since = until

    def total_s(self, kinds: tuple[Kind, ...]) -> float:
        """Seconds that it did these things."""
        return sum(span.seconds for span in self.spans if span.kind in kinds)

    def document(self) -> dict[str, Any]:
        """All of it as JSON. `state` is how it ended, or what it does now."""
        return {
            "step_id": self.step_id,
            "service": self.service,
            "tag": self.tag or None,
            "state": self.ended or (self.spans[-1].kind if self.spans else "sent"),
            "attempt": self.attempt,
            "waited_s": round(self.total_s(WAITING), 6),
            "ran_s": round(self.total_s(WORKING), 6),
            "spans": [
                {
                    "kind": span.kind,
                    "attempt": span.attempt,
                    "begin_at": iso_time(span.begin_at),
                    "end_at": iso_time(span.end_at),
                }
                for span in self.spans
            ],
        }


OF_THE_TASK = frozenset({"paused", "resumed", "migrated", "moved"})
"""Kinds of entries that are about no step where they name none."""


@dataclass(slots=True)
class Timeline:
    """The hops of one task, in the order in which they were sent."""

    hops: dict[str, Hop] = field(default_factory=dict)
    state: TaskState = TaskState.SUBMITTED
    began_at: float = 0.0
    ended_at: float = 0.0
    """When the last entry was recorded; the end of the task once its state is final."""
    notes: list[str] = field(default_factory=list)
    """What happened to the task as a whole: that it was held, or goes on with another version of its code."""

    @property
    def seconds(self) -> float:
        """From the submission to the end, or to what is known."""
        return self.ended_at - self.began_at

    @property
    def again(self) -> list[Hop]:
        """The hops that took more than one attempt."""
        return [hop for hop in self.hops.values() if hop.attempt > 1]

    def fold(self, entry: HistoryEntry) -> Hop | None:
        """Take the next entry of the history; returns the hop that it is about, if it is about one."""
        self.began_at = self.began_at or entry.at
        self.ended_at, self.state = entry.at, entry.state
        hop = self.hops.get(entry.step_id or "")
        if hop is not None:
            _about(hop, entry)
        elif entry.kind in OF_THE_TASK:
            to = f" to release {entry.release}" if entry.release else ""
            why = f" ({entry.reason})" if entry.reason else ""
            self.notes.append(f"+{duration(entry.at - self.began_at)}  {entry.kind}{to}{why}")
        for message in entry.messages:
            self._sent(message, entry.at)
        if entry.outcome is not None or entry.kind == "canceled":
            for left in self.hops.values():
                if not left.ended:
                    left.did("input" if left.asking else "queued", entry.at)
                    left.ended = "canceled"
        return hop

    def go_on(self, now: float, *, waits: bool) -> None:
        """What is open has gone on until now. `waits` says that no instance works on any of it.

        `now` is in seconds since the epoch. Does nothing once the task has ended.
        """
        if self.state in FINAL_STATES:
            return
        self.ended_at = max(self.ended_at, now)
        for hop in self.hops.values():
            if not hop.ended:
                hop.did("input" if hop.asking else "delayed", now if hop.asking else min(hop.due_at, now))
                hop.did("queued" if waits else "sent", now)

    def _sent(self, message: dict[str, Any], at: float) -> None:
        """A message makes a hop, or is another attempt of one; one that ends the task is none."""
        step_id = str(message.get("step_id") or "")
        if not step_id or message.get("action") == "completed_task":
            return
        due_at = at + float(message.get("delay_s") or 0.0)
        hop = self.hops.get(step_id)
        if hop is None:
            service, tag = str(message.get("service") or ""), str(message.get("tag") or "")
            service = _ANSWERED_HERE.get(service, service)
            self.hops[step_id] = Hop(step_id, service, tag, since=at, due_at=due_at)
        elif hop.ended:
            hop.ended, hop.since, hop.due_at = "", at, due_at
            hop.attempt += 1


def _about(hop: Hop, entry: HistoryEntry) -> None:
    """What an entry says that the hop has done until now."""
    started_at = min(max(entry.started_at or entry.at, hop.since), entry.at)
    finished_at = min(max(entry.finished_at or entry.at, started_at), entry.at)
    if entry.kind != "input" and not hop.asking:
        hop.did("delayed", min(hop.due_at, started_at))
    if entry.kind == "answered":
        hop.attempt = entry.attempt or hop.attempt
        hop.did("input" if hop.asking else "queued", started_at)
        hop.ended = "answered" if (entry.result or {}).get("status", "completed") == "completed" else "failed"
        hop.did("running" if hop.ended == "answered" else "failed", finished_at)
    elif entry.kind in {"retrying", "lost", "paused"}:
        hop.attempt = entry.attempt or hop.attempt
        if entry.started_at is not None:
            hop.did("queued", started_at)
        hop.did("lost" if entry.kind == "lost" or entry.error is None else "failed", finished_at)
        hop.due_at = entry.due_at or 0.0
        hop.asking = False
        hop.attempt += 1
    elif entry.kind in {"input_requested", "input"}:
        hop.did("input" if hop.asking else "running", entry.at)
        hop.asking = entry.kind == "input_requested"
