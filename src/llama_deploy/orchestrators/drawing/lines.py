"""A picture as lines of plain text: one for each node, indented by what it is inside of.

✓ triage        done                    -> specialists
▶ specialists   running · parallel: all -> policy
  ✓ billing     done
  ▶ technical   running · attempt 2
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from llama_deploy.orchestrators.drawing.words import SIGNS, WORDS, clean, edge_label, heading, inner, label_of, simple
from llama_deploy.orchestrators.picture import END, START, Picture, PictureEdge, PictureNode

_NAME_COLUMNS_MAX = 40


def lines(picture: Picture) -> list[str]:
    """The lines, the first of them the title where there is one."""
    nodes = [node for node in picture.nodes if node.name != START]
    rows = list(_rows(simple(nodes), picture.edges, 0, live=picture.live))
    width = min(_NAME_COLUMNS_MAX, max((_columns(name) for name, _, _ in rows), default=0))
    middle = max((_columns(words) for _, words, ways in rows if ways), default=0)
    shown = [clean(picture.title)] if picture.title else []
    for name, words, ways in rows:
        line = f"{_padded(name, width)}  {_padded(words, middle) if ways else words}  {ways}"
        shown.append(line.rstrip())
    return shown


def _rows(
    nodes: list[PictureNode], edges: list[PictureEdge], depth: int, *, live: bool
) -> Iterator[tuple[str, str, str]]:
    """Name, words and ways on of each node."""
    labels = {node.name: label_of(node) for node in nodes} | {END: "end"}
    for node in nodes:
        sign = SIGNS[node.state] + " " if node.state else ("  " if live else "")
        title = heading(node).removeprefix(labels[node.name]).lstrip(" ·:,") if node.inside is not None else node.note
        words = [WORDS[node.state] if node.state else "", clean(node.figure), clean(title)]
        ways = [
            f"{labels[edge.target]}{f' ({edge_label(edge)})' if edge_label(edge) else ''}"
            for edge in edges
            if edge.source == node.name and edge.target in labels and (edge.taken or not live or not node.state)
        ]
        name = "  " * depth + sign + labels[node.name]
        yield name, " · ".join(filter(None, words)), f"-> {', '.join(ways)}" if ways else ""
        if node.inside is not None:
            inner_nodes, inner_edges = inner(node.inside)
            yield from _rows(simple(inner_nodes), inner_edges, depth + 1, live=live)


def _padded(text: str, width: int) -> str:
    while _columns(text) > width:
        text = text[:-2] + "…"
    return text + " " * (width - _columns(text))


def _columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else not unicodedata.combining(sign) for sign in text)
