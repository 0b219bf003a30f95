"""The job while it runs: a compact picture of every document on a terminal, plain lines everywhere else.

Shows what a `Timeline` knows, and what `run` has to say beside it. Everything goes to standard error, so that
standard output holds the briefing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from orchestrator import STEPS
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from llama_deploy.cli.output import duration
from llama_deploy.cli.timeline import Hop, Timeline
from llama_deploy.types import HistoryEntry

FRAMES_PER_S = 12


class Progress(Protocol):
    """Where progress is shown."""

    def say(self, text: str) -> None:
        """A line of its own, which stays."""

    def show(self, entry: HistoryEntry, hop: Hop | None) -> None:
        """An entry of the history was folded into the timeline; `hop` is what it was about."""

    def close(self) -> None:
        """The job is over, or given up."""


def progress_on(console: Console, timeline: Timeline, documents: Sequence[str]) -> Progress:
    """What suits where the console writes to."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LivePicture(console, timeline, documents)
    return PlainLines(console, timeline)


class PlainLines:
    """One line for each answer and each loss."""

    def __init__(self, console: Console, timeline: Timeline) -> None:
        self._console = console
        self._timeline = timeline

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, entry: HistoryEntry, hop: Hop | None) -> None:
        if hop is not None:
            said = _said(entry, hop)
            self.say(f"{entry.at - self._timeline.began_at:6.2f} s  {hop.service:<9}  {Path(hop.tag).name:<22}  {said}")

    def close(self) -> None:
        """Every line has been written."""


class LivePicture:
    """A row for each document, redrawn in place; what is said goes above it."""

    def __init__(self, console: Console, timeline: Timeline, documents: Sequence[str]) -> None:
        self._console = console
        self._timeline = timeline
        self._documents = documents
        self._spinner = Spinner("dots")
        self._began_at = time.time()
        self._live: Live | None = None

    def say(self, text: str) -> None:
        self._console.print(escape(text), highlight=False)

    def show(self, entry: HistoryEntry, hop: Hop | None) -> None:
        if self._live is None:
            self._live = Live(
                get_renderable=self._picture, console=self._console, refresh_per_second=FRAMES_PER_S, transient=True
            )
            self._live.start()
        if hop is not None and (entry.kind != "answered" or hop.ended == "failed" or hop.attempt > 1):
            self.say(f"{hop.service} {Path(hop.tag).name}: {_said(entry, hop)}")

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _picture(self) -> RenderableType:
        known = {(hop.service, hop.tag): hop for hop in list(self._timeline.hops.values())}
        answered = sum(hop.ended == "answered" for hop in known.values())
        table = Table.grid(padding=(0, 2))
        for path in self._documents:
            table.add_row(
                Path(path).name, *(self._mark(step.service, known.get((step.service, path))) for step in STEPS)
            )
        writing = known.get(("write", ""))
        steps = len(self._documents) * len(STEPS) + 1
        since = duration(time.time() - self._began_at)
        return Group(table, self._mark("write", writing), Text(f"{answered} of {steps} steps, {since}", style="dim"))

    def _mark(self, name: str, hop: Hop | None) -> RenderableType:
        if hop is None:
            return Text(f"  {name}", style="dim")
        again = f" (attempt {hop.attempt})" if hop.attempt > 1 else ""
        if hop.ended:
            good = hop.ended == "answered"
            return Text(f"{'✓' if good else '✗'} {name}{again}", style="green" if good else "red")
        return Text.assemble((str(self._spinner.render(time.time())), "cyan"), f" {name}", (again, "yellow"))


def _said(entry: HistoryEntry, hop: Hop) -> str:
    if entry.kind == "lost":
        return f"attempt {hop.attempt - 1} was lost with its process; attempt {hop.attempt} is on its way"
    error = f": {entry.error.type}: {entry.error.message}".splitlines()[0] if entry.error is not None else ""
    if entry.kind == "retrying":
        return f"attempt {hop.attempt - 1} failed{error}; attempt {hop.attempt} follows"
    took = hop.spans[-1].seconds if hop.spans else 0.0
    again = f" (attempt {hop.attempt})" if hop.attempt > 1 else ""
    return f"{duration(took)}{again}" if hop.ended == "answered" else f"failed{error}{again}"
