"""How each kind of file is taken apart into a title, blocks of text and perhaps a table.

HTML is parsed by Beautiful Soup, Markdown by markdown-it, PDF by pypdf; an EPUB is a zip of HTML, and CSV and plain
text need only the standard library. Each library is loaded when its first file comes. To add a kind, write its reader
and enter it in `READERS`.
"""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree as ET

from steps.documents import Block, Kind, Table
from steps.language import straight

if TYPE_CHECKING:
    from bs4 import Tag

PROSE_WORDS_MIN = 6
LETTERS_MIN = 0.65
"""Of the characters of prose, at least this share are letters and spaces."""
HEADING_CHARACTERS_MAX = 90
SENTENCE_ENDS = (".", "!", "?", ":", ".)", '."')
BLOCK_TAGS = ["h1", "h2", "h3", "h4", "h5", "h6", "p", "li", "dt", "dd", "pre", "blockquote", "figcaption", "td", "th"]
APART = "nav, header, footer, script, style, form, #toc, #header, #footer"
"""What on a page is not the text itself: found by CSS selector and left out."""


class UnreadableDocumentError(ValueError):
    """The file is of no known kind, too long, or not what its name says."""

    retryable = False  # reading it again will not help: a service that raises this is not asked a second time


class Content(NamedTuple):
    """What a reader found. The title is empty when the file names none."""

    title: str
    blocks: list[Block]
    table: Table | None = None


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turn what the parsers raise for a broken file into one error of ours."""
    try:
        yield
    except UnreadableDocumentError:
        raise
    except (ValueError, KeyError, StopIteration, zipfile.BadZipFile, ET.ParseError, csv.Error) as error:
        raise UnreadableDocumentError(f"{file.name} cannot be read: {error}") from error


def read_text(file: Path) -> Content:
    """Plain text: paragraphs are parted by empty lines; a `#` that opens a line is a comment's sign and is dropped."""
    lines = [line.lstrip("#").strip() if line.startswith("#") else line.rstrip() for line in _lines(file)]
    blocks: list[Block] = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        if paragraph.strip():
            blocks.extend(_text_blocks(paragraph.strip("\n")))
    set_off = len(lines) > 1 and not lines[1].strip()
    title = blocks[0].text if blocks and blocks[0].kind == "heading" and set_off else ""
    return Content(title, blocks)


def read_markdown(file: Path) -> Content:
    """Markdown, by way of the HTML that it stands for."""
    from markdown_it import MarkdownIt

    return _read_markup(MarkdownIt().enable("table").render("\n".join(_lines(file))))


def read_html(file: Path) -> Content:
    """A page of HTML, without its navigation, header and footer."""
    return _read_markup("\n".join(_lines(file)))


def read_epub(file: Path) -> Content:
    """An EPUB: the chapters that its spine names, in that order."""
    with zipfile.ZipFile(file) as book:
        container = ET.fromstring(book.read("META-INF/container.xml"))  # noqa: S314  # documents are chosen by whoever runs this
        package_path = PurePosixPath(next(container.iterfind(".//{*}rootfile")).attrib["full-path"])
        package = ET.fromstring(book.read(str(package_path)))  # noqa: S314
        hrefs = {item.attrib["id"]: item.attrib["href"] for item in package.iterfind(".//{*}item")}
        spine = [entry for entry in package.iterfind(".//{*}itemref") if entry.get("linear") != "no"]
        blocks: list[Block] = []
        for entry in spine:
            chapter = package_path.parent / hrefs[entry.attrib["idref"]]
            blocks.extend(_read_markup(book.read(str(chapter)).decode()).blocks)
        title = next((element.text or "" for element in package.iterfind(".//{*}title")), "")
    return Content(title, blocks)


def read_pdf(file: Path) -> Content:
    """A PDF's running text. Its lines carry no structure, so paragraphs are told by how lines end."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        pdf = PdfReader(file)
        lines = [line.strip() for page in pdf.pages for line in page.extract_text().splitlines() if line.strip()]
        title = straight((pdf.metadata.title if pdf.metadata else "") or "")
    except PyPdfError as error:
        raise UnreadableDocumentError(f"{file.name} cannot be read: {error}") from error
    return Content(title, _paragraphs(lines, title))


def read_table(file: Path) -> Content:
    """A CSV with a header. Lines before it that open with `#` are its title and its description."""
    lines = _lines(file)
    described = [line.lstrip("#").strip() for line in lines if line.startswith("#")]
    rows = [row for row in csv.reader(line for line in lines if not line.startswith("#")) if row]
    if not rows:
        raise UnreadableDocumentError(f"{file.name} has no rows")
    columns, cells = rows[0], rows[1:]
    for number, row in enumerate(cells, start=1):
        if len(row) != len(columns):
            raise UnreadableDocumentError(f"{file.name}: row {number} has {len(row)} cells and not {len(columns)}")
    table = Table(columns=tuple(columns), rows=tuple(tuple(row) for row in cells))
    blocks = [Block(kind="prose", text=straight(line)) for line in described[1:] if line]
    return Content(described[0] if described else "", blocks, table)


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8-sig").splitlines()


def _text_blocks(paragraph: str) -> Iterator[Block]:
    """One paragraph of plain text; a first line in capitals is the heading of what follows it."""
    lines = [line.strip() for line in paragraph.splitlines()]
    if len(lines) > 1 and lines[0].isupper() and _is_heading(lines[0]):
        yield Block(kind="heading", text=lines[0])
        lines = lines[1:]
    text = straight(" ".join(lines))
    if len(lines) == 1 and _is_heading(text):
        yield Block(kind="heading", text=text.strip("-=*_ "))
    elif _is_prose(text):
        yield Block(kind="prose", text=text)
    else:
        yield Block(kind="other", text=paragraph)


def _is_heading(line: str) -> bool:
    bare = line.strip("-=*_ ")
    return bare[:1].isalpha() and len(bare) <= HEADING_CHARACTERS_MAX and not bare.endswith(SENTENCE_ENDS)


def _is_prose(text: str) -> bool:
    """Whether text reads as sentences, and not as code, a list of figures or a table."""
    letters = sum(character.isalpha() or character.isspace() for character in text)
    return text.endswith(SENTENCE_ENDS) and len(text.split()) >= PROSE_WORDS_MIN and letters >= LETTERS_MIN * len(text)


def _read_markup(markup: str) -> Content:
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(markup, "html.parser")
    titles = [straight(element.get_text()) for element in soup.select("title")] or [
        straight(element.get_text()) for element in soup.select("h1")
    ]
    for element in soup.select(APART):
        element.decompose()
    blocks = [block for element in (soup.body or soup).find_all(BLOCK_TAGS) for block in _markup_block(element)]
    return Content(titles[0] if len(titles) == 1 else "", blocks)


def _markup_block(element: Tag) -> Iterator[Block]:
    """The text of one element, without that of the blocks within it: they come by themselves."""
    if element.name == "pre":
        yield Block(kind="other", text=element.get_text().strip("\n"))
        return
    within = element.find_all(BLOCK_TAGS)
    own = [text for text in element.strings if not any(inner in within for inner in text.parents)]
    text = straight("".join(own))
    if not text:
        return
    if element.name in {"h1", "h2", "h3", "h4", "h5", "h6", "dt"}:
        yield Block(kind="heading", text=text)
    elif element.name not in {"td", "th"} and _is_prose(text):
        yield Block(kind="prose", text=text)
    else:
        yield Block(kind="other", text=text)


def _paragraphs(lines: list[str], title: str) -> list[Block]:
    """Lines of a printed page as paragraphs and headings; lines at the top that repeat the title are dropped."""
    while lines and lines[0] in title:
        lines = lines[1:]
    full = max((len(line) for line in lines), default=0)
    blocks: list[Block] = []
    paragraph: list[str] = []
    for line in lines:
        is_short, ends = len(line) < 0.8 * full, line.endswith(SENTENCE_ENDS)
        may_open = not paragraph or paragraph[-1].endswith(SENTENCE_ENDS)
        if may_open and is_short and not ends and line[0].isupper():
            blocks += [_joined(paragraph)] if paragraph else []
            blocks.append(Block(kind="heading", text=line))
            paragraph = []
            continue
        paragraph.append(line)
        if is_short and ends:
            blocks.append(_joined(paragraph))
            paragraph = []
    return [*blocks, _joined(paragraph)] if paragraph else blocks


def _joined(lines: list[str]) -> Block:
    return Block(kind="prose", text=straight(" ".join(lines)))


READERS: dict[str, tuple[Kind, Callable[[Path], Content]]] = {
    ".txt": ("text", read_text),
    ".md": ("markdown", read_markdown),
    ".html": ("html", read_html),
    ".pdf": ("pdf", read_pdf),
    ".epub": ("epub", read_epub),
    ".csv": ("table", read_table),
}
"""By the ending of the file's name: the kind, and what reads it."""
