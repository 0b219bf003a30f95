"""An agent of another library as a service: what every such adapter shares.

A run goes until it ends or has questions to a person. Then its state is stored with the step and the step is let go of;
any instance goes on from there with the answers. A step that dies on its way begins again where it waited last. How a
library is run, and how its state looks as JSON, is decided by the adapters beside this module.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llama_deploy.errors import ArgumentsError, ServiceRaisedError
from llama_deploy.services.agents.provider_errors import add_retry_advice
from llama_deploy.services.agents.questions import Question, Reply, UnreadableAnswerError, read_reply
from llama_deploy.services.base import Parked, Service, StepContext
from llama_deploy.services.keeping import result_of
from llama_deploy.types import ServiceDefinition, TaskResult

SNAPSHOT_VERSION = 1
MEMORY_FIELD = "conversation"
"""Where what a run leaves to the next one stands in the memory of its service."""

CHAT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "prompt": {"type": "string", "description": "What the agent is asked; plain text as the input is the same."},
        "messages": {
            "type": "array",
            "description": "The conversation so far.",
            "items": {
                "type": "object",
                "properties": {"role": {"type": "string"}, "content": {}},
            },
        },
    },
}
"""What a conversational agent takes."""


@dataclass(frozen=True)
class Finished:
    """A run has come to its end."""

    output: Any
    usage: Mapping[str, float] = field(default_factory=dict)
    """What all of it has used, also before it waited: numbers by name, `tokens` among them."""
    remember: Any = None
    """JSON of what the next run goes on from, where the service keeps a memory."""


@dataclass(frozen=True)
class Waiting:
    """A run cannot go on without a person."""

    questions: Sequence[Question]
    state: Any
    """JSON that `advance` goes on from."""


@dataclass(frozen=True)
class _Saved:
    """What a step waits with."""

    questions: list[Question]
    consumed: int
    """How many inputs had been used up when the first of the questions was asked."""
    state: Any


class HostedAgent(Service):
    """An agent that runs in this process. One object serves many steps at once."""

    library: str
    """Stands in snapshots, so that none is read by the wrong adapter."""

    def __init__(
        self,
        *,
        name: str,
        description: str,
        input_schema: dict[str, Any] | None,
        output_schema: dict[str, Any] | None,
        concurrency: int,
        run_timeout_s: float,
    ) -> None:
        self.definition = ServiceDefinition(
            service_name=name,
            description=description,
            kind="agent",
            input_schema=input_schema,
            output_schema=output_schema,
            concurrency=concurrency,
            run_timeout_s=run_timeout_s,
        )

    @abstractmethod
    async def advance(self, context: StepContext, state: Any, replies: Sequence[Reply]) -> Finished | Waiting:
        """Run to the end, or to the next questions.

        From the beginning where `state` is None, else from a `Waiting.state`, with a reply for each of its questions.
        """

    async def run(self, context: StepContext) -> TaskResult | Parked:
        """Run the agent, or let the step wait. Raises what the library raises, with advice on trying again."""
        saved = self._read(context.snapshot)
        given = [context.inputs.get_nowait() for _ in range(context.inputs.qsize())]
        replies: list[Reply] = []
        consumed = 0
        if saved is not None:
            assert context.snapshot is not None
            replies, consumed, problem = _replies(saved, given)
            if len(replies) < len(saved.questions):
                prompt = saved.questions[len(replies)].shown(problem)
                return Parked(prompt=prompt, resume="redeliver", snapshot=context.snapshot, consumed=consumed)
        for value in given[consumed:]:  # for code of the agent that asks by itself
            context.inputs.put_nowait(value)
        try:
            outcome = await self.advance(context, None if saved is None else saved.state, replies)
        except Exception as error:
            add_retry_advice(error)
            raise
        if isinstance(outcome, Waiting):
            prompt = outcome.questions[0].shown()
            consumed += context.answers_taken  # by code of the agent, which does not run again
            snapshot = self._written(outcome, consumed)
            return Parked(prompt=prompt, resume="redeliver", snapshot=snapshot, consumed=consumed)
        if outcome.remember is not None and context.kept_memory is not None:
            context.memory[MEMORY_FIELD] = outcome.remember
        result = await result_of(outcome.output, context)
        if outcome.usage:
            result = result.model_copy(update={"data": {**result.data, "usage": dict(outcome.usage)}})
        return result

    def _written(self, outcome: Waiting, consumed: int) -> bytes:
        saved = {
            "version": SNAPSHOT_VERSION,
            "library": self.library,
            "consumed": consumed,
            "questions": [asdict(question) for question in outcome.questions],
            "state": outcome.state,
        }
        return json.dumps(saved).encode()

    def _read(self, snapshot: bytes | None) -> _Saved | None:
        if snapshot is None:
            return None
        try:
            saved = json.loads(snapshot)
            found = f"{saved['library']} {saved['version']}"
            questions = [Question(**question) for question in saved["questions"]]
            read = _Saved(questions=questions, consumed=int(saved["consumed"]), state=saved["state"])
        except (ValueError, KeyError, TypeError) as error:
            raise cannot_resume(error) from error
        wanted = f"{self.library} {SNAPSHOT_VERSION}"
        if found != wanted:
            raise cannot_resume(ValueError(f"it is of {found}, this program reads {wanted}"))
        return read


def remembered(context: StepContext) -> Any:
    """What an earlier run has left to go on from (`Finished.remember`); `None` where there is nothing."""
    return context.memory.get(MEMORY_FIELD) if context.kept_memory is not None else None


def cannot_resume(error: Exception) -> ServiceRaisedError:
    """The error of a snapshot that cannot be gone on from."""
    return ServiceRaisedError(
        "the waiting run cannot be resumed",
        why=str(error),
        fix="serve the version of the agent, and of its library, that the run began with",
    )


def _replies(saved: _Saved, given: list[Any]) -> tuple[list[Reply], int, str]:
    """The replies to the questions in order, how many inputs that took, and why the last one was not read."""
    replies: list[Reply] = []
    consumed = min(saved.consumed, len(given))
    problem = ""
    for value in given[consumed:]:
        if len(replies) == len(saved.questions):
            break
        consumed += 1
        problem = ""
        try:
            replies.append(read_reply(saved.questions[len(replies)], value))
        except UnreadableAnswerError as error:
            problem = str(error)
    return replies, consumed, problem


def conversation(context: StepContext) -> tuple[list[dict[str, Any]], str | None]:
    """The messages so far, and what the agent is asked now, from a step's input.

    The input is text, or an object with `prompt`, `messages`, or both; any other object is handed over as its JSON
    text. Raises `ArgumentsError`.
    """
    given = context.arguments
    if not isinstance(given, dict):
        return [], str(given)
    if not given or not given.keys() <= {"prompt", "messages"}:
        return [], context.input
    prompt, messages = given.get("prompt"), given.get("messages") or []
    if not isinstance(prompt, str | None) or not isinstance(messages, list):
        raise ArgumentsError(
            "the input does not fit a conversation",
            why="`prompt` is a text and `messages` a list",
            fix='give text, or {"prompt": "…", "messages": [{"role": "user", "content": "…"}]}',
            schema=CHAT_SCHEMA,
        )
    for message in messages:
        if not isinstance(message, dict):
            raise ArgumentsError(
                "a message of the conversation is no object", fix='give {"role": "user", "content": "…"}'
            )
    return messages, prompt
