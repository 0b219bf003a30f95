"""Cache: a node's output kept in the session, by its input."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from pydantic import BaseModel

from llama_deploy.orchestrators.actions import Action, Answer, Finish, Run
from llama_deploy.orchestrators.nodes import Node, named
from llama_deploy.orchestrators.picture import END, START, Picture
from llama_deploy.orchestrators.turn import NoState, Turn
from llama_deploy.orchestrators.typed import Orchestrator

_NODE = "node"


class Cache(Orchestrator[NoState]):
    """Runs a node once per session and input; asked for the same again, it ends with the output of the first time.

    `key` makes the part of the input that counts (pure). What is kept stands in the session's shared state under
    `cache:<name>:<hash>`; a task without a session shares with nobody.
    """

    State: ClassVar[type[BaseModel]] = NoState

    def __init__(self, node: Node, *, name: str = "node", key: Callable[[Any], Any] | None = None) -> None:
        self.nodes = named((), {_NODE: node})
        self.name = name
        self.key = key

    def start(self, turn: Turn[NoState]) -> Iterable[Action]:
        """The known output, or the node."""
        known = turn.shared.get(self._place(turn))
        return [Finish(known["output"])] if known is not None else [Run("node", turn.input)]

    def on_answer(self, turn: Turn[NoState], answer: Answer) -> Iterable[Action]:
        """Keep the output."""
        if answer.failed:
            return [self.failure(answer)]
        turn.shared[self._place(turn)] = {"output": answer.output}
        return [Finish(answer.output)]

    def _place(self, turn: Turn[NoState]) -> str:
        counts = turn.input if self.key is None else self.key(turn.input)
        text = json.dumps(counts, sort_keys=True, ensure_ascii=False)
        return f"cache:{self.name}:{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def outline(self) -> Picture:
        """The node, which may not be needed."""
        return Picture.of([self.drawn(_NODE)], [(START, _NODE), (_NODE, END)], title=f"cache: {self.name}")
