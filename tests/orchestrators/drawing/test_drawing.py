"""Drawings of pictures: what stands on them, where, and that nobody's names break them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_deploy.orchestrators import (
    Budget,
    Cache,
    Edge,
    Fallback,
    Gate,
    Graph,
    GroupChat,
    Handoff,
    Map,
    Orchestrator,
    Parallel,
    Picture,
    PictureEdge,
    Planner,
    Retry,
    Router,
    Saga,
    Sequence,
    Timeout,
    Vote,
)
from llama_deploy.orchestrators.drawing.layout import Box, Layout, laid_out
from llama_deploy.orchestrators.picture import PictureNode

SVG = "{http://www.w3.org/2000/svg}"
AGENTS: Any = {"desk": "desk", "billing": "billing", "legal": "legal", "books": "books"}
NESTED = Sequence(
    "triage",
    Parallel("billing", Retry(Sequence("search", "answer"))),
    Budget(Timeout("policy", 5, instead="safe"), steps=9, at_limit="ask"),
    Gate("Pay?", deadline_s=3600, escalate_to=["the manager"]),
    "reply",
)
EVERY: dict[str, Orchestrator[Any]] = {
    "sequence": Sequence("draft", "check"),
    "parallel": Parallel("a", "b", "c", want=2),
    "wide": Parallel(*(f"reviewer {number}" for number in range(40))),
    "map": Map("count", over="words", reduce="add", at_once=4),
    "graph": Graph(
        {"write": "write", "review": "review", "paint": "paint"},
        [
            ("start", "write"),
            ("start", "paint"),
            ("write", "review"),
            Edge("review", "write", when=lambda _: True, at_most=2, label="too short"),
            Edge("review", "end", when=lambda _: True, label="good"),
            ("paint", "end"),
        ],
    ),
    "router": Router("classify", {"sea": "sailor", "sky": "astronomer"}),
    "rule": Router(lambda _: "sea", {"sea": "sailor", "sky": "astronomer"}),
    "handoff": Handoff(AGENTS),
    "declared handoff": Handoff(AGENTS, targets={"desk": ["billing"], "billing": ["desk", "legal"], "legal": []}),
    "round robin": GroupChat({"writer": "writer", "critic": "critic"}),
    "chaired": GroupChat({"writer": "writer", "critic": "critic"}, select="chair", conclude="sum_up"),
    "selected": GroupChat({"writer": "writer", "critic": "critic"}, select=lambda _, names: names[0]),
    "planner": Planner("plan", {"library": "library", "gauge": "gauge"}, judge="judge"),
    "gate": Gate("Pay?", deadline_s=7 * 86_400, escalate_to=["the manager", "the director"]),
    "fallback": Fallback("oracle", "guess"),
    "cache": Cache(Vote("guess", 3)),
    "saga": Saga(hotel=("book", "cancel"), museum=("enter", None)),
    "nested": NESTED,
}


def boxes(layout: Layout, left: float = 0.0, top: float = 0.0) -> list[tuple[Box, float, float]]:
    """Every box of one level where it is."""
    return [(box, left + box.x, top + box.y) for box in layout.boxes]


def levels(layout: Layout) -> list[Layout]:
    return [layout, *(level for box in layout.boxes if box.within is not None for level in levels(box.within))]


@pytest.mark.parametrize("name", EVERY)
def test_every_orchestrator_is_drawn_and_nothing_overlaps(name: str) -> None:
    picture = EVERY[name].picture()
    for level in levels(laid_out(picture)):
        for (one, x, y), (other, x2, y2) in combinations(boxes(level), 2):
            apart = x + one.width <= x2 or x2 + other.width <= x or y + one.height <= y2 or y2 + other.height <= y
            assert apart, (one.node.name, other.node.name)
        for box, x, y in boxes(level):
            assert x >= 0
            assert y >= 0
            assert x + box.width <= level.width + 0.01
            assert y + box.height <= level.height + 0.01
            if box.within is not None:
                assert box.within.width <= box.width
                assert box.within.height + box.top <= box.height
    ET.fromstring(picture.svg())
    assert picture.mermaid().startswith("flowchart TD\n")


def test_what_is_inside_of_a_node_is_drawn_in_it() -> None:
    names = [(depth, node.name) for depth, node in NESTED.picture().parts() if node.kind not in ("start", "end")]
    assert names[:5] == [(0, "triage"), (0, "parallel"), (1, "billing"), (1, "retry"), (2, "node")]
    text = NESTED.picture().mermaid()
    assert '    subgraph n2["parallel: all"]\n        n7["billing"]\n' in text
    assert text.count("subgraph ") == text.count(" end\n")
    assert '"a person<br/>at the limit"' in text


def test_a_wide_fan_out_stands_in_rows() -> None:
    layout = laid_out(EVERY["wide"].picture())
    assert layout.width < 1500
    assert [box.node.name for box in layout.boxes if box.within is None] == ["start", "end"]


def test_edges_to_and_fro_are_one_and_loops_come_back() -> None:
    ways = {(way.edge.source, way.edge.target): way for way in laid_out(EVERY["chaired"].picture()).ways}
    assert ways["chair", "writer"].both
    assert ("writer", "chair") not in ways
    loop = next(way for way in laid_out(EVERY["graph"].picture()).ways if way.edge.back)
    assert loop.points[0][1] > loop.points[-1][1]  # from below to above
    assert loop.label == "too short"


def test_names_are_nobodys_code() -> None:
    hostile = '<b onload="x">&\x00\x1b[31m]]>'
    picture = Graph({hostile: "a"}, [("start", hostile), (hostile, "end")]).picture()
    root = ET.fromstring(picture.svg())
    assert not list(root.iter(f"{SVG}b"))
    assert not list(root.iter(f"{SVG}script"))
    assert "onload" in "".join(root.itertext())
    (line,) = [line for line in picture.mermaid().splitlines() if "onload" in line]
    assert line == '    n1["#60;b onload=#34;x#34;#62;#38;  #91;31m#93;#93;#62;<br/>a"]'
    assert "\x1b" not in "\n".join(picture.lines())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=9, unique=True), st.data())
def test_whatever_graph_it_is_a_valid_document(names: list[str], data: st.DataObject) -> None:
    pairs = st.tuples(st.sampled_from(names), st.sampled_from(names), st.text(max_size=10), st.booleans())
    edges = [PictureEdge(a, b, label, back) for a, b, label, back in data.draw(st.lists(pairs, max_size=20))]
    picture = Picture([PictureNode(name) for name in names], edges)
    root = ET.fromstring(picture.svg())
    drawn = [g for g in root.iter(f"{SVG}g") if (g.get("class") or "").startswith("node service")]
    assert len(drawn) == len(names)
    assert "\r" not in picture.mermaid()
    assert len(picture.lines()) >= len(names) - ("start" in names)


def test_a_state_is_a_word_and_a_sign_and_not_a_colour_alone() -> None:
    nodes = [PictureNode("a", state="done", figure="2 times"), PictureNode("b", "ask", "person", state="waiting")]
    picture = Picture(nodes, [PictureEdge("a", "b", taken=2)], "demo", live=True)
    root = ET.fromstring(picture.svg())
    assert root.get("role") == "img"
    assert root.find(f"{SVG}title") is not None
    description = root.find(f"{SVG}desc")
    assert description is not None
    assert description.text == "a: ✓ done · 2 times; ask: ? waits for a person. Ways: a to b."
    assert [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "status"] == [
        "✓ done · 2 times",
        "? waits for a person",
    ]
    assert "prefers-color-scheme: dark" in picture.svg()
    assert picture.lines() == ["demo", "✓ a    done · 2 times  -> ask (2x)", "? ask  waits"]
    assert "    linkStyle 0 stroke-width:3px" in picture.mermaid()
    assert "    class n0 done" in picture.mermaid()


def test_a_chain_of_a_thousand_is_drawn() -> None:
    picture = Sequence(*(f"step {number}" for number in range(1000))).picture()
    assert laid_out(picture).height > 50_000
