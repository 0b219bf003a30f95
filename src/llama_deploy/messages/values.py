"""How a value of somebody's program becomes JSON, before it is carried anywhere.

One encoder for inputs, results, stream events and prompts. Strict where a silent change of the value would follow:
bytes, numbers without a JSON form and arbitrary objects are refused with the reason.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec


def _convert(value: Any) -> Any:
    """Values that msgspec does not know: pydantic models, and whatever offers `model_dump` or `tolist`."""
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    to_list = getattr(value, "tolist", None)  # numpy scalars and arrays
    if callable(to_list):
        return to_list()
    raise TypeError(f"a value of type {type(value).__module__}.{type(value).__qualname__} has no JSON form")


_encoder = msgspec.json.Encoder(enc_hook=_convert)


def encode_json(value: Any) -> bytes:
    """JSON of `value`: JSON types, pydantic models, dataclasses, msgspec structs, dates and times.

    Raises `ValueError` that says why for bytes, non-finite numbers and objects without a JSON form.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        raise ValueError("bytes have no JSON form")  # noqa: TRY004 - one kind of error for every refusal
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value!r} has no JSON form")
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error
