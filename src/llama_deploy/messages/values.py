"""How a value of somebody's program becomes JSON, before it is carried anywhere.

One encoder for whatever arises outside: inputs, results, stream events, prompts. Strict on purpose: bytes, non-finite
numbers and arbitrary objects are refused at any depth, instead of being turned into text that nobody can read back.
"""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

import msgspec

_AS_THEY_ARE = (bytes, bytearray, memoryview)
"""Types that msgspec would turn into base64 text; they are left alone, so that the encoder refuses them."""

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")).encode


def _convert(value: Any) -> Any:
    """Values that msgspec does not know: pydantic models, numpy values, paths, subclasses of JSON types."""
    for offered in ("model_dump", "tolist"):  # pydantic; numpy scalars and arrays
        method = getattr(value, offered, None)
        if callable(method) and not isinstance(value, type):
            return method(mode="json") if offered == "model_dump" else method()
    if isinstance(value, PurePath):
        return str(value)
    plain: Any
    for plain in (str, int, float, dict):
        if isinstance(value, plain):
            return plain(value)
    if isinstance(value, list | tuple):
        return list(value)
    raise TypeError(f"a value of type {type(value).__module__}.{type(value).__qualname__} has no JSON form")


def encode_json(value: Any) -> bytes:
    """JSON of `value`: JSON types, pydantic models, dataclasses, msgspec structs, dates and times, paths.

    Raises `ValueError` that says why for anything else.
    """
    try:
        plain = value
        if type(value) is not str:
            plain = msgspec.to_builtins(value, builtin_types=_AS_THEY_ARE, str_keys=True, enc_hook=_convert)
        return _encode(plain).encode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error
