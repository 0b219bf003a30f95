"""Who may do what at a control plane: scopes, tokens, and the settings that a server is given. Data, no I/O.

A token is kept as the SHA-256 of its text and nothing else. A hash without salt and stretching is enough because a
token is not a password: it has at least `TOKEN_CHARACTERS_MIN` characters, meant to be random (`new_token`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from llama_deploy.errors import SettingError
from llama_deploy.types.limits import RateLimit

TOKEN_CHARACTERS_MIN = 20
"""A shorter token is refused: it could be guessed."""
TOKEN_CHARACTERS_MAX = 500
"""A longer text is no token."""
AUDIT_BYTES_MAX = 10_000_000
"""The audit log begins a new file beyond this size."""
AUDIT_FILES = 5
"""So many earlier files of the audit log are kept."""
HASH_PREFIX = "sha256:"
"""How the hash of a token begins where it is written down."""

HOW_TO_MAKE_ONE = "llamactl tokens create     make a token, and the lines for the deployment file"

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # RFC 6750, b64token
_HASH = re.compile(r"sha256:[0-9a-fA-F]{64}")


class Scope(str, Enum):
    """What a token allows. `admin` allows everything; `run` and `deploy` allow `read` as well."""

    READ = "read"
    """Look at tasks, their results and streams, sessions, services, queues."""
    RUN = "run"
    """Submit tasks, answer, cancel, pause and repeat them; sessions and files."""
    SERVE = "serve"
    """Connect as an instance of services: take steps and answer them."""
    DEPLOY = "deploy"
    """Change what runs and how: deployments, limits and pauses of services, schedules."""
    ADMIN = "admin"
    """Everything: also copies of all data, erasing, deleting, what is done to many tasks at once."""


_IMPLIED = {Scope.RUN: {Scope.READ}, Scope.DEPLOY: {Scope.READ}, Scope.ADMIN: set(Scope)}


def with_implied(scopes: Iterable[Scope | str]) -> frozenset[Scope]:
    """The scopes with those that they include."""
    given = {Scope(scope) for scope in scopes}
    return frozenset(given.union(*(_IMPLIED.get(scope, set()) for scope in given)))


def digest_of(token: str) -> bytes:
    """What is kept of a token: SHA-256 of its text."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def is_token(text: str) -> bool:
    """Whether a text has the form of a token."""
    return TOKEN_CHARACTERS_MIN <= len(text) <= TOKEN_CHARACTERS_MAX and _TOKEN.fullmatch(text) is not None


def digest_from(text: str, *, source: str) -> bytes:
    """What is kept of a token, given the token, or its hash as `sha256:HEX`.

    Raises `SettingError`, which says where the text came from and never shows it.
    """
    if text.startswith(HASH_PREFIX):
        if _HASH.fullmatch(text) is None:
            raise SettingError(
                f"{source} has a hash of a token that is none",
                why=f"it is `{HASH_PREFIX}` and 64 hex digits",
                fix=HOW_TO_MAKE_ONE,
            )
        return bytes.fromhex(text.removeprefix(HASH_PREFIX))
    if not is_token(text):
        raise SettingError(
            f"{source} has no usable token",
            why=f"{TOKEN_CHARACTERS_MIN} to {TOKEN_CHARACTERS_MAX} letters, digits and ._~+/=- are one",
            fix=HOW_TO_MAKE_ONE,
        )
    return digest_of(text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """One token by its name. Two tokens may have one name while one takes the place of the other."""

    name: str
    """Who it is given to; it stands in the audit log."""
    digest: bytes = field(repr=False)
    scopes: frozenset[Scope]
    """With those that are included (`with_implied`)."""
    rate: RateLimit | None = None
    """How many requests, and operations of its connections, it may make."""
    services: frozenset[str] | None = None
    """What whoever shows it may serve, by name; None: anything. It says nothing of the other scopes."""
    speaks_for_others: bool = False
    """Whether who shows it may say for whom it asks, and what they may: a server in front of this one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TLSFiles:
    """The certificate that a server shows, and whose certificates it asks of clients. Paths are absolute."""

    certificate: Path
    """PEM: the server's own, then those that it was signed with."""
    key: Path
    client_ca: Path | None = None
    """PEM: with it, only clients whose certificate was signed by one of these are let in (mutual TLS)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditSettings:
    """Where it is written who did what."""

    file: Path | None
    """One line of JSON for each; made with the rights of its owner only. None: to standard output."""
    reads: bool = False
    """Also what changes nothing."""
    bytes_max: int = AUDIT_BYTES_MAX
    """A file that is larger is put aside as `.1`, that one as `.2`, and so on."""
    files: int = AUDIT_FILES
    """So many files are kept beside the one that is written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AccessSettings:
    """Who is let in, and how. Without tokens everybody who reaches the port is, and it has to be loopback.

    `hosts` are further names by which the server is reached, `cors_origins` the origins whose pages may use it from a
    browser (`https://desk.example.com`).
    """

    tokens: tuple[Token, ...] = ()
    hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    tls: TLSFiles | None = None
    audit: AuditSettings | None = None
