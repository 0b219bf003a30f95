"""Step three: a document in a few sentences.

Without a model the summary is made of the document's own most central sentences (a table's, of what its columns show).
With an OpenAI-compatible endpoint configured (`OPENAI_API_KEY` or `OPENAI_BASE_URL`, and `OPENAI_MODEL`), prose is
summarised by that. Which of the two it was stands in the summary. What the endpoint raises is raised on: the engine
tries the step again, and nothing is quietly replaced.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator

from steps.documents import Analysis, Column, Document, Summary
from steps.language import content_stems, sentences
from steps.ranking import centralities, pick, vectors
from steps.tables import label

SENTENCES_MIN, SENTENCES_MAX = 4, 6
WORDS_MIN, WORDS_MAX = 8, 45
LEAD_WORTH, OPENING_WORTH, TITLE_WORTH, LATE_COST = 1.8, 1.3, 0.3, 0.4
"""What a sentence gains by opening the document or a section, or by the title's words, and loses by coming late."""
STEADY_FIT = 0.5
"""From this r² on, a straight line says something about a column."""
MODEL_DEFAULT = "gpt-5-mini"
MODEL_TIMEOUT_S = 60.0
MODEL_SENTENCES_MAX = 120
"""Of a longer document a model is given the most central sentences only."""
PROMPT = """\
Summarise the document in {most} sentences for a briefing. State only what the document says, with its own figures, \
dates and names. Write plain sentences, one on each line, with no list marks, no heading and no remark of your own."""

OPENS_IN_MID_THOUGHT = re.compile(
    r"(this|these|those|that|it|its|they|their|he|his|she|her|such|however|but|and|so|also|thus|therefore|hence|then|"
    r"instead|otherwise|of course|as mentioned|as above|the following|for example|for instance|e\.g\.|in other words|"
    r"in the example|here|note|see|source)\b",
    re.IGNORECASE,
)
UNQUOTABLE = re.compile(r"https?://|\bsee\b.{0,80}$|[{}<>|\\]|\b(above|below)\b|^[a-z(]|[:;,]$|\bpublic domain\b")
"""What makes a sentence useless outside of its place: addresses, pointers to elsewhere, code, half sentences."""


def summarise(document: Document, analysis: Analysis) -> Summary:
    """Sum a document up in four to six sentences.

    Raises what the endpoint's client raises when a model is configured and does not answer. A table is always summed
    up from its own figures.
    """
    if document.table is not None:
        return Summary(name=document.name, sentences=tuple(table_sentences(document, analysis)), by="local")
    if model := configured_model():
        return model_summary(document, analysis, model)
    picked = central_sentences(document, analysis, length_for(analysis))
    return Summary(name=document.name, sentences=tuple(picked), by="local")


def configured_model() -> str | None:
    """The model that the environment names, or None where no endpoint is configured."""
    if os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL"):
        return os.environ.get("OPENAI_MODEL") or MODEL_DEFAULT
    return None


def length_for(analysis: Analysis) -> int:
    """How many sentences a summary has: one more for every forty of the document."""
    return max(SENTENCES_MIN, min(SENTENCES_MAX, SENTENCES_MIN + analysis.sentences // 40))


def central_sentences(document: Document, analysis: Analysis, most: int) -> list[str]:
    """The document's own sentences that stand for the rest best, in reading order.

    Centrality is weighed by how well a sentence stands alone, whether it opens its section, how early it comes, and
    what it shares with the document's title. No section gives more than its share.
    """
    found, sections, opening = _sentences_by_section(document, analysis.language)
    weights = vectors(found, analysis.language)
    title = set(content_stems(document.title, analysis.language))
    scores = []
    for index, central in enumerate(centralities(weights)):
        score = central * _stands_alone(found[index])
        score *= LEAD_WORTH if index == 0 else OPENING_WORTH if index in opening else 1.0
        score *= 1.0 - LATE_COST * index / len(found)
        score *= 1.0 + TITLE_WORTH * len(title & weights[index].keys()) / max(1, len(title))
        scores.append(score)
    share = math.ceil(most / max(1, len(set(sections))))
    return [found[index] for index in pick(scores, weights, sections, most=most, group_most=share)]


def table_sentences(document: Document, analysis: Analysis) -> Iterator[str]:
    """What a table is, how far it reaches, and what its columns do, in sentences."""
    assert document.table is not None
    for block in document.blocks:
        yield from sentences(block.text, analysis.language)
    dates = next((column for column in analysis.columns if column.kind == "date"), None)
    reach = f", from {dates.first} to {dates.last}" if dates else ""
    yield f"The table has {len(document.table.rows)} rows{reach}."
    if dates and dates.longest_gap:
        yield f"The longest gap between two rows is from {dates.longest_gap[0]} to {dates.longest_gap[1]}."
    for column in analysis.columns:
        if column.kind == "number":
            yield _number_sentence(column, dates)
        elif column.commonest:
            listed = ", ".join(f"{value.text} ({value.count})" for value in column.commonest)
            yield f"Of {column.distinct} values of {label(column.name)}, the commonest are {listed}."


def model_summary(document: Document, analysis: Analysis, model: str) -> Summary:
    """Have the model write the summary. One request, no retry of its own: that is the engine's work."""
    from openai import OpenAI

    most = length_for(analysis)
    text = document.text
    if analysis.sentences > MODEL_SENTENCES_MAX:
        text = "\n".join(central_sentences(document, analysis, MODEL_SENTENCES_MAX))
    with OpenAI(api_key=os.environ.get("OPENAI_API_KEY") or "none", max_retries=0, timeout=MODEL_TIMEOUT_S) as client:
        answer = client.chat.completions.create(
            model=model,
            messages=[
                {"role": "system", "content": PROMPT.format(most=most)},
                {"role": "user", "content": f"{document.title}\n\n{text}"},
            ],
        )
    written = answer.choices[0].message.content or ""
    lines = tuple(line.strip().lstrip("-* ") for line in written.splitlines() if line.strip())
    if not lines:
        raise ValueError(f"{model} wrote nothing for {document.name}")
    return Summary(name=document.name, sentences=lines, by="model", model=model)


def _number_sentence(column: Column, dates: Column | None) -> str:
    name = label(column.name)
    name = name[0].upper() + name[1:]
    unit = f" {column.unit}" if column.unit else ""
    if dates is None:
        return f"{name} runs from {column.lowest}{unit} ({column.lowest_at}) to {column.highest} ({column.highest_at})."
    moved = f"{name} went from {column.first}{unit} ({dates.first}) to {column.last} ({dates.last})"
    extremes = f"lowest {column.lowest} ({column.lowest_at}), highest {column.highest} ({column.highest_at})"
    steady = [f"; {said}" for said in trends_said(column)]
    return f"{moved}, {extremes}{''.join(steady)}."


def trends_said(column: Column) -> Iterator[str]:
    """Each of a column's trends that is steady enough to be one, in words."""
    unit = f" {column.unit}" if column.unit else ""
    for trend in (column.trend, column.recent_trend):
        if trend is not None and trend.fit >= STEADY_FIT:
            direction = "up" if trend.per_year > 0 else "down"
            yield f"{direction} {_short(abs(trend.per_year) * 10)}{unit} per decade since {trend.since}"


def _short(value: float) -> str:
    """To three figures, and never fewer places than a whole number has: 0.515, 5.87, 1234."""
    places = max(0, 2 - math.floor(math.log10(value))) if value else 0
    return f"{value:.{places}f}"


def _sentences_by_section(document: Document, language: str) -> tuple[list[str], list[int], set[int]]:
    """The sentences of the prose, the section of each, and which of them open one."""
    found: list[str] = []
    sections: list[int] = []
    opening: set[int] = set()
    section, starts = 0, True
    for block in document.blocks:
        if block.kind == "heading":
            section, starts = section + 1, True
        elif block.kind == "prose":
            if starts:
                opening.add(len(found))
            starts = False
            of_block = sentences(block.text, language)
            found += of_block
            sections += [section] * len(of_block)
    return found, sections, opening


def _stands_alone(sentence: str) -> float:
    """From 0, for what makes no sense elsewhere, to 1."""
    count = len(sentence.split())
    if not WORDS_MIN <= count <= WORDS_MAX or not sentence.endswith((".", "!", "?", '."')):
        return 0.0
    if UNQUOTABLE.search(sentence) or sentence.count("(") != sentence.count(")") or sentence.count('"') % 2:
        return 0.0
    return 0.2 if OPENS_IN_MID_THOUGHT.match(sentence) else 1.0
