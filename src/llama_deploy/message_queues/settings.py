"""Where a broker is and how it is spoken to: address, credentials, TLS, names, pauses and limits.

Everything that the carriers outside of this process have in common. A password is in no text that this module makes,
and `hide` takes it out of the texts that drivers make.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from llama_deploy.errors import MissingExtraError, SettingError

NAME_DIGEST_LENGTH = 16


@dataclass(frozen=True, kw_only=True)
class CarrierSettings:
    """How to reach a broker. Times are seconds; each name carries its unit."""

    url: str = field(repr=False)
    """`scheme://user:password@host:port/path?option=value`."""
    username: str | None = None
    """In the place of the URL's."""
    password: str | None = field(default=None, repr=False)
    """In the place of the URL's."""
    namespace: str | None = None
    """What the names at the broker begin with; by default an identity that is kept in the store."""
    ca_file: str | Path | None = None
    """Certificates of the authorities that are trusted, in the place of the system's; TLS is used."""
    certificate_file: str | Path | None = None
    """The certificate that is shown to the broker; TLS is used."""
    key_file: str | Path | None = None
    """The key of that certificate, where it is not in the same file."""
    connect_timeout_s: float = 5.0
    """How long one attempt to connect may take."""
    request_timeout_s: float = 10.0
    """How long the broker may take for an answer before its connection counts as broken."""
    wait_s: float = 5.0
    """How long one request for deliveries waits for the first of them."""
    reconnect_s: float = 0.1
    """The longest pause before the first attempt to connect again; it doubles, and every pause is drawn at random."""
    reconnect_s_max: float = 5.0
    """The longest pause between attempts to connect."""
    outgoing_max: int = 100_000
    """Envelopes that may wait to be sent; more are refused, and fall due again."""
    batch_max: int = 500
    """Envelopes that are sent, fetched or acknowledged at once."""
    batch_bytes_max: int = 4_194_304
    """Bytes that are sent at once, beyond the first envelope."""
    statistics_s: float = 1.0
    """How old a figure of the broker's may be before it is asked again."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        try:
            port = urlsplit(f"//{parts.netloc.rpartition('@')[2].partition(',')[0]}").port
        except ValueError:
            raise SettingError("the port in the URL of the message queue is none", fix="give HOST:PORT") from None
        if not parts.scheme or (not parts.hostname and parts.scheme != "sqs"):
            raise SettingError("the URL of the message queue names no host", fix="give it as scheme://host:port")
        for name in ("ca_file", "certificate_file", "key_file"):
            given = getattr(self, name)
            if given is not None and not Path(given).is_file():
                raise SettingError(f"there is no file {given}", why=f"{name} of the message queue names it")
        if self.namespace is not None and not re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", self.namespace):
            raise SettingError(
                f"namespace {self.namespace!r} of the message queue cannot be used",
                fix="take 1 to 60 letters, digits, `_`, `-` or `.`",
            )
        object.__setattr__(self, "_parts", (parts, port))

    @property
    def _split(self) -> tuple[Any, int | None]:
        found: tuple[Any, int | None] = self._parts  # type: ignore[attr-defined]
        return found

    @property
    def scheme(self) -> str:
        """The URL's scheme, in lower case."""
        return str(self._split[0].scheme)

    @property
    def host(self) -> str:
        """The broker's host; of several the first one."""
        return (self._split[0].hostname or "").partition(",")[0]

    @property
    def hosts(self) -> list[str]:
        """Every `host:port` of a URL that names several, separated by commas."""
        return [part for part in self._split[0].netloc.rpartition("@")[2].split(",") if part]

    def port(self, default: int) -> int:
        """The broker's port; of several the first one's."""
        return self._split[1] or default

    @property
    def path(self) -> str:
        """The URL's path without its first slash."""
        return unquote(self._split[0].path[1:])

    @property
    def credentials(self) -> tuple[str | None, str | None]:
        """User and password."""
        parts = self._split[0]
        username = self.username if self.username is not None else parts.username and unquote(parts.username)
        password = self.password if self.password is not None else parts.password and unquote(parts.password)
        return username, password

    def options(self, known: Collection[str]) -> dict[str, str]:
        """The options of the URL's query. Raises `SettingError` for one that is not known."""
        given = dict(parse_qsl(self._split[0].query))
        for name in given:
            if name not in known:
                raise SettingError(
                    f"the URL of the message queue has the unknown option {name!r}",
                    why="known: " + (", ".join(sorted(known)) or "none"),
                )
        return given

    @property
    def location(self) -> str:
        """The address as anybody may see it."""
        parts = self._split[0]
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def hide(self, text: str) -> str:
        """A driver's text without the password."""
        password = self.credentials[1]
        for secret in {password, quote(password, safe="")} if password else ():
            text = text.replace(secret, "***")
        return re.sub(r"://[^/@\s]*@", "://***@", text)

    def tls(self, *secure_schemes: str) -> ssl.SSLContext | None:
        """The TLS to speak: with a secure scheme, or where certificates are given; else `None`."""
        if self.scheme not in secure_schemes and self.ca_file is None and self.certificate_file is None:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.certificate_file is not None:
                context.load_cert_chain(self.certificate_file, self.key_file)
        except (ssl.SSLError, OSError) as error:
            raise SettingError("the certificates for the message queue cannot be used", why=str(error)) from error
        return context


def place_name(*parts: str, most: int) -> str:
    """A name that every broker allows: letters, digits, `-`, and `_` before the hexadecimal code of any other byte.

    Parts are joined by two underscores, which no part has within it. What would be longer than `most` ends in a digest
    instead, so that two names never become one.
    """
    name = "__".join(re.sub(rb"[^A-Za-z0-9-]", _escape, part.encode()).decode() for part in parts)
    if len(name) <= most:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:NAME_DIGEST_LENGTH]
    return f"{name[: most - NAME_DIGEST_LENGTH - 2]}_z{digest}"


def _escape(found: re.Match[bytes]) -> bytes:
    return b"_%02x" % found.group()[0]


def missing(kind: str, package: str, extra: str) -> MissingExtraError:
    """The error for a driver that is not installed."""
    return MissingExtraError(
        f"the message queue {kind} takes a package that is not installed ({package})",
        fix=f"pip install 'llama-deploy-engine[{extra}]'",
        extra=extra,
    )
