"""`llamactl config`: profiles of servers, and where each setting comes from."""

from __future__ import annotations

import copy
from typing import Any

import click

from llama_deploy.cli.lazy import CommandGroup
from llama_deploy.cli.settings import Settings, with_settings

DEFAULT_PROFILE = "default"
HIDDEN = "••••"


@click.group(cls=CommandGroup)
def config() -> None:
    """Keep profiles of servers, and see what is in force."""


@config.command("list")
@with_settings
def list_profiles(settings: Settings) -> None:
    """List the profiles; the current one is marked."""
    from llama_deploy.cli import profiles
    from llama_deploy.cli.output import Column, Printer

    found = profiles.load()
    items = [
        {"name": name, "current": name == found.current, **_shown(profile)}
        for name, profile in sorted(found.profiles.items())
    ]
    columns = [Column("name", "PROFILE"), Column("current", "CURRENT", lambda value: "*" if value else "")]
    columns += [Column("server", "SERVER")]
    wide = [Column(key, key.upper()) for key in profiles.KEYS if key != "server"]
    empty = "No profiles yet: llamactl config set server URL"
    Printer(settings).table(items, columns, wide=wide, name="name", empty=empty)


@config.command("use")
@click.argument("name")
@with_settings
def use(settings: Settings, name: str) -> None:
    """Make a profile the current one, whose settings hold where nothing else is said."""
    from llama_deploy.cli import profiles
    from llama_deploy.cli.output import Printer

    found = profiles.load()
    found.get(name)
    found.current = name
    found.save()
    Printer(settings).record({"current": name}, name=name)


@config.command("set")
@click.argument("key")
@click.argument("value", required=False)
@with_settings
def set_key(settings: Settings, key: str, value: str | None) -> None:
    """Set KEY of a profile: the one that --profile names, else the current one. A token comes from standard input."""
    from llama_deploy.cli import profiles
    from llama_deploy.cli.calls import read_stdin
    from llama_deploy.cli.output import Printer

    key = "request-timeout" if key == "timeout" else key  # the published word
    _check_key(key)
    if key == "token":
        if value not in (None, "-"):
            raise click.UsageError("A token is given on standard input: lists of processes show what stands here.")
        value = read_stdin().strip()
    if not value:
        raise click.UsageError(f"Give a value: {profiles.KEYS[key]}.")
    found = profiles.load()
    name = settings.profile or found.current or DEFAULT_PROFILE
    found.profiles.setdefault(name, {})[key] = _checked(key, value)
    found.current = found.current or name
    found.save()
    Printer(settings).record({"name": name, **_shown(found.profiles[name])}, name=name)


@config.command("unset")
@click.argument("key", required=False)
@with_settings
def unset(settings: Settings, key: str | None) -> None:
    """Take KEY out of a profile; without KEY, remove the profile that --profile names."""
    from llama_deploy.cli import profiles
    from llama_deploy.cli.output import Printer

    if key is not None:
        _check_key(key)
    found = profiles.load()
    name = settings.profile or (found.current if key is not None else None)
    if name is None:
        raise click.UsageError("Name a profile: --profile NAME.")
    profile = found.get(name)
    if key is None:
        del found.profiles[name]
        found.current = None if found.current == name else found.current
    else:
        profile.pop(key, None)
    found.save()
    Printer(settings).record({"name": name, **_shown(found.profiles.get(name, {}))}, name=name)


@config.command("show")
@click.option("--origin", is_flag=True, help="Where each setting comes from.")
@with_settings
def show(settings: Settings, *, origin: bool) -> None:
    """The settings that are in force, from options, the environment and the profile."""
    from llama_deploy.cli import profiles
    from llama_deploy.cli.output import Column, Printer

    document: dict[str, Any] = {
        "profile": settings.profile,
        "server": settings.server,
        "api-server": settings.api_server,
        "token": HIDDEN if settings.token else None,
        "token-file": settings.token_file,
        "ca-file": settings.ca_file,
        "insecure": settings.insecure,
        "request-timeout": settings.timeout_s,
        "output": settings.output,
    }
    printer = Printer(settings)
    if not origin:
        printer.record({**document, "file": str(profiles.profiles_file())}, name=settings.server)
        return
    items = [
        {"setting": key, "value": value, "origin": settings.origins.get(key, "default")}
        for key, value in document.items()
    ]
    columns = [Column("setting", "SETTING"), Column("value", "VALUE"), Column("origin", "ORIGIN")]
    printer.table(items, columns, name="setting")


@config.command("current-profile")
@with_settings
def current_profile(settings: Settings) -> None:
    """The name of the current profile."""
    from llama_deploy.cli import profiles
    from llama_deploy.cli.output import Printer
    from llama_deploy.errors import SettingError

    current = profiles.load().current
    if current is None:
        raise SettingError("no profile is the current one", fix="llamactl config use NAME")
    Printer(settings).record({"current": current}, name=current, text=lambda: current)


@config.command("rename-profile")
@click.argument("name")
@click.argument("new_name")
@with_settings
def rename_profile(settings: Settings, name: str, new_name: str) -> None:
    """Give a profile another name."""
    from llama_deploy.cli import profiles
    from llama_deploy.cli.output import Printer
    from llama_deploy.errors import SettingError

    found = profiles.load()
    profile = found.get(name)
    if new_name in found.profiles:
        raise SettingError(
            f"there is a profile {new_name!r} already", fix="llamactl config list     see which there are"
        )
    del found.profiles[name]
    found.profiles[new_name] = profile
    found.current = new_name if found.current == name else found.current
    found.save()
    Printer(settings).record({"name": new_name, **_shown(profile)}, name=new_name)


@config.command("delete-profile")
@click.argument("name")
@with_settings
def delete_profile(settings: Settings, name: str) -> None:
    """Remove a profile."""
    from llama_deploy.cli import profiles
    from llama_deploy.cli.output import Printer

    found = profiles.load()
    found.get(name)
    del found.profiles[name]
    found.current = None if found.current == name else found.current
    found.save()
    Printer(settings).record({"name": name, "deleted": True}, name=name)


def _published(name: str, command: click.Command) -> None:
    """Have a command answer to its published name as well."""
    again = copy.copy(command)
    again.name, again.hidden = name, True
    config.add_command(again)


_published("get-profiles", list_profiles)
_published("use-profile", use)
_published("set-profile-vars", set_key)


def _check_key(key: str) -> None:
    import difflib

    from llama_deploy.cli.profiles import KEYS

    if key not in KEYS:
        close = difflib.get_close_matches(key, KEYS, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise click.UsageError(f"There is no setting '{key}'.{hint} There are: {', '.join(KEYS)}.")


def _checked(key: str, value: str) -> str:
    """A value as it is kept. Raises `SettingError` for one that cannot be used."""
    from llama_deploy.cli.settings import OUTPUT_FORMS
    from llama_deploy.errors import SettingError

    if key in ("server", "api-server"):
        from llama_deploy.connections.several import transport_to

        transport_to(value)
        return value.rstrip("/")
    if key == "request-timeout":
        try:
            valid = 0 < float(value) < float("inf")
        except ValueError:
            valid = False
        if not valid:
            raise SettingError(f"request-timeout is {value!r}", fix="give seconds, above 0")
    if key == "insecure" and value not in ("true", "false"):
        raise SettingError(f"insecure is {value!r}", fix="say true or false")
    if key == "output" and value not in OUTPUT_FORMS:
        raise SettingError(f"output is {value!r}", fix=f"use one of {', '.join(OUTPUT_FORMS)}")
    if key == "token":
        from llama_deploy.types.access import is_token

        if not is_token(value):
            raise SettingError("what came on standard input is not a token", fix="llamactl config set token < FILE")
    if key.endswith("-file"):
        from pathlib import Path

        return str(Path(value).expanduser().absolute())
    return value


def _shown(profile: dict[str, str]) -> dict[str, str]:
    return {key: HIDDEN if key == "token" else value for key, value in profile.items()}
