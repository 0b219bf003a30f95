"""Calling another service from the code of a step: what the call looks like on the wire, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from llama_deploy.errors import InvalidRequestError, TaskFailed, WaitTimeoutError
from llama_deploy.messages.frames import Returned
from llama_deploy.messages.submissions import definition, input_text
from llama_deploy.types import TaskOptions, TaskResult, TaskState

_ENDED_AS = {"failed": "failed", "canceled": "was canceled", "rejected": "was rejected"}


def call_body(
    service: str,
    input: Any,
    arguments: Mapping[str, Any],
    *,
    options: TaskOptions | Mapping[str, Any] | None,
    wait_for_service: bool,
) -> bytes:
    """JSON of the task that a call is; the control plane gives it its id. Raises `InvalidRequestError`."""
    return definition(
        service=service,
        input=input_text(input, arguments),
        task_id="",
        session_id=None,
        wait_for_service=wait_for_service,
        idempotency_key=None,
        metadata=None,
        options=options,
    )


def check_key(key: str) -> None:
    """Raise `InvalidRequestError` for a key that could be taken for the number of a call."""
    if key.startswith("#"):
        raise InvalidRequestError(
            f"the key {key[:40]!r} cannot be used", why="`#1`, `#2` … are the calls without a key"
        )


def output_of(returned: Returned, service: str) -> Any:
    """What the called service returned.

    Raises `TaskFailed` with its error, which is final: the outcome of that task is on record, and another attempt
    would find it again.
    """
    result = TaskResult.model_validate(msgspec.json.decode(returned.result))
    if returned.state == TaskState.COMPLETED.value:
        return result.output
    error = result.error
    ended = _ENDED_AS.get(returned.state, f"ended as {returned.state}")
    failed = TaskFailed(
        f"task {returned.task_id} of service {service!r} {ended}",
        error=error,
        task_id=returned.task_id,
        why=(error.message or error.type) if error is not None else result.result,
        fix=f"llamactl tasks get {returned.task_id}     see each step and attempt",
        state=returned.state,
    )
    failed.retryable = False  # type: ignore[attr-defined]  # asked for by name, as of any exception
    raise failed


def call_timeout(service: str, timeout_s: float) -> WaitTimeoutError:
    """The error of a call that was waited for in vain."""
    return WaitTimeoutError(
        f"the call of {service!r} has not ended within {timeout_s:g} s",
        why="what was called goes on for as long as the task that called it",
        fix="give it more time, or let options.total_timeout_s end it",
    )
