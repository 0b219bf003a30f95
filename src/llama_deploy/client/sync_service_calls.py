"""`Client`'s part about services and queues for blocking code: the same methods, handed to the client's own thread."""

from __future__ import annotations

from llama_deploy.client.async_client import Client
from llama_deploy.client.portal import Portal
from llama_deploy.types import QueueView, ServiceView


class SyncServiceCalls:
    """Methods of `SyncClient` about services and queues; see `Client` for what they mean."""

    _client: Client
    _portal: Portal

    def list_services(self) -> list[ServiceView]:
        """All services that were registered. See `Client.list_services`."""
        return self._portal.call(self._client.list_services())

    def get_service(self, service: str) -> ServiceView:
        """One service. See `Client.get_service`."""
        return self._portal.call(self._client.get_service(service))

    def list_queues(self) -> list[QueueView]:
        """What waits for each service. See `Client.list_queues`."""
        return self._portal.call(self._client.list_queues())

    def get_queue(self, service: str) -> QueueView:
        """What waits for one service. See `Client.get_queue`."""
        return self._portal.call(self._client.get_queue(service))
