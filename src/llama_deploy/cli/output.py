"""How commands print: data on standard output in the form that was asked for, everything else on standard error.

`text` and `wide` are for people, `json`, `jsonl` and `yaml` for programs, `name` for shells. Lists are objects
(`{"items": [...], "next": null}`), times are ISO 8601 in UTC, and nothing is ever cut.
"""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import click

from llama_deploy.cli.settings import Settings

if TYPE_CHECKING:
    from pydantic import BaseModel

_TIMES = frozenset({"at"})
_TIME_ENDING = "_at"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: a key of the documents in it, the heading, and how its values are shown."""

    key: str
    heading: str
    show: Callable[[Any], str] | None = None


class Printer:
    """Prints for one command, in the form that its settings ask for."""

    def __init__(self, settings: Settings) -> None:
        self.form = settings.output
        self.quiet = settings.quiet

    @property
    def for_people(self) -> bool:
        """Whether the form is text that a person reads."""
        return self.form in {"text", "wide"}

    def line(self, text: str) -> None:
        """A line of data."""
        click.echo(text)

    def progress(self, text: str) -> None:
        """A line that says what goes on, or a hint: on standard error, unless it is to be quiet."""
        if not self.quiet:
            click.echo(text, err=True)

    def record(self, document: Mapping[str, Any], *, name: str, text: Callable[[], str] | None = None) -> None:
        """One document. `name` is all of it in the form `name`; `text` is how a person reads it, if not as a list."""
        if self.form == "name":
            self.line(name)
        elif self.form in {"json", "yaml", "jsonl"}:
            self.line(self._encoded(document))
        else:
            self.line(text() if text is not None else fields(document))

    def item(self, document: Mapping[str, Any], *, text: Callable[[], str]) -> None:
        """One of a series that is printed as it comes: a line of JSON for programs, `text` for people."""
        self.line(compact(document) if self.form == "jsonl" else text())
        sys.stdout.flush()

    @property
    def line_by_line(self) -> bool:
        """Whether a series can be printed as it comes; in the other forms it is one document."""
        return self.for_people or self.form == "jsonl"

    def table(
        self,
        items: Iterable[Mapping[str, Any]],
        columns: Sequence[Column],
        *,
        name: str,
        wide: Sequence[Column] = (),
        cursor: str | None = None,
        empty: str = "",
        beside: Mapping[str, Any] | None = None,
    ) -> None:
        """A list of documents. `name` is the key that the form `name` prints, `cursor` that of the next page.

        `beside` is what programs find beside the list.
        """
        documents = list(items)
        if self.form == "name":
            for document in documents:
                self.line(str(document[name]))
        elif self.form == "jsonl":
            for document in documents:
                self.line(compact(document))
        elif self.form in {"json", "yaml"}:
            self.line(self._encoded({"items": documents, "next": cursor, **(beside or {})}))
        elif documents:
            self.line(_grid(documents, [*columns, *(wide if self.form == "wide" else ())]))
            if cursor is not None:
                self.progress(f"There are more: --cursor {cursor}")
        elif empty:
            self.progress(empty)

    def _encoded(self, document: Any) -> str:
        if self.form == "yaml":
            import yaml

            return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True)).rstrip("\n")
        return compact(document) if self.form == "jsonl" else json.dumps(document, ensure_ascii=False, indent=2)


def document_of(model: BaseModel, *, without: Iterable[str] = ()) -> dict[str, Any]:
    """A model of the API as a document: its JSON, with times as ISO 8601; user data in it stays as it is."""
    dumped: dict[str, Any] = model.model_dump(mode="json", exclude=set(without))
    return _with_times(model, dumped)


def _with_times(model: BaseModel, dumped: dict[str, Any]) -> dict[str, Any]:
    from pydantic import BaseModel

    for key, value in dumped.items():
        original = getattr(model, key, None)
        if isinstance(value, float) and (key in _TIMES or key.endswith(_TIME_ENDING)):
            dumped[key] = iso_time(value)
        elif isinstance(original, BaseModel) and isinstance(value, dict):
            dumped[key] = _with_times(original, value)
        elif isinstance(original, list) and original and isinstance(original[0], BaseModel):
            dumped[key] = [_with_times(part, item) for part, item in zip(original, value, strict=True)]
    return dumped


def iso_time(seconds: float | None) -> str:
    """Seconds since the epoch as ISO 8601 in UTC with milliseconds; nothing as `-`."""
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def duration(seconds: float) -> str:
    """A span of time for a person: `12 ms`, `3.4 s`, `2 min 5 s`, `1 h 3 min`."""
    if seconds < 0.9995:  # noqa: PLR2004 - what rounds to a second
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:  # noqa: PLR2004 - what rounds to a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"  # noqa: PLR2004


def in_colour(stream: TextIO) -> bool:
    """Whether what is written there may have colours: a terminal that can show them, and nobody said `NO_COLOR`."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def in_utf8(stream: TextIO) -> bool:
    """Whether every character can be written there."""
    return codecs.lookup(stream.encoding or "ascii").name == "utf-8"


def compact(document: Any) -> str:
    """A document as one line of JSON."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def shown(value: Any) -> str:
    """A value in a cell or after a key: text as it is, nothing as `-`, everything else as JSON."""
    if value is None or value == "":
        return "-"
    return value if isinstance(value, str) else compact(value)


def answer_text(value: Any) -> str:
    """What a service answered, for a person: text as it is, everything else as indented JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


def fields(document: Mapping[str, Any]) -> str:
    """A document as lines of key and value; what has no value is left out."""
    present = {key: value for key, value in document.items() if value not in (None, "", [], {})}
    width = max((len(key) for key in present), default=0)
    lines = []
    for key, value in present.items():
        first, *rest = shown(value).splitlines() or [""]
        lines.append(f"{key.replace('_', ' '):<{width}}  {first}")
        lines += [f"{'':<{width}}  {line}" for line in rest]
    return "\n".join(lines)


def _grid(documents: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    rows = [[column.heading for column in columns]]
    for document in documents:
        cells = [(column.show or shown)(document.get(column.key)) for column in columns]
        rows.append([cell.replace("\n", " ") for cell in cells])
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
