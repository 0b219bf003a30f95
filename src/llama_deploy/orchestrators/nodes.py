"""How the orchestrators of the catalogue are given their nodes: services by name, or orchestrators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_deploy.orchestrators.typed import Orchestrator

Node = str | Orchestrator[Any]
"""A service by its name, or an orchestrator that runs as a part of another."""


def named(nodes: Sequence[Node], by_name: Mapping[str, Node]) -> dict[str, Node]:
    """Nodes by name, in order: what was given without a name is called after itself.

    Raises `ValueError` for none at all, for something that is no node, and for a name with a slash.
    """
    found: dict[str, Node] = {}
    for node in nodes:
        base = node if isinstance(node, str) else type(node).__name__.lower()
        name, number = base, 1
        while name in found:
            number += 1
            name = f"{base}-{number}"
        found[name] = node
    for name, node in by_name.items():
        if name in found:
            raise ValueError(f"two nodes are called {name!r}")
        found[name] = node
    if not found:
        raise ValueError("give at least one node: a service's name or an orchestrator")
    given: Mapping[str, Any] = found  # what callers give is checked, whatever the types say
    for name, node in given.items():
        if not node or not isinstance(node, str | Orchestrator):
            raise ValueError(f"{name}: a node is a service's name or an orchestrator, not {node!r}")
        if "/" in name or not name:
            raise ValueError(f"{name!r} cannot be a node's name: it has at least one character and no slash")
    return found
