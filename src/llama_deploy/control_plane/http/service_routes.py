"""The `/v1/services` routes that change something: pausing, limits, and instances that are to leave.

What they say is on record when they answer, and survives a restart; an instance that was told to leave leaves. It holds
at all control planes then, but for those that the answer names as `missing`: they read it when they can.
"""

from __future__ import annotations

from fastapi import APIRouter, Request

from llama_deploy.control_plane.http.access.who import by_of
from llama_deploy.control_plane.http.bodies import JSONRoute
from llama_deploy.control_plane.http.inquiries import inquiry
from llama_deploy.control_plane.http.models import DrainRequest, LimitsRequest, PauseRequest
from llama_deploy.control_plane.http.problems import answers
from llama_deploy.control_plane.http.routes import plane_of
from llama_deploy.types import InstanceView, ServiceView

router = APIRouter(prefix="/v1/services", route_class=JSONRoute, tags=["services"])


@router.post("/{name}/pause", responses=answers(400, 404, 413))
async def pause_service(request: Request, name: str, body: PauseRequest | None = None) -> ServiceView:
    """Hand out no step of a service any more; tasks are accepted and wait, what runs goes on. It may be repeated."""
    plane, said = plane_of(request), body or PauseRequest()
    await plane.engine.admission.pause(name, reason=said.reason, by=by_of(request, said.by))
    return await plane.across.service(inquiry(request, fresh=True), name)


@router.post("/{name}/resume", responses=answers(400, 404, 413))
async def resume_service(request: Request, name: str, body: PauseRequest | None = None) -> ServiceView:
    """Hand out again what waits. It may be repeated."""
    plane, said = plane_of(request), body or PauseRequest()
    await plane.engine.admission.resume(name, reason=said.reason, by=by_of(request, said.by))
    return await plane.across.service(inquiry(request, fresh=True), name)


@router.put("/{name}/limits", responses=answers(400, 404, 413))
async def set_limits(request: Request, name: str, body: LimitsRequest) -> ServiceView:
    """Limit a service in the place of what its definition says. What runs goes on."""
    plane = plane_of(request)
    await plane.engine.admission.set_limits(name, body.limits, by=by_of(request, body.by))
    return await plane.across.service(inquiry(request, fresh=True), name)


@router.delete("/{name}/limits", responses=answers(404))
async def reset_limits(request: Request, name: str) -> ServiceView:
    """The limits of the service's definition count again. It may be repeated."""
    plane = plane_of(request)
    await plane.engine.admission.reset_limits(name)
    return await plane.across.service(inquiry(request, fresh=True), name)


@router.post("/{name}/instances/{instance_id}/drain", responses=answers(400, 404, 413))
async def drain_instance(
    request: Request, name: str, instance_id: str, body: DrainRequest | None = None
) -> InstanceView:
    """Tell an instance to finish what it holds, take nothing new of any control plane, and leave. It does not wait for
    that, and it does not matter which one is asked.
    """
    timeout_s = body.timeout_s if body else None
    return await plane_of(request).across.drain(inquiry(request), name, instance_id, timeout_s=timeout_s)
