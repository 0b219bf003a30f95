"""What the caller gets of a task that has ended: its output, of the type that was asked for, or `TaskFailed`.

The outcome is decoded field by field as needed and not through the published model, because that happens once per
task on the caller's hot path.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from llama_deploy.connections.problems import unexpected
from llama_deploy.errors import OutputTypeError, TaskFailed
from llama_deploy.messages.frames import Ended
from llama_deploy.types import TaskError, TaskResult, TaskState
from llama_deploy.types.artifacts import MARK_BYTES, Artifact, ArtifactSource, revived

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

_COMPLETED = TaskState.COMPLETED.value


class _Outcome(msgspec.Struct, gc=False):
    """The fields of the final `TaskResult` that make the output."""

    result: str = ""
    kind: str = "text"
    value: msgspec.Raw = msgspec.Raw(b"null")
    service: str | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


_decode_outcome = msgspec.json.Decoder(_Outcome).decode
_decode_value = msgspec.json.Decoder().decode


def output_of(ended: Ended, output_type: Any = None, source: ArtifactSource | None = None) -> Any:
    """The output of a completed task; with `output_type` validated by pydantic, else JSON types or text.

    Artifacts in it can be read from `source`.

    Raises `TaskFailed` when the task ended otherwise, `OutputTypeError` when the output is of another type,
    `ProtocolError` when the control plane sent no result.
    """
    try:
        outcome = _decode_outcome(ended.result)
    except msgspec.DecodeError as error:
        raise unexpected(f"an outcome of task {ended.task_id} that is no result ({error})") from error
    if ended.state != _COMPLETED:
        raise _failure(ended, outcome)
    if output_type is not None:
        output = _validated(ended, outcome, output_type)
        return output.bound(source) if source is not None and isinstance(output, Artifact) else output
    if outcome.kind != "json":
        return outcome.result
    value = _decode_value(outcome.value)
    return revived(value, source) if source is not None and MARK_BYTES in ended.result else value


def result_of(ended: Ended) -> TaskResult:
    """The recorded outcome as it is. Raises `ProtocolError` when the control plane sent no result."""
    try:
        return TaskResult.model_validate_json(ended.result)
    except ValueError as error:
        raise unexpected(f"an outcome of task {ended.task_id} that is no result") from error


def failure_of(task_id: str, result: TaskResult) -> TaskFailed:
    """The error that stands for an outcome that is none of a completed task."""
    encoded = result.model_dump_json().encode()
    return _failure(Ended(0, task_id, result.status, encoded), _decode_outcome(encoded))


def _failure(ended: Ended, outcome: _Outcome) -> TaskFailed:
    error = None
    if bytes(outcome.error) != b"null":
        error = TaskError.model_validate_json(bytes(outcome.error))
    service = f" of service {outcome.service!r}" if outcome.service else ""
    why = ""
    if error is not None:
        why = f"{error.type}: {error.message}" if error.type and error.message else error.message or error.type
    fix = f"llamactl tasks get {ended.task_id}     see each step and attempt"
    return TaskFailed(
        f"task {ended.task_id}{service} {_ENDED_AS.get(ended.state, 'ended as ' + ended.state)}",
        error=error,
        task_id=ended.task_id,
        why=why or outcome.result,
        fix=f"{error.fix}\n{fix}" if error is not None and error.fix else fix,
        state=ended.state,
    )


_ENDED_AS = {"failed": "failed", "canceled": "was canceled", "rejected": "was rejected"}


def _validated(ended: Ended, outcome: _Outcome, output_type: Any) -> Any:
    from pydantic import ValidationError

    adapter = _adapter(output_type)
    try:
        if outcome.kind == "json":
            return adapter.validate_json(bytes(outcome.value))
        return adapter.validate_python(outcome.result)
    except ValidationError as error:
        if outcome.kind != "json":  # text of an older service may be the JSON of what is meant
            try:
                return adapter.validate_json(outcome.result)
            except ValidationError:
                pass
        raise _mismatch(ended, outcome, output_type, error) from error


def _mismatch(ended: Ended, outcome: _Outcome, output_type: Any, error: ValidationError) -> OutputTypeError:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"{'.'.join(map(str, p['loc'])) or 'output'}: {p['msg']}" for p in problems]
    name = getattr(output_type, "__qualname__", None) or repr(output_type)
    text = bytes(outcome.value).decode() if outcome.kind == "json" else outcome.result
    shown = text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + " …"
    return OutputTypeError(
        f"the output of task {ended.task_id} is not a {name}: {shown}",
        why="\n".join(lines),
        fix="name the type that the service returns, or leave `output_type` out to get JSON types",
        task_id=ended.task_id,
        problems=lines,
    )


_SHOWN_CHARACTERS_MAX = 200


def _adapter(output_type: Any) -> TypeAdapter[Any]:
    try:
        return _cached_adapter(output_type)
    except TypeError:  # not hashable: an annotation with a list in it
        return _new_adapter(output_type)


def _new_adapter(output_type: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(output_type)


_cached_adapter = lru_cache(maxsize=256)(_new_adapter)
