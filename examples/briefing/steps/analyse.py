"""Step two: what a document is about.

Owns key terms, names, dates, language and reading time; what a table's columns show is told by `steps.tables`. All of
it is counted, nothing is guessed: the same document always gives the same analysis.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import date
from statistics import fmean

from steps.documents import Analysis, Count, DatedSentence, Document
from steps.language import FUNCTION_WORDS, WORD, language_of, sentences, stem, words
from steps.tables import columns_of

WORDS_PER_MINUTE = 230
TERMS_MAX = 10
NAMES_MAX = 10
YEARS_MAX = 10
DAYS_MAX = 40
TERM_WORDS_MAX = 3
SINGLE_WORDS_WORTH = 0.35
"""What C-value adds to a term's length, so that single words count for something, and phrases for more."""

MONTHS = {
    name: number
    for number, name in enumerate(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), start=1
    )
}
MONTH = r"(?P<month>Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?"
DAY_FORMS = (
    re.compile(r"(?<![\d-])(?P<year>1[5-9]\d\d|20\d\d)-(?P<number>0[1-9]|1[0-2])-(?P<day>[0-3]\d)(?!\d)"),
    re.compile(rf"(?<!\d)(?P<day>[0-3]?\d)(?:st|nd|rd|th)? {MONTH} (?P<year>1[5-9]\d\d|20\d\d)(?!\d)"),
    re.compile(rf"\b{MONTH} (?P<day>[0-3]?\d)(?:st|nd|rd|th)?,? (?P<year>1[5-9]\d\d|20\d\d)(?!\d)"),
)
YEAR = re.compile(r"(?<![\w.,:/#+])(?<!\D-)(?<!RFC )(1[5-9]\d\d|20\d\d)(?![\w:]|[.,]\d| (?:seconds|bytes|GMT|UTC)\b)")
"""Four figures that stand for a year, and not for a quantity, a time of day, or the number of a standard."""
NAME = re.compile(r"\b(?:(?:[A-Z]\.){2,}|[A-Z][\w'&-]*)(?: (?:of (?:the )?)?[A-Z][\w'&-]*)*")
CALENDAR_WORDS = """
january february march april may june july august september october november december jan feb mar apr jun jul aug sep
oct nov dec monday tuesday wednesday thursday friday saturday sunday mondays tuesdays wednesdays thursdays fridays
saturdays sundays dr mr mrs prof thanks
"""
IGNORED = FUNCTION_WORDS | frozenset(CALENDAR_WORDS.split())
"""What is neither a term nor a name, though it is written like one."""


def analyse(document: Document) -> Analysis:
    """Find a document's key terms, names, dates and, of a table, what its columns show."""
    language = language_of(document.text)
    prose = prose_sentences(document, language)
    everything = prose + [block.text for block in document.blocks if block.kind == "other"]
    return Analysis(
        name=document.name,
        language=language,
        reading_minutes=round(document.words / WORDS_PER_MINUTE, 1),
        sentences=len(prose),
        terms=tuple(key_terms(document, language)),
        names=tuple(names(prose)),
        years=tuple(years(everything)),
        days=tuple(days(prose)),
        columns=tuple(columns_of(document.table)) if document.table else (),
    )


def prose_sentences(document: Document, language: str) -> list[str]:
    """The sentences of a document's prose, in order."""
    return [found for block in document.blocks if block.kind == "prose" for found in sentences(block.text, language)]


def key_terms(document: Document, language: str) -> list[Count]:
    """The terms that a document is about: words and phrases of up to three, in the form in which they come most often.

    Ranked by C-value (Frantzi, Ananiadou and Mima, 2000): how often a phrase occurs, times the logarithm of its
    length, less what it owes to longer phrases around it.
    """
    forms: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for block in document.blocks:
        for run in _content_runs(block.text):
            for length in range(1, TERM_WORDS_MAX + 1):
                for start in range(len(run) - length + 1):
                    phrase = run[start : start + length]
                    forms[tuple(stem(word, language) for word in phrase)][" ".join(phrase)] += 1
    counts = {stems: sum(written.values()) for stems, written in forms.items() if sum(written.values()) > 1}
    values = _c_values(counts)
    ranked = sorted(counts, key=lambda stems: (-values[stems], stems))
    chosen: list[tuple[str, ...]] = []
    for stems in ranked:
        if len(chosen) == TERMS_MAX:
            break
        if not any(_is_within(stems, other) or _is_within(other, stems) for other in chosen):
            chosen.append(stems)
    return [Count(text=_commonest(forms[stems]), count=counts[stems]) for stems in chosen]


def names(prose: Iterable[str]) -> list[Count]:
    """People, places, bodies and abbreviations: runs of capitalised words, most frequent first.

    A single capitalised word counts only if it comes twice, where it does not open its sentence or is all capitals, and
    not when the text writes it small more often.
    """
    sentences_found = list(prose)
    small = Counter(word for sentence in sentences_found for word in words(sentence) if word.islower())
    found: Counter[str] = Counter()
    for sentence in sentences_found:
        for match in NAME.finditer(sentence):
            run = match.group().removesuffix("'s").split()
            while run and run[0].lower() in IGNORED:
                run = run[1:]
            while run and run[-1].lower() in IGNORED:
                run = run[:-1]
            opens = not WORD.search(sentence[: match.start()])
            if len(run) == 1 and (len(run[0]) == 1 or (opens and not run[0].isupper())):
                continue
            if run:
                found[" ".join(run)] += 1
    kept = Counter({name: count for name, count in found.items() if " " in name or count > max(1, small[name.lower()])})
    return [Count(text=name, count=count) for name, count in _most_common(kept, NAMES_MAX)]


def years(texts: Iterable[str]) -> list[Count]:
    """The years from 1500 on that a text names, most frequent first."""
    found = Counter(year for text in texts for year in YEAR.findall(text))
    return [Count(text=year, count=count) for year, count in _most_common(found, YEARS_MAX)]


def days(prose: Iterable[str]) -> list[DatedSentence]:
    """Every full date that is named, earliest first, each with the first sentence that names it."""
    first: dict[str, str] = {}
    for sentence in prose:
        for day in days_in(sentence):
            first.setdefault(day, sentence)
    return [DatedSentence(date=day, sentence=first[day]) for day in sorted(first)][-DAYS_MAX:]


def days_in(text: str) -> Iterator[str]:
    """The full dates in a text, in ISO 8601: "2016-12-31", "30 June 1972" and "June 30, 1972" are understood."""
    for form in DAY_FORMS:
        for match in form.finditer(text):
            parts = match.groupdict()
            month = int(parts["number"]) if "number" in parts else MONTHS[parts["month"][:3].lower()]
            try:
                yield date(int(parts["year"]), month, int(parts["day"])).isoformat()
            except ValueError:
                continue


def _content_runs(text: str) -> Iterator[list[str]]:
    """Runs of words that carry meaning: a function word, a month, a figure or a sign of punctuation ends one."""
    for piece in re.split(r"[^\w\s'-]|\s-\s|\d\S*", text):
        run: list[str] = []
        for word in piece.split():
            if WORD.fullmatch(word) and len(word) > 1 and word.lower() not in IGNORED:
                run.append(word)
                continue
            if run:
                yield run
            run = []
        if run:
            yield run


def _c_values(counts: dict[tuple[str, ...], int]) -> dict[tuple[str, ...], float]:
    around: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for stems, count in counts.items():
        for length in range(1, len(stems)):
            for inner in {stems[start : start + length] for start in range(len(stems) - length + 1)}:
                around[inner].append(count)
    return {
        stems: math.log2(len(stems) + SINGLE_WORDS_WORTH) * (count - fmean(around[stems] or [0]))
        for stems, count in counts.items()
    }


def _is_within(short: tuple[str, ...], long: tuple[str, ...]) -> bool:
    return any(long[start : start + len(short)] == short for start in range(len(long) - len(short) + 1))


def _commonest(written: Counter[str]) -> str:
    return _most_common(written, 1)[0][0]


def _most_common(counter: Counter[str], most: int) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda pair: (-pair[1], pair[0][0].isupper(), pair[0]))[:most]
