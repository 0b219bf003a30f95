"""A picture as a Mermaid flowchart. Orchestrators inside of others are subgraphs.

Names and labels are anybody's: every character that is no letter, digit or space is written as an entity code.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from llama_deploy.orchestrators.drawing.words import clean, edge_label, heading, inner, label_of, simple, status_of
from llama_deploy.orchestrators.picture import Picture, PictureEdge, PictureNode

_PLAIN = frozenset(" .,:·…✓▶✗■?!-_()/+=%'")
_SHAPES = {
    "start": ("([", "])"), "end": ("([", "])"), "person": ("[/", "/]"), "time": ("(", ")"), "choice": ("{{", "}}"),
}  # fmt: skip
_COLOURS = {
    "queued": "fill:#eef1f5,stroke:#7a8494,color:#1f2430",
    "running": "fill:#dbe9ff,stroke:#2a6fdb,color:#1f2430,stroke-width:2px",
    "waiting": "fill:#fff2cc,stroke:#9a7400,color:#1f2430,stroke-width:2px",
    "done": "fill:#ddf3e0,stroke:#2f8f46,color:#1f2430",
    "failed": "fill:#fbdcdc,stroke:#c03030,color:#1f2430",
    "stopped": "fill:#e9e4f2,stroke:#6f5a96,color:#1f2430",
    "skipped": "fill:none,stroke:#8a93a0,stroke-dasharray:4 3",
}


def mermaid(picture: Picture) -> str:
    """The flowchart, one statement a line."""
    lines = ["flowchart TD"]
    if picture.title:
        lines.append(f"    %% {clean(picture.title)}")
    drawing = _Drawing()
    lines += drawing.body(simple(picture.nodes), picture.edges, "    ")
    lines += drawing.styles()
    return "\n".join(lines) + "\n"


class _Drawing:
    """Short names for all nodes of one flowchart, and what is styled in it."""

    def __init__(self) -> None:
        self._numbers = count()
        self._links = count()
        self._states: dict[str, list[str]] = {}
        self._taken: list[int] = []
        self._live = False

    def body(self, nodes: list[PictureNode], edges: list[PictureEdge], indent: str) -> Iterator[str]:
        """The nodes and edges of one level."""
        shorts = {node.name: f"n{next(self._numbers)}" for node in nodes}
        for node in nodes:
            yield from self._node(node, shorts[node.name], indent)
        for edge in edges:
            if edge.source not in shorts or edge.target not in shorts:
                continue
            if edge.taken:
                self._taken.append(next(self._links))
            else:
                next(self._links)
            arrow = "-.->" if edge.back or edge.dashed else "-->"
            label = f"|{_quoted(edge_label(edge))}|" if edge_label(edge) else ""
            yield f"{indent}{shorts[edge.source]} {arrow}{label} {shorts[edge.target]}"

    def _node(self, node: PictureNode, short: str, indent: str) -> Iterator[str]:
        if node.state:
            self._states.setdefault(node.state, []).append(short)
        if node.inside is not None:
            words = [heading(node), status_of(node)]
            yield f"{indent}subgraph {short}[{_quoted(' · '.join(filter(None, words)))}]"
            nodes, edges = inner(node.inside)
            yield from self.body(simple(nodes), edges, indent + "    ")
            yield f"{indent}end"
            return
        opening, closing = _SHAPES.get(node.kind, ("[", "]"))
        texts = [label_of(node), clean(node.note), status_of(node)]
        yield f"{indent}{short}{opening}{_quoted(*filter(None, texts))}{closing}"

    def styles(self) -> Iterator[str]:
        """Colours of states, and the ways that were taken."""
        for state, shorts in self._states.items():
            yield f"    class {','.join(shorts)} {state}"
            yield f"    classDef {state} {_COLOURS[state]}"
        if self._taken:
            yield f"    linkStyle {','.join(map(str, self._taken))} stroke-width:3px"


def _quoted(*texts: str) -> str:
    """A label that Mermaid takes as it is, each text on a line of its own."""
    return '"' + "<br/>".join("".join(map(_coded, text)) for text in texts) + '"'


def _coded(character: str) -> str:
    return character if character.isalnum() or character in _PLAIN else f"#{ord(character)};"
