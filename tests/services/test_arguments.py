"""A task's input becomes the arguments that a signature asks for, or an error that says what would fit."""

from __future__ import annotations

import dataclasses
import enum
from datetime import date
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field
from tests.services.attempts import Attempt

from llama_deploy.errors import ArgumentsError, SettingError
from llama_deploy.services import ServiceContext, UnresolvedAnnotationError
from llama_deploy.services.arguments import Arguments, read_signature


class Order(BaseModel):
    number: int
    note: str = ""


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Colour(enum.Enum):
    RED = "red"


def filled(function: Any, text: str) -> Any:
    """What the function returns when it is called with this input."""
    args, kwargs = read_signature(function, "f").from_text(text, Attempt())
    return function(*args, **kwargs)


def refused(function: Any, text: str) -> ArgumentsError:
    with pytest.raises(ArgumentsError) as caught:
        filled(function, text)
    return caught.value


def one(text: str) -> str:
    return text


def two(text: str, times: int = 1) -> str:
    return text * times


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"text": "hi"}', "hi"),
        ('  {"text": "hi"}', "hi"),
        ("hello there", "hello there"),
        ('"quoted"', "quoted"),
        ("42", "42"),
        ("[1]", "[1]"),
        ("null", "null"),
        ("", ""),
        ('{"text": "\\ud83d\\ude00"}', "😀"),
        ("{not json", "{not json"),
    ],
)
def test_the_only_parameter_takes_json_and_plain_text(text: str, expected: str) -> None:
    assert filled(one, text) == expected


def test_the_one_required_parameter_takes_plain_text() -> None:
    assert filled(two, "ab") == "ab"
    assert filled(two, '{"text": "ab", "times": "2"}') == "abab"


def test_types_are_validated_and_converted() -> None:
    def f(day: date, colour: Colour, kind: Literal["a", "b"], points: list[Point], order: Order) -> Any:
        return day, colour, kind, points, order

    text = '{"day": "2026-01-02", "colour": "red", "kind": "a", "points": [{"x": 1, "y": 2}], "order": {"number": 3}}'
    assert filled(f, text) == (date(2026, 1, 2), Colour.RED, "a", [Point(1, 2)], Order(number=3))


def test_an_error_names_field_problem_and_what_fits() -> None:
    error = refused(two, '{"txt": "a", "times": "many"}')
    assert error.details["problems"] == [
        {"field": "text", "problem": "is missing"},
        {"field": "times", "problem": "input should be a valid integer, unable to parse string as an integer"},
        {"field": "txt", "problem": "is not a parameter; did you mean `text`?"},
    ]
    assert "text (string), times (integer, optional)" in error.fix
    assert error.details["schema"]["required"] == ["text"]


def test_an_error_inside_a_model_names_the_path() -> None:
    def f(order: Order, other: int) -> None: ...

    error = refused(f, '{"order": {"number": "x"}, "other": 1}')
    assert error.details["problems"][0]["field"] == "order.number"


def test_an_error_does_not_repeat_values() -> None:
    assert "secret" not in refused(lambda n: n, "{}").render()
    assert "hunter2" not in refused(two, '{"text": "a", "times": "hunter2"}').render()


def test_a_parameter_of_an_object_type_takes_the_object_itself() -> None:
    def f(order: Order) -> Order:
        return order

    assert filled(f, '{"number": 3}') == Order(number=3)
    assert filled(f, '{"order": {"number": 3}}') == Order(number=3)
    assert refused(f, '{"number": "x"}').details["problems"][0]["field"] == "number"
    assert refused(f, '{"order": {"number": "x"}}').details["problems"][0]["field"] == "order.number"


def test_a_mapping_takes_any_object() -> None:
    def f(values: dict[str, int]) -> dict[str, int]:
        return values

    assert filled(f, '{"a": 1}') == {"a": 1}
    assert filled(f, '{"values": {"a": 1}}') == {"a": 1}


def test_an_object_is_not_taken_for_text() -> None:
    assert "did you mean" not in refused(one, '{"foo": 1}').why
    assert "`foo` is not a parameter" in refused(one, '{"foo": 1}').why


def test_unannotated_parameters_take_anything() -> None:
    assert filled(lambda x: x, "[1, 2]") == [1, 2]
    assert filled(lambda x: x, "plain") == "plain"
    assert read_signature(lambda x: x, "f").schema["properties"]["x"].keys() <= {"title"}


def test_no_parameters() -> None:
    assert filled(lambda: "done", "{}") == "done"
    assert filled(lambda: "done", "") == "done"
    assert filled(lambda: "done", "null") == "done"
    assert "nothing" in refused(lambda: "done", '{"a": 1}').fix
    refused(lambda: "done", "text")


def test_defaults_are_the_functions_own() -> None:
    marker = object()

    def f(a: int = 1, b: Any = marker) -> Any:
        return a, b

    assert filled(f, "{}") == (1, marker)
    properties = read_signature(f, "f").schema["properties"]
    assert properties["a"]["default"] == 1
    assert "default" not in properties["b"]


def test_fields_of_pydantic_describe_and_constrain() -> None:
    def f(a: Annotated[int, Field(gt=0, description="how many")], b: int = Field(default=2, lt=9)) -> int:
        return a + b

    assert filled(f, '{"a": 1}') == 3
    assert refused(f, '{"a": 0, "b": 9}').details["problems"][0]["field"] == "a"
    assert read_signature(f, "f").schema["properties"]["a"]["description"] == "how many"


def test_further_keyword_arguments() -> None:
    def f(a: int, **rest: int) -> Any:
        return a, rest

    assert filled(f, '{"a": 1, "b": "2", "c": 3}') == (1, {"b": 2, "c": 3})
    assert refused(f, '{"a": 1, "b": "x"}').details["problems"][0]["field"] == "b"


def test_positional_only_parameters() -> None:
    def f(a: int, b: int = 2, /, *, c: int = 3) -> Any:
        return a, b, c

    assert filled(f, '{"a": 1}') == (1, 2, 3)
    assert filled(f, '{"a": 1, "b": 5, "c": 6}') == (1, 5, 6)


def test_positions_are_names_where_a_list_is_given() -> None:
    arguments = read_signature(two, "two")
    assert arguments.from_list(["a", 2], {}, None) == ([], {"text": "a", "times": 2})
    with pytest.raises(ArgumentsError, match="at most 2"):
        arguments.from_list([1, 2, 3], {}, None)
    with pytest.raises(ArgumentsError, match="by position and by name"):
        arguments.from_list(["a"], {"text": "b"}, None)


def test_the_context_is_filled_in_and_is_no_part_of_the_input() -> None:
    def f(text: str, context: ServiceContext, /, maybe: ServiceContext | None = None) -> Any:
        return text, context.task_id, maybe is context

    assert filled(f, "hi") == ("hi", "task", True)
    assert list(read_signature(f, "f").schema["properties"]) == ["text"]
    assert "is not a parameter" in refused(f, '{"text": "a", "maybe": 1}').why


def test_the_context_is_not_overridden_by_further_keywords() -> None:
    def f(context: ServiceContext, **rest: Any) -> Any:
        return rest

    assert "filled in by the system" in refused(f, '{"context": 1}').why


def test_names_that_models_cannot_have() -> None:
    def f(_hidden: int, copy: int, model_x: int, schema: int) -> Any:
        return _hidden, copy, model_x, schema

    assert filled(f, '{"_hidden": 1, "copy": 2, "model_x": 3, "schema": 4}') == (1, 2, 3, 4)


def test_star_args_are_refused_with_advice() -> None:
    def f(*texts: str) -> None: ...

    with pytest.raises(SettingError, match="texts") as caught:
        read_signature(f, "f")
    assert "texts: list[" in caught.value.fix


def test_a_method_is_refused_and_a_bound_one_is_not() -> None:
    class Shop:
        def sell(self, number: int) -> int:
            return number

    with pytest.raises(SettingError, match="method"):
        read_signature(Shop.sell, "sell")
    assert filled(Shop().sell, "3") == 3


def test_a_type_that_json_cannot_become_is_refused_by_name() -> None:
    class Connection: ...

    def f(text: str, connection: Connection) -> None: ...

    with pytest.raises(SettingError, match="`connection`"):
        Arguments("f", *_parameters(f, {"text": str, "connection": Connection}))


def test_an_annotation_that_names_nothing() -> None:
    def f(x: Nothing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(UnresolvedAnnotationError, match="`x`"):
        read_signature(f, "f")


def test_a_local_class_is_found_through_the_local_names() -> None:
    class Local(BaseModel):
        n: int

    def f(value: Local) -> int:
        return value.n

    args, kwargs = read_signature(f, "f", {"Local": Local}).from_text('{"n": 4}', None)
    assert f(*args, **kwargs) == 4


def test_callable_objects_and_partials() -> None:
    import functools

    class Adder:
        def __init__(self, base: int) -> None:
            self.base = base

        def __call__(self, n: int) -> int:
            return self.base + n

    assert filled(Adder(1), "2") == 3
    assert filled(functools.partial(two, times=2), '{"text": "a"}') == "aa"


def _parameters(function: Any, hints: dict[str, Any]) -> tuple[Any, Any]:
    import inspect

    return list(inspect.signature(function).parameters.values()), hints
