"""`Client`'s part about the data itself for blocking code: the same methods, handed to the client's own thread."""

from __future__ import annotations

import os

from llama_deploy.client.async_client import Client
from llama_deploy.client.portal import Portal


class SyncDataCalls:
    """Methods of `SyncClient` about the data as a whole; see `Client` for what they mean."""

    _client: Client
    _portal: Portal

    def backup(self, path: str | os.PathLike[str], *, replace: bool = False) -> int:
        """Write a copy of everything that is recorded to a file. See `Client.backup`."""
        return self._portal.call(self._client.backup(path, replace=replace))
