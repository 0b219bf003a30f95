"""How values of user code become JSON: one encoder for results, stream events and prompts.

Strict on purpose: bytes, non-finite numbers and arbitrary objects are refused at any depth, with the place to mend,
instead of being turned into text that nobody can read back.
"""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

import msgspec

from llama_deploy.errors import ResultNotSerialisableError

_AS_THEY_ARE = (bytes, bytearray, memoryview)
"""Types that msgspec would turn into base64 text; they are left alone, so that the encoder refuses them."""

_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"))


def _convert(value: Any) -> Any:
    """Values that msgspec does not know: pydantic models, numpy values, paths, subclasses of JSON types."""
    for offered in ("model_dump", "tolist"):  # pydantic; numpy scalars and arrays
        method = getattr(value, offered, None)
        if callable(method) and not isinstance(value, type):
            return method(mode="json") if offered == "model_dump" else method()
    if isinstance(value, PurePath):
        return str(value)
    for base in (str, int, float):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, list | tuple):
        return list(value)
    raise TypeError(f"a value of type {type(value).__module__}.{type(value).__qualname__} has no JSON form")


def encode(value: Any) -> bytes:
    """JSON of `value`; raises `ResultNotSerialisableError` for bytes, non-finite numbers and unknown objects."""
    if type(value) is str:
        return _encode_builtins(value)
    try:
        plain = msgspec.to_builtins(value, builtin_types=_AS_THEY_ARE, str_keys=True, enc_hook=_convert)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _refusal(str(error)) from error
    return _encode_builtins(plain)


def _encode_builtins(plain: Any) -> bytes:
    try:
        return _encoder.encode(plain).encode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _refusal(str(error)) from error


def _refusal(why: str) -> ResultNotSerialisableError:
    return ResultNotSerialisableError(
        "the service returned or streamed a value that cannot be recorded",
        why=why,
        fix="return JSON types, a pydantic model or a dataclass; encode binary data as text or store it elsewhere",
    )
