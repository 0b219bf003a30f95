"""`Client`'s part about the data itself for blocking code: the same methods, handed to the client's own thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from llama_deploy.client.async_client import Client
from llama_deploy.client.portal import Portal
from llama_deploy.types import ErasureView


class SyncDataCalls:
    """Methods of `SyncClient` about the data as a whole; see `Client` for what they mean."""

    _client: Client
    _portal: Portal

    def backup(self, path: str | os.PathLike[str], *, replace: bool = False) -> int:
        """Write a copy of everything that is recorded to a file. See `Client.backup`."""
        return self._portal.call(self._client.backup(path, replace=replace))

    def erase_session(self, session_id: str, *, dry_run: bool = False, by: str = "") -> ErasureView:
        """Erase a session and all that belongs to it. See `Client.erase_session`."""
        return self._portal.call(self._client.erase_session(session_id, dry_run=dry_run, by=by))

    def ledger(self, task_id: str, name: str = "transcript", *, first: int = 0) -> Iterator[Any]:
        """The items of a list that the task's orchestrator keeps. See `Client.ledger`."""
        return self._portal.iterate(lambda: self._client.ledger(task_id, name, first=first))

    def get_session_memory(self, session_id: str) -> dict[str, Any]:
        """What each service remembers of the session. See `Client.get_session_memory`."""
        return self._portal.call(self._client.get_session_memory(session_id))

    def clear_session_memory(self, session_id: str, service: str | None = None) -> list[str]:
        """Have a service, or every service, forget the session. See `Client.clear_session_memory`."""
        return self._portal.call(self._client.clear_session_memory(session_id, service))

    def list_erasures(self) -> list[ErasureView]:
        """What was ever erased. See `Client.list_erasures`."""
        return self._portal.call(self._client.list_erasures())
