"""Group chat: participants speak in turn until it is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from llama_deploy.orchestrators.actions import Action, Answer, Emit, Fail, Finish, Run
from llama_deploy.orchestrators.ledger import Ledger
from llama_deploy.orchestrators.nodes import Node, named
from llama_deploy.orchestrators.picture import END, START, Picture, PictureEdge, PictureNode, rule_name
from llama_deploy.orchestrators.turn import Turn
from llama_deploy.orchestrators.typed import Orchestrator

_CHAIR, _CONCLUDE = "chair", "conclude"
TRANSCRIPT = "transcript"
"""The ledger that has every turn."""


class GroupChatState(BaseModel):
    """Who speaks, and up to where each of them knows what was said."""

    speaker: str = ""
    heard: dict[str, int] = {}


Transcript = Ledger[dict[str, Any]]
"""What was said so far: `{"speaker": name, "said": output}` by position; only what is looked at is read."""


class GroupChat(Orchestrator[GroupChatState]):
    """Each participant is given `{"topic": input, "turns": […], "first": n}` and what it answers is its turn.

    `turns` are those since the participant last spoke, the first of them number `first`: each turn is sent to each
    participant once, so that a long chat costs linear bytes. What was said before is kept once, in the ledger
    `transcript`; a participant that remembers nothing reads it there (`await context.ledger()`). `show="all"` sends
    the whole transcript each time, for participants that can do neither.

    `select` says who is next: `"round_robin"`, a pure function of the transcript and the names, or a chairing node,
    which is given the same as a participant and `participants`, and answers with a name, `{"next": name}` or
    `{"end": output}`. It is enough when `until(transcript)` says so, or after `turns_max` turns; the output is the
    last turn's, or that of `conclude`, a node that is given the whole transcript.
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
        transcript, speaker = turn.ledger(TRANSCRIPT), turn.state.speaker
        said = {"speaker": speaker, "said": answer.output}
        transcript.append(said)
        turn.state.heard[speaker] = len(transcript)
        told = Emit({"turn": len(transcript), **said})
        if len(transcript) >= self.turns_max or (self.until is not None and self.until(transcript)):
            return [told, *self._conclude(turn, answer.output)]
        return [told, *self._next(turn)]

    def _next(self, turn: Turn[GroupChatState]) -> list[Action]:
        if _CHAIR in self.nodes:
            return [Run(_CHAIR, {**self._seen(turn, _CHAIR), "participants": self.participants})]
        if callable(self.select):
            return self._chosen(turn, self.select(turn.ledger(TRANSCRIPT), self.participants))
        return self._chosen(turn, self.participants[len(turn.ledger(TRANSCRIPT)) % len(self.participants)])

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
        transcript = turn.ledger(TRANSCRIPT)
        turn.state.heard[name] = len(transcript)
        return {"topic": turn.input, "turns": transcript[first:], "first": first}

    def _conclude(self, turn: Turn[GroupChatState], last: Any) -> list[Action]:
        if _CONCLUDE not in self.nodes:
            return [Finish(last)]
        return [Run(_CONCLUDE, {"topic": turn.input, "turns": turn.ledger(TRANSCRIPT)[:]})]

    def outline(self) -> Picture:
        """The participants: in a ring, around a chair, or around the function that selects them."""
        title = f"group chat: at most {self.turns_max} turns"
        after = [PictureNode(_CONCLUDE, self.called(_CONCLUDE), note="concludes")] if _CONCLUDE in self.nodes else []
        last, closing = (_CONCLUDE, [PictureEdge(_CONCLUDE, END)]) if after else (END, [])
        first, *others = names = self.participants
        if _CHAIR not in self.nodes and not callable(self.select):
            ring = [PictureEdge(*pair) for pair in pairwise(names)]
            ring += [PictureEdge(names[-1], first, "next round", back=True)] if others else []
            edges = [PictureEdge(START, first), *ring, PictureEdge(names[-1], last), *closing]
            return Picture.of([*names, *after], edges, title=title)
        if callable(self.select):
            chair = PictureNode(_CHAIR, rule_name(self.select), "choice", note="selects")
        else:
            chair = PictureNode(_CHAIR, self.called(_CHAIR), note="chairs")
        edges = [PictureEdge(START, _CHAIR), PictureEdge(_CHAIR, last), *closing]
        edges += [PictureEdge(_CHAIR, name) for name in names]
        edges += [PictureEdge(name, _CHAIR, back=True) for name in names]
        return Picture.of([chair, *names, *after], edges, title=title)

    def drawn_as(self, tag: str, node: str, state: GroupChatState) -> str:
        """A turn is its speaker's."""
        return tag if tag in (_CHAIR, _CONCLUDE) else state.speaker or node
