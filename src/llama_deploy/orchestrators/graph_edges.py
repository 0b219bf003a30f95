"""The edges of a graph: between which nodes, on what condition, how often, and how they are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llama_deploy.orchestrators.graph_checks import END, START
from llama_deploy.orchestrators.picture import PictureEdge

__all__ = ["END", "START", "Edge"]


@dataclass(frozen=True, slots=True)
class Edge:
    """From one node to another, or from `"start"`, or to `"end"`."""

    source: str
    target: str
    when: Callable[[Any], bool] | None = None
    """Whether it is taken, by the output of `source` (pure); None for always."""
    at_most: int | None = None
    """How often it may be taken: an edge that goes back. Everything after its target then runs again."""
    on_failure: bool = False
    """Taken when `source` has failed, and not when it has succeeded; its input is the error."""
    label: str = ""
    """What the picture says of the edge; by default the name of `when`."""

    @property
    def name(self) -> str:
        """What it is called in messages and in the state."""
        return f"{self.source} -> {self.target}"

    @property
    def shown(self) -> str:
        """What the picture says of it."""
        if self.label:
            return self.label
        words = ["on failure"] if self.on_failure else []
        if self.when is not None:
            name = getattr(self.when, "__name__", "").replace("<lambda>", "if")
            words.append(name.replace("_", " "))
        if self.at_most is not None:
            words.append(f"at most {self.at_most}x")
        return ", ".join(words)

    @property
    def drawn(self) -> PictureEdge:
        """The edge in a picture."""
        return PictureEdge(self.source, self.target, self.shown, self.at_most is not None, self.on_failure)
