"""Gate: a person approves, rejects, edits or chooses before work goes on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from llama_deploy.orchestrators.actions import Action, Answer, Ask, Emit, Fail, Finish, TakeBack, Wait
from llama_deploy.orchestrators.picture import END, START, Picture, PictureEdge, PictureNode, in_time
from llama_deploy.orchestrators.turn import Turn
from llama_deploy.orchestrators.typed import Orchestrator


class GateState(BaseModel):
    """How often was asked, and who."""

    asked: int = 0
    level: int = 0


class Gate(Orchestrator[GateState]):
    """Asks a person about its input and ends with what may go on.

    A person answers `"approve"` (or `true`), `{"decision": "reject", "reason": …}` (or `false`), `{"decision":
    "edit", "value": …}`, or, where there are `choices`, one of them (or `{"decision": "choose", "value": …}`).
    Approval ends with the input, an edit with the value, a choice with the choice; a rejection fails, or with
    `on_reject="output"` ends with `{"rejected": reason}`. Whatever else is answered is asked about again, with the
    reason. Nothing is held in memory while a person thinks.

    After `deadline_s` seconds the next of `escalate_to` is asked (named in the prompt as `to`); after the last one
    `on_deadline` says what the silence means.
    """

    State: ClassVar[type[BaseModel]] = GateState

    def __init__(
        self,
        prompt: str = "May this go on?",
        *,
        choices: Sequence[str] = (),
        edits: bool = True,
        ask: str | None = None,
        escalate_to: Sequence[str] = (),
        deadline_s: float | None = None,
        on_deadline: Literal["fail", "approve", "reject"] = "fail",
        on_reject: Literal["fail", "output"] = "fail",
    ) -> None:
        if escalate_to and deadline_s is None:
            raise ValueError("escalate_to needs a deadline_s")
        self.prompt = prompt
        self.choices = list(choices)
        self.edits = edits
        self.people = [ask, *escalate_to]
        self.deadline_s = deadline_s
        self.on_deadline = on_deadline
        self.on_reject = on_reject

    def start(self, turn: Turn[GateState]) -> Iterable[Action]:
        """Ask, and watch the time where there is a deadline."""
        return [*self._ask(turn), *self._watch(turn)]

    def on_answer(self, turn: Turn[GateState], answer: Answer) -> Iterable[Action]:
        """The person has decided, or has not in time."""
        if answer.tag.startswith("deadline"):
            return self._late(turn)
        decision, value = _read(answer.output, self.choices)
        if decision == "reject":
            return self._reject(str(value or "no reason was given"))
        if decision == "approve" and not self.choices:
            return [Finish(turn.input)]
        if decision == "edit" and self.edits:
            return [Finish(value)]
        if decision == "choose" and value in self.choices:
            return [Finish(value)]
        return self._ask(turn, problem=f"{str(answer.output)[:200]!r} is no answer to this question")

    def outline(self) -> Picture:
        """Everybody who may be asked, one after the other."""
        names = [f"ask-{level}" for level in range(len(self.people))]
        labels = [person or "a person" for person in self.people]
        people = [PictureNode(*pair, "person", note=self.prompt) for pair in zip(names, labels, strict=True)]
        late = in_time(self.deadline_s) if self.deadline_s is not None else ""
        edges = [PictureEdge(START, names[0]), *(PictureEdge(name, END) for name in names)]
        edges += [PictureEdge(*pair, label=f"silent for {late}", dashed=True) for pair in pairwise(names)]
        after = f", {self.on_deadline}s after {late}" if late else ""
        return Picture.of(people, edges, title=f"gate{after}")

    def drawn_as(self, tag: str, node: str, state: GateState) -> str:
        """A question is whom it is for; so is a deadline."""
        del node
        return f"ask-{tag.partition('-')[2] if tag.startswith('deadline') else state.level}"

    def _ask(self, turn: Turn[GateState], *, problem: str = "") -> list[Action]:
        turn.state.asked += 1
        details: dict[str, Any] = {"value": turn.input, "decisions": self._decisions()}
        if problem:
            details["problem"] = problem
        if self.people[turn.state.level] is not None:
            details["to"] = self.people[turn.state.level]
        schema = {"enum": self.choices} if self.choices else None
        return [Ask(self.prompt, tag=f"ask-{turn.state.asked}", schema=schema, details=details)]

    def _decisions(self) -> list[str]:
        return [*(["choose"] if self.choices else ["approve"]), "reject", *(["edit"] if self.edits else [])]

    def _watch(self, turn: Turn[GateState]) -> list[Action]:
        return [] if self.deadline_s is None else [Wait(self.deadline_s, tag=f"deadline-{turn.state.level}")]

    def _late(self, turn: Turn[GateState]) -> list[Action]:
        if turn.state.level + 1 < len(self.people):
            before = TakeBack(f"ask-{turn.state.asked}")
            turn.state.level += 1
            told = Emit({"escalated": self.people[turn.state.level]})
            return [before, told, *self._ask(turn), *self._watch(turn)]
        if self.on_deadline == "approve":
            return [Finish(turn.input)]
        if self.on_deadline == "reject":
            return self._reject("nobody answered in time")
        return [Fail.because(f"nobody answered within {self.deadline_s:g} s", fix="raise deadline_s, or escalate_to")]

    def _reject(self, reason: str) -> list[Action]:
        return [Finish({"rejected": reason}) if self.on_reject == "output" else Fail.because(f"rejected: {reason}")]


def _read(given: Any, choices: list[str]) -> tuple[str, Any]:
    """The decision in what a person answered, and its value; an empty decision for what is none."""
    if isinstance(given, dict):
        return str(given.get("decision", "")), given.get("value", given.get("reason"))
    if isinstance(given, str) and given in choices:
        return "choose", given
    if isinstance(given, bool):
        return "approve" if given else "reject", None
    word = given.strip().lower() if isinstance(given, str) else ""
    return {"approve": "approve", "yes": "approve", "reject": "reject", "no": "reject"}.get(word, ""), None
