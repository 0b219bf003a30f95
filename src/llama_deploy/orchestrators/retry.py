"""Retry: a whole node again, when it has failed or its answer is no good."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from pydantic import BaseModel

from llama_deploy.orchestrators.actions import Action, Answer, Emit, Fail, Finish, Run, Wait
from llama_deploy.orchestrators.nodes import Node, named
from llama_deploy.orchestrators.picture import END, START, Picture, PictureEdge
from llama_deploy.orchestrators.turn import Turn
from llama_deploy.orchestrators.typed import Orchestrator
from llama_deploy.types.retry import RetryPolicy

_NODE = "node"


class RetryState(BaseModel):
    """How often it was tried."""

    count: int = 0


class Retry(Orchestrator[RetryState]):
    """Runs a whole node again when it has failed, as `policy` says, or when `accept(output)` is false.

    A service's own retries come first; this is for nodes that are orchestrators, and for answers that are no good.
    """

    State: ClassVar[type[BaseModel]] = RetryState

    def __init__(
        self, node: Node, policy: RetryPolicy | None = None, *, accept: Callable[[Any], bool] | None = None
    ) -> None:
        self.nodes = named((), {_NODE: node})
        self.policy = policy or RetryPolicy()
        self.accept = accept

    def start(self, turn: Turn[RetryState]) -> Iterable[Action]:
        """The first try."""
        return [Run("node", turn.input)]

    def on_answer(self, turn: Turn[RetryState], answer: Answer) -> Iterable[Action]:
        """The end, a pause, or the next try."""
        if answer.tag == "pause":
            return [Run("node", turn.input)]
        if not answer.failed and (self.accept is None or self.accept(answer.output)):
            return [Finish(answer.output)]
        turn.state.count += 1
        delay_s = self.policy.delay_for(answer.error, turn.state.count)
        if delay_s is None:
            if answer.failed:
                return [self.failure(answer)]
            return [Fail.because(f"no answer was accepted in {turn.state.count} tries")]
        return [Emit({"retry": turn.state.count}), Wait(delay_s, tag="pause")]

    def outline(self) -> Picture:
        """The node, and the way back to it."""
        again = PictureEdge(_NODE, _NODE, "again", back=True)
        title = f"retry: at most {self.policy.max_retries} times"
        return Picture.of([self.drawn(_NODE)], [(START, _NODE), again, (_NODE, END)], title=title)

    def drawn_as(self, tag: str, node: str, state: RetryState) -> str:
        """The pause between two tries is not drawn."""
        del node, state
        return tag if tag == _NODE else ""
