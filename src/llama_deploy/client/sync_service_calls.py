"""`Client`'s part about services and queues for blocking code: the same methods, handed to the client's own thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llama_deploy.client.async_client import Client
from llama_deploy.client.portal import Portal
from llama_deploy.types import (
    InstanceView,
    QueuePage,
    QueueView,
    ReleasesView,
    ServiceLimits,
    ServicePage,
    ServiceView,
    WaitingPage,
    WaitingStep,
)


class SyncServiceCalls:
    """Methods of `SyncClient` about services and queues; see `Client` for what they mean."""

    _client: Client
    _portal: Portal

    def list_services(self, *, control_plane: str | None = None) -> list[ServiceView]:
        """All services that were registered. See `Client.list_services`."""
        return self._portal.call(self._client.list_services(control_plane=control_plane))

    def list_services_page(self, *, control_plane: str | None = None) -> ServicePage:
        """All services, and who did not answer. See `Client.list_services_page`."""
        return self._portal.call(self._client.list_services_page(control_plane=control_plane))

    def get_service(self, service: str, *, control_plane: str | None = None) -> ServiceView:
        """One service. See `Client.get_service`."""
        return self._portal.call(self._client.get_service(service, control_plane=control_plane))

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

    def list_releases(self) -> ReleasesView:
        """The releases that tasks are bound to. See `Client.list_releases`."""
        return self._portal.call(self._client.list_releases())

    def use_release(self, release: str, *, finish_within_s: float | None = None) -> ReleasesView:
        """Bind new tasks to a release. See `Client.use_release`."""
        return self._portal.call(self._client.use_release(release, finish_within_s=finish_within_s))

    def retire_release(self, release: str) -> ReleasesView:
        """Have the tasks of a release go on with the current one. See `Client.retire_release`."""
        return self._portal.call(self._client.retire_release(release))

    def list_queues(self, *, control_plane: str | None = None) -> list[QueueView]:
        """What waits for each service. See `Client.list_queues`."""
        return self._portal.call(self._client.list_queues(control_plane=control_plane))

    def list_queues_page(self, *, control_plane: str | None = None) -> QueuePage:
        """What waits for each service, and who did not answer. See `Client.list_queues_page`."""
        return self._portal.call(self._client.list_queues_page(control_plane=control_plane))

    def get_queue(self, service: str, *, control_plane: str | None = None) -> QueueView:
        """What waits for one service. See `Client.get_queue`."""
        return self._portal.call(self._client.get_queue(service, control_plane=control_plane))

    def list_waiting(self, service: str, *, control_plane: str | None = None) -> Iterator[WaitingStep]:
        """What waits for a service, in order. See `Client.list_waiting`."""
        return self._portal.iterate(lambda: self._client.list_waiting(service, control_plane=control_plane))

    def list_waiting_page(
        self, service: str, *, after: int = 0, limit: int = 100, control_plane: str | None = None
    ) -> WaitingPage:
        """One page of what `list_waiting` gives. See `Client.list_waiting_page`."""
        return self._portal.call(
            self._client.list_waiting_page(service, after=after, limit=limit, control_plane=control_plane)
        )
