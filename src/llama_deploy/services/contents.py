"""What the code of a step stores and reads, whoever carries it: an instance's connection, or a worker's parent."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Protocol

from llama_deploy.messages.contents import PART_BYTES
from llama_deploy.runtime.files import Source, prepare
from llama_deploy.types.artifacts import Artifact, media_type_of


class Parts(Protocol):
    """A content whose hash is known, to be read part by part."""

    hash: str
    size_bytes: int

    @property
    def parts(self) -> int:
        """How many parts it has."""
        ...

    async def part(self, position: int) -> bytes:
        """One part, counted from 0."""
        ...


class Contents(ABC):
    """Stores contents under their hash and reads them; an `ArtifactSource`."""

    piece_bytes = PART_BYTES

    @property
    @abstractmethod
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that everything here is to be called on."""

    @abstractmethod
    async def keep(self, content: Parts) -> None:
        """Have a content in the store. Repeating it with the same content stores nothing."""

    @abstractmethod
    async def piece(self, hash: str, first: int, limit: int) -> tuple[bytes, int]:  # noqa: A002
        """Fulfils `ArtifactSource`."""

    async def save(self, source: Source, *, name: str | None = None, media_type: str | None = None) -> Artifact:
        """Store a content and return what stands for it.

        When it returns, the content is in the store; it stays as long as a task speaks of it, and for a while before
        one does.
        """
        content = await prepare(source)
        try:
            name = name or content.name
            artifact = Artifact(
                hash=content.hash,
                size_bytes=content.size_bytes,
                name=name,
                media_type=media_type or media_type_of(name),
            )
            await self.keep(content)
        finally:
            content.close()
        return artifact.bound(self)
