"""Where the nodes of a running graph stand, and what a loop may still change about that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from llama_deploy.orchestrators.graph_checks import Link, reachable
from llama_deploy.orchestrators.graph_edges import Edge
from llama_deploy.orchestrators.picture import Mark


class GraphState(BaseModel):
    """Where every node stands, the tokens at each, and how often each loop was taken."""

    status: dict[str, Literal["running", "done", "failed", "skipped"]] = {}
    tokens: dict[str, dict[str, bool]] = {}
    runs: dict[str, int] = {}
    loops: dict[str, int] = {}
    dead: list[tuple[str, str]] = []
    """Dead tokens that are not sent yet, because a loop may still come back and decide anew."""

    def mark(self, name: str) -> Mark:
        """What a picture shows of a node; what a loop will pass again is open."""
        live = tuple(source for source, live in self.tokens.get(name, {}).items() if live)
        return Mark(self.status.get(name, "" if name in self.runs else None), taken_from=live)


def forward(edges: Sequence[Edge]) -> list[Link]:
    """The edges that do not go back."""
    return [(edge.source, edge.target) for edge in edges if edge.at_most is None]


def decided(state: GraphState, edges: Sequence[Edge]) -> Link | None:
    """The first dead token that no loop can call back any more."""
    return next((token for token in state.dead if not _may_come_back(state, edges, token[0])), None)


def _may_come_back(state: GraphState, edges: Sequence[Edge], name: str) -> bool:
    """Whether a loop that may still be taken leads to a node: it is not used up, and its begin may still run."""
    links = forward(edges)
    running = [node for node, status in state.status.items() if status == "running"]
    may_run = {node for start in running for node in reachable(start, links)}
    return any(
        edge.source in may_run
        and state.loops.get(edge.name, 0) < (edge.at_most or 0)
        and name in reachable(edge.target, links)
        for edge in edges
        if edge.at_most is not None
    )
