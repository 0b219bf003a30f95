"""Step one: a file becomes a document.

Owns which files are documents, the limit on their size, and where a document's source and licence are looked up. How
each kind of file is taken apart is told by `steps.formats`; what the text means is the next step's business.
"""

from __future__ import annotations

from pathlib import Path

from steps.documents import Document
from steps.formats import READERS, UnreadableDocumentError, readable
from steps.language import words

SOURCES = "SOURCES.md"
BYTES_MAX = 5_000_000


def document_paths(folder: str) -> list[str]:
    """Every document in a folder, by name; SOURCES.md describes them and is none itself."""
    return sorted(str(path) for path in Path(folder).iterdir() if path.suffix in READERS and path.name != SOURCES)


def read(path: str) -> Document:
    """Read one document, by the kind that its name's ending says.

    Raises `UnreadableDocumentError` for a kind that is not known, a file over 5 MB, or one that is broken, and
    `OSError` when there is no such file. The same file always gives the same document.
    """
    file = Path(path)
    if file.suffix not in READERS:
        raise UnreadableDocumentError(f"{file.name} is of no known kind; known are {', '.join(READERS)}")
    if file.stat().st_size > BYTES_MAX:
        raise UnreadableDocumentError(f"{file.name} is longer than {BYTES_MAX} bytes")
    kind, reader = READERS[file.suffix]
    with readable(file):
        content = reader(file)
    source, licence = provenance(file)
    return Document(
        name=file.name,
        kind=kind,
        title=content.title or file.stem.replace("-", " ").replace("_", " ").capitalize(),
        words=sum(len(words(block.text)) for block in content.blocks),
        source=source,
        licence=licence,
        blocks=tuple(content.blocks),
        table=content.table,
    )


def provenance(file: Path) -> tuple[str, str]:
    """Where a document comes from and its licence: its row in the table of SOURCES.md beside it, if there is one.

    The table's columns are the file's name, what it is, where it comes from, and the licence.
    """
    listing = file.with_name(SOURCES)
    if not listing.exists():
        return "", ""
    for line in listing.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == len(("file", "what", "source", "licence")) and cells[0].strip("`") == file.name:
            return cells[2], cells[3]
    return "", ""
