"""The client's part about services and their queues: who serves what, what waits for it, and what operators change."""

from __future__ import annotations

from llama_deploy.client.http_calls import HttpCalls, segment
from llama_deploy.types import QueuePage, QueueView, ServicePage, ServiceView


class ServiceCalls(HttpCalls):
    """Methods of `Client` about services and queues."""

    async def list_services(self) -> list[ServiceView]:
        """All services that were registered, with their live instances."""
        return (await self._get(ServicePage, "/v1/services")).items

    async def get_service(self, service: str) -> ServiceView:
        """One service. Raises `ServiceNotFoundError`."""
        return await self._get(ServiceView, f"/v1/services/{segment(service)}")

    async def list_queues(self) -> list[QueueView]:
        """What waits for each service that was registered."""
        return (await self._get(QueuePage, "/v1/queues")).items

    async def get_queue(self, service: str) -> QueueView:
        """What waits for one service. Raises `ServiceNotFoundError`."""
        return await self._get(QueueView, f"/v1/queues/{segment(service)}")
