"""Planner: a plan is made, workers carry it out, progress is judged, and a stuck plan is made anew.

The two ledgers (facts and plan; progress) and the bounds on stalls and resets follow Magentic-One (Fourney et al.,
2024, arXiv:2411.04468, section 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel

from llama_deploy.orchestrators.actions import Action, Answer, Emit, Fail, Finish, Run
from llama_deploy.orchestrators.nodes import Node, named
from llama_deploy.orchestrators.picture import END, START, Picture, PictureEdge, PictureNode
from llama_deploy.orchestrators.turn import Turn
from llama_deploy.orchestrators.typed import Orchestrator

_PLAN, _JUDGE = "plan", "judge"


class PlannerState(BaseModel):
    """The counts that bound it, and how much of what was done the judge has seen."""

    rounds: int = 0
    stalls: int = 0
    resets: int = 0
    judged: int = 0
    worker: str = ""


class Planner(Orchestrator[PlannerState]):
    """`planner` is given `{"goal", "workers", "facts", "done"}` and answers `{"plan": …, "facts": …}` (any JSON).

    `judge` is given `{"goal", "plan", "workers", "done"}`, where `done` is what was done since it last judged, and
    answers `{"finished": true, "output": …}`, or `{"worker": name, "input": …, "progress": bool}`. The named worker is
    given the input; its answer, or its failure, goes on the ledger `done`. More than `stalls_max` judgements without
    progress have the plan made anew with all that was done; more than `resets_max` new plans, or more than
    `rounds_max` rounds, fail the task.
    """

    State: ClassVar[type[BaseModel]] = PlannerState

    def __init__(
        self,
        planner: Node,
        workers: Mapping[str, Node],
        *,
        judge: Node,
        rounds_max: int = 20,
        stalls_max: int = 2,
        resets_max: int = 2,
    ) -> None:
        self.workers = list(named((), workers))
        if {_PLAN, _JUDGE} & set(self.workers):
            raise ValueError(f"no worker can be called {_PLAN!r} or {_JUDGE!r}")
        self.nodes = {**named((), workers), _PLAN: planner, _JUDGE: judge}
        self.rounds_max = rounds_max
        self.stalls_max = stalls_max
        self.resets_max = resets_max

    def start(self, turn: Turn[PlannerState]) -> Iterable[Action]:
        """Have a plan made."""
        return [self._plan(turn)]

    def on_answer(self, turn: Turn[PlannerState], answer: Answer) -> Iterable[Action]:
        """A plan was made, progress was judged, or a worker is done."""
        if answer.tag in (_PLAN, _JUDGE) and answer.failed:
            return [self.failure(answer)]
        if answer.tag == _PLAN:
            output = answer.output if isinstance(answer.output, dict) else {"plan": answer.output}
            turn.notes["plan"] = output.get("plan")
            turn.notes["facts"] = output.get("facts")
            return [Emit({"plan": turn.notes["plan"]}), self._judge(turn)]
        if answer.tag == _JUDGE:
            return self._judged(turn, answer.output)
        what = {"error": answer.error.message if answer.error else answer.status} if answer.failed else answer.output
        turn.ledger("done").append({"worker": turn.state.worker, "answer": what})
        return [self._judge(turn)]

    def _judged(self, turn: Turn[PlannerState], judgement: Any) -> list[Action]:
        state = turn.state
        if not isinstance(judgement, dict):
            return [Fail.because(f"the judge answered {str(judgement)[:200]!r}, not an object")]
        if judgement.get("finished"):
            return [Finish(judgement.get("output"))]
        state.rounds += 1
        if state.rounds > self.rounds_max:
            return [Fail.because(f"not finished after {self.rounds_max} rounds")]
        state.stalls = 0 if judgement.get("progress", True) else state.stalls + 1
        if state.stalls > self.stalls_max:
            state.resets += 1
            state.stalls = 0
            if state.resets > self.resets_max:
                return [Fail.because(f"stuck, with {self.resets_max} new plans made")]
            return [Emit({"replanning": state.resets}), self._plan(turn)]
        worker = judgement.get("worker")
        if worker not in self.workers:
            return [Fail.because(f"{str(worker)[:200]!r} is none of the workers: {', '.join(self.workers)}")]
        state.worker = worker
        return [Emit({"worker": worker}), Run(worker, judgement.get("input"), tag="work")]

    def _plan(self, turn: Turn[PlannerState]) -> Run:
        facts = turn.notes.get("facts")
        return Run(_PLAN, {"goal": turn.input, "workers": self.workers, "facts": facts, "done": turn.ledger("done")[:]})

    def _judge(self, turn: Turn[PlannerState]) -> Run:
        ledger = turn.ledger("done")
        new = ledger[turn.state.judged :]
        turn.state.judged = len(ledger)
        return Run(_JUDGE, {"goal": turn.input, "plan": turn.notes["plan"], "workers": self.workers, "done": new})

    def outline(self) -> Picture:
        """A plan, its judge, and the workers around it."""
        plan = PictureNode(_PLAN, self.called(_PLAN), note="plans")
        judge = PictureNode(_JUDGE, self.called(_JUDGE), note="judges progress")
        edges = [PictureEdge(START, _PLAN), PictureEdge(_PLAN, _JUDGE), PictureEdge(_JUDGE, END)]
        edges += [PictureEdge(_JUDGE, _PLAN, f"stuck, at most {self.resets_max} times", back=True)]
        edges += [PictureEdge(_JUDGE, name) for name in self.workers]
        edges += [PictureEdge(name, _JUDGE, back=True) for name in self.workers]
        return Picture.of([plan, judge, *self.workers], edges, title=f"planner: at most {self.rounds_max} rounds")

    def drawn_as(self, tag: str, node: str, state: PlannerState) -> str:
        """Work is its worker's."""
        return tag if tag in (_PLAN, _JUDGE) else state.worker or node
