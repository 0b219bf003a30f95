"""Parallel: the same input to several nodes at the same time, and one of several ways to fold their answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from llama_deploy.orchestrators.actions import Action, Answer, Fail, Finish, Run
from llama_deploy.orchestrators.nodes import Node, named
from llama_deploy.orchestrators.picture import END, START, Mark, Picture
from llama_deploy.orchestrators.turn import Turn
from llama_deploy.orchestrators.typed import Orchestrator


class ParallelState(BaseModel):
    """Which nodes have answered, in the order of their answers."""

    done: list[str] = []
    failed: list[str] = []


class Parallel(Orchestrator[ParallelState]):
    """Fan out and fold in.

    `want` says when it ends, and with what:

    * `"all"`: with every output, by node's name;
    * `"any"`: with the first output;
    * a number n: with the first n outputs, by node's name;
    * `"quorum"`: with the output that more than half of the nodes agree on;
    * `"best"`: with the output that `score(output)` likes best, once all have answered.

    `failures="fail"` ends with the first failure that makes `want` impossible (for `"all"`: the first one at all);
    `"skip"` leaves failed nodes out; `"keep"` puts `{"error": {…}}` in the place of their output (with `"all"`).
    What still runs at the end is taken back.
    """

    State: ClassVar[type[BaseModel]] = ParallelState

    def __init__(
        self,
        *nodes: Node,
        want: Literal["all", "any", "quorum", "best"] | int = "all",
        failures: Literal["fail", "skip", "keep"] = "fail",
        score: Callable[[Any], float] | None = None,
        **by_name: Node,
    ) -> None:
        self.nodes = named(nodes, by_name)
        if isinstance(want, int) and not 1 <= want <= len(self.nodes):
            raise ValueError(f"want={want}: there are {len(self.nodes)} nodes")
        if (want == "best") != (score is not None):
            raise ValueError('want="best" goes with a score, and a score with want="best"')
        self.want = want
        self.failures = failures
        self.score = score

    def start(self, turn: Turn[ParallelState]) -> Iterable[Action]:
        """Every node at once."""
        return [Run(name, turn.input) for name in self.nodes]

    def on_answer(self, turn: Turn[ParallelState], answer: Answer) -> Iterable[Action]:
        """The end, when the answers so far decide it."""
        state = turn.state
        if answer.failed:
            state.failed.append(answer.tag)
            if self.want == "all" and self.failures == "fail":
                return [self.failure(answer)]
            if self.failures == "keep":
                turn.notes[answer.tag] = {"error": answer.error.model_dump(mode="json") if answer.error else None}
        else:
            state.done.append(answer.tag)
            turn.notes[answer.tag] = answer.output
        left = len(self.nodes) - len(state.done) - len(state.failed)
        return self._folded(turn, answer, left)

    def _folded(self, turn: Turn[ParallelState], answer: Answer, left: int) -> list[Action]:
        state = turn.state
        outputs = {name: turn.notes[name] for name in self.nodes if name in turn.notes} if left == 0 else {}
        if self.want == "all":
            return [Finish(outputs)] if left == 0 else []
        if self.want == "best":
            return self._best(turn, left)
        if self.want == "quorum":
            return self._quorum(turn, answer, left)
        needed = 1 if self.want == "any" else int(self.want)
        if len(state.done) == needed:
            first = {name: turn.notes[name] for name in state.done}
            return [Finish(next(iter(first.values())) if self.want == "any" else first)]
        if len(state.done) + left >= needed:
            return []
        if self.failures == "fail" or not state.done:
            return [self.failure(answer)]
        return [Finish({name: turn.notes[name] for name in state.done})] if left == 0 else []

    def _quorum(self, turn: Turn[ParallelState], answer: Answer, left: int) -> list[Action]:
        counts: list[tuple[Any, int]] = []
        for name in turn.state.done:
            output = turn.notes[name]
            same = next((index for index, (known, _) in enumerate(counts) if known == output), None)
            if same is None:
                counts.append((output, 1))
            else:
                counts[same] = (output, counts[same][1] + 1)
        voters = len(self.nodes) - (len(turn.state.failed) if self.failures != "fail" else 0)
        most, votes = max(counts, key=lambda item: item[1], default=(None, 0))
        if votes * 2 > voters:
            return [Finish(most)]
        if left and (votes + left) * 2 > voters:
            return []
        if answer.failed and not counts:
            return [self.failure(answer)]
        return [Fail.because(f"no more than {votes} of {voters} nodes agree")]

    def _best(self, turn: Turn[ParallelState], left: int) -> list[Action]:
        if left:
            return []
        outputs = [turn.notes[name] for name in turn.state.done]
        if not outputs or (turn.state.failed and self.failures == "fail"):
            return [Fail.because(f"failed: {', '.join(turn.state.failed)}")]
        assert self.score is not None
        return [Finish(max(outputs, key=self.score))]

    def outline(self) -> Picture:
        """Side by side."""
        want = f"first {self.want} of {len(self.nodes)}" if isinstance(self.want, int) else self.want
        edges = [*((START, name) for name in self.nodes), *((name, END) for name in self.nodes)]
        return Picture.of(self.nodes, edges, title=f"{type(self).__name__.lower()}: {want}")

    def marks(self, state: ParallelState) -> Mapping[str, Mark]:
        """Which have answered, and how."""
        return {name: Mark("done") for name in state.done} | {name: Mark("failed") for name in state.failed}
