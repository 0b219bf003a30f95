"""What the code of a task's steps has called, on the task's picture: beside what its orchestrator has decided.

A call makes a task of its own, whose history tells its own story; here it is a box that a dashed way leads to. All
calls of one service within one picture are one box.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from llama_deploy.orchestrators.picture import OPEN_STATES, PictureEdge, PictureNode, State
from llama_deploy.types.state import FINAL_STATES, TaskState

_STATES: dict[TaskState, State] = {
    TaskState.COMPLETED: "done",
    TaskState.CANCELED: "stopped",
    TaskState.INPUT_REQUIRED: "waiting",
    TaskState.AUTH_REQUIRED: "waiting",
}
_MATTERS: tuple[State, ...] = ("waiting", "running", "failed", "stopped")
"""Of the states of several calls the one that is shown; with none of these they are done."""
UNNAMED = "a task"
"""What is called where the default orchestrator is to choose a service, or where that was not recorded."""


@dataclass(frozen=True, slots=True)
class _Call:
    child: str
    service: str
    step_id: str
    place: tuple[str, ...]
    """The node whose code has called; empty where that step is not drawn."""


@dataclass(slots=True)
class Calls:
    """All calls of one task."""

    _made: dict[str, _Call] = field(default_factory=dict)

    def take(self, child: str, service: str | None, step_id: str, place: tuple[str, ...]) -> None:
        """A call that is recorded; the same one again changes nothing."""
        self._made.setdefault(child, _Call(child, service or UNNAMED, step_id, place))

    def drawn(
        self, place: tuple[str, ...], states: Mapping[str, TaskState], open_steps: Mapping[str, State]
    ) -> tuple[list[PictureNode], list[PictureEdge]]:
        """The boxes and ways inside of one picture.

        `states` are those of the called tasks, by id, where they are known; of the others a call is over when its step
        is, which is not among `open_steps` then.
        """
        here = [call for call in self._made.values() if call.place[:-1] == place]
        by_service: dict[str, list[State]] = {}
        for call in here:
            by_service.setdefault(call.service, []).append(_state_of(call, states, open_steps))
        nodes = [
            PictureNode(_name(service), service, note="called", state=_of_all(found), figure=_figure(found))
            for service, found in by_service.items()
        ]
        often = Counter((call.place[-1], _name(call.service)) for call in here if call.place)
        edges = [
            PictureEdge(source, target, "calls", dashed=True, taken=times) for (source, target), times in often.items()
        ]
        return nodes, edges


def _name(service: str) -> str:
    return f"call:{service}"


def _state_of(call: _Call, states: Mapping[str, TaskState], open_steps: Mapping[str, State]) -> State:
    known = states.get(call.child)
    if known is None:
        return "running" if open_steps.get(call.step_id, "") in OPEN_STATES else "done"
    return _STATES.get(known, "failed" if known in FINAL_STATES else "running")


def _of_all(states: Iterable[State]) -> State:
    found = set(states)
    return next((state for state in _MATTERS if state in found), "done")


def _figure(states: list[State]) -> str:
    words = [f"{len(states)} times"] if len(states) > 1 else []
    failed = states.count("failed")
    if failed and len(states) > 1:
        words.append(f"{failed} failed")
    return ", ".join(words)
