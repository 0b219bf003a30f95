"""The edges of a graph and their conditions, described by data: `"draft -> check"`, `{field: score, above: 7}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llama_deploy.orchestrators.described_errors import DescriptionError, Path, close
from llama_deploy.orchestrators.graph_edges import Edge


def edges(value: Any, path: Path) -> list[Edge]:
    """A list of edges. Raises `DescriptionError`."""
    if not isinstance(value, list):
        raise DescriptionError("edges are a list: `- draft -> check`", path)
    return [_edge(item, (*path, position)) for position, item in enumerate(value)]


_EDGE_KEYS = ("from", "to", "when", "at-most", "on-failure", "label")


def _edge(value: Any, path: Path) -> Edge:
    """`"draft -> check"`, or an object with `from`, `to` and more."""
    if isinstance(value, str):
        source, arrow, target = value.partition("->")
        if not arrow:
            raise DescriptionError(f"{value!r} is no edge: write `from -> to`", path)
        return Edge(source.strip(), target.strip())
    if not isinstance(value, Mapping) or not {"from", "to"} <= set(value):
        raise DescriptionError("an edge is `from -> to`, or an object with `from` and `to`", path)
    for key in value:
        if key not in _EDGE_KEYS:
            raise DescriptionError(f"an edge has no `{key}`{close(str(key), _EDGE_KEYS)}", (*path, key))
    at_most = value.get("at-most")
    if at_most is not None and (not isinstance(at_most, int) or isinstance(at_most, bool) or at_most < 1):
        raise DescriptionError("at-most is a whole number, 1 or more", (*path, "at-most"))
    return Edge(
        str(value["from"]),
        str(value["to"]),
        when=_condition(value["when"], (*path, "when")) if value.get("when") is not None else None,
        at_most=at_most,
        on_failure=bool(value.get("on-failure", False)),
        label=str(value.get("label", "")),
    )


_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "is": lambda found, wanted: bool(found == wanted),
    "in": lambda found, wanted: found in wanted if isinstance(wanted, list | str) else False,
    "above": lambda found, wanted: isinstance(found, int | float) and found > wanted,
    "below": lambda found, wanted: isinstance(found, int | float) and found < wanted,
}


def _condition(value: Any, path: Path) -> Callable[[Any], bool]:
    """`"approved"` (that field of the output is true), or `{field: …, is|in|above|below: …, not: true}`."""
    if isinstance(value, str):
        value = {"field": value}
    if not isinstance(value, Mapping):
        raise DescriptionError("a condition is a field's name, or an object such as `{field: status, is: ok}`", path)
    for key in value:
        if key not in (*_TESTS, "field", "not"):
            raise DescriptionError(f"a condition has no `{key}`{close(str(key), (*_TESTS, 'field'))}", (*path, key))
    tests = [(name, value[name]) for name in _TESTS if name in value]
    for name, wanted in tests:
        if name in ("above", "below") and (isinstance(wanted, bool) or not isinstance(wanted, int | float)):
            raise DescriptionError(f"{name} is a number", (*path, name))
    field, negated = value.get("field"), bool(value.get("not", False))

    def holds(output: Any) -> bool:
        found = output if field is None else (output.get(field) if isinstance(output, dict) else None)
        result = all(_TESTS[name](found, wanted) for name, wanted in tests) if tests else bool(found)
        return result is not negated

    words = [str(field)] if field is not None else []
    words += [f"{name} {wanted}" for name, wanted in tests]
    holds.__name__ = " ".join([*(["not"] if negated else []), *words]) or "if"
    return holds
