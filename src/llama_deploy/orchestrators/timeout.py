"""Timeout: so many seconds for a node and all below it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from pydantic import BaseModel

from llama_deploy.orchestrators.actions import Action, Answer, Emit, Fail, Finish, Run, TakeBack, Wait
from llama_deploy.orchestrators.nodes import Node, named
from llama_deploy.orchestrators.picture import END, START, Picture, PictureEdge, in_time
from llama_deploy.orchestrators.turn import NoState, Turn
from llama_deploy.orchestrators.typed import Orchestrator

_NODE, _INSTEAD = "node", "instead"


class Timeout(Orchestrator[NoState]):
    """Gives a node so many seconds; then it is taken back, and `instead` runs, or the task fails."""

    State: ClassVar[type[BaseModel]] = NoState

    def __init__(self, node: Node, seconds: float, *, instead: Node | None = None) -> None:
        if not seconds > 0:
            raise ValueError(f"seconds is {seconds}: it must be more than 0")
        self.nodes = named((), {_NODE: node} | ({_INSTEAD: instead} if instead is not None else {}))
        self.seconds = seconds

    def start(self, turn: Turn[NoState]) -> Iterable[Action]:
        """The node and the time."""
        return [Run("node", turn.input), Wait(self.seconds, tag="time")]

    def on_answer(self, turn: Turn[NoState], answer: Answer) -> Iterable[Action]:
        """Whichever comes first."""
        if answer.tag == "time":
            if "instead" in self.nodes:
                return [TakeBack("node"), Emit({"timeout_s": self.seconds}), Run("instead", turn.input)]
            return [Fail.because(f"not done within {self.seconds:g} s")]
        return [self.failure(answer) if answer.failed else Finish(answer.output)]

    def outline(self) -> Picture:
        """The node, and what runs instead of it when time is over."""
        title = f"timeout: {in_time(self.seconds)}"
        if _INSTEAD not in self.nodes:
            return Picture.of([self.drawn(_NODE)], [(START, _NODE), (_NODE, END)], title=title)
        late = PictureEdge(_NODE, _INSTEAD, "too late", dashed=True)
        edges: list[tuple[str, str] | PictureEdge] = [(START, _NODE), (_NODE, END), late, (_INSTEAD, END)]
        return Picture.of([self.drawn(_NODE), self.drawn(_INSTEAD)], edges, title=title)

    def drawn_as(self, tag: str, node: str, state: NoState) -> str:
        """The time belongs to the node that has it."""
        del node, state
        return tag if tag == _INSTEAD else _NODE
