"""Handoff: whoever has the work names who goes on with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel

from llama_deploy.orchestrators.actions import Action, Answer, Emit, Fail, Finish, Run
from llama_deploy.orchestrators.nodes import Node, named
from llama_deploy.orchestrators.picture import END, START, Picture, PictureEdge
from llama_deploy.orchestrators.turn import Turn
from llama_deploy.orchestrators.typed import Orchestrator


class HandoffState(BaseModel):
    """Who has had the work, in order."""

    holders: list[str] = []


class Handoff(Orchestrator[HandoffState]):
    """Starts with one node; an answer `{"handoff": name, "input": …}` passes the work on, any other one ends it.

    Each node is given `{"input": …, "from": the node before, or None}`, where `input` is what the node before passed
    on (without one: what it was given itself). `targets` says who may hand to whom (by default: everybody to everybody
    else). More than `handoffs_max` handoffs fail the task; so do two nodes that pass the work to and fro
    `ping_pong_max` times without anybody else having had it.
    """

    State: ClassVar[type[BaseModel]] = HandoffState

    def __init__(
        self,
        agents: Mapping[str, Node],
        *,
        start: str | None = None,
        targets: Mapping[str, Sequence[str]] | None = None,
        handoffs_max: int = 20,
        ping_pong_max: int = 2,
    ) -> None:
        self.nodes = named((), agents)
        self.first = start or next(iter(self.nodes))
        others = {name: [other for other in self.nodes if other != name] for name in self.nodes}
        self.targets = {**others, **(targets or {})}
        unknown = {self.first, *self.targets, *(name for names in self.targets.values() for name in names)}
        if unknown - set(self.nodes):
            raise ValueError(f"no such agent: {', '.join(sorted(unknown - set(self.nodes)))}")
        self.handoffs_max = handoffs_max
        self.ping_pong_max = ping_pong_max

    def start(self, turn: Turn[HandoffState]) -> Iterable[Action]:
        """The first node."""
        return [self._give(turn, self.first, turn.input)]

    def on_answer(self, turn: Turn[HandoffState], answer: Answer) -> Iterable[Action]:
        """Pass the work on, or end."""
        if answer.failed:
            return [self.failure(answer)]
        output = answer.output
        if not isinstance(output, dict) or "handoff" not in output:
            return [Finish(output)]
        holders = turn.state.holders
        before, target = holders[-1], output["handoff"]
        if target not in self.targets[before]:
            allowed = ", ".join(self.targets[before]) or "nobody"
            return [Fail.because(f"{before} may not hand over to {str(target)[:200]!r}, only to: {allowed}")]
        if len(holders) > self.handoffs_max:
            return [Fail.because(f"the work was handed over more than {self.handoffs_max} times")]
        if self._ping_pong([*holders, target]):
            return [Fail.because(f"{before} and {target} hand the work to and fro")]
        given = output.get("input", turn.notes["given"])
        return [Emit({"handoff": target, "from": before}), self._give(turn, target, given, before)]

    def _ping_pong(self, holders: list[str]) -> bool:
        """Whether the last two holders have had it in turn, and nobody else, too often."""
        length = 2 * self.ping_pong_max + 1
        last = holders[-length:]
        return len(last) == length and len(set(last)) == 2  # noqa: PLR2004 - two of them

    def _give(self, turn: Turn[HandoffState], name: str, given: Any, before: str | None = None) -> Run:
        turn.notes["given"] = given
        turn.state.holders.append(name)
        return Run(name, {"input": given, "from": before}, tag=str(len(turn.state.holders)))

    def outline(self) -> Picture:
        """Who may hand over to whom. Where everybody may to everybody, only the first one's ways are drawn."""
        title = f"handoff: at most {self.handoffs_max} times"
        ends = [PictureEdge(name, END) for name in self.nodes]
        begin = PictureEdge(START, self.first)
        anyone = all(set(names) == set(self.nodes) - {name} for name, names in self.targets.items())
        if anyone and len(self.nodes) > 2:  # noqa: PLR2004 - two have one way to and fro
            ways = [
                PictureEdge(*pair, back=pair[1] == self.first)
                for name in self.targets[self.first]
                for pair in ((self.first, name), (name, self.first))
            ]
            return Picture.of(self.nodes, [begin, *ways, *ends], title=f"{title}, anyone to anyone", guessed=True)
        order = [self.first, *(name for name in self.nodes if name != self.first)]
        ways = [
            PictureEdge(name, target, back=order.index(target) < order.index(name))
            for name in order
            for target in self.targets[name]
        ]
        return Picture.of(order, [begin, *ways, *ends], title=title)

    def drawn_as(self, tag: str, node: str, state: HandoffState) -> str:
        """A tag counts the holders."""
        return state.holders[int(tag) - 1] if tag.isdigit() and int(tag) <= len(state.holders) else node
