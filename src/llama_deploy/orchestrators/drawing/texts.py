"""How wide texts are, about, and how those of one node are broken into lines. No font is asked: none is known here."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from llama_deploy.orchestrators.drawing.words import clean, heading, is_group, label_of, status_of
from llama_deploy.orchestrators.picture import PictureNode

LABEL, NOTE = 13.0, 11.0
"""Sizes in pixels."""
BOLD = 1.12
"""How much wider bold text is."""
LABEL_WIDTH_MAX, NOTE_WIDTH_MAX = 190.0, 220.0
LABEL_LINES_MAX = 3
NODE_WIDTH_MIN, END_WIDTH = 104.0, 76.0
_NARROW, _WIDE = frozenset("iljtfrI.,:;'|!()[]{} -·"), frozenset("mwMW@%—→▶■")
_ICON_WIDTH = 22.0


def text_width(text: str, size: float) -> float:
    """Pixels that a text takes in a usual sans-serif font, rather a little more."""
    total = 0.0
    for character in text:
        if unicodedata.combining(character):
            continue
        if unicodedata.east_asian_width(character) in "WF":
            total += 1.05
        elif character in _NARROW:
            total += 0.36
        elif character in _WIDE or character.isupper():
            total += 0.8 if character in _WIDE else 0.7
        else:
            total += 0.58
    return total * size


@dataclass(frozen=True, slots=True)
class Texts:
    """What stands on a node. A node with others in it has a `title` alone, at its upper edge."""

    label: tuple[str, ...]
    note: tuple[str, ...]
    status: str
    title: str = ""
    width: float = 0.0
    height: float = 0.0

    @property
    def lines(self) -> list[tuple[str, str, float]]:
        """Class, text and height of each line."""
        found = [("label", text, LABEL + 4) for text in self.label]
        found += [("note", text, NOTE + 4) for text in self.note]
        return [*found, ("status", self.status, NOTE + 5)] if self.status else found


def texts_of(node: PictureNode) -> Texts:
    """The texts of a node, broken, and the size that they need."""
    status = status_of(node)
    if node.inside is not None:
        title = "" if is_group(node) else _fitted(heading(node), LABEL, 420.0)
        status = status if title else ""
        width = BOLD * (text_width(title, LABEL) + text_width(status, NOTE)) + (46 if status else 28)
        return Texts((), (), status, title, width)
    label = _broken(label_of(node), LABEL, LABEL_WIDTH_MAX, LABEL_LINES_MAX)
    note = _broken(clean(node.note), NOTE, NOTE_WIDTH_MAX, 2) if node.note else ()
    texts = Texts(label, note, status)
    sizes = {"label": LABEL, "note": NOTE, "status": NOTE}
    widest = max(text_width(text, sizes[kind]) * (BOLD if kind == "status" else 1.0) for kind, text, _ in texts.lines)
    icon = 2 * _ICON_WIDTH if node.kind in ("person", "time") else 0.0
    least = END_WIDTH if node.kind in ("start", "end") else NODE_WIDTH_MIN
    width = max(least, widest + 24 + icon)
    return Texts(label, note, status, "", width, sum(height for _, _, height in texts.lines) + 14)


def _broken(text: str, size: float, width_max: float, lines_max: int) -> tuple[str, ...]:
    """A text in lines, broken after spaces and signs where it can be; the last line is cut where it must be."""
    lines: list[str] = []
    rest = text.strip() or " "
    while rest and len(lines) < lines_max:
        if len(lines) == lines_max - 1 or text_width(rest, size) <= width_max:
            lines.append(_fitted(rest, size, width_max))
            break
        end = len(rest)
        while end > 1 and text_width(rest[:end], size) > width_max:
            end -= 1
        breaks = [place + 1 for place in range(end) if rest[place] in " _-./:,"]
        cut = breaks[-1] if breaks and breaks[-1] > end // 3 else end
        lines.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return tuple(lines)


def _fitted(text: str, size: float, width_max: float) -> str:
    """A text, or its beginning."""
    if text_width(text, size) <= width_max:
        return text
    while text and text_width(text + "…", size) > width_max:
        text = text[:-1]
    return text + "…"
