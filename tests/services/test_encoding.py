"""What user code returns becomes JSON, or is refused; nothing is changed silently."""

from __future__ import annotations

import dataclasses
import enum
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from llama_deploy.errors import ResultNotSerialisableError
from llama_deploy.services.encoding import encode
from llama_deploy.services.results import result_from_value
from llama_deploy.types import TaskResult


class Model(BaseModel):
    n: int


class Struct(msgspec.Struct):
    n: int


@dataclasses.dataclass
class Data:
    inner: Any


class Kind(enum.Enum):
    ONE = "one"


class Word(str):
    __slots__ = ()


class Array:
    def tolist(self) -> list[int]:
        return [1, 2]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, 2.5, None, True, "ü"]}, {"a": [1, 2.5, None, True, "ü"]}),
        (Model(n=1), {"n": 1}),
        ([Data(Model(n=1))], [{"inner": {"n": 1}}]),
        (Struct(n=1), {"n": 1}),
        (Kind.ONE, "one"),
        (Word("w"), "w"),
        ({1: "a"}, {"1": "a"}),
        ((1, 2), [1, 2]),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
        (Decimal("1.10"), "1.10"),
        (PurePosixPath("a/b"), "a/b"),
        (Array(), [1, 2]),
        (2**80, 2**80),
    ],
)
def test_values_with_a_json_form(value: Any, expected: Any) -> None:
    assert json.loads(encode(value)) == expected


@pytest.mark.parametrize(
    "value",
    [
        b"x",
        {"a": b"x"},
        Data(inner=b"x"),
        float("nan"),
        {"a": [float("inf")]},
        Data(inner=float("nan")),
        object(),
        {"a": object()},
        Model,
        {(1, 2): 3},
        "\ud800",
        {"a": "\ud800"},
        (n for n in range(3)),
    ],
)
def test_values_without_one_are_refused_at_any_depth(value: Any) -> None:
    with pytest.raises(ResultNotSerialisableError):
        encode(value)


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ResultNotSerialisableError):
        encode(loop)


def test_text_stays_text_and_everything_else_is_a_json_value() -> None:
    text = result_from_value("hello")
    assert (text.kind, text.result, text.output) == ("text", "hello", "hello")
    value = result_from_value({"n": Model(n=1)})
    assert (value.kind, value.value, json.loads(value.result)) == ("json", {"n": {"n": 1}}, {"n": {"n": 1}})
    nothing = result_from_value(None)
    assert (nothing.kind, nothing.value, nothing.result) == ("json", None, "")


def test_a_task_result_is_taken_as_it_is() -> None:
    mine = TaskResult(task_id="", history=[], result="r", data={"k": 1})
    assert result_from_value(mine) is mine
