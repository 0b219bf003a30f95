"""What a typed orchestrator says of its own looks: its nodes, the ways between them, and where a task stands there.

Nothing here decides anything. `picture` is the data, `task_picture` puts what is recorded of a task on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, Generic

from pydantic import BaseModel

from llama_deploy.orchestrators.picture import END, START, Mark, Picture, PictureNode
from llama_deploy.orchestrators.turn import NoState, StateT


class Drawn(Generic[StateT]):
    """The part of `Orchestrator` that draws it. A subclass overrides `outline`, and the others where it must."""

    State: ClassVar[type[BaseModel]] = NoState
    nodes: Mapping[str, Any] = MappingProxyType({})
    """By the name that `Run` uses: a service's name, or an orchestrator. A name that is not here is a service's."""

    def picture(self) -> Picture:
        """How it is drawn, with what is inside of nodes that are orchestrators."""
        outline = self.outline()
        return replace(outline, nodes=[_with_inside(node, self.nodes.get(node.name)) for node in outline.nodes])

    def outline(self) -> Picture:
        """Its own nodes and the ways between them: as far as nothing else is known, side by side.

        A subclass says more. What is inside of a node comes from the node.
        """
        edges = [edge for name in self.nodes for edge in ((START, name), (name, END))]
        return Picture.of(self.nodes, edges, title=type(self).__name__, guessed=True)

    def drawn_as(self, tag: str, node: str, state: StateT) -> str:
        """The node of the outline that a run's `tag` belongs to; empty for one that is not drawn.

        `node` is the node's name where it is an orchestrator, else the service's; `state` is what was recorded with
        the decision.
        """
        del state
        if tag in self.nodes or isinstance(self.nodes.get(node), Drawn):
            return tag if tag in self.nodes else node
        return next((name for name, service in self.nodes.items() if service == node), node)

    def marks(self, state: StateT) -> Mapping[str, Mark]:
        """What its state says of the outline's nodes that their steps do not: a count, a node that is skipped."""
        del state
        return {}

    def called(self, name: str) -> str:
        """What is written on a node whose own name says little: its service, or what it is."""
        node = self.nodes[name]
        return node.outline().title if isinstance(node, Drawn) else str(node)

    def drawn(self, name: str) -> PictureNode:
        """Such a node."""
        return PictureNode(name, self.called(name))


def _with_inside(drawn: PictureNode, node: Any) -> PictureNode:
    """A node of an outline, with its service or with the picture of the orchestrator that it is."""
    if isinstance(node, Drawn):
        return replace(drawn, kind="part", inside=node.picture())
    if isinstance(node, str) and node != drawn.name and not drawn.label:
        return replace(drawn, note=drawn.note or node)
    return drawn
