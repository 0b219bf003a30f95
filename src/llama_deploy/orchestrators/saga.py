"""Saga: steps in order, each with what undoes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import ClassVar

from pydantic import BaseModel

from llama_deploy.orchestrators.actions import Action, Answer, Compensate, Finish, Run
from llama_deploy.orchestrators.nodes import Node, named
from llama_deploy.orchestrators.picture import END, START, Mark, Picture, PictureEdge
from llama_deploy.orchestrators.turn import Turn
from llama_deploy.orchestrators.typed import Orchestrator


class SagaState(BaseModel):
    """How many steps are done."""

    count: int = 0


class Saga(Orchestrator[SagaState]):
    """Runs steps in order, each with the node that undoes it; when one fails, those before it are undone, last first.

    Each step is given the input and the outputs so far, `{"input": …, "done": {name: output}}`; its undoing the same
    with its own `output`. It ends with every output by name.
    """

    State: ClassVar[type[BaseModel]] = SagaState

    def __init__(self, **steps: tuple[Node, Node | None]) -> None:
        self.steps = list(steps)
        undo: Mapping[str, Node] = {f"undo {name}": pair[1] for name, pair in steps.items() if pair[1] is not None}
        self.nodes = named((), {**{name: pair[0] for name, pair in steps.items()}, **undo})

    def start(self, turn: Turn[SagaState]) -> Iterable[Action]:
        """The first step."""
        return [Run(self.steps[0], {"input": turn.input, "done": {}})]

    def on_answer(self, turn: Turn[SagaState], answer: Answer) -> Iterable[Action]:
        """The next step; or undo everything and fail."""
        if answer.failed:
            return [self.failure(answer)]
        name = self.steps[turn.state.count]
        turn.state.count += 1
        turn.notes[name] = answer.output
        done = {before: turn.notes[before] for before in self.steps[: turn.state.count]}
        given = {"input": turn.input, "done": done}
        undo = [Compensate(f"undo {name}", {**given, "output": answer.output})] if f"undo {name}" in self.nodes else []
        if turn.state.count == len(self.steps):
            return [*undo, Finish(done)]
        return [*undo, Run(self.steps[turn.state.count], given)]

    def outline(self) -> Picture:
        """The steps one below the other, and beside each what undoes it."""
        undo = [PictureEdge(name, f"undo {name}", dashed=True) for name in self.steps if f"undo {name}" in self.nodes]
        edges = [*(PictureEdge(*pair) for pair in pairwise([START, *self.steps, END])), *undo]
        return Picture.of(self.nodes, edges, title="saga")

    def marks(self, state: SagaState) -> Mapping[str, Mark]:
        """The steps that are done, whatever came after."""
        return {name: Mark("done") for name in self.steps[: state.count]}
