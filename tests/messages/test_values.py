"""What becomes JSON, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from llama_deploy.messages.values import NESTING_MAX, encode_json


class Model(BaseModel):
    at: datetime


class Struct(msgspec.Struct):
    n: int


@dataclass
class Plain:
    name: str


class Text(str):
    __slots__ = ()


class Colour(Enum):
    RED = "red"


class Array:
    def tolist(self) -> list[int]:
        return [1, 2]


AT = datetime(2024, 2, 3, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ("ü", "ü"),
        (None, None),
        ([1, 2.5, True], [1, 2.5, True]),
        ((1, {2}), [1, [2]]),
        ({1: "a"}, {"1": "a"}),
        (Model(at=AT), {"at": "2024-02-03T00:00:00Z"}),
        (
            {"deep": [Struct(3), Plain("p"), Model(at=AT)]},
            {"deep": [{"n": 3}, {"name": "p"}, {"at": "2024-02-03T00:00:00Z"}]},
        ),
        (Text("t"), "t"),
        (Colour.RED, "red"),
        (Array(), [1, 2]),
        (Path("a/b"), "a/b"),
        (2**80, 2**80),
    ],
)
def test_what_has_a_json_form(value: Any, plain: Any) -> None:
    assert json.loads(encode_json(value)) == plain


def nested(depth: int) -> Any:
    value: Any = "inmost"
    for level in range(depth):
        value = [value] if level % 2 else {"a": 1, "in": value}
    return value


def test_what_is_nested_too_deeply_to_be_read_back_is_refused() -> None:
    assert json.loads(encode_json(nested(NESTING_MAX))) == nested(NESTING_MAX)
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        encode_json(nested(NESTING_MAX + 1))
    assert encode_json(["[" * 500] * 500), "brackets in text are no nesting"
    assert encode_json([[[]]] * 500)
    assert encode_json("[" * 500)


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    "value",
    [
        b"x",
        {"deep": [b"x"]},
        bytearray(b"x"),
        math.nan,
        [math.inf],
        object(),
        Model,
        lambda: None,
        CIRCLE,
        "\ud800",
        {"a": object()},
    ],
)
def test_what_has_none_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        encode_json(value)
