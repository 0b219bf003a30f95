"""Connections to PostgreSQL: what a URL says, how connections are made, and which errors mean what.

Passwords come from the URL, the environment (`PGPASSWORD`) or a password file, and are never shown. Behind a proxy that
hands out connections by the transaction, everything runs in explicit transactions and nothing is prepared.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from llama_deploy.errors import (
    LlamaDeployError,
    MissingExtraError,
    SettingError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from llama_deploy.state_stores.shards import SHARDS

if TYPE_CHECKING:
    import asyncpg

SCHEMES = ("postgresql://", "postgres://")
CONNECT_TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 15.0
"""After so long without an answer a connection is taken for dead; what it was asked is asked again on another one."""
_IDENTIFIER_BYTES_MAX = 63
_OWN = frozenset({"schema", "statement_cache_size", "shards", "pool_size", "connect_timeout", "command_timeout"})

TRANSIENT = frozenset({"40001", "40P01", "55P03", "57014"})
"""A serialisation conflict, a deadlock, a lock that was not had in time, a statement that took too long."""


def is_postgres(store: object) -> bool:
    """Whether a setting names a PostgreSQL database."""
    return isinstance(store, str) and store.startswith(SCHEMES)


def is_store(text: str) -> bool:
    """Whether a text can name a store: it is no URL, or the URL of a database that there is a store for."""
    return "://" not in text or is_postgres(text)


@dataclass(frozen=True, kw_only=True)
class PostgresAddress:
    """What a URL says: where the database is, and how the store uses it."""

    dsn: str = field(repr=False)
    location: str
    """The URL as it is shown: without a password."""
    schema: str
    proxied: bool
    """Whether a proxy may give every transaction another connection (`statement_cache_size=0`)."""
    shards: int
    pool_size: int
    connect_timeout_s: float
    command_timeout_s: float


def parse_address(url: str) -> PostgresAddress:
    """Read a URL such as `postgresql://user@host:5432/database?schema=name&sslmode=verify-full`.

    What it does not say comes from the environment (`PGHOST`, `PGPASSWORD`, …) and the password file. Raises
    `SettingError` for one that cannot be read, which does not show it.
    """
    if not is_postgres(url):
        raise SettingError("the URL of a PostgreSQL store begins with postgresql://")
    try:
        parts = urlsplit(url)
        given = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise SettingError("the URL of the PostgreSQL store cannot be read", fix=_HOW) from error
    own = {name: given.pop(name) for name in _OWN & given.keys()}
    schema = own.get("schema", "llama_deploy")
    if not schema or "\0" in schema or len(schema.encode()) > _IDENTIFIER_BYTES_MAX or schema.startswith("pg_"):
        raise SettingError(f"{schema!r} cannot be the name of a schema", fix=f"?schema=NAME   {_HOW}")
    hosts = parts.netloc.rpartition("@")[2]
    if "," in hosts and "target_session_attrs" not in given:
        given["target_session_attrs"] = "primary"  # of several servers, the one that can be written
    return PostgresAddress(
        dsn=urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(given), "")),
        location=_shown(parts.scheme, parts.netloc, parts.path, "" if schema == "llama_deploy" else schema),
        schema=schema,
        proxied=own.get("statement_cache_size") == "0",
        shards=_number(own, "shards", SHARDS, 1, 4096),
        pool_size=_number(own, "pool_size", 4, 1, 100),
        connect_timeout_s=_number(own, "connect_timeout", int(CONNECT_TIMEOUT_S), 1, 3600),
        command_timeout_s=_number(own, "command_timeout", int(COMMAND_TIMEOUT_S), 1, 3600),
    )


_HOW = "write it as postgresql://USER@HOST:5432/DATABASE"


def _number(own: dict[str, str], name: str, default: int, least: int, most: int) -> int:
    text = own.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
        raise SettingError(f"{name} in the URL of the PostgreSQL store is a number from {least} to {most}")
    return int(text)


def _shown(scheme: str, netloc: str, path: str, schema: str) -> str:
    credentials, at, hosts = netloc.rpartition("@")
    user = quote(unquote(credentials.partition(":")[0]))
    query = urlencode({"schema": schema}) if schema else ""
    return urlunsplit((scheme, f"{user}{at if user else ''}{hosts}", path, query, ""))


def quoted(identifier: str) -> str:
    """An identifier as it stands in a statement."""
    return '"' + identifier.replace('"', '""') + '"'


def driver() -> Any:
    """The driver. Raises `MissingExtraError` where it is not installed."""
    try:
        import asyncpg
    except ImportError as error:
        raise MissingExtraError(
            "a store in PostgreSQL takes a package that is not installed (asyncpg)",
            fix="pip install 'llama-deploy-engine[postgres]'",
        ) from error
    return asyncpg


def pause_s(failures: int, first: float = 0.05, longest: float = 2.0) -> float:
    """How long to wait after so many failures in a row: it doubles, with jitter, so that many do not come at once."""
    return min(longest, first * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter


def sqlstate(error: BaseException) -> str:
    """The SQLSTATE of a server's error, empty for anything else."""
    return str(getattr(error, "sqlstate", None) or "")


def is_about_values(error: BaseException) -> bool:
    """Whether the values are at fault, which no repetition mends: they cannot be encoded, or not be stored."""
    if isinstance(error, UnicodeError | OverflowError | ValueError) and not sqlstate(error):
        return True
    return sqlstate(error)[:2] in {"22", "23"} or sqlstate(error) == "54000"


def opening_error(error: BaseException, location: str) -> LlamaDeployError | None:
    """The error of an attempt to open the store that no repetition mends; `None` when it is worth another one."""
    state = sqlstate(error)
    if state[:2] == "28":
        return StoreUnavailableError(
            f"{location} does not let us in",
            why=str(error),
            fix="check user and password: in the URL, in PGUSER and PGPASSWORD, or in the password file",
        )
    if state == "3D000":
        return StoreUnavailableError(f"{location} does not exist", why=str(error), fix="make it: createdb NAME")
    if state in {"25006", "42501"}:
        return StoreReadOnlyError(
            f"{location} cannot be written",
            why=str(error),
            fix="name the primary server, and a user that may create a schema (or owns it)",
        )
    return None


class Connections:
    """The connections of one store: one that writes batches, and a pool for everything else."""

    def __init__(self, address: PostgresAddress) -> None:
        self.address = address
        self._driver = driver()
        self._pool: asyncpg.Pool[Any] | None = None

    @property
    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "dsn": self.address.dsn,
            "timeout": self.address.connect_timeout_s,
            "command_timeout": self.address.command_timeout_s,
        }
        if self.address.proxied:
            options["statement_cache_size"] = 0
        else:
            options["server_settings"] = {"application_name": f"llama_deploy {self.address.schema}"}
        return options

    @property
    def connection_errors(self) -> tuple[type[Exception], ...]:
        """What says that a connection is gone, or that there is none to be had."""
        return (OSError, TimeoutError, EOFError, self._driver.InterfaceError, self._driver.InternalClientError)

    @property
    def all_errors(self) -> tuple[type[Exception], ...]:
        """Everything that a connection raises when it does not do what it was asked."""
        return (*self.connection_errors, self.server_error)

    @property
    def server_error(self) -> type[Exception]:
        """What the server answers when it does not do what it was asked."""
        error: type[Exception] = self._driver.PostgresError
        return error

    async def connect(self) -> asyncpg.Connection[Any]:
        """A connection of its own, for whoever keeps it."""
        try:
            connection: asyncpg.Connection[Any] = await self._driver.connect(**self._options)
        except (ValueError, self._driver.UnsupportedClientFeatureError) as error:
            raise SettingError("the URL of the PostgreSQL store does not fit", why=str(error)) from error
        return connection

    async def open_pool(self) -> None:
        """Make the pool; it connects when it is first used."""

        async def reset(_: object) -> None:
            """Nothing of a session is ever changed, so that nothing is to be set back: a round trip less per read."""

        self._pool = self._driver.create_pool(
            **self._options,
            min_size=0,
            max_size=self.address.pool_size,
            max_inactive_connection_lifetime=300.0,
            reset=reset,
        )
        await self._pool

    async def close_pool(self) -> None:
        """Close the pool's connections, at once those that do not answer."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(5.0):
                await pool.close()
        except self.connection_errors:
            pool.terminate()

    @asynccontextmanager
    async def connection(self, *, transaction: bool = False) -> AsyncIterator[asyncpg.Connection[Any]]:
        """A connection of the pool; in a transaction where one is asked for, or a proxy asks for it."""
        if self._pool is None:
            raise StoreUnavailableError("the store is closed")
        async with self._pool.acquire(timeout=self.address.connect_timeout_s) as connection:
            if transaction or self.address.proxied:
                async with connection.transaction():
                    yield connection
            else:
                yield connection
