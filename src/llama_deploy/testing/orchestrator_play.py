"""Play an orchestrator against functions in the place of services: whole tasks in microseconds, and no control plane.

It is driven exactly as a control plane drives it: fold one answer, ask what is next, keep only the JSON of the state.
Time is a number, so that a wait of a week is over at once.
"""

from __future__ import annotations

import heapq
import inspect
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from llama_deploy.messages.base import QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator, get_result_key
from llama_deploy.services.failures import error_from_exception
from llama_deploy.types import ActionTypes, TaskDefinition, TaskError, TaskResult
from llama_deploy.types.reserved import PERSON_SERVICE, STREAM_SERVICE, TAKE_BACK_SERVICE, TIMER_SERVICE

STEPS_MAX = 100_000


class Play(msgspec.Struct, kw_only=True):
    """What came of it."""

    outcome: TaskResult | None = None
    """`None` where the orchestrator neither sent anything nor ended."""
    sent: list[QueueMessage] = []
    """Every message for a service, in order."""
    events: list[Any] = []
    """What was emitted into the task's stream."""
    asked: list[dict[str, Any]] = []
    """The prompts that people were shown."""
    taken_back: list[str] = []
    """The tags of the steps that were taken back."""
    waited_s: float = 0.0
    """The time that passed, as far as anything had to wait."""
    state: dict[str, Any] = {}

    @property
    def output(self) -> Any:
        """The output of the task. Raises `AssertionError` with its error where it has none."""
        assert self.outcome is not None, "the orchestrator neither sent anything nor ended"
        assert self.outcome.status == "completed", self.outcome.error
        return self.outcome.output

    @property
    def services(self) -> list[str]:
        """The services that were asked, in order."""
        return [message.type for message in self.sent]


class _Open(msgspec.Struct):
    """A step on its way."""

    due_s: float
    step_id: str
    message: QueueMessage
    attempt: int = 1


async def play(
    orchestrator: BaseOrchestrator,
    services: Mapping[str, Callable[..., Any]],
    task: TaskDefinition | str | dict[str, Any] | list[Any] = "",
    *,
    people: Callable[[dict[str, Any]], Any] | None = None,
    seed: int | None = None,
) -> Play:
    """Run one task to its end.

    `services` are functions by name, given the message's data as keyword arguments, or the task's input where the
    message carries a task; what they raise is a failed answer. `people` is given each prompt and returns the answer.
    With a `seed`, answers that are due at the same time come in an order of its choice, else in the order of sending.
    """
    if not isinstance(task, TaskDefinition):
        text = task if isinstance(task, str) else json.dumps(task)
        task = TaskDefinition(input=text, task_id="t1", agent_id="play")
    return await _Player(orchestrator, services, task, people, seed).run()


class _Player:
    def __init__(
        self,
        orchestrator: BaseOrchestrator,
        services: Mapping[str, Callable[..., Any]],
        task: TaskDefinition,
        people: Callable[[dict[str, Any]], Any] | None,
        seed: int | None,
    ) -> None:
        self._orchestrator = orchestrator
        self._services = services
        self._task = task
        self._people = people
        self._random = random.Random(seed) if seed is not None else None
        self._open: dict[str, _Open] = {}
        self._due: list[tuple[float, float, str]] = []
        self._answers: dict[str, Any] = {}
        """What people have answered."""
        self._steps = 0
        self.play = Play()

    async def run(self) -> Play:
        """Decide, answer, fold, until the task has ended or nothing is open."""
        await self._decide({})
        while self.play.outcome is None and self._due:
            due_s, _, step_id = heapq.heappop(self._due)
            step = self._open.pop(step_id, None)
            if step is None:
                continue  # taken back
            self.play.waited_s = max(self.play.waited_s, due_s)
            result = await self._answer(step)
            state = await self._orchestrator.add_result_to_state(result, self._restarted())
            await self._decide(state)
        return self.play

    def _restarted(self) -> dict[str, Any]:
        """The state as a new process finds it."""
        state: dict[str, Any] = json.loads(msgspec.json.encode(self.play.state, enc_hook=_as_json))
        return state

    async def _decide(self, state: dict[str, Any]) -> None:
        messages, self.play.state = await self._orchestrator.get_next_messages(self._task, state)
        for message in messages:
            self._take(message)
        if self.play.outcome is None and not self._open:
            stored = self.play.state.get(get_result_key(self._task.task_id))
            if stored is not None:
                self.play.outcome = TaskResult.model_validate(_plain(stored))

    def _take(self, message: QueueMessage) -> None:
        """Do what one message asks for."""
        if message.action is ActionTypes.COMPLETED_TASK:
            self.play.outcome = self.play.outcome or TaskResult.model_validate(_plain(message.data))
        elif message.type == STREAM_SERVICE:
            self.play.events.append(_plain(message.data)["event"])
        elif message.type == TAKE_BACK_SERVICE:
            self._take_back(message.tag or "")
        else:
            attempt = 1
            step_id = message.step_id
            if step_id is None:
                self._steps += 1
                assert self._steps <= STEPS_MAX, f"more than {STEPS_MAX} steps: does it end?"
                step_id = f"{self._task.task_id}:{self._steps}"
                if message.type == PERSON_SERVICE:
                    self._ask(step_id, message)
                    return
                if message.type != TIMER_SERVICE:
                    self.play.sent.append(message)
            else:
                attempt = int(step_id.rpartition("#")[2]) if "#" in step_id else 2
            self._await(_Open(self.play.waited_s + message.delay_s, step_id, message, attempt))

    def _await(self, step: _Open) -> None:
        self._open[step.step_id] = step
        order = self._random.random() if self._random is not None else float(self._steps)
        heapq.heappush(self._due, (step.due_s, order, step.step_id))

    def _ask(self, step_id: str, message: QueueMessage) -> None:
        """A person is asked, and answers at once or never."""
        prompt = _plain(message.data)
        self.play.asked.append(prompt)
        assert self._people is not None, f"a person is asked {prompt.get('prompt')!r}: pass `people`"
        answer = self._people(prompt)
        step = _Open(self.play.waited_s, step_id, message)
        if answer is ...:
            self._open[step_id] = step
        else:
            self._answers[step_id] = answer
            self._await(step)

    def _take_back(self, tag: str) -> None:
        for step_id, step in list(self._open.items()):
            mine = step.message.tag or ""
            if mine.startswith(tag) if tag.endswith("/") or not tag else mine == tag:
                del self._open[step_id]
                self.play.taken_back.append(mine)

    async def _answer(self, step: _Open) -> TaskResult:
        message = step.message
        about: dict[str, Any] = {
            "task_id": self._task.task_id,
            "history": [],
            "step_id": step.step_id,
            "service": message.type,
            "tag": message.tag,
            "attempt": step.attempt,
        }
        try:
            output = self._answers.pop(step.step_id) if message.type == PERSON_SERVICE else await self._output(message)
        except Exception as error:  # noqa: BLE001 - the place of a service's runner
            failed: TaskError = error_from_exception(error)
            return TaskResult(**about, result=failed.message, status="failed", error=failed)
        if isinstance(output, str):
            return TaskResult(**about, result=output)
        return TaskResult(**about, result=json.dumps(output), kind="json", value=output)

    async def _output(self, message: QueueMessage) -> Any:
        data = _plain(message.data)
        if message.type == TIMER_SERVICE:
            return None
        function = self._services.get(message.type)
        assert function is not None, f"nobody serves {message.type!r}"
        output = function(data["task"]["input"]) if isinstance(data.get("task"), dict) else function(**data)
        return await output if inspect.isawaitable(output) else output


def _as_json(value: Any) -> Any:
    return value.model_dump(mode="json")


def _plain(value: Any) -> Any:
    """A value as its receiver finds it."""
    return json.loads(msgspec.json.encode(value, enc_hook=_as_json))
