"""Wrappers: orchestrators around one node that change how it may fail, how long it may take, what it may use.

Each composes with every other orchestrator, being a node like them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from llama_deploy.orchestrators.actions import (
    Action,
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
from llama_deploy.orchestrators.nodes import Node, named
from llama_deploy.orchestrators.parallel import Parallel
from llama_deploy.orchestrators.turn import NoState, Turn
from llama_deploy.orchestrators.typed import Orchestrator
from llama_deploy.types.retry import RetryPolicy


class Count(BaseModel):
    """How often it was tried, or how many are done."""

    count: int = 0


class Retry(Orchestrator[Count]):
    """Runs a whole node again when it has failed, as `policy` says, or when `accept(output)` is false.

    A service's own retries come first; this is for nodes that are orchestrators, and for answers that are no good.
    """

    State: ClassVar[type[BaseModel]] = Count

    def __init__(
        self, node: Node, policy: RetryPolicy | None = None, *, accept: Callable[[Any], bool] | None = None
    ) -> None:
        self.nodes = named((), {"node": node})
        self.policy = policy or RetryPolicy()
        self.accept = accept

    def start(self, turn: Turn[Count]) -> Iterable[Action]:
        """The first try."""
        return [Run("node", turn.input)]

    def on_answer(self, turn: Turn[Count], answer: Answer) -> Iterable[Action]:
        """The end, a pause, or the next try."""
        if answer.tag == "pause":
            return [Run("node", turn.input)]
        if not answer.failed and (self.accept is None or self.accept(answer.output)):
            return [Finish(answer.output)]
        turn.state.count += 1
        delay_s = self.policy.delay_for(answer.error, turn.state.count)
        if delay_s is None:
            if answer.failed:
                return [self.failure(answer)]
            return [Fail.because(f"no answer was accepted in {turn.state.count} tries")]
        return [Emit({"retry": turn.state.count}), Wait(delay_s, tag="pause")]


class Fallback(Orchestrator[Count]):
    """Tries its nodes in order until one of them succeeds; the last failure is its own."""

    State: ClassVar[type[BaseModel]] = Count

    def __init__(self, *nodes: Node, **by_name: Node) -> None:
        self.nodes = named(nodes, by_name)

    def start(self, turn: Turn[Count]) -> Iterable[Action]:
        """The first node."""
        return [Run(next(iter(self.nodes)), turn.input)]

    def on_answer(self, turn: Turn[Count], answer: Answer) -> Iterable[Action]:
        """The end, or the next node."""
        if not answer.failed:
            return [Finish(answer.output)]
        turn.state.count += 1
        if turn.state.count == len(self.nodes):
            return [self.failure(answer)]
        following = list(self.nodes)[turn.state.count]
        return [Emit({"fallback": following}), Run(following, turn.input)]


class Timeout(Orchestrator[NoState]):
    """Gives a node so many seconds; then it is taken back, and `instead` runs, or the task fails."""

    State: ClassVar[type[BaseModel]] = NoState

    def __init__(self, node: Node, seconds: float, *, instead: Node | None = None) -> None:
        if not seconds > 0:
            raise ValueError(f"seconds is {seconds}: it must be more than 0")
        self.nodes = named((), {"node": node} | ({"instead": instead} if instead is not None else {}))
        self.seconds = seconds

    def start(self, turn: Turn[NoState]) -> Iterable[Action]:
        """The node and the time."""
        return [Run("node", turn.input), Wait(self.seconds, tag="time")]

    def on_answer(self, turn: Turn[NoState], answer: Answer) -> Iterable[Action]:
        """Whichever comes first."""
        if answer.tag == "time":
            if "instead" in self.nodes:
                return [TakeBack("node"), Emit({"timeout_s": self.seconds}), Run("instead", turn.input)]
            return [Fail.because(f"not done within {self.seconds:g} s")]
        return [self.failure(answer) if answer.failed else Finish(answer.output)]


class Spent(BaseModel):
    """What was used, and by how many times the limits were raised."""

    steps: int = 0
    used: dict[str, float] = {}
    raised: int = 1


class Budget(Orchestrator[Spent]):
    """Bounds what a node and all below it use: answers (`steps`), and what services say they used, by name.

    A service says it in its result's `data["usage"]`, such as `{"tokens": 812, "cost": 0.01}`. Beyond a limit the task
    fails, or with `at_limit="ask"` everything below waits until a person agrees to another helping of the same size.
    """

    State: ClassVar[type[BaseModel]] = Spent

    def __init__(
        self, node: Node, *, steps: int | None = None, at_limit: Literal["fail", "ask"] = "fail", **limits: float
    ) -> None:
        self.nodes = named((), {"node": node})
        self.limits: dict[str, float] = {**limits, **({"steps": float(steps)} if steps is not None else {})}
        if not self.limits:
            raise ValueError("give a limit: steps=…, or a name that services report, such as tokens=…")
        self.at_limit = at_limit

    def start(self, turn: Turn[Spent]) -> Iterable[Action]:
        """The node."""
        return [Run("node", turn.input)]

    def observe(self, turn: Turn[Spent], answer: Answer) -> Iterable[Action]:
        """Count what every step below has used."""
        turn.state.steps += 1
        for name, amount in answer.usage.items():
            turn.state.used[name] = turn.state.used.get(name, 0.0) + amount
        spent = {**turn.state.used, "steps": float(turn.state.steps)}
        over = [name for name, limit in self.limits.items() if spent.get(name, 0.0) > limit * turn.state.raised]
        if not over:
            return []
        name = over[0]
        told = f"{spent[name]:g} {name} of {self.limits[name] * turn.state.raised:g} are used"
        if self.at_limit == "fail":
            return [Fail.because(told)]
        return [Hold(), Ask(f"{told}. Go on?", tag=f"more-{turn.state.raised}", schema={"type": "boolean"})]

    def on_answer(self, turn: Turn[Spent], answer: Answer) -> Iterable[Action]:
        """The node's output, or what the person has said."""
        if answer.tag.startswith("more-"):
            if answer.output in (True, "yes", "approve"):
                turn.state.raised += 1
                return [Release()]
            return [Fail.because("the budget is used up, and nobody agreed to more")]
        return [self.failure(answer) if answer.failed else Finish(answer.output)]


class Cache(Orchestrator[NoState]):
    """Runs a node once per session and input; asked for the same again, it ends with the output of the first time.

    `key` makes the part of the input that counts (pure). What is kept stands in the session's shared state under
    `cache:<name>:<hash>`; a task without a session shares with nobody.
    """

    State: ClassVar[type[BaseModel]] = NoState

    def __init__(self, node: Node, *, name: str = "node", key: Callable[[Any], Any] | None = None) -> None:
        self.nodes = named((), {"node": node})
        self.name = name
        self.key = key

    def start(self, turn: Turn[NoState]) -> Iterable[Action]:
        """The known output, or the node."""
        known = turn.shared.get(self._place(turn))
        return [Finish(known["output"])] if known is not None else [Run("node", turn.input)]

    def on_answer(self, turn: Turn[NoState], answer: Answer) -> Iterable[Action]:
        """Keep the output."""
        if answer.failed:
            return [self.failure(answer)]
        turn.shared[self._place(turn)] = {"output": answer.output}
        return [Finish(answer.output)]

    def _place(self, turn: Turn[NoState]) -> str:
        counts = turn.input if self.key is None else self.key(turn.input)
        text = json.dumps(counts, sort_keys=True, ensure_ascii=False)
        return f"cache:{self.name}:{hashlib.sha256(text.encode()).hexdigest()[:32]}"


class Vote(Parallel):
    """Asks the same node several times and ends with the output that more than half of the answers agree on."""

    def __init__(self, node: Node, times: int = 3) -> None:
        if times < 1:
            raise ValueError(f"times is {times}: it must be 1 or more")
        voters: dict[str, Any] = {f"voter-{number}": node for number in range(1, times + 1)}
        super().__init__(want="quorum", failures="skip", **voters)


class Saga(Orchestrator[Count]):
    """Runs steps in order, each with the node that undoes it; when one fails, those before it are undone, last first.

    Each step is given the input and the outputs so far, `{"input": …, "done": {name: output}}`; its undoing the same
    with its own `output`. It ends with every output by name.
    """

    State: ClassVar[type[BaseModel]] = Count

    def __init__(self, **steps: tuple[Node, Node | None]) -> None:
        self.steps = list(steps)
        undo: Mapping[str, Node] = {f"undo {name}": pair[1] for name, pair in steps.items() if pair[1] is not None}
        self.nodes = named((), {**{name: pair[0] for name, pair in steps.items()}, **undo})

    def start(self, turn: Turn[Count]) -> Iterable[Action]:
        """The first step."""
        return [Run(self.steps[0], {"input": turn.input, "done": {}})]

    def on_answer(self, turn: Turn[Count], answer: Answer) -> Iterable[Action]:
        """The next step; or undo everything and fail."""
        if answer.failed:
            return [self.failure(answer)]
        name = self.steps[turn.state.count]
        turn.state.count += 1
        turn.notes[name] = answer.output
        done = {before: turn.notes[before] for before in self.steps[: turn.state.count]}
        given = {"input": turn.input, "done": done}
        undo = [Compensate(f"undo {name}", {**given, "output": answer.output})] if f"undo {name}" in self.nodes else []
        if turn.state.count == len(self.steps):
            return [*undo, Finish(done)]
        return [*undo, Run(self.steps[turn.state.count], given)]
