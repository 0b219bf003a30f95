"""Step five: all that was found becomes one briefing.

Owns what is worth saying across documents, and how the briefing is laid out: as Markdown for a reader, and as plain
text for a terminal. Adds no finding of its own about a single document, and shows every issue that the check raised.
"""

from __future__ import annotations

import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from steps.analyse import WORDS_PER_MINUTE
from steps.documents import Briefing, Item
from steps.language import stem, words
from steps.ranking import centralities, pick, vectors
from steps.summarise import trends_said
from steps.tables import label

HEADLINES_MAX = 5
SHARED_BY_MIN = 3
SHARED_MAX = 8
LATEST_DAYS_MAX = 4
TERMINAL_WIDTH = 100


def write(items: list[Item], title: str = "Briefing") -> Briefing:
    """Write the briefing: what stands out across the documents, a section for each in the order given, the sources."""
    parts = [*_opening(items, title), *_across(items)]
    for number, item in enumerate(items, start=1):
        parts += _section(number, item)
    parts += _sources(items)
    markdown = "\n\n".join(parts) + "\n"
    return Briefing(title=title, markdown=markdown, plain=plain_text(markdown), words=len(words(markdown)))


def plain_text(markdown: str) -> str:
    """Markdown as a terminal shows it, 100 columns wide and without colour."""
    from rich.console import Console
    from rich.markdown import Markdown

    screen = io.StringIO()
    Console(file=screen, width=TERMINAL_WIDTH, color_system=None, emoji=False, legacy_windows=False).print(
        Markdown(markdown, hyperlinks=False)
    )
    return "\n".join(line.rstrip() for line in screen.getvalue().splitlines()) + "\n"


def headlines(items: Sequence[Item]) -> Iterator[tuple[str, Item]]:
    """The sentences of all summaries that stand for the rest best, at most one of each document."""
    found = [(sentence, item) for item in items if not item.analysis.columns for sentence in item.summary.sentences]
    if not found:
        return
    weights = vectors([sentence for sentence, _ in found])
    groups = [items.index(item) for _, item in found]
    for index in pick(centralities(weights), weights, groups, most=HEADLINES_MAX, group_most=1):
        yield found[index]


def shared_subjects(items: Sequence[Item]) -> list[tuple[str, list[Item]]]:
    """Phrases and names that are among the most important of three documents or more, most widely shared first."""
    held: dict[tuple[str, ...], dict[str, Item]] = defaultdict(dict)
    written: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for item in items:
        phrases = [term for term in item.analysis.terms if " " in term.text]
        for subject in (*phrases, *item.analysis.names):
            stems = tuple(stem(word) for word in subject.text.split())
            held[stems][item.document.name] = item
            written[stems][subject.text] += subject.count
    shared = [stems for stems in held if len(held[stems]) >= SHARED_BY_MIN]
    shared.sort(key=lambda stems: (-len(held[stems]), -written[stems].total(), stems))
    return [(_commonest(written[stems]), list(held[stems].values())) for stems in shared]


def _opening(items: Sequence[Item], title: str) -> Iterator[str]:
    total = sum(item.document.words for item in items)
    models = sorted({item.summary.model for item in items if item.summary.by == "model"})
    yield f"# {title}"
    yield (
        f"{len(items)} documents, {total:,} words: {_duration(total / WORDS_PER_MINUTE)} to read, or this. "
        + (f"Summaries by {', '.join(models)}; " if models else "Summaries made of the documents' own sentences; ")
        + "those of tables made from their figures."
    )
    said = [f"- {_safe(sentence)} *({_safe(item.document.title)})*" for sentence, item in headlines(items)]
    if said:
        yield "## In short"
        yield "\n".join(said)


def _across(items: Sequence[Item]) -> Iterator[str]:
    lines = []
    if shared := [f"{text} ({len(among)})" for text, among in shared_subjects(items)[:SHARED_MAX]]:
        lines.append(f"**Runs through several documents:** {', '.join(shared)}.")
    lines += [f"**{_safe(item.document.title)}:** {line}." for item in items if (line := _movement(item))]
    years = Counter(year.text for item in items for year in item.analysis.years)
    if widely := [f"{year} ({count})" for year, count in _ranked(years)[:SHARED_MAX] if count >= SHARED_BY_MIN]:
        lines.append(f"**Years that several documents name:** {', '.join(widely)}.")
    latest = {day.sentence: (day.date, item.document.name) for item in items for day in item.analysis.days}
    by_day = sorted((day, said, name) for said, (day, name) in latest.items())
    if named := [f"  - {day}: {_safe(said)} *({name})*" for day, said, name in by_day[-LATEST_DAYS_MAX:]]:
        lines.append("\n".join(["**The latest dates named:**", *named]))
    written = sum(item.check.sentences for item in items)
    sound = sum(round(item.check.grounded * item.check.sentences) for item in items)
    lines.append(f"**Checked:** {sound} of the {written} sentences of the summaries are borne out by their documents.")
    yield "## What stands out"
    yield "\n".join(f"- {line}" for line in lines)


def _movement(item: Item) -> str:
    """What moves in a table over time: a steady trend, or else its extremes, and the longest gap between its rows."""
    dates = [column for column in item.analysis.columns if column.kind == "date"]
    numbers = [column for column in item.analysis.columns if column.kind == "number"]
    if not dates or not numbers:
        return ""
    steady = [f"{label(column.name)} {said}" for column in numbers for said in trends_said(column)]
    first = numbers[0]
    extremes = f"lowest {first.lowest} ({first.lowest_at}), highest {first.highest} ({first.highest_at})"
    gaps = [f"longest gap {' to '.join(column.longest_gap)}" for column in dates if column.longest_gap]
    return "; ".join([*(steady[:1] or [f"{label(first.name)} {extremes}"]), *gaps])


def _section(number: int, item: Item) -> Iterator[str]:
    document, analysis = item.document, item.analysis
    rows = analysis.columns[0].count + analysis.columns[0].missing if analysis.columns else 0
    size = f"{rows} rows" if rows else f"{document.words:,} words, {_duration(analysis.reading_minutes)}"
    yield f"## {number}. {_safe(document.title)}"
    yield f"`{document.name}`, {document.kind}, {size}"
    said = [_safe(sentence) for sentence in item.summary.sentences]
    if not analysis.columns:
        yield " ".join(said)
    facts = said if analysis.columns else []
    if terms := [term.text for term in analysis.terms if not analysis.columns]:
        facts.append(f"**Key terms:** {_safe(', '.join(terms))}")
    if names := [name.text for name in analysis.names if not analysis.columns]:
        facts.append(f"**Names:** {_safe(', '.join(names))}")
    if years := sorted(year.text for year in analysis.years):
        facts.append(f"**Years:** {', '.join(years)}")
    facts.append(f"**Check:** {_verdict(item)}")
    facts += [f"**Issue:** {_safe(issue.what)} (in: {_safe(issue.sentence)})" for issue in item.check.issues]
    yield "\n".join(f"- {fact}" for fact in facts)


def _verdict(item: Item) -> str:
    check = item.check
    sound = round(check.grounded * check.sentences)
    borne_out = f"{sound} of {check.sentences} sentences borne out"
    subjects = "columns" if item.analysis.columns else "key terms"
    written_by = f", written by {item.summary.model}" if item.summary.by == "model" else ""
    quoted = "" if item.analysis.columns else f", {check.word_for_word} word for word"
    return f"{borne_out}{quoted}; {check.coverage:.0%} of the {subjects} mentioned{written_by}"


def _sources(items: Sequence[Item]) -> Iterator[str]:
    yield "## Sources"
    yield "\n".join(
        f"- `{item.document.name}`: {item.document.source or 'source not given'}."
        f" Licence: {item.document.licence or 'not given'}."
        for item in items
    )


def _duration(minutes: float) -> str:
    whole = max(1, round(minutes))
    return f"{whole // 60} h {whole % 60} min" if whole >= 60 else f"{whole} min"  # noqa: PLR2004


def _safe(text: str) -> str:
    """Text of a document with what Markdown would take for a mark of its own made harmless."""
    return re.sub(r"([*<`\[\]\\])", r"\\\1", text)


def _ranked(counter: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda pair: (-pair[1], pair[0]))


def _commonest(counter: Counter[str]) -> str:
    return _ranked(counter)[0][0]
