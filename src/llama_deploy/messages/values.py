"""How a value of somebody's program becomes JSON, before it is carried anywhere.

One encoder for whatever arises outside: inputs, results, stream events, prompts. Strict on purpose: bytes, non-finite
numbers and arbitrary objects are refused at any depth, instead of being turned into text that nobody can read back;
so is what is nested so deeply that a reader's parser would give up.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

import msgspec

NESTING_MAX = 100
"""Arrays and objects inside each other in one value. Parsers stop at about 200, and records wrap values a few times."""

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
        encoded = _encode(plain).encode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if nests_too_deeply(plain, encoded):
        raise ValueError(f"arrays and objects are nested more than {NESTING_MAX} deep")
    return encoded


def nests_too_deeply(value: Any, encoded: bytes) -> bool:
    """Whether a value of JSON types is nested more than `NESTING_MAX` deep; `encoded` is its JSON.

    Hardly any value has that many brackets at all, so that counting them is all it usually costs.
    """
    if encoded.count(b"[") + encoded.count(b"{") <= NESTING_MAX:
        return False
    level = _containers([value])
    for _ in range(NESTING_MAX):
        level = [child for item in level for child in _containers(item.values() if isinstance(item, dict) else item)]
    return bool(level)


def _containers(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]
