"""The client's part about artifacts: sending contents, fetching them piece by piece, writing them to files.

Contents go over HTTP and never through the connection of submits and streams. A transfer that is interrupted goes on
where it can; of a content of any size a few pieces are in memory.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

import msgspec

from llama_deploy.client.http_calls import HttpCalls
from llama_deploy.connections.problems import error_from_problem, unexpected
from llama_deploy.errors import CannotReachError, ConnectionLostError, LlamaDeployError, ShuttingDownError
from llama_deploy.runtime.files import Content, Source, prepare
from llama_deploy.types import RetryPolicy
from llama_deploy.types.artifacts import Artifact, media_type_of

Found = TypeVar("Found")

PIECE_BYTES = 4 * 1024 * 1024
"""What is fetched with one request."""


class ClientSource:
    """Reads contents through a client; an `ArtifactSource`."""

    piece_bytes = PIECE_BYTES

    def __init__(self, exchange: Callable[[str, int, int], Awaitable[tuple[bytes, int]]]) -> None:
        self._exchange = exchange
        self._loop = asyncio.get_running_loop()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that the client is used on."""
        return self._loop

    async def piece(self, hash: str, first: int, limit: int) -> tuple[bytes, int]:  # noqa: A002
        """Fulfils `ArtifactSource`."""
        return await self._exchange(hash, first, limit)


class ArtifactCalls(HttpCalls):
    """Methods of `Client` about artifacts."""

    _reconnect_timeout_s: float
    _contents: ClientSource | None = None

    def _source(self) -> ClientSource:
        """Where the artifacts that this client hands out are read from."""
        if self._contents is None:
            self._contents = ClientSource(self._piece)
        return self._contents

    async def upload(self, source: Source, *, name: str | None = None, media_type: str | None = None) -> Artifact:
        """Store a content and return the artifact that stands for it, to be passed to a task.

        `source` is bytes, the path of a file, a file that is open for reading bytes, or an iterator of bytes, async or
        not. A content that is there already is not sent. It stays for as long as a task speaks of it, and for a while
        before one does. Raises `LimitExceededError`, what reading the source raises, and what every request raises.
        """
        content = await prepare(source)
        try:
            name = name or content.name
            await self._patiently(lambda: self._send(content))
            return Artifact(
                hash=content.hash,
                size_bytes=content.size_bytes,
                name=name,
                media_type=media_type or media_type_of(name),
            ).bound(self._source())
        finally:
            content.close()

    async def _send(self, content: Content) -> None:
        path = f"/v1/artifacts/{content.hash}"
        answered, _, body = await self._transport.exchange("PUT", path, params={"offer": content.size_bytes})
        if answered == HTTPStatus.NOT_FOUND:
            headers = {"content-length": str(content.size_bytes), "content-type": "application/octet-stream"}
            answered, _, body = await self._transport.exchange(
                "PUT", path, headers=headers, content=content.all_parts()
            )
        self._check(answered, body)

    async def download(self, artifact: Artifact, path: str | os.PathLike[str]) -> Path:
        """Write an artifact to a file, or under its name into a folder that exists; returns the file.

        A file of that name is replaced once the content is there whole and fits its hash. Raises
        `ArtifactNotFoundError` and `ArtifactCorruptError`.
        """
        return await self._of(artifact).download(path)

    async def read(self, artifact: Artifact) -> bytes:
        """The whole content of an artifact. Raises like `download`."""
        return await self._of(artifact).read()

    async def chunks(self, artifact: Artifact) -> AsyncIterator[bytes]:
        """The content of an artifact, piece by piece. Raises like `download`."""
        async for data in self._of(artifact).chunks():
            yield data

    def _of(self, artifact: Artifact) -> Artifact:
        return artifact.model_copy().bound(self._source())

    async def _piece(self, hash_: str, first: int, limit: int) -> tuple[bytes, int]:
        """A range of a content and the size of the whole; what artifacts are read by."""

        async def ask() -> tuple[bytes, int]:
            headers = {"range": f"bytes={first}-{max(first, first + limit - 1)}"}
            answered, got, body = await self._transport.exchange("GET", f"/v1/artifacts/{hash_}", headers=headers)
            if answered == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return b"", _size(got.get("content-range", ""))
            self._check(answered, body)
            return body[:limit], _size(got.get("content-range", ""))

        return await self._patiently(ask)

    def _check(self, status: int, body: bytes) -> None:
        if status < HTTPStatus.BAD_REQUEST:
            return
        try:
            problem = msgspec.json.decode(body)
        except msgspec.DecodeError:
            problem = None
        raise error_from_problem(problem, status=status, address=self._transport.address)

    async def _patiently(self, work: Callable[[], Awaitable[Found]]) -> Found:
        """Do something that may be done again, again while the connection or the control plane is away."""
        loop = asyncio.get_running_loop()
        backoff = RetryPolicy(initial_s=0.05, cap_s=2.0)
        deadline = loop.time() + self._reconnect_timeout_s
        attempt = 0
        while True:
            try:
                return await work()
            except LlamaDeployError as error:
                attempt += 1
                lost = isinstance(error, ConnectionLostError | ShuttingDownError)
                away = lost or (attempt > 1 and isinstance(error, CannotReachError))
                pause_s = backoff.next_delay(attempt)
                if not away or not self._transport.reconnects or loop.time() + pause_s > deadline:
                    raise
                await asyncio.sleep(pause_s)


def _size(content_range: str) -> int:
    """The size of the whole in a `Content-Range` header."""
    total = content_range.rpartition("/")[2]
    if not total.isdigit():
        raise unexpected(f"a range that does not say of how much ({content_range!r})")
    return int(total)
