"""The project's pages as data: their fenced blocks, their links, their headings.

A fence's first word is its language; what follows says what is to be done with it (see `test_snippets`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md") if path.exists()]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
PAGES += sorted((ROOT / "examples").rglob("README.md"))


@dataclass(frozen=True)
class Fence:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    note: str
    """What follows the language in the info string."""
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def fences(page: Path) -> Iterator[Fence]:
    for token in tokens(page):
        if token.type == "fence":
            language, _, note = token.info.strip().partition(" ")
            line = (token.map or [0])[0] + 1
            yield Fence(page, line, language, note.strip(), token.content)


def links(page: Path) -> Iterator[str]:
    """Where the page's links and pictures lead, as written."""
    for token in tokens(page):
        for child in token.children or []:
            target = child.attrGet("href") if child.type == "link_open" else child.attrGet("src")
            if target:
                yield str(target)


def anchors(page: Path) -> set[str]:
    """The anchors of the page's headings, as code forges make them."""
    found: set[str] = set()
    parsed = tokens(page)
    for opening, content in pairwise(parsed):
        if opening.type == "heading_open":
            text = "".join(child.content for child in content.children or [])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            number = 0
            while (name := slug if number == 0 else f"{slug}-{number}") in found:
                number += 1
            found.add(name)
    return found
