"""Answers of services that nobody wrote: values of a declared type, and failures, as a seed says.

A type is anything that pydantic knows; what it may be is read from its JSON Schema, so that the values are those that a
service of that type could answer. What a schema says beyond that (patterns, formats) is not followed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter

from llama_deploy.errors import NonRetryableError

ITEMS_MAX = 3
DEPTH_MAX = 4


def answers_of(declared: Any, chance: random.Random) -> Callable[..., Any]:
    """A service that answers with values of a type, whatever it is asked."""
    schema = TypeAdapter(declared).json_schema()
    return lambda *_args, **_arguments: _value(schema, schema.get("$defs", {}), chance, DEPTH_MAX)


def failing_now_and_then(function: Callable[..., Any], chance: random.Random, share: float) -> Callable[..., Any]:
    """The same service, of which a share of the answers are failures, some of them for good."""

    def call(*arguments: Any, **named: Any) -> Any:
        if chance.random() < share:
            raise (NonRetryableError if chance.random() < 0.5 else RuntimeError)("it failed")  # noqa: PLR2004 - a coin
        return function(*arguments, **named)

    return call


def _value(schema: Any, known: dict[str, Any], chance: random.Random, depth: int) -> Any:
    if not isinstance(schema, dict) or not schema:
        return chance.choice([None, "any", 7, {"any": 1}])
    if "$ref" in schema:
        return _value(known[schema["$ref"].rpartition("/")[2]], known, chance, depth - 1)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return chance.choice(schema["enum"])
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return _value(chance.choice(schema[word]), known, chance, depth - 1)
    return _of_kind(schema, known, chance, depth)


def _of_kind(schema: dict[str, Any], known: dict[str, Any], chance: random.Random, depth: int) -> Any:
    kind = schema.get("type")
    if kind == "array":
        least = int(schema.get("minItems", 0))
        count = chance.randint(least, max(least, int(schema.get("maxItems", ITEMS_MAX)))) if depth > 0 else least
        shapes = schema.get("prefixItems") or [schema.get("items", {})] * count
        return [_value(shape, known, chance, depth - 1) for shape in shapes]
    if kind == "object":
        required = schema.get("required", [])
        named = {
            name: _value(inner, known, chance, depth - 1)
            for name, inner in schema.get("properties", {}).items()
            if name in required or (depth > 0 and chance.random() < 0.5)  # noqa: PLR2004 - a coin
        }
        more = schema.get("additionalProperties")
        others = range(chance.randint(0, ITEMS_MAX)) if more and depth > 0 else ()
        return {**named, **{f"key {number}": _value(more, known, chance, depth - 1) for number in others}}
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", -10))
        high = schema.get("maximum", schema.get("exclusiveMaximum", max(low, 0) + 10))
        return chance.randint(int(low), int(high)) if kind == "integer" else chance.uniform(low, high)
    if kind == "string":
        return "x" * int(schema.get("minLength", 0)) or chance.choice(["", "yes", "no", "some text", "ü\n"])
    return chance.random() < 0.5 if kind == "boolean" else None  # noqa: PLR2004 - a coin
