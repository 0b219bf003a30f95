"""Graph: nodes and edges with conditions, joins and bounded loops; checked before it runs, drawn with its live state.

A node that has answered sends a token along each of its edges: a live one where the edge's condition holds, else a
dead one. A node runs when it has a token from every edge into it and one of them is live; when all are dead it is
skipped, and sends dead tokens on (dead path elimination, as in BPEL 2.0, section 11.6). So a join never waits for a
branch that was not taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from llama_deploy.orchestrators.actions import Action, Answer, Emit, Fail, Finish, Run, TakeBack
from llama_deploy.orchestrators.graph_checks import problems, reachable
from llama_deploy.orchestrators.graph_edges import END, START, Edge
from llama_deploy.orchestrators.graph_state import GraphState, decided, forward
from llama_deploy.orchestrators.nodes import Node, named
from llama_deploy.orchestrators.picture import Mark, Picture
from llama_deploy.orchestrators.turn import Turn
from llama_deploy.orchestrators.typed import Orchestrator


class Graph(Orchestrator[GraphState]):
    """Runs a graph from `"start"` to `"end"`, and ends with what reaches the end.

    A node's input is the output of the node before it; where several edges lead into it, a dictionary of outputs by
    node, of those whose edge was taken. `joins={"name": "any"}` lets a node run at its first live token. A failure
    without an `on_failure` edge fails the graph. Raises `ValueError` that lists every problem: nodes that cannot be
    reached or lead nowhere, names that do not exist, cycles without a bound.
    """

    State: ClassVar[type[BaseModel]] = GraphState

    def __init__(
        self,
        nodes: Mapping[str, Node],
        edges: Sequence[Edge | tuple[str, str]],
        *,
        joins: Mapping[str, Literal["all", "any"]] | None = None,
    ) -> None:
        self.nodes = named((), nodes)
        self.edges = [edge if isinstance(edge, Edge) else Edge(*edge) for edge in edges]
        self.joins = dict(joins or {})
        found = problems(list(self.nodes), [(e.source, e.target, e.at_most is not None) for e in self.edges])
        found += [f"joins: there is no node {name!r}" for name in self.joins if name not in {*self.nodes, END}]
        if found:
            raise ValueError("the graph cannot run:\n  " + "\n  ".join(found))

    def start(self, turn: Turn[GraphState]) -> Iterable[Action]:
        """What the start leads to."""
        turn.notes[START] = turn.input
        return self._send(turn, START, turn.input, failed=False)

    def on_answer(self, turn: Turn[GraphState], answer: Answer) -> Iterable[Action]:
        """What follows from a node's answer."""
        name = answer.tag
        turn.state.status[name] = "failed" if answer.failed else "done"
        value = (answer.error.model_dump(mode="json") if answer.error else None) if answer.failed else answer.output
        turn.notes[name] = value
        if answer.failed and not any(edge.on_failure for edge in self.edges if edge.source == name):
            return [self.failure(answer)]
        return [Emit({"node": name, "status": turn.state.status[name]}), *self._send(turn, name, value, answer.failed)]

    def _send(self, turn: Turn[GraphState], name: str, value: Any, failed: bool) -> list[Action]:  # noqa: FBT001
        """Send the tokens of a node that has ended, and start what they make ready."""
        taken = {
            edge: edge.on_failure == failed and (edge.when is None or failed or bool(edge.when(value)))
            for edge in self.edges
            if edge.source == name
        }
        back = [edge for edge, wanted in taken.items() if wanted and edge.at_most is not None]
        again = [edge for edge in back if turn.state.loops.get(edge.name, 0) < (edge.at_most or 0)]
        onward = {edge: wanted for edge, wanted in taken.items() if edge.at_most is None}
        if back and not again and not any(onward.values()):
            why = f"the loop {back[0].name} was taken {back[0].at_most} times, and nothing else follows"
            return [Fail.because(why)]
        actions: list[Action] = []
        for edge in again:
            turn.state.loops[edge.name] = turn.state.loops.get(edge.name, 0) + 1
            actions += self._go_back(turn, edge)
        for edge, wanted in onward.items():
            if wanted:
                actions += self._token(turn, edge.source, edge.target, live=True)
            elif not again:  # what a loop will pass once more is not decided yet
                turn.state.dead.append((edge.source, edge.target))
        return [*actions, *self._send_dead(turn)]

    def _send_dead(self, turn: Turn[GraphState]) -> list[Action]:
        """Send the dead tokens that no loop can call back any more."""
        actions: list[Action] = []
        while True:
            final = decided(turn.state, self.edges)
            if final is None:
                return actions
            turn.state.dead.remove(final)
            actions += self._token(turn, *final, live=False)

    def _go_back(self, turn: Turn[GraphState], edge: Edge) -> list[Action]:
        """Forget what came after the target of a loop, and run it again."""
        after = reachable(edge.target, forward(self.edges))
        turn.state.dead = [token for token in turn.state.dead if token[0] not in after]
        actions: list[Action] = [TakeBack(name) for name in sorted(after) if turn.state.status.get(name) == "running"]
        for name in after:
            turn.state.status.pop(name, None)
            tokens = turn.state.tokens.get(name, {})
            turn.state.tokens[name] = {source: live for source, live in tokens.items() if source not in after}
        return [*actions, self._run(turn, edge.target, turn.notes[edge.source])]

    def _token(self, turn: Turn[GraphState], source: str, target: str, *, live: bool) -> list[Action]:
        """One token arrives."""
        state = turn.state
        if target in state.status:
            return []  # it runs already: the first live token was enough
        tokens = state.tokens.setdefault(target, {})
        tokens[source] = live or tokens.get(source, False)
        sources = {begin for begin, end in forward(self.edges) if end == target}
        if not (live and self.joins.get(target) == "any") and set(tokens) != sources:
            return []
        lively = [name for name in [START, *self.nodes] if name in sources and tokens.get(name)]
        if target == END:
            return [self._end(turn, lively)]
        if lively:
            value = turn.notes[lively[0]] if len(sources) == 1 else {source: turn.notes[source] for source in lively}
            return [self._run(turn, target, value)]
        state.status[target] = "skipped"
        state.dead += [link for link in forward(self.edges) if link[0] == target]
        return []

    def _run(self, turn: Turn[GraphState], name: str, value: Any) -> Run:
        turn.state.status[name] = "running"
        turn.state.runs[name] = turn.state.runs.get(name, 0) + 1
        return Run(name, value)

    def _end(self, turn: Turn[GraphState], lively: list[str]) -> Action:
        if not lively:
            return Fail.because("no edge to the end was taken")
        return Finish(turn.notes[lively[0]] if len(lively) == 1 else {source: turn.notes[source] for source in lively})

    def outline(self) -> Picture:
        """The graph as it is."""
        return Picture.of(self.nodes, [edge.drawn for edge in self.edges], title="graph")

    def marks(self, state: GraphState) -> Mapping[str, Mark]:
        """Where each node stands, and the live tokens that have reached it."""
        return {name: state.mark(name) for name in [*self.nodes, END]}
