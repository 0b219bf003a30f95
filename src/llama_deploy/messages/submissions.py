"""What a submission looks like on the wire: the caller's arguments as the JSON of a `TaskDefinition`.

It is built directly and not through the published model, because it is made once per task on the caller's hot path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET
from pydantic import ValidationError

from llama_deploy.errors import InvalidRequestError, LimitExceededError
from llama_deploy.messages.frames import OPERATION_BYTES_MAX
from llama_deploy.messages.values import encode_json
from llama_deploy.types.options import TaskOptions


class _Definition(msgspec.Struct, omit_defaults=True, gc=False):
    """The fields of `TaskDefinition` that a client sets."""

    input: str
    task_id: str
    agent_id: str | None = None
    session_id: str | None = None
    wait_for_service: bool = False
    idempotency_key: str | None = None
    metadata: Mapping[str, str] | None = None
    options: Mapping[str, Any] | None = None


_encode = msgspec.json.Encoder().encode


def input_text(input: Any, arguments: Mapping[str, Any]) -> str:
    """The task's input: text as it is, any other value as its JSON, keyword arguments as a JSON object.

    Raises `InvalidRequestError` for both at once, and for a value without a JSON form.
    """
    if input is UNSET:
        value: Any = arguments
    elif arguments:
        raise InvalidRequestError(
            f"both `input` and keyword arguments were given ({', '.join(sorted(arguments))})",
            fix="pass everything in `input={…}`, or only keyword arguments",
        )
    elif isinstance(input, str):
        return input
    else:
        value = input
    try:
        return encode_json(value).decode()
    except ValueError as error:
        raise InvalidRequestError(
            "the task's input cannot be sent",
            why=str(error),
            fix="pass JSON types, a pydantic model or a dataclass; upload binary data: await client.upload(data)",
        ) from error


def definition(
    *,
    service: str | None,
    input: str,
    task_id: str,
    session_id: str | None,
    wait_for_service: bool,
    idempotency_key: str | None,
    metadata: Mapping[str, str] | None,
    options: TaskOptions | Mapping[str, Any] | None = None,
) -> bytes:
    """JSON of a `TaskDefinition`.

    Raises `InvalidRequestError` for metadata and ids that are not text and for options that do not fit, and
    `LimitExceededError` above `OPERATION_BYTES_MAX`.
    """
    if metadata is not None and not all(isinstance(part, str) for item in metadata.items() for part in item):
        raise InvalidRequestError("`metadata` maps text to text", fix="pass numbers and the like as text")
    fields = _Definition(input, task_id, service, session_id, wait_for_service, idempotency_key, metadata or None)
    if options is not None:
        fields.options = _options(options)
    try:
        encoded = _encode(fields)
    except UnicodeEncodeError as error:
        raise InvalidRequestError("the task's definition cannot be sent", why=str(error)) from error
    if len(encoded) > OPERATION_BYTES_MAX:
        raise LimitExceededError(
            f"the task's definition has {len(encoded)} bytes",
            why=f"At most {OPERATION_BYTES_MAX} bytes travel in one submission.",
            fix="store the data where the service can read it, and pass its address",
            setting="OPERATION_BYTES_MAX",
            limit=OPERATION_BYTES_MAX,
        )
    return encoded


def _options(options: TaskOptions | Mapping[str, Any]) -> dict[str, Any]:
    """Options as they travel, checked here: a mistake is told where it was made."""
    try:
        checked = options if isinstance(options, TaskOptions) else TaskOptions.model_validate(dict(options))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise InvalidRequestError("the task's options do not fit", why="; ".join(problems)) from error
    return checked.model_dump(mode="json", exclude_defaults=True)
