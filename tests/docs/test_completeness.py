"""Checks that the pages on the command line, HTTP, errors and state leave nothing out that the program has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from llama_deploy.cli.app import INTERRUPTED, root
from llama_deploy.control_plane import ControlPlane
from llama_deploy.control_plane.http.app import build_app
from llama_deploy.errors import EXIT_CODE
from llama_deploy.state_stores import MemoryStore
from llama_deploy.types import TaskState

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def routes() -> list[tuple[str, str]]:
    schema = build_app(ControlPlane(store=MemoryStore())).app.openapi()
    return [(method.upper(), path) for path, methods in schema["paths"].items() for method in methods]


@pytest.mark.parametrize(("name", "command"), [pytest.param(*found, id=found[0]) for found in commands(root)])
def test_the_page_on_the_command_line_names_every_command_and_option(name: str, command: click.Command) -> None:
    page = text_of("guide/command-line.md")
    assert re.search(rf"`{re.escape(name)}\b", page), name
    for option in (parameter for parameter in command.params if isinstance(parameter, click.Option)):
        longest = max(option.opts, key=len)
        assert re.search(rf"`{re.escape(longest)}\b", page), f"{name} {longest}"


def test_the_page_on_the_command_line_has_every_exit_code() -> None:
    page = text_of("guide/command-line.md")
    table = page.partition("## Exit codes")[2]
    assert {int(code) for code in re.findall(r"(?m)^\| (\d+) \|", table)} == {0, INTERRUPTED, *EXIT_CODE.values()}


def test_the_page_on_http_has_every_route_and_no_other() -> None:
    told = re.findall(r"\| `(GET|POST|PUT|PATCH|DELETE) ([^`]+)` \|", text_of("guide/http-api.md"))
    assert sorted(told) == sorted(routes())


def test_the_page_on_tasks_has_every_state() -> None:
    table = text_of("guide/tasks.md").partition("## States and history")[2]
    assert [state.value for state in TaskState if f"`{state.value}`" not in table] == []
