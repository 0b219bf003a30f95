"""An orchestrator as a picture: nodes and edges, drawn as Mermaid text or as SVG, with the state of a task on it.

A picture is data; drawing is a pure function of it. The layout puts each node one layer below the farthest node that
leads to it, and orders a layer by where its predecessors stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

_WIDTH, _HEIGHT, _ACROSS, _DOWN, _MARGIN, _SIDE = 132, 36, 36, 56, 40, 56
_CHARACTER = 6
"""Pixels of a label's character, about."""

_STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #1f2430; text-anchor: middle; dominant-baseline: central }
text.label { font-size: 11px; fill: #5c6470 }
rect { fill: #f4f5f7; stroke: #8a93a0 }
path { fill: none; stroke: #8a93a0 }
path.dashed { stroke-dasharray: 4 3 }
.running rect { fill: #dbe9ff; stroke: #2a6fdb }
.waiting rect { fill: #fff2cc; stroke: #b58900 }
.done rect { fill: #ddf3e0; stroke: #2f8f46 }
.failed rect { fill: #fbdcdc; stroke: #c03030 }
.skipped rect { fill: none; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) {
text { fill: #e6e8ec }
text.label { fill: #a9b0bb }
rect { fill: #262b34 }
.running rect { fill: #1c3357 }
.waiting rect { fill: #463a12 }
.done rect { fill: #1d3d26 }
.failed rect { fill: #4a2020 }
}"""
_TIP = """\
<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">\
<path d="M0 0 8 4 0 8z" style="fill:#8a93a0;stroke:none"/></marker></defs>"""


@dataclass(frozen=True, slots=True)
class PictureEdge:
    """An arrow."""

    source: str
    target: str
    label: str = ""
    back: bool = False
    """It goes back: the layout ignores it."""
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """What is drawn. `status` is a word per node: running, waiting, done, failed, skipped."""

    nodes: list[str]
    edges: list[PictureEdge] = field(default_factory=list)

    def mermaid(self, status: Mapping[str, str] | None = None) -> str:
        """A Mermaid flowchart."""
        names = {name: f"n{number}" for number, name in enumerate(self.nodes)}
        lines = ["flowchart TD"]
        for name, short in names.items():
            label = _quoted(name)
            lines.append(f"    {short}([{label}])" if name in ("start", "end") else f"    {short}[{label}]")
        for edge in self.edges:
            arrow = "-.->" if edge.back or edge.dashed else "-->"
            label = f"|{_quoted(edge.label)}|" if edge.label else ""
            lines.append(f"    {names[edge.source]} {arrow}{label} {names[edge.target]}")
        for name, word in (status or {}).items():
            if name in names:
                lines.append(f"    class {names[name]} {word}")
        if status:
            colours = {"running": "#dbe9ff", "waiting": "#fff2cc", "done": "#ddf3e0", "failed": "#fbdcdc"}
            lines += [f"    classDef {word} fill:{colour}" for word, colour in colours.items()]
            lines.append("    classDef skipped stroke-dasharray:4 3")
        return "\n".join(lines) + "\n"

    def svg(self, status: Mapping[str, str] | None = None) -> str:
        """A standalone SVG document, readable in light and dark."""
        places = self._places()
        beside = max((len(edge.label) for edge in self.edges if edge.back), default=0) * _CHARACTER // 2
        width = max((x for x, _ in places.values()), default=0) + _WIDTH + 2 * _MARGIN + beside
        height = max((y for _, y in places.values()), default=0) + _HEIGHT + 2 * _MARGIN
        size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            f"<title>{escape(' · '.join(self.nodes))}</title><style>{_STYLE}</style>",
            _TIP,
        ]
        parts += [self._arrow(edge, places) for edge in self.edges]
        parts += [self._box(name, places[name], (status or {}).get(name, "")) for name in self.nodes]
        return "\n".join([*parts, "</svg>"]) + "\n"

    def _box(self, name: str, place: tuple[int, int], word: str) -> str:
        x, y = place[0] + _MARGIN, place[1] + _MARGIN
        round_ = _HEIGHT // 2 if name in ("start", "end") else 6
        limit = 17
        shown = escape(name if len(name) <= limit else name[: limit - 1] + "…")
        told = f"<title>{escape(name)}{': ' + escape(word) if word else ''}</title>"
        return (
            f'<g class="{escape(word, quote=True)}">{told}'
            f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="{round_}"/>'
            f'<text x="{x + _WIDTH // 2}" y="{y + _HEIGHT // 2}">{shown}</text></g>'
        )

    def _arrow(self, edge: PictureEdge, places: Mapping[str, tuple[int, int]]) -> str:
        (x1, y1), (x2, y2) = places[edge.source], places[edge.target]
        shape = ' class="dashed"' if edge.back or edge.dashed else ""
        half = _WIDTH // 2
        if edge.back or y2 <= y1:  # around everything on the right
            side = max(x for x, _ in places.values()) + _WIDTH + _MARGIN + _SIDE
            y_from, y_to = y1 + _HEIGHT // 2 + _MARGIN, y2 + _HEIGHT // 2 + _MARGIN
            path = f"M{x1 + _WIDTH + _MARGIN} {y_from}C{side} {y_from} {side} {y_to} {x2 + _WIDTH + _MARGIN} {y_to}"
            label_at = (side - _SIDE // 2, (y_from + y_to) // 2)
        elif y2 - y1 > _HEIGHT + _DOWN and x1 == x2:  # past what stands between them
            side = x1 + _MARGIN - _SIDE
            y_from, y_to = y1 + _HEIGHT // 2 + _MARGIN, y2 + _HEIGHT // 2 + _MARGIN
            path = f"M{x1 + _MARGIN} {y_from}C{side} {y_from} {side} {y_to} {x2 + _MARGIN} {y_to}"
            label_at = (side + _SIDE // 2, (y_from + y_to) // 2)
        else:
            begin = (x1 + half + _MARGIN, y1 + _HEIGHT + _MARGIN)
            end = (x2 + half + _MARGIN, y2 + _MARGIN)
            middle = (begin[1] + end[1]) // 2
            path = f"M{begin[0]} {begin[1]}C{begin[0]} {middle} {end[0]} {middle} {end[0]} {end[1]}"
            label_at = ((begin[0] + end[0]) // 2, middle)
        label = f'<text class="label" x="{label_at[0]}" y="{label_at[1]}">{escape(edge.label)}</text>'
        return f'<path d="{path}"{shape} marker-end="url(#tip)"/>' + (label if edge.label else "")

    def _places(self) -> dict[str, tuple[int, int]]:
        """Where each node's upper left corner is."""
        layers = self._layers()
        rows: dict[int, list[str]] = {}
        for name in self.nodes:
            rows.setdefault(layers[name], []).append(name)
        widest = max((len(row) for row in rows.values()), default=1)
        total = widest * _WIDTH + (widest - 1) * _ACROSS
        places: dict[str, tuple[int, int]] = {}
        for layer in sorted(rows):
            before = {
                name: [places[e.source][0] for e in self.edges if e.target == name and e.source in places]
                for name in rows[layer]
            }
            row = sorted(rows[layer], key=lambda name: sum(before[name]) / len(before[name]) if before[name] else 0.0)
            used = len(row) * _WIDTH + (len(row) - 1) * _ACROSS
            for position, name in enumerate(row):
                places[name] = ((total - used) // 2 + position * (_WIDTH + _ACROSS), layer * (_HEIGHT + _DOWN))
        return places

    def _middle_above(self, name: str, places: Mapping[str, tuple[int, int]]) -> float:
        """The middle of where the node's predecessors stand."""
        above = [places[edge.source][0] for edge in self.edges if edge.target == name and edge.source in places]
        return sum(above) / len(above) if above else 0.0

    def _layers(self) -> dict[str, int]:
        """One below the farthest predecessor. An edge that goes back is no predecessor."""
        layers = dict.fromkeys(self.nodes, 0)
        for _ in self.nodes:
            for edge in self.edges:
                if not edge.back:
                    layers[edge.target] = max(layers[edge.target], layers[edge.source] + 1)
        return layers


def _quoted(text: str) -> str:
    """A label that Mermaid takes as it is."""
    return '"' + text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;") + '"'
