"""What `Client` takes and has for programs of the published one: its keyword arguments, variables and three parts.

Each argument is another word for one of ours or has no effect here; none changes what ours do. The parts (`core`,
`apiserver`, `sync`) are made where they are first asked for, by what `llama_deploy._published` names.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, TypedDict

from llama_deploy._published import CLIENT_PARTS
from llama_deploy.errors import SettingError

DEFAULT_URL = "http://127.0.0.1:8000"
"""Where a control plane listens by default."""
DEFAULT_API_SERVER_URL = "http://localhost:4501"
"""Where the published API server listens by default."""
PUBLISHED_URL = "http://localhost:8000"
"""The same, in the published client's words."""
PUBLISHED_TIMEOUT_S = 120.0
"""How long the published client waits where nobody says how long."""
PUBLISHED_POLL_INTERVAL_S = 0.5
WAIT_TIMEOUT_S = 600.0
"""How long a call waits by default. What it waits for goes on when the time is over."""
VARIABLES = "LLAMA_DEPLOY_"
"""What the names of the variables begin with: `LLAMA_DEPLOY_CONTROL_PLANE_URL` and so on, one for each argument."""


class PublishedArguments(TypedDict, total=False):
    """The arguments of the published client."""

    control_plane_url: str
    """The same as `url`."""
    api_server_url: str
    """Where `client.apiserver` asks; by default where `url` says, which serves both, else the published address."""
    disable_ssl: bool
    """Whether certificates are not checked, where a URL begins with `https://`."""
    timeout: float | None
    """The same as `timeout_s`; `None` waits for ever."""
    poll_interval: float
    """Not used: results are pushed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientSettings:
    """What a client was made with, in our words."""

    url: str | Sequence[str]
    api_server_url: str | Sequence[str] | None
    """`None`: where the client itself asks."""
    verify: bool
    timeout_s: float
    own_transport: bool
    published: Mapping[str, Any]
    """The arguments of the published client and what they are, as its users read them from it."""


def settings_of(
    url: str | Sequence[str] | None, timeout_s: float | None, given: Mapping[str, Any], *, own_transport: bool
) -> ClientSettings:
    """The settings that arguments and variables come to; an argument wins over a variable.

    Raises `SettingError` where two arguments say different things, and `TypeError` for an unknown one.
    """
    for name in given:
        if name not in PublishedArguments.__annotations__:
            raise TypeError(f"Client() got an unexpected keyword argument {name!r}")
    named = _one_of("url", url, "control_plane_url", given.get("control_plane_url"))
    if own_transport and named is not None:
        raise SettingError(
            "a client was given a transport and an address", fix="give one of them: a transport has its own"
        )
    if "timeout" in given:
        timeout = math.inf if given["timeout"] is None else _number("timeout", given["timeout"])
        timeout_s = _one_of("timeout_s", timeout_s, "timeout", timeout)
    elif timeout_s is None and (said := _variable("timeout")):
        timeout_s = _number(f"{VARIABLES}TIMEOUT", said)
    disable_ssl = given.get("disable_ssl")
    if disable_ssl is None:
        disable_ssl = _variable("disable_ssl").lower() in {"1", "true", "yes", "on"}
    api_server_url = given.get("api_server_url") or _variable("api_server_url")
    if not api_server_url and url is None and not own_transport:
        api_server_url = DEFAULT_API_SERVER_URL
    return ClientSettings(
        url=named if named is not None else _variable("control_plane_url") or DEFAULT_URL,
        api_server_url=api_server_url or None,
        verify=not disable_ssl,
        timeout_s=WAIT_TIMEOUT_S if timeout_s is None else timeout_s,
        own_transport=own_transport,
        published={
            "api_server_url": api_server_url or named or DEFAULT_API_SERVER_URL,
            "control_plane_url": named or _variable("control_plane_url") or PUBLISHED_URL,
            "timeout": PUBLISHED_TIMEOUT_S if timeout_s is None else timeout_s,
            "poll_interval": _poll_interval(given),
        },
    )


def _poll_interval(given: Mapping[str, Any]) -> float:
    said = given.get("poll_interval", _variable("poll_interval"))
    return PUBLISHED_POLL_INTERVAL_S if said in (None, "") else _number("poll_interval", said)


def _one_of(name: str, value: Any, other_name: str, other: Any) -> Any:
    if value is not None and other is not None and value != other:
        raise SettingError(
            f"`{name}` is {value!r} and `{other_name}` is {other!r}",
            why="they are two words for the same",
            fix=f"give one of them; new programs say `{name}`",
            setting=name,
        )
    return other if value is None else value


def _variable(name: str) -> str:
    return os.environ.get(VARIABLES + name.upper(), "")


def _number(name: str, text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError) as error:
        raise SettingError(f"{name} is {text!r}", fix="give seconds, as a number", setting=name) from error


class PublishedParts:
    """What programs find in the published client, and `Client` has as well: three parts, and what it was made with."""

    settings: ClientSettings

    @cached_property
    def core(self) -> Any:
        """The control plane as the published client has it: `core.sessions`, `core.services`."""
        return self._part("core")

    @cached_property
    def apiserver(self) -> Any:
        """The API server as the published client has it: `apiserver.status()`, `apiserver.deployments`."""
        return self._part("apiserver")

    @cached_property
    def sync(self) -> Any:
        """The same two for code that does not await: `sync.core`, `sync.apiserver`."""
        return self._part("sync")

    @property
    def control_plane_url(self) -> Any:
        """Where the control plane is asked."""
        return self.settings.published["control_plane_url"]

    @property
    def api_server_url(self) -> Any:
        """Where the API server is asked."""
        return self.settings.published["api_server_url"]

    @property
    def disable_ssl(self) -> bool:
        """Whether certificates are not checked."""
        return not self.settings.verify

    @property
    def timeout(self) -> float:
        """How long the three parts wait, in seconds."""
        return float(self.settings.published["timeout"])

    @property
    def poll_interval(self) -> float:
        """As it was given; nothing polls."""
        return float(self.settings.published["poll_interval"])

    def _part(self, name: str) -> Any:
        module, _, made = CLIENT_PARTS[name].partition(":")
        return getattr(import_module(module), made)(self)
