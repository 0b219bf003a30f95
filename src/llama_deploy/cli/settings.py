"""The options that every command takes, before or after its name: the server, the form of the output, quietness.

A command gets them as one frozen value. What is said after the command's name wins over what is said before it, and
both over the environment.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

R = TypeVar("R")

DEFAULT_SERVER = "http://127.0.0.1:8000"
SERVER_VARIABLE = "LLAMA_DEPLOY_CONTROL_PLANE_URL"
OUTPUT_FORMS = ("text", "wide", "json", "jsonl", "yaml", "name")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a person said for all commands alike."""

    server: str = DEFAULT_SERVER
    server_given: bool = False
    """Whether an option or the environment names the server, so that it is more than a guess."""
    output: str = "text"
    """One of `OUTPUT_FORMS`."""
    quiet: bool = False
    """No progress and no hints; data and errors only."""


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options themselves, for the root and for every command."""
    for option in (
        click.option("-q", "--quiet", is_flag=True, default=None, help="No progress, no hints."),
        click.option(
            "-o", "--output", type=click.Choice(OUTPUT_FORMS), help="Form of the data on standard output [text]."
        ),
        click.option(
            "-s", "--server", metavar="URL", help=f"The control plane [${SERVER_VARIABLE}, {DEFAULT_SERVER}]."
        ),
    ):
        function = option(function)
    return function


def with_settings(function: Callable[..., R]) -> Callable[..., R]:
    """Make a command's first argument the `Settings` that hold for it."""

    @functools.wraps(function)
    def command(**kwargs: Any) -> R:
        own = {name: kwargs.pop(name) for name in ("server", "output", "quiet")}
        return function(resolve(click.get_current_context(), **own), **kwargs)

    return common_options(command)


def resolve(ctx: click.Context, *, server: str | None, output: str | None, quiet: bool | None) -> Settings:
    """The settings of a command: its own options, then those of the groups above it, then the environment."""
    import os

    given: dict[str, Any] = {"server": server, "output": output, "quiet": quiet}
    above = ctx.parent
    while above is not None:
        given = {name: value if value is not None else above.params.get(name) for name, value in given.items()}
        above = above.parent
    named = given["server"] or os.environ.get(SERVER_VARIABLE)
    return Settings(
        server=(named or DEFAULT_SERVER).rstrip("/"),
        server_given=bool(named),
        output=given["output"] or "text",
        quiet=bool(given["quiet"]),
    )
