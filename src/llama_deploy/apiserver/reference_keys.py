"""References of a deployment file: where a value is that does not stand in it. Their keys, and what they mean."""

from __future__ import annotations

from pathlib import Path

from llama_deploy.apiserver.reference import Reference
from llama_deploy.apiserver.shapes import Key, Record, Section, Text
from llama_deploy.apiserver.yaml_source import Findings

REFERENCE = Record(
    {
        "env": Key(shape=Text(), doc="A variable of the environment."),
        "file": Key(shape=Text(), doc="A file with nothing else in it, relative to this file."),
    },
    "a reference",
)


def reference_of(section: Section, findings: Findings) -> Reference:
    """What a section refers to."""
    if (section["env"] is None) == (section["file"] is None):
        findings.problem(section.node, "a reference has one of `env` and `file`")
    file = section["file"]
    return Reference(env=section["env"], file=Path(file) if file is not None else None)


def text_or_reference(value: str | Section | None, findings: Findings) -> str | Reference | None:
    """A word that stands in the file, or where it is instead."""
    return reference_of(value, findings) if isinstance(value, Section) else value
