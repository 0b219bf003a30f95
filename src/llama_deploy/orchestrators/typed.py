"""The typed base of an orchestrator: state as a pydantic model, decisions as actions, nodes that may be orchestrators.

One subclass answers two questions: what to do at the start, and what to do on an answer. Everything else happens here,
over the published `BaseOrchestrator`: results are parsed once into `Answer`, actions become messages, and an
orchestrator that is a node of another keeps its state under a path of its own (`draft/`, `draft/review/`), which is
also the beginning of its steps' tags. Pure, like every orchestrator: what is kept stands in `state[task_id]`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, ClassVar, NamedTuple

import msgspec
from pydantic import BaseModel

from llama_deploy.messages.base import QueueMessage
from llama_deploy.orchestrators.actions import (
    Action,
    Again,
    Answer,
    Ask,
    Compensate,
    Emit,
    Fail,
    Finish,
    Hold,
    Release,
    Run,
    TakeBack,
    Wait,
)
from llama_deploy.orchestrators.base import BaseOrchestrator
from llama_deploy.orchestrators.drawn import Drawn
from llama_deploy.orchestrators.turn import Notes, StateT, Turn
from llama_deploy.types.core import ActionTypes, TaskDefinition, TaskError, TaskResult
from llama_deploy.types.reserved import ANSWERED_HERE, PERSON_SERVICE, STREAM_SERVICE, TAKE_BACK_SERVICE, TIMER_SERVICE

_INBOX = "inbox"
_UNDO_TAG = "(undo)"


class Orchestrator(BaseOrchestrator, Drawn[StateT]):
    """Subclass it: give `State`, `start` and `on_answer`, and `nodes` where nodes are orchestrators themselves.

    The methods decide from their arguments alone and keep nothing in `self`. They may be called again with the same
    arguments; one decision of each kind is recorded.
    """

    synchronous: ClassVar[bool] = True
    handles_failures: ClassVar[bool] = True
    decides_retries: ClassVar[bool] = False
    state_on_demand: ClassVar[bool] = True
    version: ClassVar[int] = 1
    """Raise it when a stored state is not what this class would have made; see `migrate`."""
    final_message_type: str | None = "human"
    """Who is told when the task has ended, if somebody serves that name."""

    @abstractmethod
    def start(self, turn: Turn[StateT]) -> Iterable[Action]:
        """What to do first."""

    @abstractmethod
    def on_answer(self, turn: Turn[StateT], answer: Answer) -> Iterable[Action]:
        """What to do now that a node has answered, well or badly."""

    def observe(self, turn: Turn[StateT], answer: Answer) -> Iterable[Action]:
        """What to do about a service's answer to this orchestrator or to one below it, before it gets there.

        Nothing, unless a subclass counts or limits what happens here. Where it ends, the answer goes nowhere; with
        `Hold`, it and all that follow wait for `Release`.
        """
        del turn, answer
        return ()

    def migrate(self, version: int, state: dict[str, Any]) -> dict[str, Any]:
        """A state that an earlier `version` of this class recorded, as this one reads it.

        Raises `ValueError` unless a subclass says how: a task goes on with the version that it began with, or is
        migrated on purpose.
        """
        raise ValueError(
            f"{type(self).__name__} is at version {self.version} and the task began with {version}: "
            f"keep that version, or say in `migrate` how its state ({', '.join(state) or 'empty'}) is read"
        )

    def migrate_task(self, task_def: TaskDefinition, state: dict[str, Any], *, version: int) -> dict[str, Any]:
        """Have each orchestrator of a task that is of another version by now read its state; see `migrate`."""
        del version  # each of them has one of its own
        own = state.get(task_def.task_id)
        if own:
            Machine(self, task_def, own, state).migrate()
        return state

    def failure(self, answer: Answer) -> Fail:
        """The failure of a node as this orchestrator's own."""
        return Fail(answer.error or TaskError(message=f"{answer.node} was {answer.status}", retryable=False))

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        """The messages that follow from the answers folded since; at first, from the start."""
        own: MutableMapping[str, Any] = state.setdefault(task_def.task_id, {})
        inbox = own.pop(_INBOX, None) or []
        machine = Machine(self, task_def, own, state)
        if "run" not in own:
            machine.begin()
        for result in inbox:
            machine.take(result if isinstance(result, TaskResult) else TaskResult.model_validate(result))
        return machine.messages, state

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        """Put the answer where `get_next_messages` finds it."""
        own = state.setdefault(result.task_id, {})
        own[_INBOX] = [*own.get(_INBOX, []), result]
        return state


class _Begin(NamedTuple):
    """A node that is an orchestrator is to start."""

    node: str
    input: Any


class Machine:
    """One decision of the outermost orchestrator and its nodes: events in, messages out.

    What it keeps of each running orchestrator, under the orchestrator's path: `run` (which node of its parent it is,
    how many of its own nodes run, what is to be undone, its failure while it undoes), `state`, `input`, and its notes.
    """

    def __init__(
        self,
        root: Orchestrator[Any],
        task: TaskDefinition,
        own: MutableMapping[str, Any],
        shared: MutableMapping[str, Any],
    ) -> None:
        self._root = root
        self._task = task
        self._own = own
        self._shared = shared
        self._events: deque[tuple[str, Answer | _Begin]] = deque()
        """What happens next, each with the path of the orchestrator that it happens to."""
        self._ended = False
        self.messages: list[QueueMessage] = []

    # --- events -----------------------------------------------------------------------------------------------------

    def take(self, result: TaskResult) -> None:
        """An answer has come: hand it to whoever asked, and go on until everybody waits again."""
        path, slash, tag = (result.tag or "").rpartition("/")
        answer = Answer(
            tag=tag,
            node=result.service or "",
            status=result.status,
            output=result.output if result.status == "completed" else None,
            error=result.error,
            step_id=result.step_id or "",
            attempt=result.attempt,
            usage=_usage(result.data),
        )
        self._arrive(path + slash, answer)
        self._go_on()

    def _arrive(self, path: str, answer: Answer) -> None:
        """Let the orchestrators on the way see an answer, the outermost first; then it is the next to happen.

        One of them may end everything below it, or hold the answer.
        """
        on_the_way = ["", *(path[: index + 1] for index, character in enumerate(path) if character == "/")]
        for place in on_the_way if answer.node not in ANSWERED_HERE else []:
            run = self._own.get(f"{place}run")
            if run is None or "error" in run:
                break
            held = self._own.get(f"{place}held")
            orchestrator = self._at(place)
            if held is None and type(orchestrator).observe is not Orchestrator.observe:
                turn = self._turn(place, self._state(place, orchestrator, run))
                self._decided(place, orchestrator, turn, orchestrator.observe(turn, answer))
                held = self._own.get(f"{place}held")
            if held is not None:
                self._own[f"{place}held"] = [*held, [path, answer.to_json()]]
                return
        self._events.append((path, answer))

    def _release(self, place: str) -> None:
        """What an orchestrator has held goes on; the first of it was seen already."""
        held = [(path, Answer.from_json(value)) for path, value in self._own.pop(f"{place}held", None) or []]
        self._events.extend(held[:1])
        for path, answer in held[1:]:
            self._arrive(path, answer)

    def begin(self) -> None:
        """Start the outermost orchestrator."""
        self._events.append(("", _Begin("", None)))
        self._go_on()

    def _go_on(self) -> None:
        while self._events and not self._ended:
            path, event = self._events.popleft()
            if isinstance(event, _Begin):
                self._begin(path, event)
                continue
            run = self._own.get(f"{path}run")
            if run is None:
                continue  # what asked has ended meanwhile
            run = self._own[f"{path}run"] = {**run, "open": run["open"] - 1}
            if "error" in run:
                self._undone(path, run, event)
                continue
            orchestrator = self._at(path)
            turn = self._turn(path, self._state(path, orchestrator, run))
            self._decided(path, orchestrator, turn, orchestrator.on_answer(turn, event))

    def _begin(self, path: str, event: _Begin) -> None:
        if path and f"{_above(path)}run" not in self._own:
            return  # its parent has ended before its turn came
        self._own[f"{path}run"] = run = {"node": event.node, "version": 0, "open": 0}
        orchestrator = self._at(path)
        run["version"] = orchestrator.version
        if path:
            self._own[f"{path}input"] = event.input
        turn = self._turn(path, orchestrator.State())
        self._decided(path, orchestrator, turn, orchestrator.start(turn))

    def _at(self, path: str) -> Orchestrator[Any]:
        """The orchestrator that runs at a path."""
        if not path:
            return self._root
        owner = self._at(_above(path))
        name = self._own[f"{path}run"]["node"]
        node = owner.nodes.get(name)
        if not isinstance(node, Orchestrator):  # it was one when the task started it
            raise LookupError(  # noqa: TRY004
                f"{type(owner).__name__} has no orchestrator {name!r} among its nodes any more"
            )
        return node

    def _state(self, path: str, orchestrator: Orchestrator[Any], run: Mapping[str, Any]) -> BaseModel:
        stored = self._own.get(f"{path}state") or {}
        if run["version"] != orchestrator.version:
            stored = orchestrator.migrate(run["version"], stored)
            self._own[f"{path}run"] = {**self._own[f"{path}run"], "version": orchestrator.version}
        return orchestrator.State.model_validate(stored)

    def migrate(self) -> None:
        """Read every state that an orchestrator of another version has recorded, the outermost first."""
        for key in [key for key in self._own if key.rpartition("/")[2] == "run"]:
            path = key[: -len("run")]
            run, orchestrator = self._own[key], self._at(path)
            if run["version"] != orchestrator.version:
                self._own[f"{path}state"] = self._state(path, orchestrator, run).model_dump(mode="json")

    def _turn(self, path: str, state: BaseModel) -> Turn[Any]:

        def given() -> Any:
            return self._own[f"{path}input"] if path else _task_input(self._task)

        notes = Notes(self._own, path)
        return Turn(task=self._task, given=given, state=state, notes=notes, shared=self._shared)

    # --- actions ----------------------------------------------------------------------------------------------------

    def _decided(self, path: str, orchestrator: Orchestrator[Any], turn: Turn[Any], actions: Iterable[Action]) -> None:
        """Carry out the actions of one turn, in order; what comes after an end is not looked at."""
        begun: list[tuple[str, Answer | _Begin]] = []
        started = 0
        release = False
        end: Finish | Fail | None = None
        for action in actions:
            if isinstance(action, Finish | Fail):
                end = action
                break
            if isinstance(action, Run) and isinstance(orchestrator.nodes.get(action.node), Orchestrator):
                child = f"{path}{_checked(action.tag or action.node)}/"
                if f"{child}run" in self._own:
                    raise ValueError(f"the tag {action.tag or action.node!r} is in use: give each run a tag of its own")
                begun.append((child, _Begin(action.node, action.input)))
                started += 1
            elif isinstance(action, Release):
                release = True
            else:
                started += self._act(path, orchestrator, action)
        changed = turn.state.model_dump(mode="json")
        if changed:
            self._own[f"{path}state"] = changed
        run = self._own[f"{path}run"] = {**self._own[f"{path}run"]}
        run["open"] += started
        if end is not None:
            self._end(path, run, end)
            return
        if run["open"] <= 0:
            fix = "return an action that is answered (Run, Ask, Wait), or Finish"
            self._end(path, run, Fail.because(f"{type(orchestrator).__name__} neither waits nor ends", fix=fix))
            return
        self._events.extend(begun)
        if release:
            self._release(path)

    def _act(self, path: str, orchestrator: Orchestrator[Any], action: Action) -> int:
        """One action that is neither an end nor the start of an orchestrator; returns how many answers it brings."""
        if isinstance(action, Run):
            self._run(path, orchestrator, action, _checked(action.tag or action.node))
        elif isinstance(action, Again):
            message = self._message(action.answer.node, path + action.answer.tag, {}, delay_s=action.delay_s)
            message.step_id = action.answer.step_id
            self.messages.append(message)
        elif isinstance(action, Ask):
            data = {"prompt": action.prompt, **action.details}
            if action.schema is not None:
                data["schema"] = dict(action.schema)
            self.messages.append(self._message(PERSON_SERVICE, path + _checked(action.tag), data))
        elif isinstance(action, Wait):
            tag = path + _checked(action.tag)
            self.messages.append(self._message(TIMER_SERVICE, tag, {}, delay_s=action.delay_s))
        elif isinstance(action, Emit):
            message = self._message(STREAM_SERVICE, path, {"event": action.event})
            message.action = ActionTypes.TASK_STREAM
            self.messages.append(message)
            return 0
        elif isinstance(action, TakeBack):
            self._take_back(path + _checked(action.tag))
            return -1
        elif isinstance(action, Hold):
            self._own[f"{path}held"] = []
            return 0
        elif isinstance(action, Compensate):
            run = self._own[f"{path}run"]
            self._own[f"{path}run"] = {**run, "undo": [*run.get("undo", []), [action.node, action.input]]}
            return 0
        return 1

    def _work(self, service: str, given: Any) -> dict[str, Any]:
        """The data of a message: keyword arguments as they are, one input as a task."""
        if isinstance(given, dict) and "task" not in given:
            return given
        text = given if isinstance(given, str) else msgspec.json.encode(given).decode()
        task = self._task.model_copy(update={"input": text, "agent_id": service})
        return {"task": task.dumped(), "state": {}}

    def _run(self, path: str, orchestrator: Orchestrator[Any], action: Run, tag: str) -> None:
        """Send a step to a service."""
        service = orchestrator.nodes.get(action.node, action.node)
        message = self._message(service, path + tag, self._work(service, action.input), delay_s=action.delay_s)
        message.action = ActionTypes.NEW_TASK
        message.options = action.options
        self.messages.append(message)

    @staticmethod
    def _message(service: str, tag: str, data: dict[str, Any], *, delay_s: float = 0.0) -> QueueMessage:
        return QueueMessage(type=service, tag=tag, data=data, delay_s=delay_s)

    def _take_back(self, tag: str) -> None:
        """Stop the step or the orchestrator that runs under a tag."""
        child = f"{tag}/"
        if f"{child}run" in self._own:
            self._clear(child)
            self.messages.append(self._message(TAKE_BACK_SERVICE, child, {}))
        else:
            self.messages.append(self._message(TAKE_BACK_SERVICE, tag, {}))

    def _clear(self, path: str) -> None:
        for key in [key for key in self._own if key.startswith(path)]:
            del self._own[key]

    # --- ending -----------------------------------------------------------------------------------------------------

    def _end(self, path: str, run: dict[str, Any], end: Finish | Fail) -> None:
        """One orchestrator has ended; where it failed, what it has done is undone first."""
        if path and run["open"] > 0:  # of the outermost one, the control plane takes back what is open
            self.messages.append(self._message(TAKE_BACK_SERVICE, path, {}))
        if isinstance(end, Fail) and run.get("undo"):
            if not path and run["open"] > 0:
                self.messages.append(self._message(TAKE_BACK_SERVICE, "", {}))
            for key in [key for key in self._own if key.startswith(path) and "/" in key[len(path) :]]:
                del self._own[key]  # the orchestrators below are no more
            run["error"] = end.error.model_dump(mode="json", exclude_defaults=True)
            run["open"] = 0
            self._undo_next(path, run)
            return
        if not path:
            self._ended = True
            self.messages.append(self._final(end))
            return
        above = _above(path)
        tag, node = path[len(above) : -1], run["node"]
        self._clear(path)
        if isinstance(end, Finish):
            answer = Answer(tag, node, "completed", end.output)
        else:
            answer = Answer(tag, node, "failed", None, end.error)
        self._events.append((above, answer))

    def _undo_next(self, path: str, run: dict[str, Any]) -> None:
        """Send the latest undoing that was not sent; end when there is none left."""
        undo = run["undo"]
        if not undo:
            self._own[f"{path}run"] = run
            self._end(path, run, Fail(TaskError.model_validate(run["error"])))
            return
        node, given = undo[-1]
        run["undo"] = undo[:-1]
        run["open"] = 1
        self._own[f"{path}run"] = run
        orchestrator = self._at(path)
        if isinstance(orchestrator.nodes.get(node), Orchestrator):
            self._events.append((f"{path}{_UNDO_TAG}/", _Begin(node, given)))
        else:
            self._run(path, orchestrator, Run(node, given), _UNDO_TAG)

    def _undone(self, path: str, run: dict[str, Any], answer: Answer) -> None:
        if answer.tag != _UNDO_TAG:
            self._own[f"{path}run"] = {**run, "open": 1}  # late, from before the failure
            return
        if answer.failed:
            error = dict(run["error"])
            why = answer.error.message if answer.error is not None else answer.status
            error["message"] = f"{error.get('message', '')} (and {answer.node}, which was to undo it, failed: {why})"
            run["error"] = error
        self._undo_next(path, run)

    def _final(self, end: Finish | Fail) -> QueueMessage:
        if isinstance(end, Finish):
            text = isinstance(end.output, str)
            result = TaskResult(
                task_id=self._task.task_id,
                history=[],
                result=end.output if text else msgspec.json.encode(end.output).decode(),
                kind="text" if text else "json",
                value=None if text else end.output,
            )
        else:
            result = TaskResult(
                task_id=self._task.task_id, history=[], result=end.error.message, status="failed", error=end.error
            )
        message = self._message(self._root.final_message_type or "human", "", result.model_dump())
        message.action = ActionTypes.COMPLETED_TASK
        return message


def _usage(data: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that a service gave under `usage`."""
    usage = data.get("usage")
    if not isinstance(usage, dict):
        return {}
    return {str(name): float(value) for name, value in usage.items() if isinstance(value, int | float)}


def _above(path: str) -> str:
    """The path of the orchestrator above the one at `path`."""
    above, slash, _ = path[:-1].rpartition("/")
    return above + slash


def _checked(tag: str) -> str:
    if "/" in tag or not tag or tag == _UNDO_TAG:
        raise ValueError(f"{tag!r} cannot be a tag: it has at least one character, no slash, and is not {_UNDO_TAG!r}")
    return tag


def _task_input(task: TaskDefinition) -> Any:
    """The task's input, parsed where it is a JSON object or array."""
    if task.input[:1] in ("{", "["):
        try:
            return msgspec.json.decode(task.input)
        except msgspec.DecodeError:
            return task.input
    return task.input
