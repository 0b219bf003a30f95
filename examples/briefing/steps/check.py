"""Step four: does the document bear its summary out?

Every figure of a summary must stand in the document where that speaks of the same thing (a table's figures may also be
worked out from its cells), every name must stand in it, and each sentence must share its words with some passage. It
trusts no earlier step: what it needs to know of the document it finds out again from the document. What it cannot tell
is whether a sentence draws the right conclusion.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from steps.analyse import IGNORED, days_in, key_terms
from steps.documents import Check, Column, Document, Issue, Summary
from steps.language import content_stems, language_of, sentences, straight, words
from steps.tables import columns_of, label

FIGURE = re.compile(r"\d+(?:[.,:/-]\d+)*")
COUNTING = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMERALS = {name: str(value) for value, name in enumerate(COUNTING, start=1)}
SUPPORT_MIN = 0.5
"""Of a sentence's own words, this share must be found together in one passage of the document."""
ABOUT_MIN = 0.4
"""From this share on, a passage speaks of what the sentence speaks of, and should hold its figures."""
PASSAGE_SENTENCES = 3


class Passage(NamedTuple):
    """A few neighbouring sentences: the stems of their words, and their figures."""

    stems: frozenset[str]
    figures: frozenset[str]


class Source:
    """What a document holds, ready to be asked for."""

    def __init__(self, document: Document) -> None:
        """Take the document apart once; every question after that is a look-up."""
        columns = columns_of(document.table) if document.table else []
        cells = [" ".join(row) for row in document.table.rows] if document.table else []
        labels = [label(column.name) + " " + column.unit for column in columns]
        self.language = language_of(document.text)
        self.text = straight(" ".join([document.title, document.text, *labels, *cells]))
        self.words = {word.lower() for word in words(self.text)}
        self.figures = set(_stated_figures(self.text))
        self.computed = tuple(_computed_figures(columns, len(cells)))
        self.passages = tuple(_passages(document, self.language))
        self.subjects = (
            [label(column.name) for column in columns if column.kind == "number"]
            if columns
            else [term.text for term in key_terms(document, self.language)]
        )
        """What a summary should mention: a table's columns of numbers, and else the key terms."""

    def has_figure(self, figure: str) -> bool:
        """Whether a figure stands in the document, whole or in its parts, or follows from a table's cells."""
        return _stands_in(figure, self.figures) or any(_is_rounded(figure, value) for value in self.computed)

    def has_figure_near(self, figure: str, sentence: str) -> bool:
        """Whether it stands where the document speaks of what the sentence speaks of; of a table nothing is asked."""
        stems = set(content_stems(sentence, self.language))
        near = (passage for passage in self.passages if len(stems & passage.stems) >= ABOUT_MIN * len(stems))
        return not self.passages or any(_stands_in(figure, passage.figures) for passage in near)

    def has_name(self, name: str) -> bool:
        """Whether a name stands in the document, in whatever case."""
        return name.lower() in self.words

    def support(self, sentence: str) -> float:
        """The largest share of the sentence's words that one passage holds; 1 for a sentence with none of its own."""
        stems = set(content_stems(sentence, self.language))
        if not stems or not self.passages:
            return 1.0
        return max(len(stems & passage.stems) for passage in self.passages) / len(stems)


def check(document: Document, summary: Summary) -> Check:
    """Hold a summary against its document, sentence by sentence.

    A fault of the summary is an issue in the result and never an error, so that the briefing can show it.
    """
    source = Source(document)
    issues = [issue for sentence in summary.sentences for issue in _issues(sentence, source)]
    faulty = {issue.sentence for issue in issues}
    count = len(summary.sentences)
    mentioned = set(content_stems(" ".join(summary.sentences), source.language))
    subjects = [set(content_stems(subject, source.language)) for subject in source.subjects]
    return Check(
        name=document.name,
        sentences=count,
        word_for_word=sum(straight(sentence) in source.text for sentence in summary.sentences),
        grounded=round(1 - sum(sentence in faulty for sentence in summary.sentences) / count, 3) if count else 0.0,
        coverage=round(sum(subject <= mentioned for subject in subjects) / len(subjects), 3) if subjects else 1.0,
        issues=tuple(issues),
    )


def _issues(sentence: str, source: Source) -> Iterator[Issue]:
    for figure in _figures(straight(sentence)):
        if not source.has_figure(figure):
            yield Issue(kind="number", sentence=sentence, what=f"{figure} is not in the document")
        elif not source.has_figure_near(figure, straight(sentence)):
            yield Issue(kind="number", sentence=sentence, what=f"{figure} is not where the document speaks of this")
    for name in _names(straight(sentence)):
        if not source.has_name(name):
            yield Issue(kind="name", sentence=sentence, what=f"{name} is not in the document")
    if source.support(straight(sentence)) < SUPPORT_MIN and straight(sentence) not in source.text:
        yield Issue(kind="support", sentence=sentence, what="no passage of the document says this in like words")


def _names(sentence: str) -> Iterator[str]:
    """The words of a sentence that are written as names; its first word may only be written so because it is first."""
    for word in words(sentence)[1:]:
        plain = word.removesuffix("'s")
        if plain[0].isupper() and len(plain) > 1 and plain.lower() not in IGNORED:
            yield plain


def _figures(text: str) -> list[str]:
    """The figures in a text as they are written, without what only parts thousands: "1,500" is 1500."""
    return [re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", figure) for figure in FIGURE.findall(text)]


def _parts(figure: str) -> list[str]:
    """A date's or a time's parts without leading zeros: "2026-11-01" is 2026, 11 and 1."""
    return [part.lstrip("0") or "0" for part in re.split(r"[,:/-]", figure)]


def _stands_in(figure: str, figures: AbstractSet[str]) -> bool:
    return figure in figures or all(part in figures for part in _parts(figure))


def _stated_figures(text: str) -> Iterator[str]:
    """Every figure that a text states: as it is written, in its parts, in the dates that it names, and in words."""
    for figure in _figures(text):
        yield figure
        yield from _parts(figure)
    for day in days_in(text):
        yield from (day, *_parts(day))
    yield from (NUMERALS[word] for word in words(text.lower()) if word in NUMERALS)


def _computed_figures(columns: list[Column], rows: int) -> Iterator[float]:
    """What may be said of a table that stands in none of its cells: counts, means, and how steeply it moves."""
    yield rows
    for column in columns:
        yield from (column.count, column.missing, column.distinct)
        yield from (value.count for value in column.commonest)
        for at in (column.lowest_at, column.highest_at):
            yield from (float(rows_found) for rows_found in re.findall(r"^\d+(?= rows)", at))
        if column.mean is not None:
            yield column.mean
        for trend in (column.trend, column.recent_trend):
            if trend is not None:
                yield from (trend.per_year, trend.per_year * 10)


def _is_rounded(figure: str, value: float) -> bool:
    """Whether a figure is that value, to as many places as it is written with; its sign is not looked at."""
    try:
        stated = float(figure)
    except ValueError:
        return False
    places = len(figure.partition(".")[2])
    return abs(abs(value) - stated) <= 0.5 / 10.0**places + 1e-9


def _passages(document: Document, language: str) -> Iterator[Passage]:
    """Every few neighbouring sentences, a heading with what follows it; of a table there are none."""
    if document.table is not None:
        return
    heading = ""
    for block in document.blocks:
        if block.kind == "heading":
            heading = block.text
        found = sentences(block.text, language) if block.kind == "prose" else [block.text]
        for start in range(max(1, len(found) - PASSAGE_SENTENCES + 1)):
            passage = " ".join([heading, *found[start : start + PASSAGE_SENTENCES]])
            yield Passage(frozenset(content_stems(passage, language)), frozenset(_stated_figures(passage)))
