"""What `llamactl doctor` looks at: one function for each cause, each with what it found.

A check changes nothing: it starts nothing, writes nothing that stays, and submits no task. Those of this machine need
no server; those of the server need nothing of the deployment file.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from llama_deploy.cli.settings import Settings
from llama_deploy.errors import (
    CannotReachError,
    Category,
    LlamaDeployError,
    PortInUseError,
    ProtocolError,
    SettingError,
    StoreLockedError,
    StoreReadOnlyError,
    StoreUnavailableError,
    StoreVersionError,
    TLSError,
)

if TYPE_CHECKING:
    from llama_deploy.apiserver.specs import DeploymentFile
    from llama_deploy.client import Client

PYTHON_MIN = (3, 11)
FREE_BYTES_MIN = 100_000_000
"""Less free space than this is worth a word."""
SKEW_S_MAX = 2.0
"""Clocks that are further apart are worth a word."""
PATIENCE_S = 5.0
"""How long anything may take that is asked."""

Result = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found."""

    check: str
    result: Result
    what: str
    error: LlamaDeployError | None = None
    """Why it failed, or what is to be said beside it."""


def python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Finding:
    """Whether this Python is one that the program is made for."""
    shown = ".".join(map(str, version))
    if version >= PYTHON_MIN:
        return Finding("python", "ok", f"Python {shown}")
    wanted = ".".join(map(str, PYTHON_MIN))
    error = SettingError(f"this is Python {shown}", why=f"{wanted} is the oldest that works", fix="install a later one")
    return Finding("python", "failed", error.what, error)


def packages() -> Finding:
    """Whether the published distribution has put its files among ours (LD109)."""
    from llama_deploy.runtime.installed import two_distributions

    error = two_distributions()
    if error is not None:
        return Finding("packages", "failed", error.what, error)
    return Finding("packages", "ok", "no other distribution of llama_deploy")


def deployment_file(path: Path | None) -> tuple[Finding, DeploymentFile | None]:
    """Whether the deployment file can be used; where nobody names one, whether there is one is no matter."""
    from llama_deploy.apiserver.deployment_file import find_deployment_file, load_deployment_file
    from llama_deploy.errors import DeploymentFileError

    if path is None:
        try:
            find_deployment_file()
        except DeploymentFileError:
            return Finding("deployment file", "skipped", "there is none in this folder"), None
    try:
        file = load_deployment_file(path)
        file.access.settings(file.folder, file.name)
    except LlamaDeployError as error:
        return Finding("deployment file", "failed", error.what, error), None
    return Finding("deployment file", "ok", f"{file.path}, {len(file.services)} services"), file


def port(file: DeploymentFile) -> Finding:
    """Whether the control plane's port is free; one that is in use may be its own, which the server's checks tell."""
    place = file.control_plane
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            refusal = SettingError(f"cannot listen on {place.host}:{place.port}", why=str(error))
            return Finding("port", "failed", refusal.what, refusal)
        used = PortInUseError(
            f"port {place.port} on {place.host} is in use",
            why="that is right where the deployment runs already",
            fix=f"llamactl -s {url_of_file(file)} status     see whether it is\n"
            "stop what listens there, or choose another port under `control-plane`",
        )
        return Finding("port", "warning", used.what, used)
    return Finding("port", "ok", f"{place.host}:{place.port} is free")


def store(file: DeploymentFile) -> Iterator[Finding]:
    """Whether the store's file can be written, is open elsewhere, and has room."""
    path = store_path(file)
    if path is None:
        yield Finding("store", "skipped", "it is no file of this machine")
        return
    place = path
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        closed = StoreReadOnlyError(
            f"{path} cannot be written", why=f"{place} is not writable for this user", fix=f"ls -ld {place}"
        )
        yield Finding("store", "failed", closed.what, closed)
    else:
        yield _opened(path)
    free = shutil.disk_usage(place if place.is_dir() else place.parent).free
    if free < FREE_BYTES_MIN:
        full = StoreUnavailableError(
            f"{free // 1_000_000} MB are free where the store is",
            why="without room nothing is recorded, and no work is taken",
            fix="make room, or name another place: store: PATH",
        )
        yield Finding("disk", "failed" if free == 0 else "warning", full.what, full)
    else:
        yield Finding("disk", "ok", f"{free / 1e9:.1f} GB free")


def _opened(path: Path) -> Finding:
    """Whether the store is free, and one that this version can read. Nothing is written."""
    import fcntl

    if not path.exists():
        return Finding("store", "ok", f"{path} is made at the start")
    lock_file = path.with_name(f"{path.name}.lock")
    if lock_file.exists():
        with lock_file.open("rb") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                who = held.read(32).decode(errors="replace").strip() or "unknown"
                used = StoreLockedError(
                    f"{path} is open in another process (pid {who})",
                    why="that is right where the deployment runs already: a store has one writer at a time",
                    fix="stop that process, or name another file: store: PATH",
                )
                return Finding("store", "warning", used.what, used)
    return _readable(path)


def _readable(path: Path) -> Finding:
    import sqlite3
    from contextlib import closing

    from llama_deploy.state_stores.sqlite_file import APPLICATION_ID, migrations

    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error as failure:
        application, version, why = None, 0, str(failure)
    else:
        why = "it is a database of another program" if application != APPLICATION_ID else "a later version wrote it"
    if application == APPLICATION_ID and version <= len(migrations()):
        return Finding("store", "ok", f"{path} can be read and written")
    unreadable = StoreVersionError(f"{path} cannot be read", why=why, fix="name another file: store: PATH")
    return Finding("store", "failed", unreadable.what, unreadable)


async def broker(file: DeploymentFile) -> Finding:
    """Whether the broker of the message queue can be reached."""
    try:
        settings = file.message_queue.settings(file.folder)
    except LlamaDeployError as error:
        return Finding("broker", "failed", error.what, error)
    if settings is None:
        return Finding("broker", "skipped", "the queue that is built in needs none")
    parts = urlsplit(settings.url.split(",", maxsplit=1)[0])
    where, number = parts.hostname or "localhost", parts.port or _PORTS.get(parts.scheme, 443)
    try:
        async with asyncio.timeout(PATIENCE_S):
            _, writer = await asyncio.open_connection(where, number)
        writer.close()
    except (OSError, TimeoutError) as failure:
        gone = CannotReachError(
            f"the broker at {where}:{number} cannot be reached",
            why=str(failure) or "it does not answer in time",
            fix="start it, or correct `message-queue` in the deployment file",
        )
        return Finding("broker", "failed", gone.what, gone)
    return Finding("broker", "ok", f"{where}:{number} answers")


_PORTS = {"redis": 6379, "rediss": 6379, "nats": 4222, "tls": 4222, "nats+tls": 4222, "amqp": 5672, "amqps": 5671}
_PORTS |= {"postgresql": 5432, "postgres": 5432, "kafka": 9092, "kafka+tls": 9092}


def url_of_file(file: DeploymentFile) -> str | None:
    """Where the deployment of a file is reached, where that is known."""
    from llama_deploy.apiserver.addresses import local_url, url_of

    place = file.control_plane
    return local_url(url_of(place.host, place.port, tls=file.access.tls is not None)) if place.port else None


def of_itself(finding: Finding, file: DeploymentFile, status: dict[str, Any]) -> Finding:
    """A finding about a port or a store that is in use, knowing who answers there: the deployment itself may be."""
    if finding.result != "warning" or finding.error is None or status.get("name") != file.name:
        return finding
    if isinstance(finding.error, PortInUseError):
        return Finding(finding.check, "ok", f"{file.control_plane.host}:{file.control_plane.port}: {file.name} listens")
    if isinstance(finding.error, StoreLockedError):
        path, used = store_path(file), Path(str(status.get("store", {}).get("location", "")))
        if path is not None and used.absolute() == path.absolute():
            return Finding(finding.check, "ok", f"{path} is open in {file.name} itself")
    return finding


def store_path(file: DeploymentFile) -> Path | None:
    """The file of the store, where it is one of this machine."""
    from llama_deploy.apiserver.stores import DATA_FOLDER

    if file.store is not None and (file.store == ":memory:" or "://" in file.store):
        return None
    return file.folder / (file.store or Path(DATA_FOLDER) / f"{file.name}.db")


async def server(settings: Settings, url: str, tell: Callable[[dict[str, Any]], None]) -> AsyncIterator[Finding]:
    """Whether the control plane answers, lets us in, is of our version, and has the same time.

    `tell` is given what it says of itself.
    """
    from llama_deploy.cli.credentials import credentials_of
    from llama_deploy.client import Client

    patience_s = settings.timeout_s or PATIENCE_S
    try:
        client = Client(url, credentials=credentials_of(settings), request_timeout_s=patience_s)
    except LlamaDeployError as error:
        yield Finding("server", "failed", error.what, error)
        return
    async with client:
        asked_at = time.time()
        try:
            status = await client.status()
        except LlamaDeployError as error:
            told = (await _plain_to_tls(url) if error.category is Category.UNREACHABLE else None) or error
            yield Finding("server", "failed", told.what, told)
            return
        answered_at = time.time()
        tell(status)
        yield Finding("server", "ok", f"{status.get('name')} at {url}")
        if not status.get("ready"):
            idle = StoreUnavailableError("it takes no work now", why="it starts, stops, or cannot write its store")
            yield Finding("server", "failed", idle.what, idle)
        yield _version(status)
        yield _clock(status, asked_at, answered_at)
        yield await _connection(client)


async def _plain_to_tls(url: str) -> LlamaDeployError | None:
    """What is to be said where a server that speaks TLS was asked without."""
    import ssl

    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname is None:
        return None
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # only whether it answers; nothing is sent
    try:
        async with asyncio.timeout(PATIENCE_S):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or 80, ssl=context)
        writer.transport.abort()
    except (OSError, TimeoutError):
        return None
    return TLSError(
        f"the control plane at {url} speaks TLS",
        why="It was asked without.",
        fix=f"llamactl -s https{url.removeprefix('http')} …     or set it in the profile",
    )


def _version(status: dict[str, Any]) -> Finding:
    from llama_deploy._version import __version__

    theirs = status.get("version")
    if theirs == __version__:
        return Finding("version", "ok", f"{__version__} on both sides")
    error = ProtocolError(
        f"this program is {__version__}, the control plane {theirs or 'of an earlier version'}",
        why="that works as long as both speak one protocol",
        fix="install the same version on both sides",
    )
    return Finding("version", "warning", error.what, error)


def _clock(status: dict[str, Any], asked_at: float, answered_at: float) -> Finding:
    theirs = status.get("now")
    if not isinstance(theirs, int | float):
        return Finding("clock", "skipped", "the control plane does not say its time")
    skew_s = max(asked_at - theirs, theirs - answered_at, 0.0)
    if skew_s <= SKEW_S_MAX:
        return Finding("clock", "ok", "the same time on both sides")
    error = SettingError(
        f"the clocks are {skew_s:.1f} s apart",
        why="times in the future and deadlines are meant by the control plane's clock",
        fix="set the clocks by NTP: timedatectl set-ntp true",
    )
    return Finding("clock", "warning", error.what, error)


async def _connection(client: Client) -> Finding:
    """Whether the connection that everything waits on can be made: a proxy in between may not know WebSockets."""
    from llama_deploy.errors import TaskNotFoundError

    try:
        await client.wait("no-such-task-of-doctor", timeout_s=PATIENCE_S)
    except TaskNotFoundError:
        pass  # which is what was to be heard
    except LlamaDeployError as error:
        return Finding("connection", "failed", error.what, error)
    return Finding("connection", "ok", "the WebSocket can be made")
