"""Graphs: what is refused before it runs, joins and branches, loops with a bound, and the picture."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.orchestrators import Edge, Graph, Sequence
from llama_deploy.orchestrators.graph_checks import problems, reachable
from llama_deploy.testing.orchestrator_play import Play, play

pytestmark = pytest.mark.anyio


def note(name: str) -> Callable[..., Any]:
    def serve(text: Any = None, **more: Any) -> Any:
        return f"{name}({text if text is not None else ','.join(f'{k}={v}' for k, v in sorted(more.items()))})"

    return serve


NAMES = ("a", "b", "c", "d")
SERVICES: dict[str, Callable[..., Any]] = {name: note(name) for name in NAMES}
NODES: Any = {name: name for name in NAMES}


async def run(graph: Graph, seed: int | None = None, **more: Callable[..., Any]) -> Play:
    return await play(graph, {**SERVICES, **more}, "x", seed=seed)


def why(played: Play) -> str:
    assert played.outcome is not None
    assert played.outcome.error is not None
    return played.outcome.error.message


@pytest.mark.parametrize("seed", range(5))
async def test_branches_join_in_whatever_order_they_end(seed: int) -> None:
    graph = Graph(NODES, [("start", "a"), ("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("d", "end")])
    assert (await run(graph, seed)).output == "d(b=b(a(x)),c=c(a(x)))"


async def test_a_branch_that_is_not_taken_is_not_waited_for() -> None:
    edges: list[Any] = [
        ("start", "a"),
        Edge("a", "b", when=lambda output: output == "a(x)"),
        Edge("a", "c", when=lambda output: output != "a(x)"),
        ("b", "d"),
        ("c", "d"),
        ("d", "end"),
    ]
    seen = await run(Graph(NODES, edges))
    assert seen.output == "d(b=b(a(x)))"
    assert seen.services == ["a", "b", "d"]


async def test_the_first_of_a_join_is_enough_where_one_says_so() -> None:
    edges: list[Any] = [("start", "a"), ("start", "b"), ("a", "c"), ("b", "c"), ("c", "end")]
    seen = await run(Graph({"a": "a", "b": "b", "c": "c"}, edges, joins={"c": "any"}))
    assert seen.output == "c(a=a(x))"


async def test_a_loop_runs_what_lies_on_it_again_until_its_bound() -> None:
    edges: list[Any] = [
        ("start", "a"),
        ("a", "b"),
        Edge("b", "a", when=lambda output: output.count("a") < 3, at_most=5),
        Edge("b", "end", when=lambda output: output.count("a") >= 3),
    ]
    assert (await run(Graph({"a": "a", "b": "b"}, edges))).output == "b(a(b(a(b(a(x))))))"
    never: list[Any] = [("start", "a"), Edge("a", "a", at_most=2), Edge("a", "end", when=lambda _: False)]
    assert why(await run(Graph({"a": "a"}, never))) == "the loop a -> a was taken 2 times, and nothing else follows"


@pytest.mark.parametrize("seed", range(8))
async def test_a_join_waits_for_a_branch_that_a_loop_may_still_take(seed: int) -> None:
    edges: list[Any] = [
        ("start", "a"),
        Edge("a", "b", when=lambda output: len(output) < 12),
        Edge("b", "a", at_most=3),
        Edge("a", "end", when=lambda output: len(output) >= 12),
        ("start", "c"),
        ("c", "end"),
    ]
    seen = await run(Graph({"a": "a", "b": "b", "c": "c"}, edges), seed)
    assert seen.output == {"a": "a(b(a(b(a(x)))))", "c": "c(x)"}


async def test_failures_follow_their_own_edges() -> None:
    def broken(_: Any = None, **__: Any) -> None:
        raise ValueError("no")

    edges: list[Any] = [("start", "a"), ("a", "b"), Edge("a", "c", on_failure=True), ("b", "end"), ("c", "end")]
    graph = Graph({"a": "broken", "b": "b", "c": "tell"}, edges)
    assert (await run(graph, broken=broken, tell=lambda message, **_: f"told: {message}")).output == "told: no"
    assert why(await run(Graph({"a": "broken"}, [("start", "a"), ("a", "end")]), broken=broken)) == "no"


async def test_nowhere_to_go() -> None:
    edges: list[Any] = [("start", "a"), Edge("a", "end", when=lambda _: False)]
    assert why(await run(Graph({"a": "a"}, edges))) == "no edge to the end was taken"


async def test_orchestrators_are_nodes() -> None:
    graph = Graph({"a": Sequence("a", "b"), "c": "c"}, [("start", "a"), ("a", "c"), ("c", "end")])
    assert (await run(graph)).output == "c(b(a(x)))"


@pytest.mark.parametrize(
    ("edges", "problem"),
    [
        ([("start", "a"), ("a", "end"), ("a", "bb")], "a -> bb: there is no node 'bb': did you mean 'b'?"),
        ([("start", "a"), ("a", "end")], "b cannot be reached from the start"),
        ([("start", "a"), ("start", "b"), ("b", "end")], "a leads nowhere: no way from it to the end"),
        ([("start", "a"), ("a", "b"), ("b", "a"), ("b", "end")], "the cycle a -> b -> a has no bound: give one of its"),
        ([("start", "a"), ("a", "b"), ("a", "b"), ("b", "end")], "a -> b is there twice"),
        (
            [("start", "a"), ("start", "b"), Edge("b", "a", at_most=1), ("a", "end"), ("b", "end")],
            "b -> a goes back to nowhere: a does not lead to b",
        ),
        ([("start", "a"), ("a", "end"), Edge("a", "b", at_most=1), ("b", "end")], "b is reached by loops alone"),
    ],
)
def test_what_is_wrong_is_told_before_it_runs(edges: list[Any], problem: str) -> None:
    with pytest.raises(ValueError, match="the graph cannot run") as raised:
        Graph({"a": "a", "b": "b"}, edges)
    assert problem in str(raised.value)


@given(st.lists(st.tuples(st.sampled_from(("start", *NAMES)), st.sampled_from((*NAMES, "end")), st.booleans())))
def test_checks_never_crash_and_say_each_problem_once(edges: list[tuple[str, str, bool]]) -> None:
    found = problems(list(NAMES), edges)
    assert len(found) == len(set(found))


def some_graph(seed: int) -> Graph:
    """A graph of the four nodes: branches, joins, conditions and loops by chance."""
    chance = random.Random(seed)
    pairs: set[tuple[str, str]] = set()
    for position, name in enumerate(NAMES):
        before = ("start", *NAMES[:position])
        pairs |= {(source, name) for source in chance.sample(before, chance.randint(1, len(before)))}
    pairs |= {(name, "end") for name in NAMES if chance.random() < 0.3 or not any(s == name for s, _ in pairs)}
    edges = [
        Edge(*pair, when=None if chance.random() < 0.6 else lambda _: chance.random() < 0.5) for pair in sorted(pairs)
    ]
    for _ in range(chance.randint(0, 2)):
        target, source = sorted((chance.choice(NAMES), chance.choice(NAMES)))
        known = any((e.source, e.target) == (source, target) for e in edges)
        if source in reachable(target, sorted(pairs)) and not known:
            edges.append(Edge(source, target, when=lambda _: chance.random() < 0.6, at_most=2))
    joins: Any = {name: "any" for name in NAMES if chance.random() < 0.2}
    return Graph(NODES, edges, joins=joins)


@pytest.mark.parametrize("first", range(0, 400, 100))
async def test_every_graph_ends_and_never_stands_still(first: int) -> None:
    completed = 0
    for seed in range(first, first + 100):
        seen = await run(some_graph(seed), seed)
        assert seen.outcome is not None, seed
        if seen.outcome.status == "completed":
            completed += 1
        else:
            assert why(seen) == "no edge to the end was taken" or why(seen).startswith("the loop "), (seed, why(seen))
    assert completed > 30


def test_the_picture_has_its_edges_with_their_bounds() -> None:
    edges: list[Any] = [("start", "a"), ("a", "b"), Edge("b", "a", when=lambda _: True, at_most=3), ("b", "end")]
    picture = Graph({"a": "a", "b": "b"}, edges).picture()
    text = picture.mermaid()
    assert text.startswith('flowchart TD\n    %% graph\n    n0(["start"])\n    n1["a"]\n')
    assert '    n2 -.->|"if, at most 3x"| n1\n' in text
