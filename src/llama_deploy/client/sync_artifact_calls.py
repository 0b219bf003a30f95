"""`Client`'s part about artifacts for blocking code: the same methods, handed to the client's own thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from llama_deploy.client.async_client import Client
from llama_deploy.client.portal import Portal
from llama_deploy.runtime.files import Source
from llama_deploy.types.artifacts import Artifact


class SyncArtifactCalls:
    """Methods of `SyncClient` about artifacts; see `Client` for what they mean."""

    _client: Client
    _portal: Portal

    def upload(self, source: Source, *, name: str | None = None, media_type: str | None = None) -> Artifact:
        """Store a content and return the artifact that stands for it. See `Client.upload`."""
        return self._portal.call(self._client.upload(source, name=name, media_type=media_type))

    def download(self, artifact: Artifact, path: str | os.PathLike[str]) -> Path:
        """Write an artifact to a file. See `Client.download`."""
        return self._portal.call(self._client.download(artifact, path))

    def read(self, artifact: Artifact) -> bytes:
        """The whole content of an artifact. See `Client.read`."""
        return self._portal.call(self._client.read(artifact))

    def chunks(self, artifact: Artifact) -> Iterator[bytes]:
        """The content of an artifact, piece by piece. See `Client.chunks`."""
        return self._portal.iterate(lambda: self._client.chunks(artifact))
