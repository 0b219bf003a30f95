"""What the steps of the briefing hand to each other: documents, analyses, summaries, checks and the briefing.

All of it is frozen and becomes JSON and back without loss, because each step may run in another process. Nothing here
computes: how a thing is found out is told by the step that finds it out.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["text", "markdown", "html", "pdf", "epub", "table"]


class Record(BaseModel):
    """The base of all that is handed on. Unknown fields are dropped, so a longer record passes for a shorter one."""

    model_config = ConfigDict(frozen=True, extra="ignore", revalidate_instances="subclass-instances")


class Block(Record):
    """A heading, a paragraph of prose, or anything else that stands by itself (code, a list of dates, a table)."""

    kind: Literal["heading", "prose", "other"]
    text: str


class Table(Record):
    """The cells of a table as they are written. Every row is as long as `columns`; an empty cell is missing."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class DocumentCard(Record):
    """What is known of a document without its text."""

    name: str
    """The file's name; unique within a briefing."""
    kind: Kind
    title: str
    words: int
    """Words of running text; a table's cells are not."""
    source: str = ""
    """Where it comes from, as SOURCES.md beside the document has it."""
    licence: str = ""


class Document(DocumentCard):
    """A document as `read` found it. `blocks` are in reading order; a table has its description in them."""

    blocks: tuple[Block, ...]
    table: Table | None = None

    @property
    def text(self) -> str:
        """All of its text, blocks parted by an empty line."""
        return "\n\n".join(block.text for block in self.blocks)


class Count(Record):
    """A word, name, value or date, and how often it occurs."""

    text: str
    count: int


class DatedSentence(Record):
    """A day (ISO 8601) that the document names, and the first sentence that names it."""

    date: str
    sentence: str


class Trend(Record):
    """A straight line through a column: least squares over time."""

    since: str
    per_year: float
    """Change a year, in the column's unit."""
    fit: float
    """r², from 0 (the line explains nothing) to 1."""


class Column(Record):
    """What one column of a table holds. Numbers as they are written; extremes with the row that they stand in."""

    name: str
    kind: Literal["number", "date", "words"]
    unit: str = ""
    count: int
    missing: int = 0
    distinct: int
    first: str = ""
    last: str = ""
    lowest: str = ""
    lowest_at: str = ""
    """The row that it stands in, by its date or its first cell; or in how many rows."""
    highest: str = ""
    highest_at: str = ""
    mean: float | None = None
    trend: Trend | None = None
    recent_trend: Trend | None = None
    """The same over the last ten years, when the table spans more than twenty."""
    longest_gap: tuple[str, str] | None = None
    """For dates that are not evenly spaced: between which two neighbours the most time passed."""
    commonest: tuple[Count, ...] = ()
    """For words that repeat: the most frequent values."""


class Analysis(Record):
    """What `analyse` found out about one document; everything most important first."""

    name: str
    language: str
    """ISO 639-1."""
    reading_minutes: float
    sentences: int
    terms: tuple[Count, ...]
    names: tuple[Count, ...]
    years: tuple[Count, ...]
    days: tuple[DatedSentence, ...]
    """Every full date that the prose names, earliest first."""
    columns: tuple[Column, ...] = ()


class Summary(Record):
    """A few sentences, and who wrote them: this program (`local`) or a language `model`."""

    name: str
    sentences: tuple[str, ...]
    by: Literal["local", "model"]
    model: str = ""


class Issue(Record):
    """Something in a summary that its document does not bear out."""

    kind: Literal["number", "name", "support"]
    sentence: str
    what: str


class Check(Record):
    """How a summary stands up against its document."""

    name: str
    sentences: int
    word_for_word: int
    """Sentences that stand in the document exactly so."""
    grounded: float
    """Share of sentences with no issue, 0 to 1."""
    coverage: float
    """Share of the document's key terms (of a table: its columns) that the summary mentions, 0 to 1."""
    issues: tuple[Issue, ...] = ()


class Item(Record):
    """All that is known of one document: what `write` makes a section of."""

    document: DocumentCard
    analysis: Analysis
    summary: Summary
    check: Check


class Briefing(Record):
    """The finished briefing, twice: for a reader (`markdown`) and for a terminal (`plain`)."""

    title: str
    markdown: str
    plain: str
    words: int
