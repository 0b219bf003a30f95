"""YAML text as a tree of nodes that remember where they stand, and the list of what is wrong with it.

Owns encoding, syntax, duplicate keys, merge keys and aliases, so that whoever gives the keys a meaning
(`shapes.py`, `deployment_file.py`) sees plain entries and can report every problem with line and column.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from llama_deploy.apiserver.wording import shorten

SOURCE_BYTES_MAX = 1_000_000
"""Larger files are refused: a deployment file is written by a person."""

VALUE_NODES_MAX = 10_000
"""Nodes of one free-form value, aliases unfolded; more is taken for an alias bomb and refused."""

_TAG = "tag:yaml.org,2002:"
_KINDS = {
    "str": "text",
    "int": "the number",
    "float": "the number",
    "bool": "the boolean",
    "null": "nothing",
    "timestamp": "the date",
    "map": "a mapping",
    "seq": "a list",
}
_PLAIN_KINDS = {"str", "int", "float", "bool", "null", "map", "seq", "merge"}


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong (or, as a notice, not used), and where; lines and columns count from 1."""

    line: int
    column: int
    what: str

    def render(self, file: str) -> str:
        """The problem in the form that editors and terminals make a link of."""
        return f"{file}:{self.line}:{self.column}: {self.what}"


class Findings:
    """What reading a file has found so far: problems that refuse it, and notices that do not."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.notices: list[Problem] = []

    def problem(self, node: yaml.Node, what: str) -> None:
        """The file is refused for this, after everything else has been read too."""
        self.problems.append(at(node, what))

    def notice(self, node: yaml.Node, what: str) -> None:
        """Something is read and not used; the file stays valid."""
        self.notices.append(at(node, what))


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a mapping with its value, and the nodes of both."""

    key: str
    key_node: yaml.Node
    value: yaml.Node


def at(node: yaml.Node, what: str) -> Problem:
    """A problem at the place where a node starts."""
    return Problem(node.start_mark.line + 1, node.start_mark.column + 1, what)


def compose(source: bytes, findings: Findings) -> yaml.Node | None:
    """The root node of a YAML document; `None` when there is none, with the reason among the findings."""
    text = _decode(source, findings)
    if text is None:
        return None
    try:
        root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        findings.problems.append(_syntax_problem(error))
        return None
    except yaml.reader.ReaderError as error:
        line, column = _position(text, error.position)
        findings.problems.append(
            Problem(line, column, f"the character {chr(error.character)!r} is not allowed in YAML")
        )
        return None
    except RecursionError:
        findings.problems.append(Problem(1, 1, "the file is nested too deeply"))
        return None
    if root is None or (isinstance(root, yaml.ScalarNode) and kind(root) == "null"):
        findings.problems.append(Problem(1, 1, "the file is empty"))
        return None
    return root


def entries(node: yaml.MappingNode, findings: Findings, *, noun: str = "key") -> Iterator[Entry]:
    """The entries of a mapping in the order of the file, merged ones (`<<`) last where no key overrides them.

    A key that is no text, and the second of two equal keys, is reported and left out.
    """
    seen: dict[str, int] = {}
    merged: list[yaml.Node] = []
    for key_node, value in node.value:
        if key_node.tag == _TAG + "merge":
            merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
        elif not isinstance(key_node, yaml.ScalarNode) or kind(key_node) == "null":
            findings.problem(key_node, f"a {noun} has to be text, this is {describe(key_node)}")
        elif key_node.value in seen:
            findings.problem(key_node, f"duplicate {noun} `{key_node.value}`, first in line {seen[key_node.value]}")
        else:
            seen[key_node.value] = key_node.start_mark.line + 1
            yield Entry(key_node.value, key_node, value)
    for source in merged:
        if not isinstance(source, yaml.MappingNode):
            findings.problem(source, f"`<<` merges a mapping, this is {describe(source)}")
            continue
        for key_node, value in source.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value not in seen:
                seen[key_node.value] = key_node.start_mark.line + 1
                yield Entry(key_node.value, key_node, value)


def kind(node: yaml.Node) -> str:
    """What YAML takes a node for: `str`, `int`, `float`, `bool`, `null`, `map`, `seq`, or another tag."""
    return str(node.tag).removeprefix(_TAG)


def describe(node: yaml.Node) -> str:
    """A node in the words of an error message."""
    word = _KINDS.get(kind(node), f"a value with the tag {node.tag}")
    if isinstance(node, yaml.ScalarNode) and kind(node) != "null":
        return f"{word} `{shorten(node.value)}`"
    return word


def construct(node: yaml.Node) -> Any:
    """The plain value of a node: JSON types only. Raises `ValueError` that says what has none."""
    _check_size(node)
    try:
        return yaml.constructor.SafeConstructor().construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise ValueError(error.problem or "this value cannot be read") from error


def _decode(source: bytes, findings: Findings) -> str | None:
    if len(source) > SOURCE_BYTES_MAX:
        findings.problems.append(
            Problem(1, 1, f"the file has {len(source)} bytes, at most {SOURCE_BYTES_MAX} are read")
        )
        return None
    try:
        return source.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _position(source[: error.start].decode("utf-8-sig", "replace"), None)
        what = f"the byte 0x{source[error.start]:02x} is not UTF-8; save the file as UTF-8"
        findings.problems.append(Problem(line, column, what))
        return None


def _position(text: str, index: int | None) -> tuple[int, int]:
    before = text if index is None else text[:index]
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def _syntax_problem(error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    what = error.problem or error.context or "the file is not YAML"
    if "'\\t'" in what:
        what = "a tab cannot indent YAML; use spaces"
    elif "another document" in what or "single document" in (error.context or ""):
        what = "a second document starts here; a deployment file is one document"
    elif error.context and error.context_mark is not None and error.context_mark.line + 1 != line:
        what = f"{what} ({error.context} that starts in line {error.context_mark.line + 1})"
    return Problem(line, column, f"not YAML: {what}")


def _check_size(node: yaml.Node) -> None:
    budget = VALUE_NODES_MAX

    def walk(current: yaml.Node, above: frozenset[int]) -> None:
        nonlocal budget
        budget -= 1
        if budget < 0:
            raise ValueError(f"this value has more than {VALUE_NODES_MAX} parts")
        if id(current) in above:
            raise ValueError("this value contains itself")
        if kind(current) not in _PLAIN_KINDS:
            raise ValueError(f"{describe(current)} has no JSON form; write it as text in quotes")
        if isinstance(current, yaml.ScalarNode):
            return
        inside = above | {id(current)}
        for child in current.value:
            for part in child if isinstance(child, tuple) else (child,):
                walk(part, inside)

    walk(node, frozenset())
