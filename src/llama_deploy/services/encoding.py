"""How values of user code become JSON: results, stream events, prompts; refused values come with the place to mend."""

from __future__ import annotations

from typing import Any

from llama_deploy.errors import ResultNotSerialisableError
from llama_deploy.messages.frames import OPERATION_BYTES_MAX
from llama_deploy.messages.values import encode_json


def encode(value: Any) -> bytes:
    """JSON of `value`; raises `ResultNotSerialisableError` for bytes, non-finite numbers and unknown objects."""
    try:
        encoded = encode_json(value)
    except ValueError as error:
        raise ResultNotSerialisableError(
            "the service returned or streamed a value that cannot be recorded",
            why=str(error),
            fix="return JSON types, a pydantic model or a dataclass; store binary data with `await context.save(data)`",
        ) from error
    check_size(encoded)
    return encoded


def check_size(encoded: bytes) -> None:
    """Raise `ResultNotSerialisableError` for what is too large to travel at all."""
    if len(encoded) > OPERATION_BYTES_MAX:
        raise ResultNotSerialisableError(
            f"the service returned or streamed {len(encoded)} bytes at once",
            why=f"at most {OPERATION_BYTES_MAX} bytes travel in one message",
            fix="store the data elsewhere, and return its address",
        )
