"""Map: one node for each item of a list whose length is known only when the task runs, and what to make of it all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from llama_deploy.orchestrators.actions import Action, Answer, Fail, Finish, Run
from llama_deploy.orchestrators.nodes import Node, named
from llama_deploy.orchestrators.picture import END, START, Mark, Picture, PictureNode, State
from llama_deploy.orchestrators.turn import Turn
from llama_deploy.orchestrators.typed import Orchestrator

_EACH, _REDUCE = "each", "reduce"


class MapState(BaseModel):
    """How many items there are, were begun, are done, and which failed."""

    items: int = 0
    begun: int = 0
    done: int = 0
    failed: list[int] = []


class Map(Orchestrator[MapState]):
    """Runs `node` for each item, and `reduce` on the list of outputs where one is given. Thousands wide.

    The items are the input itself, or what it has under `over`; an item that is a dictionary is the node's keyword
    arguments. `at_once` bounds how many run at the same time. Outputs are in the order of the items;
    `failures="fail"` ends with the first failure, `"skip"` leaves it out, `"keep"` puts `{"error": {…}}` in its place.
    """

    State: ClassVar[type[BaseModel]] = MapState

    def __init__(
        self,
        node: Node,
        *,
        over: str | None = None,
        reduce: Node | None = None,
        at_once: int | None = None,
        failures: Literal["fail", "skip", "keep"] = "fail",
    ) -> None:
        if at_once is not None and at_once < 1:
            raise ValueError(f"at_once is {at_once}: it must be 1 or more")
        self.nodes = named((), {_EACH: node} | ({_REDUCE: reduce} if reduce is not None else {}))
        self.over = over
        self.at_once = at_once
        self.failures = failures

    def start(self, turn: Turn[MapState]) -> Iterable[Action]:
        """The first items, or all of them."""
        items = self._items(turn)
        if not isinstance(items, list):
            where = f"under {self.over!r} of the input" if self.over else "as its input"
            return [Fail.because(f"Map needs a list {where}, not {type(items).__name__}")]
        turn.state.items = len(items)
        if not items:
            return self._folded(turn)
        turn.state.begun = min(len(items), self.at_once or len(items))
        return [Run(_EACH, item, tag=str(number)) for number, item in enumerate(items[: turn.state.begun])]

    def on_answer(self, turn: Turn[MapState], answer: Answer) -> Iterable[Action]:
        """The next item, the reduction, or the end."""
        state = turn.state
        if answer.tag == _REDUCE:
            return [self.failure(answer) if answer.failed else Finish(answer.output)]
        state.done += 1
        if not answer.failed:
            turn.notes[answer.tag] = answer.output
        elif self.failures == "fail":
            return [self.failure(answer)]
        else:
            state.failed.append(int(answer.tag))
            if self.failures == "keep":
                turn.notes[answer.tag] = {"error": answer.error.model_dump(mode="json") if answer.error else None}
        if state.begun < state.items:
            number, state.begun = state.begun, state.begun + 1
            return [Run(_EACH, self._items(turn)[number], tag=str(number))]
        return self._folded(turn) if state.done == state.items else []

    def _items(self, turn: Turn[MapState]) -> Any:
        given = turn.input
        if self.over is None:
            return given
        return given.get(self.over) if isinstance(given, dict) else None

    def _folded(self, turn: Turn[MapState]) -> list[Action]:
        left_out = set(turn.state.failed) if self.failures == "skip" else set()
        outputs = [turn.notes[str(number)] for number in range(turn.state.items) if number not in left_out]
        return [Run(_REDUCE, outputs)] if _REDUCE in self.nodes else [Finish(outputs)]

    def outline(self) -> Picture:
        """The node for each item, and what is made of all of them."""
        often = "for each item" + (f", {self.at_once} at once" if self.at_once is not None else "")
        nodes = [PictureNode(_EACH, self.called(_EACH), note=often)]
        nodes += [PictureNode(_REDUCE, self.called(_REDUCE), note=_REDUCE)] if _REDUCE in self.nodes else []
        ways = [START, *(node.name for node in nodes), END]
        return Picture.of(nodes, pairwise(ways), title=f"map over {self.over}" if self.over else "map")

    def drawn_as(self, tag: str, node: str, state: MapState) -> str:
        """The number of an item is no node."""
        del node, state
        return tag if tag == _REDUCE else _EACH

    def marks(self, state: MapState) -> Mapping[str, Mark]:
        """How many of how many, known only now that it runs."""
        failed = f", {len(state.failed)} failed" if state.failed else ""
        all_done: State | None = "done" if state.done == state.items and state.items > len(state.failed) else None
        return {_EACH: Mark(all_done, f"{state.done} of {state.items}{failed}")}
