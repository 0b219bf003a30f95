"""Router: one of several nodes, chosen by a rule or by a deciding service."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel

from llama_deploy.orchestrators.actions import Action, Answer, Emit, Fail, Finish, Run
from llama_deploy.orchestrators.nodes import Node, named
from llama_deploy.orchestrators.picture import END, START, Picture, PictureNode, rule_name
from llama_deploy.orchestrators.turn import NoState, Turn
from llama_deploy.orchestrators.typed import Orchestrator

_DECIDE = "decide"


class Router(Orchestrator[NoState]):
    """Sends the input to one of its routes and ends with that node's output.

    `choose` is a function of the input that returns a route's name (pure: it may be asked again), or a node that
    decides (a classifier, a model): it is given `{"input": …, "routes": [names]}` and answers with a name, or with
    `{"route": name}`. A name that is no route goes to `default`, and fails without one.
    """

    State: ClassVar[type[BaseModel]] = NoState

    def __init__(
        self, choose: Callable[[Any], str] | Node, routes: Mapping[str, Node], *, default: str | None = None
    ) -> None:
        self.routes = named((), routes)
        if default is not None and default not in self.routes:
            raise ValueError(f"default={default!r} is none of the routes: {', '.join(self.routes)}")
        if _DECIDE in self.routes:
            raise ValueError(f"a route cannot be called {_DECIDE!r}")
        self.choose = choose
        self.default = default
        self.nodes = dict(self.routes)
        if isinstance(choose, str | Orchestrator):
            self.nodes |= named((), {_DECIDE: choose})

    def start(self, turn: Turn[NoState]) -> Iterable[Action]:
        """Choose, or have it chosen."""
        if isinstance(self.choose, str | Orchestrator):
            return [Run(_DECIDE, {"input": turn.input, "routes": list(self.routes)})]
        return self._take(turn, self.choose(turn.input))

    def on_answer(self, turn: Turn[NoState], answer: Answer) -> Iterable[Action]:
        """Take the route that was decided on; end with its output."""
        if answer.failed:
            return [self.failure(answer)]
        if answer.tag == _DECIDE:
            chosen = answer.output.get("route") if isinstance(answer.output, dict) else answer.output
            return self._take(turn, chosen)
        return [Finish(answer.output)]

    def _take(self, turn: Turn[NoState], chosen: Any) -> list[Action]:
        route = chosen if isinstance(chosen, str) and chosen in self.routes else self.default
        if route is None:
            return [Fail.because(f"{str(chosen)[:200]!r} is none of the routes: {', '.join(self.routes)}")]
        return [Emit({"route": route}), Run(route, turn.input)]

    def outline(self) -> Picture:
        """The decision, then the routes."""
        rule = PictureNode(_DECIDE, rule_name(self.choose), "choice")
        decide = rule if callable(self.choose) else PictureNode(_DECIDE, self.called(_DECIDE), note="decides")
        edges = [(START, _DECIDE), *((_DECIDE, name) for name in self.routes), *((name, END) for name in self.routes)]
        return Picture.of([decide, *self.routes], edges, title="router")
