"""Sequence: nodes one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import ClassVar, Literal

from pydantic import BaseModel

from llama_deploy.orchestrators.actions import Action, Answer, Finish, Run
from llama_deploy.orchestrators.nodes import Node, named
from llama_deploy.orchestrators.picture import END, START, Mark, Picture
from llama_deploy.orchestrators.turn import Turn
from llama_deploy.orchestrators.typed import Orchestrator


class SequenceState(BaseModel):
    """How far it is."""

    done: int = 0


class Sequence(Orchestrator[SequenceState]):
    """Runs its nodes in order and ends with the last one's output; the first failure is its own.

    `see="last"` gives each node the output of the one before, the first one the input. `see="all"` gives each node
    `{"input": …, "answers": {name: output}}` with every answer so far.
    """

    State: ClassVar[type[BaseModel]] = SequenceState

    def __init__(self, *nodes: Node, see: Literal["last", "all"] = "last", **by_name: Node) -> None:
        self.nodes = named(nodes, by_name)
        self.see = see

    def start(self, turn: Turn[SequenceState]) -> Iterable[Action]:
        """The first node."""
        return [self._next(turn, turn.input)]

    def on_answer(self, turn: Turn[SequenceState], answer: Answer) -> Iterable[Action]:
        """The next node, or the end."""
        if answer.failed:
            return [self.failure(answer)]
        turn.state.done += 1
        if turn.state.done == len(self.nodes):
            return [Finish(answer.output)]
        if self.see == "all":
            turn.notes[answer.tag] = answer.output
        return [self._next(turn, answer.output)]

    def _next(self, turn: Turn[SequenceState], last: object) -> Run:
        name = list(self.nodes)[turn.state.done]
        if self.see == "last":
            return Run(name, last)
        answers = {done: turn.notes[done] for done in list(self.nodes)[: turn.state.done]}
        return Run(name, {"input": turn.input, "answers": answers})

    def outline(self) -> Picture:
        """One below the other."""
        return Picture.of(self.nodes, pairwise([START, *self.nodes, END]), title="sequence")

    def marks(self, state: SequenceState) -> Mapping[str, Mark]:
        """Those before the current one are done, however their parts have ended."""
        return {name: Mark("done") for name in list(self.nodes)[: state.done]}
