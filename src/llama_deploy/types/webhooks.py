"""Webhooks as settings and as views: whom a control plane may tell of the end of a task, and how that went.

Which hosts may be called is decided here, by name before a task is taken and by address before a request is made;
nothing here resolves a name or opens a connection. How a request is signed is in `llama_deploy.messages.webhooks`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict

from llama_deploy.errors import InvalidRequestError, SettingError
from llama_deploy.types.options import Webhook

WEBHOOK_SERVICE = "__webhook__"
"""The service of the control plane itself that makes the requests."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

METADATA_ADDRESSES = frozenset(
    ipaddress.ip_address(text) for text in ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254")
)
"""Where clouds give secrets to whoever asks, besides the link-local addresses."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class WebhookView(BaseModel):
    """How the news of a task's end gets on. The address is shown without its query."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    url: str
    state: Literal["waiting", "sending", "delivered", "failed"]
    """`waiting` until the task has ended; `sending` from then on, between attempts too; `failed`: given up."""
    attempt: int = 0
    """The attempt that is next or under way, counted from 1; of `failed`, the last one."""
    due_at: float | None = None
    """When the next attempt begins, in seconds since the epoch, where it has to wait."""
    error: str | None = None
    """What went wrong last."""


@dataclass(frozen=True, kw_only=True)
class WebhookSettings:
    """Whom a control plane tells of the end of tasks, and what it may call.

    `default` is told of every task that names no webhook of its own; children of tasks are left out. `hosts` are the
    targets that are allowed: names (`hooks.example.com`), patterns (`*.example.com`), addresses and networks
    (`10.1.0.0/16`). Without any, every host is allowed. Link-local, multicast and reserved addresses, and those where
    clouds keep their credentials, are refused unless an address or a network of `hosts` has them. `secrets` are the
    signing secrets by name: `whsec_` and base64 of 24 to 64 bytes, several with spaces between while one takes the
    place of another. They are never shown.

    Raises `SettingError` for what cannot be used.
    """

    default: Webhook | None = None
    hosts: tuple[str, ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for pattern in self.hosts:
            if not pattern or pattern != pattern.strip() or "://" in pattern:
                raise SettingError(
                    f"{pattern!r} is not a pattern of webhook hosts",
                    fix="give a host (hooks.example.com), a pattern (*.example.com) or a network (10.1.0.0/16)",
                )
        if self.default is not None:
            try:
                self.check(self.default)
            except InvalidRequestError as error:
                raise SettingError("the default webhook cannot be used", why=str(error), fix=error.fix) from error

    def check(self, webhook: Webhook) -> None:
        """Raise `InvalidRequestError` for a webhook that would only be refused when its task has ended."""
        try:
            parts = urlsplit(webhook.url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise _refusal("url", "is not a URL", why=str(error)) from error
        if not host or parts.scheme not in ("http", "https") or port == 0 or not webhook.url.isprintable():
            raise _refusal("url", "is not a URL", why="it has the form https://host/path")
        if parts.username is not None or parts.password is not None:
            raise _refusal("url", "carries a login", why="it would be shown with the task", fix="sign with a secret")
        if " " in webhook.url:
            raise _refusal("url", "is not a URL", why="it has a space", fix="write %20 for it")
        reason = self.refuses_host(host)
        if reason:
            raise _refusal("url", f"may not be called: {reason}", fix="choose another, or allow it in webhook hosts")
        if webhook.secret is not None and webhook.secret not in self.secrets:
            known = ", ".join(sorted(self.secrets)) or "none"
            raise _refusal(
                "secret", f"{webhook.secret[:40]!r} is not known", why=f"secrets of this control plane: {known}"
            )

    def refuses_host(self, host: str) -> str:
        """Why a host may not be called, as far as its name tells; empty where it may, or where its address decides."""
        address = as_address(host)
        if address is not None:
            return self.refuses_address(host, address)
        networks, names = self._patterns()
        if not self.hosts or networks or _matches(host, names):
            return ""
        return f"{host} is none of the allowed hosts"

    def refuses_address(self, host: str, address: Address) -> str:
        """Why an address that a host's name stands for may not be called; empty where it may."""
        networks, names = self._patterns()
        true_address = embedded(address)
        if any(candidate in network for network in networks for candidate in (address, true_address)):
            return ""
        kind = _kind(true_address)
        if kind:
            return f"{host} is {kind} ({true_address})"
        if self.hosts and not _matches(host, names):
            return f"{host} is none of the allowed hosts"
        return ""

    def _patterns(self) -> tuple[list[Network], list[str]]:
        networks: list[Network] = []
        names: list[str] = []
        for pattern in self.hosts:
            try:
                networks.append(ipaddress.ip_network(pattern.strip("[]"), strict=False))
            except ValueError:
                names.append(pattern.lower().rstrip("."))
        return networks, names


def redacted(url: str) -> str:
    """A URL as it is shown: without login and fragment, and with a mark in the place of its query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(not a URL)"
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "…" if parts.query else "", ""))


def as_address(host: str) -> Address | None:
    """The address that a host is written as, `None` for a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def embedded(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one that only stands for it, else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _kind(address: Address) -> str:
    """What an address is that nobody calls by accident, in words; empty for all others."""
    if address.is_link_local or address in METADATA_ADDRESSES:
        return "a link-local or metadata address"
    if address.is_multicast:
        return "a multicast address"
    if address.is_unspecified or (address.is_reserved and not address.is_loopback):
        return "a reserved address"
    return ""


def _matches(host: str, names: list[str]) -> bool:
    plain = host.lower().rstrip(".")
    return any(fnmatchcase(plain, name) for name in names)


def _refusal(name: str, what: str, *, why: str = "", fix: str = "") -> InvalidRequestError:
    return InvalidRequestError(f"options.webhook.{name} {what}", why=why, fix=fix, field=f"options.webhook.{name}")
