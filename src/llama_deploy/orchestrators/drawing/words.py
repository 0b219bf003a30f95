"""What every drawing of a picture shares: the words and the signs of a state, and how a picture is made simpler."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from llama_deploy.orchestrators.picture import END, START, Picture, PictureEdge, PictureNode, State

SIGNS: dict[State, str] = {
    "queued": "…", "running": "▶", "waiting": "?", "done": "✓", "failed": "✗", "stopped": "■", "skipped": "-",
}  # fmt: skip
"""One sign for each state, so that no colour is needed to tell them apart."""

WORDS: dict[State, str] = {
    "queued": "queued", "running": "running", "waiting": "waits", "done": "done", "failed": "failed",
    "stopped": "stopped", "skipped": "not taken",
}  # fmt: skip

GROUP = "\0\1group "
"""How the name of a node begins that only draws others together."""
LABEL_CHARACTERS_MAX = 200
"""Of a longer label the beginning is kept."""


def is_group(node: PictureNode) -> bool:
    """Whether it stands for nodes side by side, and for nothing of its own."""
    return node.inside is not None and node.name.startswith(GROUP)


def label_of(node: PictureNode) -> str:
    """What is written on a node: on one line, without what cannot be printed."""
    return clean(node.label or node.name)


def status_of(node: PictureNode) -> str:
    """Where the task stands there, in words: `✓ done · 2 times`."""
    if not node.state:
        return clean(node.figure)
    word = WORDS[node.state]
    if node.state == "waiting" and node.kind == "person":
        word = "waits for a person"
    return " · ".join(filter(None, [f"{SIGNS[node.state]} {word}", clean(node.figure)]))


def heading(node: PictureNode) -> str:
    """What stands above the nodes inside of a node: its name and what it is, where the one does not say the other."""
    name, title = label_of(node), clean(node.inside.title) if node.inside is not None else ""
    return title if title.startswith(name) else " · ".join(filter(None, [name, title]))


def clean(text: str) -> str:
    """A text on one line, with nothing in it that XML or a terminal would trip over."""
    kept = "".join(character if character.isprintable() else " " for character in text[: LABEL_CHARACTERS_MAX + 1])
    return kept if len(kept) <= LABEL_CHARACTERS_MAX else kept[: LABEL_CHARACTERS_MAX - 1] + "…"


def inner(picture: Picture) -> tuple[list[PictureNode], list[PictureEdge]]:
    """Nodes and edges of a picture that stands inside of a node: without its start and its end."""
    nodes = [node for node in picture.nodes if node.name not in (START, END)]
    edges = [edge for edge in picture.edges if edge.source != START and edge.target != END]
    return nodes, edges


def simple(nodes: Iterable[PictureNode]) -> list[PictureNode]:
    """Nodes that are an orchestrator of one node, drawn as that one; a gate is a person, a wrapper its service."""
    return [_simple(node) for node in nodes]


def _simple(node: PictureNode) -> PictureNode:
    if node.inside is None:
        return node
    nodes, edges = inner(node.inside)
    if len(nodes) != 1 or edges:
        return node
    only = _simple(nodes[0])
    own = label_of(node) if not node.inside.title.startswith(label_of(node)) else ""
    title = node.inside.title if only.kind != "person" else node.inside.title.removeprefix("gate").lstrip(", ")
    if only.inside is not None:
        nested = replace(only.inside, title=" · ".join(filter(None, [title, only.inside.title])))
        return replace(node, inside=nested)
    below = [title, only.note if only.note != own else ""]
    if own and label_of(only) != own and only.kind != "person":
        below.insert(1, label_of(only))
    return replace(
        only,
        name=node.name,
        label=own or label_of(only),
        note=" · ".join(dict.fromkeys(filter(None, below))),
        state=only.state if only.state != "skipped" else node.state or only.state,
        figure=only.figure or node.figure,
    )


def pairs_merged(edges: Iterable[PictureEdge]) -> list[tuple[PictureEdge, bool]]:
    """Edges, each with whether it stands for the way back as well: one that says nothing of its own."""
    found: dict[tuple[str, str], tuple[PictureEdge, bool]] = {}
    for edge in edges:
        opposite = found.get((edge.target, edge.source))
        goes_back = opposite is not None and edge.source != edge.target and not edge.label
        alike = opposite is not None and bool(opposite[0].taken) == bool(edge.taken)
        if opposite is not None and goes_back and alike and not opposite[1] and edge.dashed <= opposite[0].dashed:
            both = replace(opposite[0], taken=max(opposite[0].taken, edge.taken))
            found[edge.target, edge.source] = (both, True)
            continue
        known = found.get((edge.source, edge.target))
        if known is not None:
            labels = ", ".join(dict.fromkeys(filter(None, [known[0].label, edge.label])))
            taken, dashed = known[0].taken + edge.taken, known[0].dashed and edge.dashed
            found[edge.source, edge.target] = (replace(known[0], label=labels, taken=taken, dashed=dashed), known[1])
        else:
            found[edge.source, edge.target] = (edge, False)
    return list(found.values())


def edge_label(edge: PictureEdge) -> str:
    """What stands beside an arrow: its label, and how often it was taken beyond once."""
    return " · ".join(filter(None, [clean(edge.label), f"{edge.taken}x" if edge.taken > 1 else ""]))


def lines_in_words(picture: Picture) -> str:
    """The picture as sentences, for who does not see it."""
    told = []
    for _, node in picture.parts():
        if node.kind in ("start", "end") and not node.state:
            continue
        status = status_of(node)
        told.append(f"{label_of(node)}{': ' + status if status else ''}")
    ways = [f"{clean(edge.source)} to {clean(edge.target)}" for edge in picture.edges]
    return f"{'; '.join(told)}. Ways: {', '.join(ways)}."
