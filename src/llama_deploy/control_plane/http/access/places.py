"""Where a request comes from and what it is for, as a browser says it: the `Host` and `Origin` headers.

A browser lets any page send requests anywhere, also to loopback. A page of another site names its origin; a page whose
name an attacker has pointed at this machine (DNS rebinding) names that name as the host. Neither is let in.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from llama_deploy.errors import CrossSiteError, WrongHostError

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""What changes nothing; its answer stays unreadable for pages of other sites, unless CORS headers allow it."""
PRIVATE_ENDINGS = (".internal", ".local", ".svc", ".home.arpa", ".test")
"""Endings of names that nobody can register: of networks of one's own, and of clusters."""


class Places:
    """The names by which a server is reached, and the origins whose pages may use it.

    `listens_on` is the host that it was told to listen on. Addresses written as numbers and `localhost` are always
    right: an attacker's name is never one of them. On a server that listens beyond loopback, so are names that nobody
    can register: without a dot (of a container, say), or with one of `PRIVATE_ENDINGS`.
    """

    def __init__(self, *, listens_on: str, hosts: Collection[str] = (), origins: Collection[str] = ()) -> None:
        self._origins = {origin.lower() for origin in origins}
        self._hosts = {host.lower().rstrip(".") for host in hosts} | {"localhost"}
        self._remote = not is_loopback(listens_on)
        if self._remote:
            self._hosts |= {listens_on.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}

    def check_host(self, host: str) -> None:
        """Raise `WrongHostError` for a host that this server is not known by."""
        name = _name_of(host)
        if not name:
            return  # no browser leaves it out
        if name in self._hosts or name.endswith(".localhost") or _is_address(name):
            return
        if self._remote and ("." not in name or name.endswith(PRIVATE_ENDINGS)):
            return
        raise WrongHostError(
            f"this server is not known as {name[:100]!r}",
            why="a page in a browser may have been given a name that leads here (DNS rebinding)",
            fix="list the name under `hosts` of `access` in the deployment file, or ask for tokens there",
            host=name[:100],
        )

    def check_origin(self, origin: str | None, host: str, method: str) -> None:
        """Raise `CrossSiteError` where a page of another site wants to change something, or to connect (`WS`)."""
        if origin is None or method in SAFE_METHODS:
            return
        if urlsplit(origin).netloc.lower() == host.lower() or origin.lower() in self._origins:
            return
        raise CrossSiteError(
            f"a page of {origin[:100]!r} may not use this server",
            why="its origin is not that of this server",
            fix="list the origin under `cors-origins` of `access` in the deployment file, if it is yours",
            origin=origin[:100],
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name_of(host: str) -> str:
    """The host of a `Host` header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
