"""The client's part about services and their queues: who serves what, what waits for it, and what operators change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from llama_deploy.client.http_calls import HttpCalls, segment, view_of
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


class ServiceCalls(HttpCalls):
    """Methods of `Client` about services and queues."""

    async def list_services(self, *, control_plane: str | None = None) -> list[ServiceView]:
        """All services that were registered, with their live instances.

        Where control planes share a store, at all of them together; `missing` of each view names those that did not
        answer. `control_plane` is the name or URL of the one that alone is asked.
        """
        return (await self.list_services_page(control_plane=control_plane)).items

    async def list_services_page(self, *, control_plane: str | None = None) -> ServicePage:
        """What `list_services` gives, and under `missing` the control planes that did not answer."""
        return await self._get(ServicePage, "/v1/services", control_plane=control_plane)

    async def get_service(self, service: str, *, control_plane: str | None = None) -> ServiceView:
        """One service. Raises `ServiceNotFoundError`."""
        return await self._get(ServiceView, f"/v1/services/{segment(service)}", control_plane=control_plane)

    async def pause_service(self, service: str, *, reason: str = "", by: str = "") -> ServiceView:
        """Have no step of a service handed out any more: tasks are accepted and wait, what runs goes on.

        It is on record when this returns and survives restarts. Repeating it changes nothing, not even who and why.
        Raises `ServiceNotFoundError`.
        """
        path = f"/v1/services/{segment(service)}/pause"
        return view_of(ServiceView, await self._ask("POST", path, {"reason": reason, "by": by}))

    async def resume_service(self, service: str, *, reason: str = "", by: str = "") -> ServiceView:
        """Have a paused service go on. Repeating it is harmless. Raises `ServiceNotFoundError`."""
        path = f"/v1/services/{segment(service)}/resume"
        return view_of(ServiceView, await self._ask("POST", path, {"reason": reason, "by": by}))

    async def set_limits(self, service: str, limits: ServiceLimits | Mapping[str, Any], *, by: str = "") -> ServiceView:
        """Limit a service in the place of what its definition says; what `limits` leaves out is not limited.

        It is on record when this returns and survives restarts. What runs goes on, also where that is more than the
        new limits. Raises `ServiceNotFoundError`, and `InvalidRequestError` for limits that cannot be.
        """
        given = limits.model_dump(exclude_none=True) if isinstance(limits, ServiceLimits) else dict(limits)
        path = f"/v1/services/{segment(service)}/limits"
        return view_of(ServiceView, await self._ask("PUT", path, {"limits": given, "by": by}))

    async def reset_limits(self, service: str) -> ServiceView:
        """Have the limits of the service's definition count again. Repeating it is harmless."""
        return view_of(ServiceView, await self._ask("DELETE", f"/v1/services/{segment(service)}/limits"))

    async def drain_instance(self, service: str, instance_id: str, *, timeout_s: float | None = None) -> InstanceView:
        """Have an instance finish what it holds, take nothing new, and leave; this does not wait for that.

        What it has not finished after `timeout_s` seconds goes to others; without, it takes as long as it takes.
        Raises `ServiceNotFoundError` for an instance that is not there, `InvalidRequestError` for one that lives in
        the control plane's own process.
        """
        body = {} if timeout_s is None else {"timeout_s": timeout_s}
        path = f"/v1/services/{segment(service)}/instances/{segment(instance_id)}/drain"
        return view_of(InstanceView, await self._ask("POST", path, body))

    async def list_releases(self) -> ReleasesView:
        """The releases that tasks are bound to, the current one last."""
        return await self._get(ReleasesView, "/v1/releases")

    async def use_release(self, release: str, *, finish_within_s: float | None = None) -> ReleasesView:
        """Bind new tasks to a release, whose instances have said its name (`serve_services(release=...)`).

        The release before goes on with the tasks that began with it, for `finish_within_s` seconds at most
        (`release_finish_within_s` where nothing is said); what is left then goes on with this one. It is on record
        when this returns and survives restarts. Repeating it changes nothing.
        """
        body = {} if finish_within_s is None else {"finish_within_s": finish_within_s}
        return view_of(ReleasesView, await self._ask("PUT", f"/v1/releases/{segment(release)}", body))

    async def retire_release(self, release: str) -> ReleasesView:
        """Have the tasks of a release go on with the current one; what its instances hold is finished by them.

        Raises `ReleaseNotFoundError`, also when it is repeated; `InvalidRequestError` for the current release.
        """
        return view_of(ReleasesView, await self._ask("DELETE", f"/v1/releases/{segment(release)}"))

    async def list_queues(self, *, control_plane: str | None = None) -> list[QueueView]:
        """What waits for each service that was registered; `missing` and `control_plane` are as in `list_services`."""
        return (await self.list_queues_page(control_plane=control_plane)).items

    async def list_queues_page(self, *, control_plane: str | None = None) -> QueuePage:
        """What `list_queues` gives, and under `missing` the control planes that did not answer."""
        return await self._get(QueuePage, "/v1/queues", control_plane=control_plane)

    async def get_queue(self, service: str, *, control_plane: str | None = None) -> QueueView:
        """What waits for one service. Raises `ServiceNotFoundError`."""
        return await self._get(QueueView, f"/v1/queues/{segment(service)}", control_plane=control_plane)

    async def list_waiting(self, service: str, *, control_plane: str | None = None) -> AsyncIterator[WaitingStep]:
        """What waits for a service, in the order in which it would go if nothing changed, fetched page by page.

        Much may have gone or come between two pages. Raises `ServiceNotFoundError`.
        """
        after: int | None = 0
        while after is not None:
            page = await self.list_waiting_page(service, after=after, control_plane=control_plane)
            for step in page.items:
                yield step
            after = page.next

    async def list_waiting_page(
        self, service: str, *, after: int = 0, limit: int = 100, control_plane: str | None = None
    ) -> WaitingPage:
        """One page of what `list_waiting` gives; `next` of a page is the `after` of the page after it."""
        path = f"/v1/queues/{segment(service)}/waiting"
        return await self._get(WaitingPage, path, after=after, limit=limit, control_plane=control_plane)
