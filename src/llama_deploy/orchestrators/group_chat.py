"""Group chat: participants speak in turn until it is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from llama_deploy.orchestrators.actions import Action, Answer, Emit, Fail, Finish, Run
from llama_deploy.orchestrators.nodes import Node, named
from llama_deploy.orchestrators.turn import Notes, Turn
from llama_deploy.orchestrators.typed import Orchestrator

_CHAIR, _CONCLUDE = "chair", "conclude"


class GroupChatState(BaseModel):
    """How much was said, who speaks, and up to where each of them knows it."""

    said: int = 0
    speaker: str = ""
    heard: dict[str, int] = {}


class Transcript:
    """What was said so far: `{"speaker": name, "said": output}` by position; only what is looked at is read."""

    def __init__(self, notes: Notes, length: int) -> None:
        self._notes = notes
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> dict[str, Any]:
        found: dict[str, Any] = self._notes[str(range(self._length)[position])]
        return found


class GroupChat(Orchestrator[GroupChatState]):
    """Each participant is given `{"topic": input, "turns": […], "first": n}` and what it answers is its turn.

    `turns` are those since the participant last spoke, the first of them number `first`: each turn is sent to each
    participant once, so that a long chat costs linear bytes. `show="all"` sends the whole transcript each time, for
    participants that remember nothing. `select` says who is next: `"round_robin"`, a pure function of the transcript
    and the names, or a chairing node, which is given the same as a participant and `participants`, and answers
    with a name, `{"next": name}` or `{"end": output}`. It is enough when `until(transcript)` says so, or after
    `turns_max` turns; the output is the last turn's, or that of `conclude`, a node that is given the whole transcript.
    """

    State: ClassVar[type[BaseModel]] = GroupChatState

    def __init__(
        self,
        participants: Mapping[str, Node],
        *,
        select: Literal["round_robin"] | Callable[[Transcript, list[str]], str] | Node = "round_robin",
        until: Callable[[Transcript], bool] | None = None,
        turns_max: int = 20,
        show: Literal["new", "all"] = "new",
        conclude: Node | None = None,
    ) -> None:
        self.participants = list(named((), participants))
        chaired = isinstance(select, Orchestrator) or (isinstance(select, str) and select != "round_robin")
        more: dict[str, Any] = {_CHAIR: select} if chaired else {}
        self.nodes = named((), {**participants, **more, **({_CONCLUDE: conclude} if conclude is not None else {})})
        self.select = select
        self.until = until
        self.turns_max = turns_max
        self.show = show

    def start(self, turn: Turn[GroupChatState]) -> Iterable[Action]:
        """The first speaker, or the question who that is."""
        return self._next(turn)

    def on_answer(self, turn: Turn[GroupChatState], answer: Answer) -> Iterable[Action]:
        """A turn was taken, a speaker was chosen, or the chat was summed up."""
        if answer.failed:
            return [self.failure(answer)]
        if answer.tag == _CONCLUDE:
            return [Finish(answer.output)]
        if answer.tag == _CHAIR:
            return self._chosen(turn, answer.output)
        state = turn.state
        said = {"speaker": state.speaker, "said": answer.output}
        turn.notes[str(state.said)] = said
        state.said += 1
        state.heard[state.speaker] = state.said
        enough = self.until is not None and self.until(Transcript(turn.notes, state.said))
        if enough or state.said >= self.turns_max:
            return [Emit({"turn": state.said, **said}), *self._conclude(turn, answer.output)]
        return [Emit({"turn": state.said, **said}), *self._next(turn)]

    def _next(self, turn: Turn[GroupChatState]) -> list[Action]:
        if _CHAIR in self.nodes:
            return [Run(_CHAIR, {**self._seen(turn, _CHAIR), "participants": self.participants})]
        if callable(self.select):
            return self._chosen(turn, self.select(Transcript(turn.notes, turn.state.said), self.participants))
        return self._chosen(turn, self.participants[turn.state.said % len(self.participants)])

    def _chosen(self, turn: Turn[GroupChatState], chosen: Any) -> list[Action]:
        if isinstance(chosen, dict) and "end" in chosen:
            return self._conclude(turn, chosen["end"])
        name = chosen.get("next") if isinstance(chosen, dict) else chosen
        if name not in self.participants:
            return [Fail.because(f"{str(name)[:200]!r} is none of the participants: {', '.join(self.participants)}")]
        turn.state.speaker = name
        return [Run(name, self._seen(turn, name), tag="turn")]

    def _seen(self, turn: Turn[GroupChatState], name: str) -> dict[str, Any]:
        first = 0 if self.show == "all" else turn.state.heard.get(name, 0)
        turn.state.heard[name] = turn.state.said
        turns = [turn.notes[str(number)] for number in range(first, turn.state.said)]
        return {"topic": turn.input, "turns": turns, "first": first}

    def _conclude(self, turn: Turn[GroupChatState], last: Any) -> list[Action]:
        if _CONCLUDE not in self.nodes:
            return [Finish(last)]
        turns = [turn.notes[str(number)] for number in range(turn.state.said)]
        return [Run(_CONCLUDE, {"topic": turn.input, "turns": turns})]
