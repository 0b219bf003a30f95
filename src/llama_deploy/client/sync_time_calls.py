"""`Client`'s part about time for blocking code: the same methods, handed to the client's own thread."""

from __future__ import annotations

from llama_deploy.client.async_client import Client
from llama_deploy.client.portal import Portal
from llama_deploy.types import TaskView


class SyncTimeCalls:
    """Methods of `SyncClient` about pauses; see `Client` for what they mean."""

    _client: Client
    _portal: Portal

    def pause(self, task_id: str, *, reason: str | None = None) -> TaskView:
        """Hand out no further step of the task. See `Client.pause`."""
        return self._portal.call(self._client.pause(task_id, reason=reason))

    def resume(self, task_id: str, *, reason: str | None = None) -> TaskView:
        """Have a paused task go on. See `Client.resume`."""
        return self._portal.call(self._client.resume(task_id, reason=reason))
