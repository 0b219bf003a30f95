"""Budget: a bound on what a node and all below it use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

from pydantic import BaseModel

from llama_deploy.orchestrators.actions import Action, Answer, Ask, Fail, Finish, Hold, Release, Run
from llama_deploy.orchestrators.nodes import Node, named
from llama_deploy.orchestrators.picture import END, START, Mark, Picture, PictureEdge, PictureNode
from llama_deploy.orchestrators.turn import Turn
from llama_deploy.orchestrators.typed import Orchestrator

_NODE, _MORE = "node", "more"


class Spent(BaseModel):
    """What was used, and by how many times the limits were raised."""

    steps: int = 0
    used: dict[str, float] = {}
    raised: int = 1


class Budget(Orchestrator[Spent]):
    """Bounds what a node and all below it use: answers (`steps`), and what services say they used, by name.

    A service says it in its result's `data["usage"]`, such as `{"tokens": 812, "cost": 0.01}`. Beyond a limit the task
    fails, or with `at_limit="ask"` everything below waits until a person agrees to another helping of the same size.
    """

    State: ClassVar[type[BaseModel]] = Spent

    def __init__(
        self, node: Node, *, steps: int | None = None, at_limit: Literal["fail", "ask"] = "fail", **limits: float
    ) -> None:
        self.nodes = named((), {_NODE: node})
        self.limits: dict[str, float] = {**limits, **({"steps": float(steps)} if steps is not None else {})}
        if not self.limits:
            raise ValueError("give a limit: steps=…, or a name that services report, such as tokens=…")
        self.at_limit = at_limit

    def start(self, turn: Turn[Spent]) -> Iterable[Action]:
        """The node."""
        return [Run("node", turn.input)]

    def observe(self, turn: Turn[Spent], answer: Answer) -> Iterable[Action]:
        """Count what every step below has used."""
        turn.state.steps += 1
        for name, amount in answer.usage.items():
            turn.state.used[name] = turn.state.used.get(name, 0.0) + amount
        spent = {**turn.state.used, "steps": float(turn.state.steps)}
        over = [name for name, limit in self.limits.items() if spent.get(name, 0.0) > limit * turn.state.raised]
        if not over:
            return []
        name = over[0]
        told = f"{spent[name]:g} {name} of {self.limits[name] * turn.state.raised:g} are used"
        if self.at_limit == "fail":
            return [Fail.because(told)]
        return [Hold(), Ask(f"{told}. Go on?", tag=f"more-{turn.state.raised}", schema={"type": "boolean"})]

    def on_answer(self, turn: Turn[Spent], answer: Answer) -> Iterable[Action]:
        """The node's output, or what the person has said."""
        if answer.tag.startswith("more-"):
            if answer.output in (True, "yes", "approve"):
                turn.state.raised += 1
                return [Release()]
            return [Fail.because("the budget is used up, and nobody agreed to more")]
        return [self.failure(answer) if answer.failed else Finish(answer.output)]

    def outline(self) -> Picture:
        """The node, and the person who is asked at the limit."""
        title = "budget: " + ", ".join(f"{limit:g} {name}" for name, limit in self.limits.items())
        edges: list[tuple[str, str] | PictureEdge] = [(START, _NODE), (_NODE, END)]
        if self.at_limit == "fail":
            return Picture.of([self.drawn(_NODE)], edges, title=title)
        edges += [PictureEdge(_NODE, _MORE, dashed=True), PictureEdge(_MORE, _NODE, "more", back=True, dashed=True)]
        person = PictureNode(_MORE, "a person", "person", note="at the limit")
        return Picture.of([self.drawn(_NODE), person], edges, title=title)

    def drawn_as(self, tag: str, node: str, state: Spent) -> str:
        """The question whether there may be more."""
        del node, state
        return tag if tag == _NODE else _MORE

    def marks(self, state: Spent) -> Mapping[str, Mark]:
        """What is used of what."""
        spent = {**state.used, "steps": float(state.steps)}
        figures = [f"{spent.get(name, 0):g} of {limit * state.raised:g} {name}" for name, limit in self.limits.items()]
        return {_NODE: Mark(figure=", ".join(figures))}
