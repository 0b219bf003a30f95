"""An orchestrator as a picture: nodes and edges as data, where a task stands on them included.

A picture is a value: the same on the wire, in a client and in a test. `drawing` makes Mermaid text, SVG or lines of
text of it, and `task_picture` puts what is recorded of a task on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

START, END = "start", "end"

Kind = Literal["service", "start", "end", "person", "time", "choice", "part"]
"""What a node is: a service, a person who is asked, time that passes, a choice by rule, or an orchestrator."""
State = Literal["", "queued", "running", "waiting", "done", "failed", "stopped", "skipped"]
"""Where a task stands at a node. `waiting`: for a person or for time; `stopped`: taken back or canceled; `skipped`:
never reached, now that the orchestrator has ended; empty: not reached yet, or no task is shown."""

OPEN_STATES: frozenset[State] = frozenset({"queued", "running", "waiting"})


@dataclass(frozen=True, slots=True)
class PictureNode:
    """A box. The nodes of one picture have different names."""

    name: str
    label: str = ""
    """What is written on it; its name where this is empty."""
    kind: Kind = "service"
    note: str = ""
    """A line beneath the label: the service, the question, the bound."""
    state: State = ""
    figure: str = ""
    """How often, which attempt, how many of how many."""
    step_id: str = ""
    """The step of it that was last sent."""
    inside: Picture | None = None
    """What the orchestrator looks like that this node is."""


@dataclass(frozen=True, slots=True)
class PictureEdge:
    """An arrow."""

    source: str
    target: str
    label: str = ""
    back: bool = False
    """It goes back: a loop."""
    dashed: bool = False
    """Not the usual way: a failure, a deadline, an undoing."""
    taken: int = 0
    """How often the task went this way."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What is drawn. The node called `start` has no other before it, the one called `end` none after it."""

    nodes: list[PictureNode]
    edges: list[PictureEdge] = field(default_factory=list)
    title: str = ""
    """What it is, in a few words: `parallel: all`."""
    guessed: bool = False
    """Its edges are what may happen; once a task has run, those that it took stand in their place."""
    live: bool = False
    """Whether it shows where a task stands."""

    @classmethod
    def of(
        cls,
        nodes: Iterable[str | PictureNode],
        edges: Iterable[tuple[str, str] | PictureEdge],
        *,
        title: str = "",
        guessed: bool = False,
    ) -> Picture:
        """A picture of nodes, or names of services, between a start and an end, which need not be given."""
        given = [node if isinstance(node, PictureNode) else PictureNode(node) for node in nodes]
        around = [PictureNode(START, kind="start"), *given, PictureNode(END, kind="end")]
        arrows = [edge if isinstance(edge, PictureEdge) else PictureEdge(*edge) for edge in edges]
        return cls(around, arrows, title, guessed)

    def node(self, name: str) -> PictureNode:
        """The node of this name. Raises `KeyError`."""
        found = next((node for node in self.nodes if node.name == name), None)
        if found is None:
            raise KeyError(name)
        return found

    def parts(self, depth: int = 0) -> Iterator[tuple[int, PictureNode]]:
        """Every node, those inside of others after them, with how deep each is."""
        for node in self.nodes:
            yield depth, node
            if node.inside is not None:
                yield from node.inside.parts(depth + 1)

    def mermaid(self) -> str:
        """A Mermaid flowchart."""
        from llama_deploy.orchestrators.drawing.mermaid import mermaid  # only who draws pays for it

        return mermaid(self)

    def svg(self) -> str:
        """A standalone SVG document, readable in light and dark, with all of it in words for who does not see it."""
        from llama_deploy.orchestrators.drawing.svg import svg  # only who draws pays for it

        return svg(self)

    def lines(self) -> list[str]:
        """The nodes as lines of plain text: each with its state, and with where the task went from it."""
        from llama_deploy.orchestrators.drawing.lines import lines  # only who draws pays for it

        return lines(self)


@dataclass(frozen=True, slots=True)
class Mark:
    """What an orchestrator's own state says of one of its nodes."""

    state: State | None = None
    """In the place of what its steps say, unless one of them is open; None: what they say."""
    figure: str = ""
    taken_from: tuple[str, ...] = ()
    """Nodes whose edges to this one were taken, where no message tells it."""


def rule_name(rule: object) -> str:
    """What a function is called in a picture."""
    name = str(getattr(rule, "__name__", "") or type(rule).__name__)
    return "by rule" if name == "<lambda>" else name.replace("_", " ")


def in_time(seconds: float) -> str:
    """A bound in words: `30 s`, `2 h`, `7 d`."""
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:g} {name}"
    return f"{seconds:g} s"
