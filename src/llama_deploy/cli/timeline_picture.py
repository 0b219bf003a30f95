"""A timeline as lines of text, for any width, with colour or without, in UTF-8 or in plain ASCII.

Every hop is a row, its bar split by what it did; hops with one tag stand together. Long gaps in which nothing of the
task ran are cut short, and the cut is marked. Where the lines go is not known here.
"""

from __future__ import annotations

import math
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import click

from llama_deploy.cli.output import duration, in_colour, in_utf8
from llama_deploy.cli.timeline import WAITING, WORKING, Hop, Timeline

WIDTH_MIN = 40
WIDTH_ELSEWHERE = 100
"""Where there is no terminal that has a width."""

BREAK_COLUMNS = 3
"""What is left of a gap that is cut: its kind, the mark, its kind."""
BREAK_SPACING = 5
"""At most one gap is cut for each so many columns of the bars."""
GAP_MIN_S = 5.0
"""Shorter gaps are never cut."""

LABEL_WIDTH_MAX = 26
FIGURES_FROM_WIDTH = 72
"""A narrower picture has no columns of figures, and shorter names."""
TICK_COLUMNS_MIN = 12
_LONG_INTERVALS_S = (30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)
_UNITS = ((86_400, 86_400, "d"), (3600, 3600, "h"), (60, 60, "min"), (0.1, 1, "s"), (0, 0.001, "ms"))
"""From which interval between two times on, how many seconds it has, and its name."""

Paint = Callable[[str, str], str]
"""Gives a text the colour of a kind, or of `head`, `faint` or `again`."""

COLOURS = {
    "queued": "2", "sent": "36", "running": "32", "delayed": "33", "input": "36", "failed": "31", "lost": "31",
    "cut": "2", "head": "2", "faint": "2", "again": "33",
}  # fmt: skip
WORDS: dict[str, str] = {
    "queued": "waited",
    "running": "ran",
    "sent": "waits or runs",
    "delayed": "paused before it was due",
    "input": "waited for a person",
    "failed": "ran and failed",
    "lost": "was lost with its process",
    "cut": "cut short: nothing ran",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Signs:
    """What the bars are made of."""

    kinds: Mapping[str, str]
    """One character for each kind, and for `cut`."""
    ellipsis: str


UNICODE = Signs(kinds=dict(zip(WORDS, "░█▒╌?▓x≈", strict=True)), ellipsis="…")
ASCII = Signs(kinds=dict(zip(WORDS, ".#:-?!x/", strict=True)), ellipsis="~")


def print_timeline(timeline: Timeline, *, width: int | None = None) -> None:
    """Draw it on standard output as that can show it: as wide, in colour on a terminal, in ASCII if it is not UTF-8."""
    stream = sys.stdout
    width = width or max(WIDTH_MIN, shutil.get_terminal_size((WIDTH_ELSEWHERE, 0)).columns)
    signs, paint = UNICODE if in_utf8(stream) else ASCII, painted if in_colour(stream) else plain
    for line in drawn(timeline, width=width, signs=signs, paint=paint):
        click.echo(line if in_utf8(stream) else line.encode(stream.encoding, "replace").decode(stream.encoding))


def painted(text: str, kind: str) -> str:
    """The text in the colour of a kind, for terminals."""
    return f"\x1b[{COLOURS[kind]}m{text}\x1b[0m"


def plain(text: str, kind: str) -> str:
    """The text as it is."""
    del kind
    return text


def drawn(timeline: Timeline, *, width: int, signs: Signs = UNICODE, paint: Paint = plain) -> Iterator[str]:
    """The timeline in lines of at most `width` columns, which are at least `WIDTH_MIN`."""
    assert width >= WIDTH_MIN, width
    groups: dict[str, list[Hop]] = {}
    for hop in timeline.hops.values():
        groups.setdefault(hop.tag, []).append(hop)
    page = _Page(timeline, _labels(groups), width, signs)
    yield paint(page.head(), "head")
    for tag, hops in groups.items():
        for number, hop in enumerate(hops):
            yield page.row(hop, tag if number == 0 else None, paint)
    yield from page.legend(paint)
    yield from (_fit(note, width, signs.ellipsis).rstrip() for note in timeline.notes)


class _Page:
    """The columns of one picture, and what stands in them."""

    def __init__(self, timeline: Timeline, labels: Mapping[str, str], width: int, signs: Signs) -> None:
        hops = timeline.hops.values()
        wide = width >= FIGURES_FROM_WIDTH
        self._labels = labels
        self._signs = signs
        self._width = width
        label_width_max = min(LABEL_WIDTH_MAX, width // 4) if wide else width // 5
        self._label_width = min(label_width_max, max(map(_columns, labels.values()), default=0))
        self._service_width = min(width // 4, max((_columns(hop.service) for hop in hops), default=0))
        self._figures = {hop.step_id: _figures(hop) for hop in hops} if wide else {}
        self._figure_width = max((len(text) for pair in self._figures.values() for text in pair), default=0)
        self._figure_width = max(self._figure_width, len("waited")) + 3
        notes = [len(f"  attempt {hop.attempt}") for hop in hops if hop.attempt > 1]
        left = self._label_width + 2 + self._service_width + 2
        right = (2 * self._figure_width if wide else 0) + max(notes, default=0)
        self._scale = _Scale(timeline, width - left - right)
        self._seen: set[str] = {span.kind for hop in hops for span in hop.spans}
        if self._scale.marks:
            self._seen.add("cut")

    def head(self) -> str:
        """The axis, and what the figures are."""
        line = self._names("", "") + self._scale.axis(self._signs.kinds["cut"])
        if self._figures:
            line += f"{'waited':>{self._figure_width}}{'ran':>{self._figure_width}}"
        return line.rstrip()

    def row(self, hop: Hop, tag: str | None, paint: Paint) -> str:
        """One hop; `tag` where it is the first that has it."""
        line = self._names(self._labels[tag] if tag is not None else "", hop.service)
        for kind, cells in groupby(self._scale.cells(hop)):
            text = "".join(self._signs.kinds[kind] if kind else " " for _ in cells)
            line += paint(text, kind) if kind else text
        if self._figures:
            waited, ran = (f"{text:>{self._figure_width}}" for text in self._figures[hop.step_id])
            line += paint(waited, "faint") + ran
        if hop.attempt > 1:
            line += paint(f"  attempt {hop.attempt}", "again")
        return line.rstrip()

    def legend(self, paint: Paint) -> Iterator[str]:
        """What the signs mean that are there, on as many lines as it takes."""
        line, columns = "", 0
        for kind, word in WORDS.items():
            if kind not in self._seen:
                continue
            sign = self._signs.kinds[kind]
            if line and columns + len(word) + 4 > self._width:
                yield line
                line, columns = "", 0
            line += f"{'  ' if line else ''}{paint(sign, kind)} {word}"
            columns += len(word) + 4
        if line:
            yield line

    def _names(self, label: str, service: str) -> str:
        ellipsis = self._signs.ellipsis
        return f"{_fit(label, self._label_width, ellipsis)}  {_fit(service, self._service_width, ellipsis)}  "


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A part of the task's time, and the columns that it takes."""

    begin_at: float
    end_at: float
    first: float
    columns: float
    cut: bool

    def column(self, at: float) -> float:
        """Where a moment of it stands."""
        return self.first + self.columns * (at - self.begin_at) / max(self.end_at - self.begin_at, 1e-9)


class _Scale:
    """From moments to columns: alike everywhere, but for the gaps that are cut."""

    def __init__(self, timeline: Timeline, columns: int) -> None:
        self._columns = columns
        gaps = _gaps_to_cut(timeline, columns // BREAK_SPACING)
        edges = [timeline.began_at, *(at for gap in gaps for at in gap), timeline.ended_at]
        parts = [(begin, end, number % 2 == 1) for number, (begin, end) in enumerate(pairwise(edges))]
        shown_s = max(sum(end - begin for begin, end, cut in parts if not cut), 1e-3)
        self._per_s = (columns - BREAK_COLUMNS * len(gaps) - len(gaps)) / shown_s
        self._stretches: list[_Stretch] = []
        first = 0.0
        for begin, end, cut in parts:
            wide = BREAK_COLUMNS if cut else (end - begin) * self._per_s + (1 if begin > timeline.began_at else 0)
            self._stretches.append(_Stretch(begin, end, first, wide, cut))
            first += wide
        self.marks = [int(stretch.first + stretch.columns / 2) for stretch in self._stretches if stretch.cut]

    def cells(self, hop: Hop) -> list[str]:
        """What to show in each column: of short spans at least one column, and work before waiting."""
        cells = [""] * self._columns
        for span in sorted(hop.spans, key=lambda span: span.kind != "queued"):
            first = min(self._columns - 1, int(self._column(span.begin_at)))
            last = max(first + 1, round(self._column(span.end_at)))
            for column in range(first, min(self._columns, last)):
                cells[column] = span.kind
        for mark in self.marks:
            if cells[mark]:
                cells[mark] = "cut"
        return cells

    def axis(self, mark: str) -> str:
        """Times since the task began, each where it is; after a cut they count from the first one there."""
        line = [" "] * self._columns
        for column in self.marks:
            line[column] = mark
        interval_s = _interval_s(TICK_COLUMNS_MIN / self._per_s)
        unit_s, unit = next((size, name) for from_s, size, name in _UNITS if interval_s >= from_s)
        began_at = self._stretches[0].begin_at
        for stretch in self._stretches:
            if stretch.cut:
                continue
            since_s = stretch.begin_at - began_at
            _place(line, math.ceil(stretch.first), duration(since_s) if since_s else f"0 {unit}")
            for number in range(1, int((stretch.end_at - stretch.begin_at) / interval_s) + 1):
                text = f"{'+' if since_s else ''}{number * interval_s / unit_s:g} {unit}"
                _place(line, round(stretch.column(stretch.begin_at + number * interval_s)), text)
        return "".join(line)

    def _column(self, at: float) -> float:
        stretch = next((one for one in self._stretches if at <= one.end_at), self._stretches[-1])
        return stretch.column(at)


def _gaps_to_cut(timeline: Timeline, cuts_max: int) -> Sequence[tuple[float, float]]:
    """The longest gaps in which nothing ran, as many as make the others shorter together than what was worked."""
    spans = [span for hop in timeline.hops.values() for span in hop.spans]
    work = sorted((span.begin_at, span.end_at) for span in spans if span.kind not in WAITING)
    if not work:
        return []
    gaps = []
    since = timeline.began_at
    for begin, end in [*work, (timeline.ended_at, timeline.ended_at)]:
        if begin > since:
            gaps.append((since, begin))
        since = max(since, end)
    gaps.sort(key=lambda gap: gap[0] - gap[1])
    idle_s = sum(end - begin for begin, end in gaps)
    worked_s = timeline.seconds - idle_s
    cut = []
    for begin, end in gaps[:cuts_max]:
        if idle_s <= worked_s or end - begin < GAP_MIN_S:
            break
        cut.append((begin, end))
        idle_s -= end - begin
    return sorted(cut)


def _interval_s(wanted_s: float) -> float:
    """The round number of seconds, minutes, hours or days that is at least this."""
    if _LONG_INTERVALS_S[0] * 2 / 3 < wanted_s <= _LONG_INTERVALS_S[-1]:
        return next(step for step in _LONG_INTERVALS_S if step >= wanted_s)
    unit = 1 if wanted_s < _LONG_INTERVALS_S[0] else _LONG_INTERVALS_S[-1]
    power = 10.0 ** math.floor(math.log10(wanted_s / unit))
    return unit * next(step * power for step in (1, 2, 5, 10) if unit * step * power >= wanted_s)


def _place(line: list[str], column: int, text: str) -> None:
    """Write a text where it has room, and a space on either side; else leave it out."""
    around = line[max(0, column - 1) : column + len(text) + 1]
    if column + len(text) <= len(line) and not "".join(around).strip():
        line[column : column + len(text)] = text


def _figures(hop: Hop) -> tuple[str, str]:
    """How long it waited and ran; `-` for what it did not."""
    kinds = {span.kind for span in hop.spans}
    waited, ran = (duration(hop.total_s(some)) if kinds.intersection(some) else "-" for some in (WAITING, WORKING))
    return waited, ran


def _labels(tags: Mapping[str, object]) -> dict[str, str]:
    """What the tags are called: paths without the folder that all of them are in, and nothing unprintable."""
    folders = {tag.rpartition("/")[0] for tag in tags if tag}
    folder = folders.pop() if len(folders) == 1 else ""
    shown = {tag: tag.removeprefix(f"{folder}/") if folder else tag for tag in tags}
    return {tag: "".join(sign if sign.isprintable() else " " for sign in text) for tag, text in shown.items()}


def _fit(text: str, width: int, ellipsis: str) -> str:
    """The text in exactly this many columns of a terminal, cut or padded."""
    columns = _columns(text)
    if columns > width:
        while columns > width - 1:
            columns -= _columns(text[-1])
            text = text[:-1]
        text += ellipsis
        columns += 1
    return text + " " * (width - columns)


def _columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else not unicodedata.combining(sign) for sign in text)
