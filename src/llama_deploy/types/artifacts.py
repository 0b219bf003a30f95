"""Files and large binary results: values that stand for a content which is stored once, under its hash.

An `Artifact` is small and travels in inputs, results, events and messages as JSON that everybody recognises; the
content stays where it is until somebody reads it. How it gets there and back is the business of a source: an
instance's connection, or a client.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import re
from collections.abc import AsyncIterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from llama_deploy.errors import ArtifactCorruptError, InvalidRequestError
from llama_deploy.runtime.files import target_of, write_file

MARK = "$artifact"
"""The key by which the JSON of an artifact is recognised; its value is the hash."""
MARK_BYTES = MARK.encode()
"""What JSON without any artifact does not have in it."""
MEDIA_TYPE = "application/octet-stream"
"""The media type of a content about which nothing is known."""

_MARKED = re.compile(rb'\$artifact\\*"\s*:\s*\\*"([0-9a-f]{64})\\*"')
"""The mark in JSON, also in JSON that stands in a text."""


class ArtifactSource(Protocol):
    """Where contents can be read."""

    piece_bytes: int
    """How much is read at once."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that `piece` is to be called on."""
        ...

    async def piece(self, hash: str, first: int, limit: int) -> tuple[bytes, int]:  # noqa: A002
        """At most `limit` bytes from byte `first` on, and the size of the whole. Raises `ArtifactNotFoundError`."""
        ...


artifact_source: ContextVar[ArtifactSource | None] = ContextVar("artifact_source", default=None)
"""Where code that runs in a step reads from."""


class Artifact(BaseModel):
    """A content that is stored under its hash. Two are equal when hash, size, media type and name are.

    In a service it is read with `await artifact.read()`, piece by piece with `artifact.chunks()`, into a file with
    `await artifact.download(path)`; code that runs in a thread reads it like a file: `with artifact.open() as file`.
    Whoever reads it whole has it checked against its hash: `ArtifactCorruptError` says that it is another content.
    Raises `ArtifactNotFoundError` for a content that is not kept any more.
    """

    model_config = ConfigDict(
        extra="forbid", defer_build=True, frozen=True, populate_by_name=True, serialize_by_alias=True
    )

    hash: str = Field(alias=MARK, pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the content, in hex."""
    size_bytes: int = Field(ge=0)
    media_type: str = Field(default=MEDIA_TYPE, max_length=200, pattern=r"^[\w.+-]+/[\w.+-]+(;[ \w.+=\"-]*)?$")
    name: str | None = Field(default=None, max_length=255)
    """What a file of it is called; for people, and never a path."""

    _source: ArtifactSource | None = PrivateAttr(default=None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Artifact) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return (self.hash, self.size_bytes, self.media_type, self.name)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Artifact:
        return self

    def bound(self, source: ArtifactSource) -> Artifact:
        """The artifact, to be read from this source."""
        self._source = source
        return self

    async def chunks(self) -> AsyncIterator[bytes]:
        """The content, piece by piece; one more is read ahead."""
        source = self._from()
        digest = hashlib.sha256()
        first, size = 0, 1
        ahead = asyncio.ensure_future(source.piece(self.hash, 0, source.piece_bytes))
        try:
            while first < size:
                data, size = await ahead
                if not data and first < size:
                    raise ArtifactCorruptError(f"the content {self.hash[:12]}… ends after {first} of {size} bytes")
                first += len(data)
                if first < size:
                    ahead = asyncio.ensure_future(source.piece(self.hash, first, source.piece_bytes))
                digest.update(data)
                if data:
                    yield data
        finally:
            ahead.cancel()
        if digest.hexdigest() != self.hash:
            raise ArtifactCorruptError(f"what was read is not the content {self.hash[:12]}…")

    async def read(self) -> bytes:
        """The whole content."""
        return b"".join([data async for data in self.chunks()])

    async def download(self, path: str | os.PathLike[str]) -> Path:
        """Write the content to a file, or under its name into a folder that exists; returns the file.

        A file of that name is replaced once the content is there whole.
        """
        target = target_of(path, self.name, self.hash)
        await write_file(target, self.chunks())
        return target

    def open(self) -> BinaryIO:
        """The content as a file to read, for code that runs in a thread: whoever waits for it blocks."""
        source = self._from()
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is source.loop:
            raise InvalidRequestError(
                "`artifact.open()` would block the event loop",
                fix="await artifact.read(), or iterate artifact.chunks()",
            )
        return io.BufferedReader(cast("Any", _Reader(source, self.hash)), source.piece_bytes)

    def _from(self) -> ArtifactSource:
        source = self._source or artifact_source.get()
        if source is None:
            raise InvalidRequestError(
                "this artifact cannot be read here",
                why="it came neither from a client nor with a step",
                fix="client.download(artifact, path), or client.read(artifact)",
            )
        return source


class _Reader(io.RawIOBase):
    """Reads a content from a thread."""

    def __init__(self, source: ArtifactSource, hash_: str) -> None:
        self._source = source
        self._hash = hash_
        self._position = 0
        self._size: int | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence)
        if base is None:
            base = self._piece(0, 0)[1] if self._size is None else self._size
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        data, self._size = self._piece(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _piece(self, first: int, limit: int) -> tuple[bytes, int]:
        reading = self._source.piece(self._hash, first, min(limit, self._source.piece_bytes))
        found: tuple[bytes, int] = asyncio.run_coroutine_threadsafe(cast("Any", reading), self._source.loop).result()
        return found


class File:
    """A file that a service returns: its content is stored and an `Artifact` takes its place in the result.

    `name` is by default the file's own, `media_type` what the name says. It has no JSON form of its own.
    """

    def __init__(self, path: str | os.PathLike[str], *, name: str | None = None, media_type: str | None = None) -> None:
        self.path = path
        self.name = name
        self.media_type = media_type

    def __repr__(self) -> str:
        return f"File({os.fspath(self.path)!r})"


def media_type_of(name: str | None) -> str:
    """The media type that a file's name says."""
    import mimetypes

    return (mimetypes.guess_type(name)[0] if name else None) or MEDIA_TYPE


def hashes_in(data: bytes) -> list[str]:
    """The hashes of all artifacts in some JSON, each once, in order; also of those in JSON that stands in a text."""
    if MARK_BYTES not in data:
        return []
    return list(dict.fromkeys(found.decode() for found in _MARKED.findall(data)))


def revived(value: Any, source: ArtifactSource) -> Any:
    """Decoded JSON with artifacts in the place of their marks, to be read from a source."""
    if isinstance(value, dict):
        if MARK in value:
            try:
                return Artifact.model_validate(value).bound(source)
            except ValidationError:
                return value
        return {key: revived(item, source) for key, item in value.items()}
    if isinstance(value, list):
        return [revived(item, source) for item in value]
    return value
