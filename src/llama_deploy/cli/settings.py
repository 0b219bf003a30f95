"""The options that every command takes, before or after its name: the server, the form of the output, quietness.

A command gets them as one frozen value. What is said after the command's name wins over what is said before it, and
both over the environment.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click

R = TypeVar("R")

DEFAULT_SERVER = "http://127.0.0.1:8000"
SERVER_VARIABLE = "LLAMA_DEPLOY_CONTROL_PLANE_URL"
TOKEN_VARIABLE = "LLAMA_DEPLOY_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_FILE_VARIABLE = "LLAMA_DEPLOY_TOKEN_FILE"  # noqa: S105 - the name of a variable
CA_VARIABLE = "LLAMA_DEPLOY_CA_FILE"
COMMON = ("server", "output", "quiet", "profile", "token_file", "ca_file", "insecure", "request_timeout")
"""The parameters of the common options."""
OUTPUT_FORMS = ("text", "wide", "json", "jsonl", "yaml", "name")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a person said for all commands alike."""

    server: str = DEFAULT_SERVER
    server_given: bool = False
    """Whether an option or the environment names the server, so that it is more than a guess."""
    server_said: bool = False
    """Whether an option names the server."""
    output: str = "text"
    """One of `OUTPUT_FORMS`."""
    quiet: bool = False
    """No progress and no hints; data and errors only."""
    profile: str | None = None
    """The profile that an option names, else the current one."""
    api_server: str | None = None
    """The API server of the profile."""
    token: str | None = field(default=None, repr=False)
    """That of the profile, where the server is the profile's, too."""
    token_file: str | None = None
    ca_file: str | None = None
    insecure: bool = False
    """Believe any server, whatever its certificate."""
    timeout_s: float | None = None
    """How long one request may go without an answer, where that is said."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Where each setting comes from that is not the default: `option`, a variable, or `profile NAME`."""


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options themselves, for the root and for every command."""
    for option in (
        click.option("-q", "--quiet", is_flag=True, default=None, help="No progress, no hints."),
        click.option(
            "-t",
            "--request-timeout",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            help="How long one request may go without an answer [30].",
        ),
        click.option("-p", "--profile", metavar="NAME", help="The profile of `llamactl config` to use."),
        click.option("-k", "--insecure", is_flag=True, default=None, help="Believe any certificate of the server."),
        click.option("--ca-file", metavar="FILE", help=f"Authorities to believe [${CA_VARIABLE}]."),
        click.option("--token-file", metavar="FILE", help=f"The token is in this file [${TOKEN_VARIABLE}]."),
        click.option(
            "-o", "--output", type=click.Choice(OUTPUT_FORMS), help="Form of the data on standard output [text]."
        ),
        click.option(
            "-s",
            "--server",
            metavar="URL",
            help=f"The control plane, or several of one store: URL,URL [${SERVER_VARIABLE}, {DEFAULT_SERVER}].",
        ),
    ):
        function = option(function)
    return function


def with_settings(function: Callable[..., R]) -> Callable[..., R]:
    """Make a command's first argument the `Settings` that hold for it."""

    @functools.wraps(function)
    def command(**kwargs: Any) -> R:
        own = {name: kwargs.pop(name) for name in COMMON}
        return function(resolve(click.get_current_context(), **own), **kwargs)

    return common_options(command)


def resolve(ctx: click.Context, **own: Any) -> Settings:
    """The settings of a command: its own options, then those of the groups above it, the environment, the profile.

    A profile that an option names wins over the environment. Raises `SettingError` for one that is not there.
    """
    given = dict(own)
    above = ctx.parent
    while above is not None:
        given = {name: value if value is not None else above.params.get(name) for name, value in given.items()}
        above = above.parent
    said = {name.replace("_", "-"): (value, "option") for name, value in given.items() if value is not None}
    said.pop("profile", None)
    profile, name = _profile(given["profile"])
    kept = {key: (value, f"profile {name}") for key, value in profile.items()}
    rest = [kept, _from_environment()] if given["profile"] is not None else [_from_environment(), kept]
    found = {**rest[1], **rest[0], **said}
    server, server_origin = found.get("server", (DEFAULT_SERVER, "default"))
    for key in _TOKENS:
        found.pop(key, None)
    found |= _token_of([said, *(source for source in rest if source is not kept or server_origin == f"profile {name}")])
    value = {key: pair[0] for key, pair in found.items()}
    return Settings(
        server=str(server).rstrip("/"),
        server_given=server_origin in ("option", SERVER_VARIABLE),
        server_said=server_origin == "option",
        output=value.get("output", "text"),
        quiet=bool(value.get("quiet")),
        profile=name,
        api_server=value.get("api-server"),
        token=value.get("token"),
        token_file=value.get("token-file"),
        ca_file=value.get("ca-file"),
        insecure=value.get("insecure") in (True, "true"),
        timeout_s=float(value["request-timeout"]) if "request-timeout" in value else None,
        origins={key: pair[1] for key, pair in found.items()},
    )


def without_own_server() -> Settings:
    """The settings of the running command as if `-s` did not stand after its name."""
    ctx = click.get_current_context()
    return resolve(ctx, **{name: ctx.params.get(name) if name != "server" else None for name in COMMON})


def _profile(named: str | None) -> tuple[dict[str, str], str | None]:
    """The profile that is meant, and its name; nothing where there is none."""
    from llama_deploy.cli import profiles

    found = profiles.load()
    if named is not None:
        return found.profiles.get(named, {}) if _writes_profiles() else found.get(named), named
    if found.current is None or found.current not in found.profiles:
        return {}, None
    return found.profiles[found.current], found.current


def _writes_profiles() -> bool:
    """Whether this command makes profiles, so that one may be named that is not there yet."""
    ctx = click.get_current_context()
    return ctx.parent is not None and ctx.parent.info_name == "config" and ctx.info_name in ("set", "set-profile-vars")


def _from_environment() -> dict[str, tuple[Any, str]]:
    """What variables say; a token and where it is are read where they are used, and marked here."""
    import os

    variables = {"server": SERVER_VARIABLE, "ca-file": CA_VARIABLE, "token-file": TOKEN_FILE_VARIABLE}
    found: dict[str, tuple[Any, str]] = {
        key: (os.environ[variable], variable) for key, variable in variables.items() if os.environ.get(variable)
    }
    if os.environ.get(TOKEN_VARIABLE):
        found["token"] = os.environ[TOKEN_VARIABLE], TOKEN_VARIABLE
    return found


_TOKENS = ("token", "token-file")


def _token_of(sources: list[dict[str, tuple[Any, str]]]) -> dict[str, tuple[Any, str]]:
    """The token of the first source that has one; of a profile only where the server is its own as well."""
    for source in sources:
        for key in _TOKENS:
            if key in source:
                return {key: source[key]}
    return {}
