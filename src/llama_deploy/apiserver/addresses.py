"""How the place where a control plane listens is written as a URL, and where this machine reaches it.

Pure functions of text; nothing is looked up or connected to.
"""

from __future__ import annotations

import contextlib
import ipaddress

from llama_deploy.errors import SettingError


def url_of(host: str, port: int, *, tls: bool = False) -> str:
    """The URL of a server that listens there."""
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def local_url(url: str) -> str:
    """Where this machine reaches a server that listens on every address; any other URL is what it is."""
    scheme, _, rest = url.partition("://")
    host, _, port = rest.rpartition(":")
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host.strip("[]"))
        if address.is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "[::1]"  # noqa: PLR2004 - the version of IP
    return f"{scheme}://{host}:{port}"


def reached_at(public_url: str | None, url: str) -> str:
    """Where others reach a control plane that listens at `url`: what was said, else there.

    Raises `SettingError` where nothing was said, and it listens on every address: that is no place to connect to.
    """
    if public_url:
        return public_url.rstrip("/")
    if local_url(url) != url:
        raise SettingError(
            f"nobody can be told to connect to {url}",
            why="the control plane listens on every address, and others that share its store have to reach it",
            fix="say where they do: public-url of `control-plane`, or --public-url",
        )
    return url
