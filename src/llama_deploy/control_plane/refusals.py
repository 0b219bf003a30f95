"""Errors and failed results that several parts of the engine answer with, and what makes two requests the same."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from llama_deploy.errors import (
    InvalidRequestError,
    LimitExceededError,
    LlamaDeployError,
    StepCanceledError,
    TaskConflictError,
)
from llama_deploy.types import TaskDefinition, TaskError, TaskResult

if TYPE_CHECKING:
    from llama_deploy.control_plane.tasks import OpenStep, TaskEntry


def failure(task_id: str, error: LlamaDeployError, *, retryable: bool = False) -> TaskResult:
    """A failed result that carries one of our own errors."""
    return TaskResult(
        task_id=task_id,
        history=[],
        result=str(error),
        status="failed",
        error=TaskError(
            code=error.code, type=type(error).__name__, message=str(error), fix=error.fix, retryable=retryable
        ),
    )


def step_failure(entry: TaskEntry, step: OpenStep, error: LlamaDeployError) -> TaskResult:
    """The failed result of a step that this side ended."""
    result = failure(entry.row.task_id, error)
    result.step_id, result.service, result.attempt, result.tag = step.step_id, step.service, step.attempt, step.tag
    return result


def error_code(outcome: bytes) -> str:
    """The code of the error in the JSON of a final `TaskResult`, empty where there is none."""
    error = msgspec.json.decode(outcome).get("error")
    return str(error.get("code") or "")[:20] if isinstance(error, dict) else ""


def digest(definition: TaskDefinition) -> str:
    """What makes two submissions the same request: input, service, session and options."""
    asked: list[Any] = [definition.input, definition.agent_id, definition.session_id]
    if definition.options is not None:
        asked.append(definition.options.model_dump(mode="json", exclude_defaults=True))
    parts = msgspec.json.encode(asked)
    return hashlib.blake2b(parts, digest_size=16).hexdigest()


def conflict(what: str, task_id: str) -> TaskConflictError:
    """The refusal of a different request under a known id or key."""
    return TaskConflictError(
        f"{what} was used for a different request",
        why=f"it belongs to task {task_id}, whose input, service, session or options differ",
        fix="use a new id or key for a new request",
        task_id=task_id,
    )


def refuse_origin(definition: TaskDefinition, *, passed_on: bool = False) -> None:
    """Raise where a client says what its task came from: only the control plane knows that.

    What another control plane has `passed_on` may be of a schedule.
    """
    origin = definition.options.origin if definition.options is not None else None
    if origin is not None and not (passed_on and origin.kind == "schedule"):
        raise InvalidRequestError(
            "options.origin cannot be given", why="the control plane sets it", fix="leave options.origin out"
        )


def too_large(what: str, size: int, limit: int, setting: str = "payload_bytes_max") -> LimitExceededError:
    """The refusal of something bigger than a setting allows."""
    return LimitExceededError(
        f"the {what} has {size} bytes",
        why=f"{setting} is {limit}",
        fix=f"pass it as a file (--file, client.upload, context.save), which is stored once, or raise {setting}",
        setting=setting,
        limit=limit,
    )


def not_current(step_id: str) -> StepCanceledError:
    """The refusal of what an attempt asks for that nobody wants the result of any more."""
    return StepCanceledError(
        f"this attempt of step {step_id} is not wanted any more",
        why="its task was canceled or has ended, or the step went to another attempt",
    )


def beyond(setting: str, limit: int, what: str) -> LimitExceededError:
    """The refusal of one more than a setting allows."""
    return LimitExceededError(
        what, why=f"{setting} is {limit}", fix=f"raise {setting} of the control plane", setting=setting, limit=limit
    )


def clean(text: str, length_max: int = 2_000) -> str:
    """Text of a person as it can be recorded: encodable, and not too long."""
    return text[:length_max].encode("utf-8", "backslashreplace").decode()


def check_id(name: str, value: Any, length_max: int) -> None:
    """Raise `InvalidRequestError` for an id that is empty, too long, not printable, or no segment of an address."""
    if value is None:
        return
    if not value or len(value) > length_max or not value.isprintable() or "/" in value or value in (".", ".."):
        raise InvalidRequestError(
            f"{name} {value[:40]!r} cannot be used",
            why=f"an id has 1 to {length_max} printable characters, no slash, and is not . or ..",
        )


def resolve(future: asyncio.Future[None], error: LlamaDeployError | None = None) -> None:
    """Let whoever waits for `future` go on, or fail with `error`; nothing happens when nobody waits any more."""
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(None)
