"""`Client`'s part about services and queues for blocking code: the same methods, handed to the client's own thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llama_deploy.client.async_client import Client
from llama_deploy.client.portal import Portal
from llama_deploy.types import InstanceView, QueueView, ServiceLimits, ServiceView, WaitingPage, WaitingStep


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

    def pause_service(self, service: str, *, reason: str = "", by: str = "") -> ServiceView:
        """Hand out no step of a service any more. See `Client.pause_service`."""
        return self._portal.call(self._client.pause_service(service, reason=reason, by=by))

    def resume_service(self, service: str, *, reason: str = "", by: str = "") -> ServiceView:
        """Have a paused service go on. See `Client.resume_service`."""
        return self._portal.call(self._client.resume_service(service, reason=reason, by=by))

    def set_limits(self, service: str, limits: ServiceLimits | Mapping[str, Any], *, by: str = "") -> ServiceView:
        """Limit a service. See `Client.set_limits`."""
        return self._portal.call(self._client.set_limits(service, limits, by=by))

    def reset_limits(self, service: str) -> ServiceView:
        """Have the limits of the service's definition count again. See `Client.reset_limits`."""
        return self._portal.call(self._client.reset_limits(service))

    def drain_instance(self, service: str, instance_id: str, *, timeout_s: float | None = None) -> InstanceView:
        """Have an instance finish what it holds and leave. See `Client.drain_instance`."""
        return self._portal.call(self._client.drain_instance(service, instance_id, timeout_s=timeout_s))

    def list_queues(self) -> list[QueueView]:
        """What waits for each service. See `Client.list_queues`."""
        return self._portal.call(self._client.list_queues())

    def get_queue(self, service: str) -> QueueView:
        """What waits for one service. See `Client.get_queue`."""
        return self._portal.call(self._client.get_queue(service))

    def list_waiting(self, service: str) -> Iterator[WaitingStep]:
        """What waits for a service, in order. See `Client.list_waiting`."""
        return self._portal.iterate(lambda: self._client.list_waiting(service))

    def list_waiting_page(self, service: str, *, after: int = 0, limit: int = 100) -> WaitingPage:
        """One page of what `list_waiting` gives. See `Client.list_waiting_page`."""
        return self._portal.call(self._client.list_waiting_page(service, after=after, limit=limit))
