"""Fallback: the next node when one fails."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import ClassVar

from pydantic import BaseModel

from llama_deploy.orchestrators.actions import Action, Answer, Emit, Finish, Run
from llama_deploy.orchestrators.nodes import Node, named
from llama_deploy.orchestrators.picture import END, START, Mark, Picture, PictureEdge
from llama_deploy.orchestrators.turn import Turn
from llama_deploy.orchestrators.typed import Orchestrator


class FallbackState(BaseModel):
    """How many have failed."""

    count: int = 0


class Fallback(Orchestrator[FallbackState]):
    """Tries its nodes in order until one of them succeeds; the last failure is its own."""

    State: ClassVar[type[BaseModel]] = FallbackState

    def __init__(self, *nodes: Node, **by_name: Node) -> None:
        self.nodes = named(nodes, by_name)

    def start(self, turn: Turn[FallbackState]) -> Iterable[Action]:
        """The first node."""
        return [Run(next(iter(self.nodes)), turn.input)]

    def on_answer(self, turn: Turn[FallbackState], answer: Answer) -> Iterable[Action]:
        """The end, or the next node."""
        if not answer.failed:
            return [Finish(answer.output)]
        turn.state.count += 1
        if turn.state.count == len(self.nodes):
            return [self.failure(answer)]
        following = list(self.nodes)[turn.state.count]
        return [Emit({"fallback": following}), Run(following, turn.input)]

    def outline(self) -> Picture:
        """Each, and after its failure the next."""
        edges = [PictureEdge(*pair, "on failure", dashed=True) for pair in pairwise(self.nodes)]
        ends = [PictureEdge(name, END) for name in self.nodes]
        first = PictureEdge(START, next(iter(self.nodes)))
        return Picture.of(self.nodes, [first, *edges, *ends], title="fallback")

    def marks(self, state: FallbackState) -> Mapping[str, Mark]:
        """Those that have failed, whatever the last step inside of them did."""
        return {name: Mark("failed") for name in list(self.nodes)[: state.count]}
