"""The client's part about services and their queues: who serves what, what waits for it, and what operators change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from llama_deploy.client.http_calls import HttpCalls, segment, view_of
from llama_deploy.types import (
    InstanceView,
    QueuePage,
    QueueView,
    ServiceLimits,
    ServicePage,
    ServiceView,
    WaitingPage,
    WaitingStep,
)


class ServiceCalls(HttpCalls):
    """Methods of `Client` about services and queues."""

    async def list_services(self) -> list[ServiceView]:
        """All services that were registered, with their live instances."""
        return (await self._get(ServicePage, "/v1/services")).items

    async def get_service(self, service: str) -> ServiceView:
        """One service. Raises `ServiceNotFoundError`."""
        return await self._get(ServiceView, f"/v1/services/{segment(service)}")

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

    async def list_queues(self) -> list[QueueView]:
        """What waits for each service that was registered."""
        return (await self._get(QueuePage, "/v1/queues")).items

    async def get_queue(self, service: str) -> QueueView:
        """What waits for one service. Raises `ServiceNotFoundError`."""
        return await self._get(QueueView, f"/v1/queues/{segment(service)}")

    async def list_waiting(self, service: str) -> AsyncIterator[WaitingStep]:
        """What waits for a service, in the order in which it would go if nothing changed, fetched page by page.

        Much may have gone or come between two pages. Raises `ServiceNotFoundError`.
        """
        after: int | None = 0
        while after is not None:
            page = await self.list_waiting_page(service, after=after)
            for step in page.items:
                yield step
            after = page.next

    async def list_waiting_page(self, service: str, *, after: int = 0, limit: int = 100) -> WaitingPage:
        """One page of what `list_waiting` gives; `next` of a page is the `after` of the page after it."""
        return await self._get(WaitingPage, f"/v1/queues/{segment(service)}/waiting", after=after, limit=limit)
