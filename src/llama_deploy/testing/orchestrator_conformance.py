"""The suite that every orchestrator must pass to be safe under a control plane that may die between any two calls.

Subclass it under a name that your test runner collects, say how an orchestrator is made, what it is asked and what its
services answer, and run the async tests:

    class TestMyOrchestrator(OrchestratorConformance):
        def make_orchestrator(self) -> BaseOrchestrator:
            return MyOrchestrator()

        def services(self) -> Mapping[str, Any]:
            return {"writer": lambda topic: f"about {topic}", "critic": bool}

or all of it in one call, `await check_orchestrator(MyOrchestrator, {"writer": str, "critic": bool}, "a topic")`.

It uses plain `assert` and no test framework. Orchestrators are driven as the control plane drives them: they get
copies, only the JSON of the state is kept, and each call may be the first one of a new process.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_origin

import msgspec

from llama_deploy.messages.base import QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator, get_result_key
from llama_deploy.testing.orchestrator_play import Play, play
from llama_deploy.testing.random_answers import answers_of, failing_now_and_then
from llama_deploy.types import ActionTypes, TaskDefinition, TaskResult
from llama_deploy.types.reserved import TIMER_SERVICE

YEAR_S = 366 * 86_400

_VOLATILE = ("id_", "stats")
"""Fields of a message that are not part of the decision."""


class Recorder(BaseOrchestrator):
    """Stands before an orchestrator and checks each call of it; what it lets through is what the control plane keeps.

    Every call is made twice, each time on an orchestrator of its own from `make`: nothing may depend on what an
    earlier call has left behind in the object, in the arguments, or in the process.
    """

    def __init__(
        self,
        make: Callable[[], BaseOrchestrator],
        *,
        calls_max: int,
        task: TaskDefinition | None = None,
        unread: Sequence[str] = (),
    ) -> None:
        self._make = make
        self._task = task
        """Of whom it is also checked that no answer is lost."""
        self._unread = unread
        self._kept = make()
        self._calls_left = calls_max

    async def get_next_messages(
        self, task_def: TaskDefinition, state: dict[str, Any]
    ) -> tuple[list[QueueMessage], dict[str, Any]]:
        """Ask for the next messages, and check what comes back."""
        self._count()
        given = as_recorded(state)
        kept = await self._kept.get_next_messages(task_def.model_copy(deep=True), as_recorded(given))
        messages, new_state = _pair(kept)
        for message in messages:
            check_message(message)
        messages = [message.model_copy(deep=True) for message in messages]
        decision, recorded = decision_of(kept), as_recorded(new_state)
        _scramble(new_state)  # what was returned belongs to the control plane now
        with later():
            fresh = await self._make().get_next_messages(task_def.model_copy(deep=True), as_recorded(given))
        assert decision_of(fresh) == decision, "a new process decides otherwise: something is kept elsewhere"
        return messages, recorded

    async def add_result_to_state(self, result: TaskResult, state: dict[str, Any]) -> dict[str, Any]:
        """Fold an answer, and check what comes back."""
        self._count()
        given = as_recorded(state)
        kept = await self._kept.add_result_to_state(result.model_copy(deep=True), as_recorded(given))
        assert isinstance(kept, dict), f"add_result_to_state returned a {type(kept).__name__}, not a dict"
        recorded = as_recorded(kept)
        _scramble(kept)
        with later():
            fresh = await self._make().add_result_to_state(result.model_copy(deep=True), as_recorded(given))
        assert as_recorded(fresh) == recorded, "a new process folds otherwise: something is kept elsewhere"
        if self._task is not None:
            await self._looked_at(self._task, result, given)
        return recorded

    async def _looked_at(self, task: TaskDefinition, result: TaskResult, given: dict[str, Any]) -> None:
        """Another answer in its place has to make some difference, to what is sent or to what is kept."""
        if result.status != "completed" or result.service in (*self._unread, TIMER_SERVICE):
            return
        other = result.model_copy(deep=True, update={"kind": "text", "result": "\0 another answer", "value": None})
        decisions = []
        for answer in (result.model_copy(deep=True), other):
            made = self._make()
            try:
                state = as_recorded(await made.add_result_to_state(answer, as_recorded(given)))
                decisions.append(decision_of(await made.get_next_messages(task.model_copy(deep=True), state)))
            except Exception:  # noqa: BLE001 - that it cannot read another answer shows that it reads it
                return
        assert decisions[0] != decisions[1], (
            f"a branch is lost: whatever {result.service!r} answers (tag {result.tag!r}), the same is sent and kept"
        )

    def _count(self) -> None:
        self._calls_left -= 1
        assert self._calls_left >= 0, "more calls than `steps_max` allows: does it end?"


class OrchestratorConformance:
    """What every orchestrator must hold to, one test each."""

    steps_max = 1000
    """So many steps at most may a task take."""
    runs = 25
    """So many random runs of each task: other answers, other failures, another order."""
    unread_answers: Sequence[str] = ()
    """Services whose answers nobody looks at on purpose: it is enough that they have answered."""

    def make_orchestrator(self) -> BaseOrchestrator:
        """Make an orchestrator as a starting process does."""
        raise NotImplementedError

    def tasks(self) -> Sequence[TaskDefinition]:
        """The tasks that the tests run, each from its beginning to its end."""
        return [TaskDefinition(input="hello", task_id="t1", agent_id="service")]

    def services(self) -> Mapping[str, Any]:
        """What answers, by name: functions as for `play`, or types, of which there are random values."""
        return {"service": lambda text: text}

    def people(self, prompt: dict[str, Any]) -> Any:
        """What a person answers to a prompt."""
        return f"an answer to {prompt.get('prompt')}"

    async def _play(
        self,
        task: TaskDefinition,
        *,
        seed: int | None = None,
        services: Any = None,
        failing: float = 0.0,
        reading: bool = False,
    ) -> Play:
        chance = random.Random(seed or 0)
        served = {
            name: answers_of(found, chance) if _is_type(found) else found
            for name, found in (services or self.services()).items()
        }
        if failing:
            served = {name: failing_now_and_then(found, chance, failing) for name, found in served.items()}
        recorder = Recorder(
            self.make_orchestrator,
            calls_max=2 * self.steps_max + 1,
            task=task if reading else None,
            unread=self.unread_answers,
        )
        return await play(recorder, served, task, people=self.people, seed=seed)

    async def check(self) -> None:
        """Run every test of the suite."""
        for name in dir(self):
            if name.startswith("test_"):
                await getattr(self, name)()

    async def test_every_call_is_a_decision_that_a_new_process_makes_too(self) -> None:
        for task in self.tasks():
            await self._play(task)

    async def test_a_task_ends(self) -> None:
        for task in self.tasks():
            played = await self._play(task)
            assert played.outcome is not None, "no message, no open step and no result: NO_PROGRESS"

    async def test_the_order_of_answers_does_not_keep_a_task_from_its_end(self) -> None:
        for task in self.tasks():
            for seed in range(self.runs):
                assert (await self._play(task, seed=seed)).outcome is not None, f"seed {seed}"

    async def test_every_answer_makes_a_difference(self) -> None:
        for task in self.tasks():
            for seed in range(self.runs):
                await self._play(task, seed=seed, reading=True)

    async def test_whatever_fails_now_and_then_a_task_ends(self) -> None:
        if not self.make_orchestrator().handles_failures:
            return  # the control plane ends the task, and never tells it
        for task in self.tasks():
            for seed in range(self.runs):
                assert (await self._play(task, seed=seed, failing=0.3)).outcome is not None, f"seed {seed}"

    async def test_the_result_stands_where_the_outcome_says(self) -> None:
        for task in self.tasks():
            played = await self._play(task)
            stored = played.state.get(get_result_key(task.task_id))
            if stored is not None and played.outcome is not None:
                found = TaskResult.model_validate(stored if isinstance(stored, dict) else json.loads(stored))
                assert found.status == played.outcome.status

    async def test_a_service_that_fails_ends_the_task_or_is_gone_around(self) -> None:
        if not self.make_orchestrator().handles_failures:
            return  # the control plane ends the task, and never tells it

        def fail(*_: Any, **__: Any) -> Any:
            raise RuntimeError("no")

        for task in self.tasks():
            played = await self._play(task, services=dict.fromkeys(self.services(), fail))
            assert played.outcome is not None

    async def test_synchronous_is_the_truth(self) -> None:
        made = self.make_orchestrator()
        if not made.synchronous:
            return
        for task in self.tasks():
            coroutine: Any = made.get_next_messages(task.model_copy(deep=True), {})
            try:
                coroutine.send(None)
            except StopIteration:
                continue
            coroutine.close()
            raise AssertionError("it says `synchronous = True`, and waits for something")


async def check_orchestrator(
    make: Callable[[], BaseOrchestrator],
    services: Mapping[str, Any],
    task: TaskDefinition | str | dict[str, Any] | list[Any] = "",
    **settings: Any,
) -> None:
    """All of `OrchestratorConformance` for one task, in one call; raises `AssertionError` with what does not hold.

    `services` are functions or types by name; `settings` are the attributes of the suite (`runs`, `steps_max`,
    `unread_answers`), and `people`, a function of a prompt.
    """
    given = task if isinstance(task, str | TaskDefinition) else json.dumps(task)
    asked = given if isinstance(given, TaskDefinition) else TaskDefinition(input=given, task_id="t1", agent_id="check")

    class Suite(OrchestratorConformance):
        def make_orchestrator(self) -> BaseOrchestrator:
            return make()

        def tasks(self) -> Sequence[TaskDefinition]:
            return [asked]

        def services(self) -> Mapping[str, Any]:
            return services

    suite = Suite()
    for name, value in settings.items():
        if name not in ("people", "runs", "steps_max", "unread_answers"):
            raise TypeError(f"check_orchestrator has no setting {name!r}")
        setattr(suite, name, value)
    await suite.check()


@contextmanager
def later() -> Iterator[None]:
    """The clocks of `time` show another year: a decision that reads one is another decision then."""
    names = ("time", "monotonic", "perf_counter", "time_ns", "monotonic_ns")
    kept = {name: getattr(time, name) for name in names}
    try:
        for name, clock in kept.items():
            year = YEAR_S * (1_000_000_000 if name.endswith("_ns") else 1)
            setattr(time, name, lambda clock=clock, year=year: clock() + year)
        yield
    finally:
        for name, clock in kept.items():
            setattr(time, name, clock)


def _is_type(found: Any) -> bool:
    """Whether answers are described by a type (`str`, `list[int]`, a model) and not made by a function."""
    return isinstance(found, type) or get_origin(found) is not None


def as_recorded(state: Any) -> dict[str, Any]:
    """The state as the control plane finds it again: its JSON, decoded. Raises `AssertionError` where it has none."""
    assert isinstance(state, Mapping), f"the state is a {type(state).__name__}, not a dict"
    try:
        encoded = msgspec.json.encode(dict(state), enc_hook=_plain)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"the state cannot be recorded: {error}") from error
    found: dict[str, Any] = msgspec.json.decode(encoded)
    return found


def check_message(message: Any) -> None:
    """Raise `AssertionError` for what the control plane would refuse."""
    assert isinstance(message, QueueMessage), f"a {type(message).__name__} among the messages"
    assert message.type, "a message names no service"
    assert message.delay_s >= 0, f"delay_s of a message for {message.type!r} is {message.delay_s}"
    try:
        data = msgspec.json.encode(message.data, enc_hook=_plain)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"the data of a message for {message.type!r} cannot be recorded: {error}") from error
    if message.action is ActionTypes.COMPLETED_TASK:
        assert data.startswith(b"{"), "the data of a COMPLETED_TASK message is no object"


def decision_of(returned: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What makes two decisions equal: their messages without ids of their own, and the JSON of the state."""
    messages, state = _pair(returned)
    shown = [as_recorded({**message.model_dump(), **dict.fromkeys(_VOLATILE)}) for message in messages]
    return shown, as_recorded(state)


def _pair(returned: Any) -> tuple[list[Any], Any]:
    try:
        messages, state = returned
        return list(messages), state
    except (TypeError, ValueError) as error:
        raise AssertionError("get_next_messages returns a pair (messages, state)") from error


def _scramble(state: Any) -> None:
    """Spoil what was returned, deep down: nothing of it may be in use any more."""
    if isinstance(state, dict):
        for value in state.values():
            _scramble(value)
        state.clear()
    elif isinstance(state, list):
        for value in state:
            _scramble(value)
        state.clear()


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"a value of type {type(value).__qualname__} has no JSON form")
