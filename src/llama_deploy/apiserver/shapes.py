"""The shapes that values of a deployment file can have: each reads a YAML node, and describes itself as JSON Schema.

One declaration of a key thus serves the reader, its error messages and the schema that editors complete from. A shape
never raises: what is wrong goes to the findings, and the value is then `None`, which is also what a key without a
value means.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from llama_deploy.apiserver.wording import did_you_mean
from llama_deploy.apiserver.yaml_source import Entry, Findings, construct, describe, entries, kind


class Shape(ABC):
    """What a value has to look like."""

    @abstractmethod
    def read(self, node: yaml.Node, findings: Findings) -> Any:
        """The value of a node, or `None` with the reason among the findings."""

    @abstractmethod
    def json_schema(self) -> dict[str, Any]:
        """The shape as JSON Schema (2020-12)."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a mapping: what its value looks like, what it means, and whether this program uses it."""

    shape: Shape
    doc: str
    required: bool = False
    ignored: str = ""
    """Why the key is read without effect; the file stays valid and a notice says so."""
    harmless: tuple[str, ...] = ()
    """Values, as written, that ask for nothing beyond the default, so that no notice is due."""


@dataclass(frozen=True)
class Text(Shape):
    """Text that is not empty; `pattern` has to match all of it, and `expected` says so in words."""

    pattern: str = r"(?s).*\S.*"
    expected: str = "text"

    def read(self, node: yaml.Node, findings: Findings) -> str | None:
        if kind(node) != "str":
            hint = f'; quote it: "{node.value}"' if isinstance(node, yaml.ScalarNode) and kind(node) != "null" else ""
            findings.problem(node, f"expected {self.expected}, found {describe(node)}{hint}")
            return None
        text = str(node.value)
        if not re.fullmatch(self.pattern, text):
            findings.problem(node, f"expected {self.expected}, found {describe(node)}")
            return None
        return text

    def json_schema(self) -> dict[str, Any]:
        default = self.pattern == Text.pattern
        return {"type": "string", "minLength": 1} if default else {"type": "string", "pattern": f"^{self.pattern}$"}


@dataclass(frozen=True)
class Scalar(Shape):
    """Any single value, taken as the text that the file has (`env` values: `8080`, `true`)."""

    def read(self, node: yaml.Node, findings: Findings) -> str | None:
        if not isinstance(node, yaml.ScalarNode) or kind(node) == "null":
            findings.problem(node, f'expected a value, found {describe(node)}; write "" for an empty one')
            return None
        return str(node.value)

    def json_schema(self) -> dict[str, Any]:
        return {"type": ["string", "number", "boolean"]}


@dataclass(frozen=True, kw_only=True)
class Number(Shape):
    """A finite number within limits, both included unless `above` is given."""

    integer: bool = False
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None

    def read(self, node: yaml.Node, findings: Findings) -> float | int | None:
        if kind(node) not in ({"int"} if self.integer else {"int", "float"}):
            findings.problem(node, f"expected {self._expected()}, found {describe(node)}")
            return None
        try:
            value = construct(node)
        except ValueError:
            value = math.nan
        if math.isfinite(value) and self._within(value):
            return int(value) if self.integer else float(value)
        findings.problem(node, f"expected {self._expected()}, found {describe(node)}")
        return None

    def _within(self, value: float) -> bool:
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
        )

    def _expected(self) -> str:
        noun = "a whole number" if self.integer else "a number"
        if self.minimum is not None and self.maximum is not None:
            return f"{noun} from {self.minimum} to {self.maximum}"
        if self.minimum is not None:
            return f"{noun} of at least {self.minimum}"
        return noun if self.above is None else f"{noun} above {self.above}"

    def json_schema(self) -> dict[str, Any]:
        limits = {"minimum": self.minimum, "maximum": self.maximum, "exclusiveMinimum": self.above}
        named = {name: limit for name, limit in limits.items() if limit is not None}
        return {"type": "integer" if self.integer else "number", **named}


@dataclass(frozen=True)
class Choice(Shape):
    """One of a few words; `not_yet` are words of the published system that this program does not do yet."""

    words: tuple[str, ...]
    not_yet: Mapping[str, str] = field(default_factory=dict)

    def read(self, node: yaml.Node, findings: Findings) -> str | None:
        text = str(node.value) if isinstance(node, yaml.ScalarNode) else ""
        if text in self.words:
            return text
        if text in self.not_yet:
            findings.problem(node, f"`{text}` is not supported yet: {self.not_yet[text]}")
        else:
            expected = " or ".join(f"`{word}`" for word in self.words)
            hint = did_you_mean(text, [*self.words, *self.not_yet])
            findings.problem(node, f"expected {expected}, found {describe(node)}{hint}")
        return None

    def json_schema(self) -> dict[str, Any]:
        plain = {"true": True, "false": False}  # what YAML makes of these words before a schema sees them
        return {"enum": [*self.words, *(plain[word] for word in self.words if word in plain)]}


@dataclass(frozen=True)
class Free(Shape):
    """Anything that has a JSON form; for keys whose meaning lies elsewhere."""

    def read(self, node: yaml.Node, findings: Findings) -> Any:
        try:
            return construct(node)
        except ValueError as error:
            findings.problem(node, str(error))
            return None

    def json_schema(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class ListOf(Shape):
    """A list, each part of one shape; parts that are wrong are left out."""

    part: Shape

    def read(self, node: yaml.Node, findings: Findings) -> tuple[Any, ...] | None:
        if not isinstance(node, yaml.SequenceNode):
            findings.problem(node, f"expected a list, found {describe(node)}")
            return None
        values = [self.part.read(part, findings) for part in node.value]
        return tuple(value for value in values if value is not None)

    def json_schema(self) -> dict[str, Any]:
        return {"type": "array", "items": self.part.json_schema()}


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping that was read: its values by key, and the nodes that they came from."""

    node: yaml.Node
    values: Mapping[str, Any]
    nodes: Mapping[str, yaml.Node]

    def __getitem__(self, key: str) -> Any:
        """The value of a key; `None` where the file has none, or none that is valid."""
        return self.values.get(key)

    def given(self) -> dict[str, Any]:
        """The keys that have a value."""
        return {key: value for key, value in self.values.items() if value is not None}


@dataclass(frozen=True)
class Record(Shape):
    """A mapping with known keys. `underscores` accepts `step_interval` for `step-interval`, as settings classes do."""

    keys: Mapping[str, Key]
    where: str
    underscores: bool = False

    def read(self, node: yaml.Node, findings: Findings) -> Section | None:
        if not isinstance(node, yaml.MappingNode):
            findings.problem(node, f"{self.where} has to be a mapping of keys, found {describe(node)}")
            return None
        values: dict[str, Any] = {}
        nodes: dict[str, yaml.Node] = {}
        for entry in entries(node, findings):
            name = entry.key.replace("_", "-") if self.underscores else entry.key
            key = self.keys.get(name)
            if key is None:
                hint = did_you_mean(entry.key, self.keys)
                findings.problem(entry.key_node, f"unknown key `{entry.key}` in {self.where}{hint}")
                continue
            if name in nodes:
                findings.problem(entry.key_node, f"duplicate key `{entry.key}`: it is `{name}` once more")
            nodes[name] = entry.value
            values[name] = _read_key(key, entry, findings)
        for name, key in self.keys.items():
            if key.required and name not in nodes:
                findings.problem(node, f"{self.where} needs the key `{name}`: {key.doc}")
        return Section(node, values, nodes)

    def json_schema(self) -> dict[str, Any]:
        properties = {}
        for name, key in self.keys.items():
            properties[name] = {**key.shape.json_schema(), "description": key.doc}
            if key.ignored:
                properties[name]["deprecated"] = True
                properties[name]["description"] += f" Not used: {key.ignored}."
        schema = {"type": "object", "properties": properties, "additionalProperties": False}
        required = [name for name, key in self.keys.items() if key.required]
        return schema | ({"required": required} if required else {})


@dataclass(frozen=True)
class Table(Shape):
    """A mapping from names that the file's author chooses to values of one shape."""

    value: Shape
    noun: str
    pattern: str
    expected: str
    reserved: tuple[str, ...] = ()
    needs_one: bool = False

    def read(self, node: yaml.Node, findings: Findings) -> Section | None:
        if not isinstance(node, yaml.MappingNode):
            findings.problem(node, f"expected a mapping from a {self.noun} to its settings, found {describe(node)}")
            return None
        values: dict[str, Any] = {}
        nodes: dict[str, yaml.Node] = {}
        for entry in entries(node, findings, noun=self.noun):
            if not re.fullmatch(self.pattern, entry.key):
                article = "an" if self.noun[0] in "aeiou" else "a"
                what = f"{article} {self.noun} has to be {self.expected}, found `{entry.key}`"
                findings.problem(entry.key_node, what)
            elif entry.key in self.reserved:
                findings.problem(entry.key_node, f"`{entry.key}` is reserved, choose another {self.noun}")
            nodes[entry.key] = entry.key_node
            values[entry.key] = self.value.read(entry.value, findings)
        if self.needs_one and not nodes:
            findings.problem(node, f"at least one {self.noun} is needed")
        return Section(node, values, nodes)

    def json_schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {
            "type": "object",
            "propertyNames": {"pattern": f"^{self.pattern}$"},
            "additionalProperties": self.value.json_schema(),
        }
        return schema | ({"minProperties": 1} if self.needs_one else {})


@dataclass(frozen=True)
class TextOrRecord(Shape):
    """Either a word, or a mapping that says more."""

    text: Text | Scalar
    record: Record

    def read(self, node: yaml.Node, findings: Findings) -> str | Section | None:
        if isinstance(node, yaml.MappingNode):
            return self.record.read(node, findings)
        return self.text.read(node, findings)

    def json_schema(self) -> dict[str, Any]:
        return {"anyOf": [self.text.json_schema(), self.record.json_schema()]}


def _read_key(key: Key, entry: Entry, findings: Findings) -> Any:
    value = entry.value
    if kind(value) == "null":
        if key.required:
            findings.problem(entry.key_node, f"`{entry.key}` needs a value: {key.doc}")
        return None
    harmless = isinstance(value, yaml.ScalarNode) and value.value in key.harmless
    if key.ignored and not harmless:
        findings.notice(entry.key_node, f"`{entry.key}` is not used: {key.ignored}")
    return key.shape.read(value, findings)
