"""Asking a policy: what it is given, what it may return, and what that means for one task.

Nothing is changed or recorded here. A decision is a value: messages, the end of the task if it ends, and the delta
of state. A policy that raises, hangs or returns rubbish becomes an `OrchestratorError`.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
from pydantic import ValidationError

from llama_deploy.control_plane.session_state import Delta, PrivateState, SessionState, encode_policy_value
from llama_deploy.errors import LlamaDeployError, OrchestratorError
from llama_deploy.messages import QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator, get_result_key
from llama_deploy.types import ActionTypes, TaskDefinition, TaskResult

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode


class Outcome(msgspec.Struct, frozen=True):
    """How a task ends."""

    state: str
    result: bytes
    """JSON of the final `TaskResult`."""


class Sending(msgspec.Struct, frozen=True):
    """One message of a decision, its data encoded."""

    service: str
    action: str
    data: bytes
    tag: str | None
    step_id: str | None
    delay_s: float


class Decision(msgspec.Struct):
    """What a policy decided for one task."""

    sendings: list[Sending]
    delta: Delta
    outcome: Outcome | None
    notify: Sending | None
    """The final message, for whoever serves its name."""


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that promised never to wait; raises `OrchestratorError` when it does."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise OrchestratorError(
        "the orchestrator says `synchronous = True` and waited for something",
        fix="remove `synchronous = True` from its class",
    )


def encode_result(result: TaskResult) -> bytes:
    """JSON of a result, the same bytes as the JSON of its `model_dump()`."""
    return _encode(result.model_dump())


async def decide(
    policy: BaseOrchestrator,
    definition: TaskDefinition,
    private: PrivateState,
    session: SessionState | None,
    answer: tuple[TaskResult, bytes] | None,
) -> Decision:
    """Fold `answer` (if there is one) and ask for the next messages. Raises `OrchestratorError`."""
    given = private.view(session)
    state: Any = given
    try:
        if answer is not None:
            state = await policy.add_result_to_state(answer[0], state)
            _check_state(state)
            key = get_result_key(definition.task_id)
            if not policy.synchronous and state.get(key) is answer[0]:
                state[key] = msgspec.json.decode(answer[1])  # as after a restart: results are seen as dictionaries
        asked_about = definition if policy.synchronous else definition.model_copy()
        returned = await policy.get_next_messages(asked_about, state)
    except LlamaDeployError:
        raise
    except Exception as error:  # the edge of third-party code: whatever it raises is recorded with the task
        raise OrchestratorError(
            f"the orchestrator {type(policy).__name__} raised {type(error).__name__}", why=str(error)
        ) from error
    try:
        messages, new_state = returned
        messages = list(messages)
    except (TypeError, ValueError) as error:
        raise OrchestratorError("get_next_messages must return a pair (messages, state)", why=str(error)) from error
    delta = private.difference(session, given, new_state, None if answer is None else answer)
    return _interpret(definition, messages, delta)


def _check_state(state: Any) -> None:
    if not isinstance(state, dict):
        raise OrchestratorError(f"add_result_to_state returned a {type(state).__name__}, not a dict")


def _interpret(definition: TaskDefinition, messages: list[Any], delta: Delta) -> Decision:
    decision = Decision([], delta, None, None)
    for message in messages:
        if not isinstance(message, QueueMessage):
            raise OrchestratorError(f"get_next_messages returned a {type(message).__name__} among its messages")
        action = ActionTypes.NEW_TASK if message.action is None else message.action
        data = encode_policy_value(message.data, f"the data of a message for {message.type!r}")
        sending = Sending(message.type, action.value, data, message.tag, message.step_id, message.delay_s)
        if action is not ActionTypes.COMPLETED_TASK:
            decision.sendings.append(sending)
        elif decision.outcome is None:
            decision.notify = sending
            decision.outcome = _outcome(definition, message.data, data)
    return decision


def _outcome(definition: TaskDefinition, data: dict[str, Any], encoded: bytes) -> Outcome:
    """What a `COMPLETED_TASK` message records: its data, as a `TaskResult` whatever the policy put there."""
    if data.get("task_id") == definition.task_id and "status" in data and "history" in data and "result" in data:
        return Outcome(str(data["status"]), encoded)
    try:
        result = TaskResult.model_validate({"history": [], **data, "task_id": definition.task_id})
    except ValidationError:
        result = TaskResult(
            task_id=definition.task_id,
            history=[],
            result=encoded.decode(),
            kind="json",
            value=msgspec.json.decode(encoded),
        )
    return Outcome(result.status, encode_result(result))


def outcome_from_state(definition: TaskDefinition, private: PrivateState) -> Outcome | None:
    """The end of a task whose policy sends nothing more: what stands under its result key."""
    stored = private.keys.get(get_result_key(definition.task_id))
    if stored is None:
        return None
    value = msgspec.json.decode(stored)
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError:
            value = {"result": value}
    return _outcome(definition, value if isinstance(value, dict) else {"value": value}, stored)
