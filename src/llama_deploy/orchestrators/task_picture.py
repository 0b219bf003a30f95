"""Where a task stands, as a picture: what an orchestrator says of itself, with what is recorded of one task on it.

A pure function of the history. An orchestrator that says nothing of itself is drawn as what happened: services as
nodes, messages as edges. Steps are found by their tags, which name the way through orchestrators inside of others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from llama_deploy.orchestrators.base import BaseOrchestrator
from llama_deploy.orchestrators.drawn import Drawn
from llama_deploy.orchestrators.picture import (
    END,
    OPEN_STATES,
    START,
    Kind,
    Mark,
    Picture,
    PictureEdge,
    PictureNode,
    State,
)
from llama_deploy.orchestrators.simple import SimpleOrchestrator
from llama_deploy.orchestrators.task_calls import Calls
from llama_deploy.types.history import HistoryEntry
from llama_deploy.types.reserved import PERSON_SERVICE, TIMER_SERVICE
from llama_deploy.types.state import FINAL_STATES, TaskState

Place = tuple[str, ...]
"""Names of nodes, from the outermost picture inwards."""

_KEPT = ("run", "state")
"""How the keys of an orchestrator's own state end that say where it stands; the others are what it works with."""
_UNDO_TAG = "(undo)"
_KINDS: dict[str, Kind] = {PERSON_SERVICE: "person", TIMER_SERVICE: "time"}
_LABELS = {PERSON_SERVICE: "a person", TIMER_SERVICE: "time"}
_TASK_ENDS = frozenset({"canceled", "timed_out"})


def orchestrator_picture(policy: BaseOrchestrator) -> Picture:
    """An orchestrator before it runs. One that says nothing of itself is one node."""
    if isinstance(policy, Drawn):
        return policy.picture()
    label = "the task's service" if isinstance(policy, SimpleOrchestrator) else "decided while it runs"
    return Picture.of(
        [PictureNode("service", label, "service" if isinstance(policy, SimpleOrchestrator) else "choice")],
        [(START, "service"), ("service", END)],
        title=type(policy).__name__,
        guessed=True,
    )


def task_picture(
    policy: BaseOrchestrator, history: Iterable[HistoryEntry], *, held: Collection[str] | None = None
) -> Picture:
    """Where the task of this history stands.

    `held` are the steps that an instance works on, where that is known: the others that are open are queued. What the
    code of a step has called is open until the step is not.
    """
    record = TaskRecord(policy)
    for entry in history:
        record.take(entry)
    return record.picture(held)


@dataclass(slots=True)
class _Step:
    """One step: where it is drawn, and what it does."""

    tags: tuple[str, ...]
    place: Place
    service: str
    came_from: _Step | None
    drawn: bool = True
    """Whether it is a node, or stands unseen between two that are."""
    state: State = "running"
    attempt: int = 1

    @property
    def aside(self) -> bool:
        """Time that passes beside the work of a node, and is drawn as that node."""
        return self.service == TIMER_SERVICE and self.place[-1:] != (TIMER_SERVICE,)


@dataclass(slots=True)
class _Tally:
    """All steps of one node, or of all that is inside of one."""

    begun: int = 0
    done: int = 0
    failed: int = 0
    open: dict[str, _Step] = field(default_factory=dict)
    at_once: bool = False
    last: State = ""
    attempt: int = 1
    step_id: str = ""


class TaskRecord:
    """Folds the history of one task."""

    def __init__(self, policy: BaseOrchestrator) -> None:
        self._root: Drawn[Any] | None = policy if isinstance(policy, Drawn) else None
        self._own: dict[str, Any] = {}
        """`state[task_id]` of the orchestrator, as far as the history tells it."""
        self._steps: dict[str, _Step] = {}
        self._tallies: dict[Place, _Tally] = {}
        self._paths: dict[Place, dict[str, int]] = {}
        """The paths that orchestrators at a place have run under, and how often they began."""
        self._ways: dict[tuple[Place, str, str], int] = {}
        self._state = TaskState.SUBMITTED
        self._counted: set[object] = set()
        """What this entry has counted already: a decision goes one way once, however many messages it sends there."""
        self._states: dict[str, tuple[int, BaseModel | None]] = {}
        self._calls = Calls()
        self._called: Mapping[str, TaskState] = {}
        self.calls = False
        """Whether the code of its steps has called anything."""

    # --- folding ----------------------------------------------------------------------------------------------------

    def take(self, entry: HistoryEntry) -> None:
        """The next entry."""
        self._state = entry.state
        self._counted.clear()
        changed = _object(entry.state_changes, "own")
        self._own.update({key: value for key, value in changed.items() if key.endswith(_KEPT)})
        for key, grown in _object(entry.state_changes, "appended").items():
            if key.endswith(_KEPT) and isinstance(grown, dict):
                self._own[key] = {**_object(self._own, key), **grown}
        step = self._steps.get(entry.step_id or "")
        if step is not None:
            self._about(step, entry)
        for message in entry.messages:
            self._sent(message, step, changed)
        for step_id in entry.taken_back:
            self._ended(step_id, "stopped")
        if entry.outcome is not None or entry.kind in _TASK_ENDS:
            for step_id, left in self._steps.items():
                if left.state in OPEN_STATES:
                    self._ended(step_id, "stopped")
            if self._state is TaskState.COMPLETED and step is not None:
                self._go(step, None, changed)

    def _about(self, step: _Step, entry: HistoryEntry) -> None:
        """What an entry says of its step."""
        step_id = entry.step_id or ""
        if entry.kind == "answered":
            step.attempt = entry.attempt or step.attempt
            good = (entry.result or {}).get("status", "completed") == "completed"
            self._ended(step_id, "done" if good else "failed")
        elif entry.kind in ("retrying", "lost", "paused"):
            step.attempt = (entry.attempt or step.attempt) + 1
            step.state = "queued" if entry.kind != "paused" else "waiting"
        elif entry.kind == "input_requested":
            step.state = "waiting"
        elif entry.kind == "called" and entry.child:
            self._calls.take(entry.child, entry.called, step_id, self._shown_place(step))
            self.calls = True
        elif entry.kind == "input" and step.service == PERSON_SERVICE:
            self._ended(step_id, "done")
        elif entry.kind in ("input", "resumed"):
            step.state = "running"

    @staticmethod
    def _shown_place(step: _Step) -> Place:
        """Where a step is drawn, or where the one is that it stands behind."""
        source: _Step | None = step
        while source is not None and not source.drawn:
            source = source.came_from
        return source.place if source is not None else step.place

    def _ended(self, step_id: str, state: State) -> None:
        step = self._steps.get(step_id)
        if step is None or step.state not in OPEN_STATES:
            return
        step.state = state
        if step.aside and step.drawn:
            return
        for length in range(1, len(step.place) + 1):
            tally = self._tallies[step.place[:length]]
            tally.open.pop(step_id, None)
            tally.last, tally.attempt = state, step.attempt
            tally.done += state == "done"
            tally.failed += state == "failed"

    def _sent(self, message: Mapping[str, Any], source: _Step | None, changed: Mapping[str, Any]) -> None:
        """A message makes a step, or is another attempt of one; one that ends the task is none."""
        step_id = str(message.get("step_id") or "")
        if not step_id or message.get("action") == "completed_task":
            return
        service = str(message.get("service") or "")
        known = self._steps.get(step_id)
        if known is not None:
            again = known.state not in OPEN_STATES
            known.state, known.attempt = "queued", known.attempt + again
            for length in range(1, len(known.place) + 1 if again else 0):
                tally = self._tallies[known.place[:length]]
                tally.open[step_id] = known
                tally.failed -= 1
            return
        tags = tuple(str(message.get("tag") or "").split("/")) if self._root is not None else (service,)
        place, drawn = self._place(tags, service)
        step = _Step(tags, place, service, source, drawn)
        step.state = "waiting" if service in _KINDS else "running"
        self._steps[step_id] = step
        if step.aside and drawn:
            return
        self._go(source, step, changed)
        for length in range(1, len(place) + 1):
            tally = self._tallies.setdefault(place[:length], _Tally())
            tally.at_once = tally.at_once or bool(tally.open)
            tally.open[step_id] = step
            tally.step_id, tally.begun = step_id, tally.begun + (length == len(place) and drawn)

    # --- places -----------------------------------------------------------------------------------------------------

    def _place(self, tags: tuple[str, ...], service: str) -> tuple[Place, bool]:
        """Where a step with these tags is, and whether it is drawn there."""
        orchestrator: Drawn[Any] | None = self._root
        if orchestrator is None:
            return (service,), True
        place: list[str] = []
        for depth, tag in enumerate(tags):
            path = "".join(f"{one}/" for one in tags[:depth])
            last = depth == len(tags) - 1
            run = self._own.get(f"{path}{tag}/run")
            node = str(run.get("node", "")) if isinstance(run, dict) and not last else service
            if tag == _UNDO_TAG:
                name = self._undoing(orchestrator, node, tuple(place)) if last else node
            else:
                state = self._state_at(path, orchestrator)
                name = orchestrator.drawn_as(tag, node, state) if state is not None else node
            if not name:
                return tuple(place), False
            place.append(name)
            if not last:
                self._paths.setdefault(tuple(place), {}).setdefault(f"{path}{tag}/", 0)
                below = orchestrator.nodes.get(node)
                if not isinstance(below, Drawn):
                    place.append(service)
                    break
                orchestrator = below
        return tuple(place), True

    def _undoing(self, orchestrator: Drawn[Any], service: str, place: Place) -> str:
        """The node that undoes something: of those with that service the last that has not run."""
        names = [name for name, node in orchestrator.nodes.items() if node == service]
        fresh = [name for name in names if (*place, name) not in self._tallies]
        return (fresh or names or [service])[-1]

    def _state_at(self, path: str, orchestrator: Drawn[Any]) -> BaseModel | None:
        """The recorded state of the orchestrator at a path; None where it cannot be read."""
        stored = self._own.get(f"{path}state")
        known = self._states.get(path)
        if known is not None and known[0] == id(stored):
            return known[1]
        try:
            state: BaseModel | None = orchestrator.State.model_validate(stored if isinstance(stored, dict) else {})
        except ValidationError:  # of another version, or with something left out
            state = None
        self._states[path] = (id(stored), state)
        return state

    # --- ways -------------------------------------------------------------------------------------------------------

    def _go(self, source: _Step | None, target: _Step | None, changed: Mapping[str, Any]) -> None:
        """The task goes from one step to the next: a way on each level. None is its start, or its end."""
        while source is not None and not source.drawn:
            source = source.came_from  # what is not drawn stands between two that are
        if target is not None and not target.drawn:
            return
        came_tags, came = (source.tags, source.place) if source is not None else ((), ())
        tags, place = (target.tags, target.place) if target is not None else ((), ())
        level = 0
        while level < min(len(came_tags), len(tags)) - 1 and came_tags[level] == tags[level]:
            path = "".join(f"{tag}/" for tag in tags[: level + 1])
            if f"{path}input" in changed and self._paths.get(place[: level + 1], {}).get(path, 0):
                break  # it has ended and begins again
            level += 1
        self._count(place[:level], came[level] if came else START, place[level] if place else END)
        for inside in range(level + 1, len(came)):
            self._count(came[:inside], came[inside], END)
        for inside in range(level + 1, len(place)):
            self._count(place[:inside], START, place[inside])
            path = "".join(f"{tag}/" for tag in tags[:inside])
            times = self._paths.setdefault(place[:inside], {})
            times[path] = times.get(path, 0) + (path not in self._counted)
            self._counted.add(path)

    def _count(self, place: Place, source: str, target: str) -> None:
        if (place, source, target) in self._counted:
            return
        self._counted.add((place, source, target))
        self._ways[place, source, target] = self._ways.get((place, source, target), 0) + 1

    # --- the picture ------------------------------------------------------------------------------------------------

    def picture(self, held: Collection[str] | None = None, *, called: Mapping[str, TaskState] | None = None) -> Picture:
        """Where the task stands after all that was taken; `called` are the states of the tasks that it has called."""
        self._called = called or {}
        ended = self._state in FINAL_STATES
        drawn = self._root.picture() if self._root is not None else Picture.of([], [], guessed=True)
        end: State = ""
        if ended:
            end = "done" if self._state is TaskState.COMPLETED else "failed"
            end = "stopped" if self._state is TaskState.CANCELED else end
        return self._drawn(drawn, self._root, (), held, end, ended=ended)

    def _drawn(
        self,
        picture: Picture,
        orchestrator: Drawn[Any] | None,
        place: Place,
        held: Collection[str] | None,
        end: State,
        *,
        ended: bool,
    ) -> Picture:
        """One level, with all that is inside of it."""
        marks = self._marks(orchestrator, place)
        names = {node.name for node in picture.nodes}
        missing = [
            PictureNode(key[-1], _LABELS.get(key[-1], ""), _KINDS.get(key[-1], "service"))
            for key in self._tallies
            if len(key) == len(place) + 1 and key[:-1] == place and key[-1] not in names
        ]
        declared = [*picture.nodes[:-1], *missing, picture.nodes[-1]]
        nodes = [self._node(node, orchestrator, place, marks.get(node.name), held, ended=ended) for node in declared]
        begun = any(key[:-1] == place for key in self._tallies)
        nodes = [
            replace(node, state="done" if begun else "") if node.name == START
            else replace(node, state=end) if node.name == END
            else node
            for node in nodes
        ]  # fmt: skip
        edges = self._edges(picture, place, {node.name: node for node in nodes}, marks)
        called, ways = self._calls.drawn(place, self._called, {name: step.state for name, step in self._steps.items()})
        nodes = [_chosen(node, edges) if node.kind == "choice" else node for node in nodes]
        if end == "failed":
            left = {edge.source for edge in edges if edge.taken}
            nodes = [_failed_after_all(node) if node.inside and node.name not in left else node for node in nodes]
        return replace(picture, nodes=[*nodes[:-1], *called, nodes[-1]], edges=[*edges, *ways], live=True)

    def _marks(self, orchestrator: Drawn[Any] | None, place: Place) -> Mapping[str, Mark]:
        """What the state of an orchestrator says; nothing where several of it have run at the same time."""
        paths = list(self._paths.get(place, {})) if place else [""]
        if orchestrator is None or not paths or (len(paths) > 1 and self._tallies[place].at_once):
            return {}
        state = self._state_at(paths[-1], orchestrator) if f"{paths[-1]}run" in self._own else None
        return orchestrator.marks(state) if state is not None else {}

    def _node(
        self,
        node: PictureNode,
        orchestrator: Drawn[Any] | None,
        place: Place,
        mark: Mark | None,
        held: Collection[str] | None,
        *,
        ended: bool,
    ) -> PictureNode:
        here = (*place, node.name)
        tally = self._tallies.get(here)
        mark = mark or Mark()
        state = _state_of(tally, held) if tally is not None else ""
        if mark.state is not None and state not in OPEN_STATES:
            state = mark.state
        if ended and not state and node.kind not in ("start", "end", "choice"):
            state = "skipped"
        shown = replace(node, state=state, figure=mark.figure or self._figure(tally, here, state))
        if tally is not None:
            shown = replace(shown, step_id=tally.step_id)
        below = orchestrator.nodes.get(node.name) if orchestrator is not None else None
        if node.inside is None or not isinstance(below, Drawn):
            return shown
        over = ended or (bool(state) and state not in OPEN_STATES)
        return replace(shown, inside=self._drawn(node.inside, below, here, held, state if over else "", ended=over))

    def _figure(self, tally: _Tally | None, place: Place, state: State) -> str:
        """How often, which attempt, and how many of them have failed."""
        if tally is None:
            return ""
        often = tally.begun or sum(self._paths.get(place, {}).values())
        words = [f"{often} times"] if often > 1 else []
        attempt = max((step.attempt for step in tally.open.values()), default=tally.attempt)
        if attempt > 1 and place not in self._paths:  # of what is inside of it, attempts are told there
            words.append(f"attempt {attempt}")
        if tally.failed and (often > 1 and state != "failed"):
            words.append(f"{tally.failed} failed")
        return ", ".join(words)

    def _edges(
        self, picture: Picture, place: Place, nodes: Mapping[str, PictureNode], marks: Mapping[str, Mark]
    ) -> list[PictureEdge]:
        """The ways that are declared and those that were taken beside them, with how often."""
        ways = {(source, target): often for (at, source, target), often in self._ways.items() if at == place}
        declared = {(edge.source, edge.target) for edge in picture.edges}
        choices = [node.name for node in nodes.values() if node.kind == "choice"]
        for (source, target), often in list(ways.items()):
            through = [(source, by, target) for by in choices if {(source, by), (by, target)} <= declared]
            if (source, target) not in declared and through:
                del ways[source, target]
                for pair in ((source, through[0][1]), (through[0][1], target)):
                    ways[pair] = ways.get(pair, 0) + often
        left = {source for source, _ in ways}
        edges = [
            replace(edge, taken=ways.pop((edge.source, edge.target), 0) or _must_be_taken(edge, nodes, marks, left))
            for edge in picture.edges
        ]
        if picture.guessed and any(at == place for at, _, _ in self._ways):
            edges = [edge for edge in edges if edge.taken]
        return edges + [
            PictureEdge(source, target, taken=often)
            for (source, target), often in ways.items()
            if source != target and source in nodes and target in nodes
        ]


def _state_of(tally: _Tally, held: Collection[str] | None) -> State:
    """Of several steps the one that matters most: what waits, then what runs, then what is queued, then the last."""
    found: set[State] = set()
    for step_id, step in tally.open.items():
        if held is not None and step.state in ("queued", "running"):
            found.add("running" if step_id in held else "queued")
        else:
            found.add(step.state)
    for state in ("waiting", "running", "queued"):
        if state in found:
            return state
    return "done" if tally.at_once and tally.done else tally.last


def _must_be_taken(
    edge: PictureEdge, nodes: Mapping[str, PictureNode], marks: Mapping[str, Mark], left: Collection[str]
) -> int:
    """Whether a way was taken that no message tells of: from what is done, and no other way, to what has begun."""
    source, target = nodes[edge.source], nodes[edge.target]
    if edge.source in marks.get(edge.target, Mark()).taken_from and not edge.back:
        return 1
    always = edge.source not in left and not (edge.label or edge.back or edge.dashed)
    return int(always and source.state == "done" and target.state not in ("", "skipped") and target.kind != "choice")


def _chosen(node: PictureNode, edges: Iterable[PictureEdge]) -> PictureNode:
    """A choice by rule is no step: it was made where a way from it was taken."""
    return replace(node, state="done" if any(edge.source == node.name and edge.taken for edge in edges) else "")


def _failed_after_all(node: PictureNode) -> PictureNode:
    """An orchestrator that nothing followed failed, though each of its steps went well: no quorum, no tries left."""
    return replace(node, state="failed") if node.state == "done" else node


def _object(values: Mapping[str, Any] | None, key: str) -> Mapping[str, Any]:
    """The object under a key; an empty one where something else is there, or nothing."""
    found = (values or {}).get(key)
    return found if isinstance(found, dict) else {}
