"""Asking a policy: what it is given, what it may return, and what that means for one task.

Nothing is changed or recorded here. A decision is a value: messages, the end of the task if it ends, and the delta
of state. A policy that raises, hangs or returns rubbish becomes an `OrchestratorError`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
from pydantic import ValidationError

from llama_deploy.control_plane.session_state import Delta, PrivateState, SessionState, encode_policy_value
from llama_deploy.control_plane.tasks import FINAL
from llama_deploy.errors import LlamaDeployError, OrchestratorError
from llama_deploy.messages import QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator, get_result_key
from llama_deploy.types import ActionTypes, StepOptions, TaskDefinition, TaskResult
from llama_deploy.types.reserved import STREAM_SERVICE, TAKE_BACK_SERVICE

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode

_RESULT_FIELDS = frozenset(TaskResult.model_fields)

DELAY_S_MAX = 366 * 86_400.0
"""The longest delay that a message may ask for, in seconds."""
NAME_LENGTH_MAX = 1000
"""Characters of a message's service, tag or step id."""


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
    options: StepOptions | None = None


class Decision(msgspec.Struct):
    """What a policy decided for one task."""

    sendings: list[Sending]
    delta: Delta
    outcome: Outcome | None
    notify: Sending | None
    """The final message, for whoever serves its name."""
    emitted: list[bytes] = []
    """JSON of events for the task's stream."""
    taken_back: list[str] = []
    """Tags of open steps that are not wanted any more; one that ends in `/`, or is empty, stands for all that begin so.
    """


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
    return _encode(result.dumped())


async def decide(
    policy: BaseOrchestrator,
    definition: TaskDefinition,
    private: PrivateState,
    session: SessionState | None,
    answer: tuple[TaskResult, bytes] | None,
) -> Decision:
    """Fold `answer` (if there is one) and ask for the next messages. Raises `OrchestratorError`."""
    given = private.view(session, on_demand=policy.state_on_demand)
    state: Any = given
    trusted = policy.synchronous
    try:
        if answer is not None:
            result = answer[0] if trusted else answer[0].model_copy(deep=True)  # it may be changed, and asked again
            state = await policy.add_result_to_state(result, state)
            _check_state(state)
            key = get_result_key(definition.task_id)
            if not trusted and state.get(key) is result:
                state[key] = msgspec.json.decode(encode_result(result))  # as after a restart: results are dictionaries
        asked_about = definition if trusted else definition.model_copy(deep=True)
        messages, new_state = _pair(await policy.get_next_messages(asked_about, state))
        delta = private.difference(session, given, new_state, answer if trusted else None)
        return _interpret(definition, messages, delta, answer)
    except LlamaDeployError:
        raise
    except asyncio.CancelledError as error:
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise
        raise _raised(policy, error) from error
    except (Exception, SystemExit) as error:  # the edge of third-party code: it is recorded with the task
        raise _raised(policy, error) from error


def _raised(policy: BaseOrchestrator, error: BaseException) -> OrchestratorError:
    text = str(error).encode("utf-8", "backslashreplace").decode()
    return OrchestratorError(f"the orchestrator {type(policy).__name__} raised {type(error).__name__}", why=text)


def _pair(returned: Any) -> tuple[list[Any], Any]:
    try:
        messages, new_state = returned
        return list(messages), new_state
    except (TypeError, ValueError) as error:
        raise OrchestratorError("get_next_messages must return a pair (messages, state)", why=str(error)) from error


def _check_state(state: Any) -> None:
    if not isinstance(state, dict):
        raise OrchestratorError(f"add_result_to_state returned a {type(state).__name__}, not a dict")


def _interpret(
    definition: TaskDefinition, messages: list[Any], delta: Delta, answer: tuple[TaskResult, bytes] | None
) -> Decision:
    decision = Decision([], delta, None, None)
    for message in messages:
        if not isinstance(message, QueueMessage):
            raise OrchestratorError(f"get_next_messages returned a {type(message).__name__} among its messages")
        action: Any = message.action
        if type(action) is not ActionTypes:
            action = ActionTypes.NEW_TASK if action is None else ActionTypes(action)
        data = encode_policy_value(message.data, f"the data of a message for {message.type!r}")
        _check_message(message)
        if message.type == STREAM_SERVICE:
            decision.emitted.append(_event(message))
            continue
        if message.type == TAKE_BACK_SERVICE:
            decision.taken_back.append(message.tag or "")
            continue
        sending = Sending(
            message.type, action._value_, data, message.tag, message.step_id, message.delay_s, message.options
        )
        if action is not ActionTypes.COMPLETED_TASK:
            decision.sendings.append(sending)
        elif decision.outcome is None:
            decision.notify = sending
            if answer is not None and data == answer[1]:  # the answer as it is, which was checked when it came
                decision.outcome = Outcome(answer[0].status, data)
            else:
                decision.outcome = _outcome(definition, message.data, data)
    return decision


def _event(message: QueueMessage) -> bytes:
    data: Any = message.data
    if not isinstance(data, dict) or "event" not in data:
        raise OrchestratorError('a message for the stream carries its event as data["event"]')
    return encode_policy_value(data["event"], "an event of the stream")


def _check_message(message: QueueMessage) -> None:
    """Raise for what nobody can carry out; models can be filled with anything after they were made."""
    delay_s: Any = message.delay_s
    if not isinstance(delay_s, (int, float)) or not 0 <= delay_s <= DELAY_S_MAX:
        raise OrchestratorError(
            f"delay_s of a message for {message.type!r} is {delay_s!r}", why=f"it must be 0 to {DELAY_S_MAX:g} seconds"
        )
    if message.options is not None and not isinstance(message.options, StepOptions):
        raise OrchestratorError(f"options of a message for {message.type!r} are no StepOptions")
    _check_name("type", message.type, empty=False)
    if message.tag is not None:
        _check_name("tag", message.tag, empty=True)
    if message.step_id is not None:
        _check_name("step_id", message.step_id, empty=False)


def _check_name(name: str, text: Any, *, empty: bool) -> None:
    if not isinstance(text, str) or not text.isprintable() or len(text) > NAME_LENGTH_MAX or not (text or empty):
        raise OrchestratorError(f"{name} of a message is {str(text)[:40]!r}", why="it must be printable text")


def _outcome(definition: TaskDefinition, data: Any, encoded: bytes) -> Outcome:
    """What a `COMPLETED_TASK` message records: its data, as a `TaskResult` whatever the policy put there."""
    if not isinstance(data, dict):
        raise OrchestratorError(f"the data of a COMPLETED_TASK message is a {type(data).__name__}, not a dict")
    about: dict[str, Any] = {"history": [], "task_id": definition.task_id}
    if "result" not in data and str(data.get("status")) in FINAL:
        about["result"] = ""
    try:
        result = TaskResult.model_validate({**about, **data, "task_id": definition.task_id})
    except ValidationError:
        value = msgspec.json.decode(encoded)
        result = TaskResult(**about | {"result": encoded.decode(), "kind": "json", "value": value})
    else:
        more = [key for key in data if key not in _RESULT_FIELDS]
        if not more and "history" in data and data.get("task_id") == definition.task_id:
            return Outcome(result.status, encoded)
        if more:  # a policy's own words beside the result's are kept
            decoded = msgspec.json.decode(encoded)
            result.data = {**{key: decoded[key] for key in more}, **result.data}
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
        stored = _encode(value)
    return _outcome(definition, value if isinstance(value, dict) else {"value": value}, stored)
