"""Orchestrators from data: what can be said, and that every mistake is told with the path to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.orchestrators import Orchestrator
from llama_deploy.orchestrators.described import CATALOGUE, build
from llama_deploy.orchestrators.described_errors import DescriptionError
from llama_deploy.testing.orchestrator_play import play

pytestmark = pytest.mark.anyio

SERVICES: dict[str, Callable[..., Any]] = {
    "up": lambda text: text.upper(),
    "bang": lambda text: text + "!",
    "judge": lambda text: {"score": len(text), "text": text},
    "show": lambda **parts: parts,
    "broken": lambda _: 1 / 0,
    "book": lambda input, done: f"{input}{len(done)}",
    "speak": lambda turns, **_: f"heard {len(turns)}",
    "route": lambda input, routes: routes[0],
}


@pytest.mark.parametrize(
    ("name", "parameters", "output"),
    [
        ("sequence", {"nodes": ["up", "bang"]}, "TIDE!"),
        ("sequence", {"nodes": {"first": "up", "then": {"parallel": {"nodes": ["bang"], "want": "any"}}}}, "TIDE!"),
        ("parallel", {"nodes": {"a": "up", "b": "broken"}, "failures": "skip"}, {"a": "TIDE"}),
        ("router", {"choose": "route", "routes": {"a": "up", "b": "bang"}}, "TIDE"),
        ("group-chat", {"participants": {"a": "speak", "b": "speak"}, "turns-max": 3}, "heard 1"),
        ("fallback", {"nodes": ["broken", "up"]}, "TIDE"),
        ("timeout", {"node": "up", "seconds": 3}, "TIDE"),
        ("budget", {"node": "up", "tokens": 100, "steps": 3, "at-limit": "ask"}, "TIDE"),
        ("cache", {"node": "up"}, "TIDE"),
        ("vote", {"node": "up", "times": 3}, "TIDE"),
        ("retry", {"node": "up", "policy": {"max-retries": 2}}, "TIDE"),
        ("saga", {"steps": {"a": {"do": "book", "undo": "up"}, "b": "book"}}, {"a": "tide0", "b": "tide1"}),
    ],
)
async def test_the_catalogue_by_name(name: str, parameters: dict[str, Any], output: Any) -> None:
    assert (await play(build(name, parameters), SERVICES, "tide")).output == output


async def test_a_route_named_by_the_input_and_a_map() -> None:
    by_field = build("router", {"choose": {"field": "kind"}, "routes": {"a": "show", "b": "show"}, "default": "b"})
    seen = await play(by_field, SERVICES, {"kind": "a"})
    assert seen.events == [{"route": "a"}]
    assert (await play(build("map", {"node": "up", "at-once": 2}), SERVICES, ["a", "b"])).output == ["A", "B"]


@pytest.mark.parametrize(("text", "way"), [("ab", "up"), ("abcdef", "bang")])
async def test_a_graph_with_conditions(text: str, way: str) -> None:
    graph = build(
        "graph",
        {
            "nodes": {"judge": "judge", "short": {"sequence": {"nodes": ["show"]}}, "long": "show"},
            "edges": [
                "start -> judge",
                {"from": "judge", "to": "short", "when": {"field": "score", "below": 4}},
                {"from": "judge", "to": "long", "when": {"field": "score", "below": 4, "not": True}},
                "short -> end",
                "long -> end",
            ],
        },
    )
    seen = await play(graph, SERVICES, text)
    assert seen.output == {"score": len(text), "text": text}
    assert ("short" in str(seen.events)) == (way == "up")
    assert "not score below 4" in graph.picture().mermaid()


@pytest.mark.parametrize(
    ("name", "parameters", "path", "what"),
    [
        ("sequenze", {}, (), "there is no orchestrator `sequenze`: did you mean `sequence`?"),
        ("sequence", {"node": []}, ("node",), "`sequence` has no parameter `node`: did you mean `nodes`?"),
        ("sequence", {"nodes": ["a", {}]}, ("nodes", 1), "a node is a service's name, or an object with one key"),
        ("sequence", {"nodes": []}, (), "`sequence`: give at least one node"),
        ("parallel", {"nodes": ["a"], "want": 3}, (), "`parallel`: want=3: there are 1 nodes"),
        ("map", {}, (), "`map`: missing 1 required positional argument: 'node'"),
        ("retry", {"node": {"map": {"nod": 1}}}, ("node", "map", "nod"), "`map` has no parameter `nod`"),
        ("retry", {"node": "a", "policy": {"retries": 1}}, ("policy", "retries"), "a retry policy has no `retries`"),
        ("graph", {"nodes": {"a": "a"}, "edges": ["start, a"]}, ("edges", 0), "'start, a' is no edge"),
        ("graph", {"nodes": {"a": "a"}, "edges": ["start -> a"]}, (), "a leads nowhere"),
        (
            "graph",
            {"nodes": {"a": "a"}, "edges": [{"from": "a", "to": "a", "at-mots": 1}]},
            ("edges", 0, "at-mots"),
            "an edge has no `at-mots`: did you mean `at-most`?",
        ),
        (
            "graph",
            {"nodes": {"a": "a"}, "edges": [{"from": "a", "to": "a", "when": {"abov": 1}}]},
            ("edges", 0, "when", "abov"),
            "a condition has no `abov`: did you mean `above`?",
        ),
        ("saga", {"steps": ["a"]}, ("steps",), "steps are an object by name"),
        ("gate", {"escalate-to": ["a"]}, (), "`gate`: escalate_to needs a deadline_s"),
    ],
)
def test_mistakes_are_told_where_they_are(name: str, parameters: dict[str, Any], path: Any, what: str) -> None:
    with pytest.raises(DescriptionError) as raised:
        build(name, parameters)
    assert raised.value.path == path
    assert what in raised.value.what


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["a", "", "up", "start -> a", "all"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["nodes", "node", "from", "to", "a", *CATALOGUE]), inner, max_size=3)
    ),
    max_leaves=8,
)
words = ["nodes", "node", "edges", "want", "steps", "routes", "choose", "agents", "participants", "times", "seconds"]


@given(st.sampled_from(sorted(CATALOGUE)), st.dictionaries(st.sampled_from(words), json_values, max_size=4))
def test_rubbish_is_refused_and_nothing_else_is_raised(name: str, parameters: dict[str, Any]) -> None:
    with contextlib.suppress(DescriptionError):
        assert isinstance(build(name, parameters), Orchestrator)
