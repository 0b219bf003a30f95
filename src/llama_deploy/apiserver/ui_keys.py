"""The page of a deployment: the keys of `ui`, and what they mean. Nothing is built or started."""

from __future__ import annotations

import shlex
from pathlib import Path

import yaml

from llama_deploy.apiserver.reference_keys import REFERENCE, text_or_reference
from llama_deploy.apiserver.shapes import (
    Choice,
    Key,
    ListOf,
    Number,
    Record,
    Scalar,
    Section,
    Table,
    Text,
    TextOrRecord,
)
from llama_deploy.apiserver.source_keys import SOURCE_KEYS, source_of
from llama_deploy.apiserver.specs import PageSpec
from llama_deploy.apiserver.yaml_source import Findings

UI_KEYS = Record(
    {
        "name": Key(shape=Text(), doc="A title for people."),
        "source": Key(shape=SOURCE_KEYS, doc="Where the page is: a folder, or a git repository.", required=True),
        "build": Key(
            shape=ListOf(Text()), doc="Commands that build it; by default those of its package.json, if it has one."
        ),
        "command": Key(
            shape=Text(),
            doc="What serves it, on $PORT; by default that of its package.json, else its files are served.",
        ),
        "base-path": Key(
            shape=Choice(("keep", "strip")),
            doc="Whether it is asked for paths as the browser has them, below /deployments/NAME/ui, or without that.",
        ),
        "env": Key(
            shape=Table(
                TextOrRecord(Scalar(), REFERENCE), "variable", r"[A-Za-z_]\w*", "a name of letters, digits and `_`"
            ),
            doc="Variables of its commands.",
        ),
        "port": Key(
            shape=Number(integer=True, minimum=0, maximum=65535), doc="Published key.", ignored="it is given a free one"
        ),
    },
    "`ui`",
)


def page_of(section: Section | None, path: Path, findings: Findings) -> PageSpec | None:
    """The page that a deployment file describes, if it describes one."""
    if section is None:
        return None
    folder, source = source_of(section["source"], path, findings)
    if source is not None and source.type != "git":
        findings.problem(section.nodes["source"], f"a page is a folder or a git repository, not a {source.type} source")
    env: Section | None = section["env"]
    variables = {name: text_or_reference(value, findings) for name, value in env.given().items()} if env else {}
    return PageSpec(
        source_folder=folder,
        source=source,
        build=tuple(_words(text, section.nodes["build"], findings) for text in section["build"] or ())
        if section["build"] is not None
        else None,
        command=_words(section["command"], section.nodes["command"], findings) if section["command"] else None,
        strips=section["base-path"] == "strip",
        env={name: value for name, value in variables.items() if value is not None},
    )


def _words(text: str, node: yaml.Node, findings: Findings) -> tuple[str, ...]:
    """A command, as a shell splits it; no shell runs it."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        findings.problem(node, f"`{text}` is no command: {error}")
        return ()
