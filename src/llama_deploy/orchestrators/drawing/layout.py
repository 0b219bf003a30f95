"""Where everything of a picture stands: layers from top to bottom, as Sugiyama, Tagawa and Toda drew them (1981).

Edges that go back are turned round, long ones pass through places of their own in every layer between, labels have
such a place too, so that nothing overlaps. `order` puts each layer in order and spreads it; here it is layers, sizes
and ways. What is inside of a node is laid out first and is as large as it comes to be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from llama_deploy.orchestrators.drawing.order import WAY, ordered, spread
from llama_deploy.orchestrators.drawing.texts import Texts, text_width, texts_of
from llama_deploy.orchestrators.drawing.words import GROUP, edge_label, inner, pairs_merged, simple
from llama_deploy.orchestrators.picture import END, START, Picture, PictureEdge, PictureNode

GAP, LAYER_GAP, LABEL_GAP = 28.0, 38.0, 12.0
"""Pixels between neighbours, between layers, and around a layer that has labels alone."""
PADDING, TITLE_HEIGHT = 14.0, 26.0
"""Pixels inside of a node that has others in it."""
LABEL_HEIGHT, LABEL_SIZE = 16.0, 11.5
LOOP_WIDTH = 30.0
"""What an edge from a node to itself takes at its right."""
GRID_FROM = 5
"""From so many on, nodes without an order among them stand in rows."""
GROUP_FROM = 7
"""From so many on, nodes with the same ways to and from them are drawn as one group."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """A node with its upper left corner and its size."""

    node: PictureNode
    texts: Texts
    x: float
    y: float
    width: float
    height: float
    within: Layout | None = None
    """What is in it, from the corner that `PADDING` and the title leave."""
    top: float = 0.0
    """Where `within` begins, from the box's upper edge."""


@dataclass(frozen=True, slots=True)
class Way:
    """An edge as the points that it goes through, from its source to its target."""

    edge: PictureEdge
    both: bool
    points: list[Point]
    label: str = ""
    label_at: Point = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Layout:
    """A picture laid out, from its own origin."""

    width: float
    height: float
    boxes: list[Box] = field(default_factory=list)
    ways: list[Way] = field(default_factory=list)


def laid_out(picture: Picture) -> Layout:
    """The whole picture."""
    return _layout(simple(picture.nodes), picture.edges)


def _layout(nodes: Sequence[PictureNode], edges: Sequence[PictureEdge]) -> Layout:
    nodes, edges = _grouped(list(nodes), list(edges))
    names = {node.name for node in nodes}
    kept = [edge for edge in edges if edge.source in names and edge.target in names]
    boxes = {node.name: _sized(node) for node in nodes}
    if not kept and len(nodes) >= GRID_FROM:
        return _grid(list(boxes.values()))
    return _Layers(boxes, kept).layout()


def _sized(node: PictureNode) -> Box:
    """A node at the origin, as large as what is on it or in it."""
    texts = texts_of(node)
    if node.inside is None:
        return Box(node, texts, 0.0, 0.0, texts.width, texts.height)
    nodes, edges = inner(node.inside)
    within = _layout(simple(nodes), edges)
    width = max(within.width + 2 * PADDING, texts.width)
    top = TITLE_HEIGHT if texts.title else PADDING
    return Box(node, texts, 0.0, 0.0, width, within.height + top + PADDING, within, top)


def _grouped(nodes: list[PictureNode], edges: list[PictureEdge]) -> tuple[list[PictureNode], list[PictureEdge]]:
    """Many nodes side by side as one group: those with the same plain edges from and to the same others."""
    around: dict[tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str]]], list[PictureNode]] = {}
    for node in nodes:
        before = frozenset((edge.source, edge.label) for edge in edges if edge.target == node.name)
        after = frozenset((edge.target, edge.label) for edge in edges if edge.source == node.name)
        if (before or after) and not any(label for _, label in before | after) and node.kind not in ("start", "end"):
            around.setdefault((before, after), []).append(node)
    for number, members in enumerate(around.values()):
        if len(members) < GROUP_FROM:
            continue
        names = {node.name for node in members}
        group = PictureNode(f"{GROUP}{number}", kind="part", inside=Picture(members))
        position = nodes.index(members[0])
        nodes = [node for node in nodes if node.name not in names]
        nodes.insert(position, group)
        turned: dict[tuple[str, str], PictureEdge] = {}
        for edge in edges:
            source = group.name if edge.source in names else edge.source
            target = group.name if edge.target in names else edge.target
            known = turned.get((source, target))
            taken = min(1, edge.taken) + (known.taken if known else 0) if group.name in (source, target) else edge.taken
            turned[source, target] = PictureEdge(source, target, edge.label, edge.back, edge.dashed, min(taken, 1))
            if group.name not in (source, target):
                turned[source, target] = edge
        edges = list(turned.values())
    return nodes, edges


def _grid(boxes: list[Box]) -> Layout:
    """Nodes without edges, in rows."""
    columns = math.ceil(math.sqrt(len(boxes) * 1.5))
    width = max(box.width for box in boxes)
    placed: list[Box] = []
    y = 0.0
    for first in range(0, len(boxes), columns):
        row = boxes[first : first + columns]
        height = max(box.height for box in row)
        for column, box in enumerate(row):
            x = column * (width + GAP / 2) + (width - box.width) / 2
            placed.append(_at(box, x, y + (height - box.height) / 2))
        y += height + GAP / 2
    return Layout(columns * (width + GAP / 2) - GAP / 2, y - GAP / 2, placed)


def _at(box: Box, x: float, y: float) -> Box:
    return Box(box.node, box.texts, x, y, box.width, box.height, box.within, box.top)


class _Layers:
    """One level of a picture: its nodes, the places that long edges and labels take, and where all of them are."""

    def __init__(self, boxes: Mapping[str, Box], edges: Sequence[PictureEdge]) -> None:
        self._boxes = boxes
        merged = pairs_merged(edges)
        self._loops = [edge for edge, _ in merged if edge.source == edge.target]
        self._edges = [(edge, both) for edge, both in merged if edge.source != edge.target]
        self._labelled = any(edge_label(edge) for edge, _ in self._edges)
        self._down = self._turned()
        self._layer = self._layers()
        self._widths: dict[str, float] = {}
        self._heights: dict[str, float] = {}
        for name, box in boxes.items():
            loop = max((_loop_width(edge) for edge in self._loops if edge.source == name), default=0.0)
            self._widths[name], self._heights[name] = box.width + 2 * loop, box.height
        self._chains = [self._chain(number) for number in range(len(self._edges))]

    def _turned(self) -> list[tuple[str, str]]:
        """Each edge as it goes down: those that go back, or that close a circle, are turned round."""
        down = [(e.target, e.source) if e.back else (e.source, e.target) for e, _ in self._edges]
        outgoing: dict[str, list[int]] = {}
        for number, (source, _) in enumerate(down):
            outgoing.setdefault(source, []).append(number)
        seen: dict[str, bool] = {}  # whether it is on the path that is being walked
        for begin in sorted(self._boxes, key=lambda name: name != START):
            path = [begin] if begin not in seen else []
            seen.setdefault(begin, True)
            while path:
                left = outgoing.get(path[-1], [])
                if not left:
                    seen[path.pop()] = False
                    continue
                number = left.pop(0)
                source, target = down[number]
                if seen.get(target):
                    down[number] = (target, source)
                elif target not in seen:
                    seen[target] = True
                    path.append(target)
        return down

    def _layers(self) -> dict[str, int]:
        """One below the lowest predecessor; with labels, every second layer is theirs."""
        step = 2 if self._labelled else 1
        layer = dict.fromkeys(self._boxes, 0)
        for _ in self._boxes:
            moved = False
            for source, target in self._down:
                if layer[target] < layer[source] + step:
                    layer[target] = layer[source] + step
                    moved = True
            if not moved:
                break
        for name in sorted(
            self._boxes, key=lambda name: -layer[name]
        ):  # what leads nowhere up stands near what follows
            if not any(target == name for _, target in self._down):
                below = [layer[target] for source, target in self._down if source == name]
                if below and name != START:
                    layer[name] = min(below) - step
        if END in layer:
            layer[END] = max((place + step for name, place in layer.items() if name != END), default=0)
        return layer

    def _chain(self, number: int) -> list[str]:
        """What an edge passes through from top to bottom: one place in each layer between, a label in the middle."""
        (edge, _), (upper, lower) = self._edges[number], self._down[number]
        first, last = self._layer[upper], self._layer[lower]
        label = edge_label(edge)
        middle = (first + last) // 2 if label else -1
        chain = [upper]
        for layer in range(first + 1, last):
            name = f"{WAY}{number}:{layer}"
            self._layer[name] = layer
            self._widths[name] = text_width(label, LABEL_SIZE) + 8.0 if layer == middle else 8.0
            self._heights[name] = LABEL_HEIGHT if layer == middle else 0.0
            chain.append(name)
        return [*chain, lower]

    def layout(self) -> Layout:
        """Boxes and ways, from the upper left corner of what they take."""
        links = [pair for chain in self._chains for pair in pairwise(chain)]
        rows = ordered(self._layer, links)
        centres = spread(rows, self._widths, links, gap=GAP)
        tops = self._tops(rows)
        boxes = []
        for name, box in self._boxes.items():
            y = tops[self._layer[name]][0] + (tops[self._layer[name]][1] - box.height) / 2
            boxes.append(_at(box, centres[name] - box.width / 2, y))
        placed = {box.node.name: box for box in boxes}
        ways = [*self._ways(placed, centres, tops), *(_loop(edge, placed[edge.source]) for edge in self._loops)]
        width = max((centres[name] + self._widths[name] / 2 for name in centres), default=0.0)
        height = max((top + tall for top, tall in tops.values()), default=0.0)
        return Layout(width, height, boxes, ways)

    def _tops(self, rows: Sequence[Sequence[str]]) -> dict[int, tuple[float, float]]:
        """Where each layer begins, and how high it is."""
        tops: dict[int, tuple[float, float]] = {}
        y = 0.0
        for number, row in enumerate(rows):
            height = max((self._heights[name] for name in row), default=0.0)
            tops[number] = (y, height)
            y += height + (LABEL_GAP if self._labelled else LAYER_GAP)
        return tops

    def _ways(
        self, boxes: Mapping[str, Box], centres: Mapping[str, float], tops: Mapping[int, tuple[float, float]]
    ) -> list[Way]:
        ports = self._ports(boxes, centres)
        ways = []
        for number, (edge, both) in enumerate(self._edges):
            chain = self._chains[number]
            upper, lower = boxes[chain[0]], boxes[chain[-1]]
            points = [(ports[number, 0], upper.y + upper.height)]
            label_at = (0.0, 0.0)
            for name in chain[1:-1]:
                top, height = tops[self._layer[name]]
                if self._heights[name]:
                    label_at = (centres[name], top + height / 2)
                points += [(centres[name], top), (centres[name], top + height)] if height else [(centres[name], top)]
            points.append((ports[number, 1], lower.y))
            if chain[0] != edge.source:
                points.reverse()
            ways.append(Way(edge, both, points, edge_label(edge), label_at))
        return ways

    def _ports(self, boxes: Mapping[str, Box], centres: Mapping[str, float]) -> dict[tuple[int, int], float]:
        """Where each edge leaves its upper node and meets its lower one: side by side, as what follows on its way."""
        ends: dict[tuple[str, int], list[tuple[float, int]]] = {}
        for number, chain in enumerate(self._chains):
            ends.setdefault((chain[0], 0), []).append((centres[chain[1]], number))
            ends.setdefault((chain[-1], 1), []).append((centres[chain[-2]], number))
        ports: dict[tuple[int, int], float] = {}
        for (name, end), found in ends.items():
            apart = min(22.0, boxes[name].width * 0.7 / len(found))
            for position, (_, number) in enumerate(sorted(found)):
                ports[number, end] = centres[name] + (position - (len(found) - 1) / 2) * apart
        return ports


def _loop_width(edge: PictureEdge) -> float:
    label = edge_label(edge)
    return LOOP_WIDTH + (text_width(label, LABEL_SIZE) + 6.0 if label else 0.0)


def _loop(edge: PictureEdge, box: Box) -> Way:
    """An edge from a node to itself, at its right."""
    right, middle = box.x + box.width, box.y + box.height / 2
    points = [(right, middle - 9), (right + LOOP_WIDTH - 6, middle), (right, middle + 9)]
    label = edge_label(edge)
    return Way(
        edge,
        both=False,
        points=points,
        label=label,
        label_at=(right + LOOP_WIDTH + text_width(label, LABEL_SIZE) / 2, middle),
    )
