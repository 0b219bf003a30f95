"""The `/v1/queues` routes: what waits for each service, and what an operator does about it.

A queue is what waits for one service and has its name; pausing the one is pausing the other.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from llama_deploy.control_plane.http.access.who import by_of
from llama_deploy.control_plane.http.bodies import JSONRoute
from llama_deploy.control_plane.http.inquiries import WhichPlane, inquiry
from llama_deploy.control_plane.http.models import PauseRequest
from llama_deploy.control_plane.http.problems import answers
from llama_deploy.control_plane.http.routes import Limit, plane_of
from llama_deploy.types import QueuePage, QueueView, WaitingPage

router = APIRouter(prefix="/v1/queues", route_class=JSONRoute, tags=["queues"])

PLACE_MAX = 1_000_000
"""The furthest place in a queue that a page may begin after."""


@router.get("", responses=answers(400))
async def list_queues(request: Request, control_plane: WhichPlane = None) -> QueuePage:
    """What waits for each known service, at all control planes together."""
    return await plane_of(request).across.queues(inquiry(request, control_plane))


@router.get("/{name}", responses=answers(400, 404))
async def get_queue(request: Request, name: str, control_plane: WhichPlane = None) -> QueueView:
    """What waits for one service, and how much of it is held back by what."""
    return await plane_of(request).across.queue(inquiry(request, control_plane), name)


@router.get("/{name}/waiting", responses=answers(400, 404))
async def list_waiting(
    request: Request,
    name: str,
    after: Annotated[int, Query(ge=0, le=PLACE_MAX, description="Places above this one.")] = 0,
    limit: Limit = 100,
    control_plane: WhichPlane = None,
) -> WaitingPage:
    """What waits, in the order in which it would go if nothing changed; each with the reason why it waits."""
    asked = inquiry(request, control_plane)
    return await plane_of(request).across.waiting(asked, name, after=after, limit=limit)


@router.post("/{name}/pause", responses=answers(400, 404, 413))
async def pause_queue(request: Request, name: str, body: PauseRequest | None = None) -> QueueView:
    """The same as pausing the service."""
    plane, said = plane_of(request), body or PauseRequest()
    await plane.engine.admission.pause(name, reason=said.reason, by=by_of(request, said.by))
    return await plane.across.queue(inquiry(request, fresh=True), name)


@router.post("/{name}/resume", responses=answers(400, 404, 413))
async def resume_queue(request: Request, name: str, body: PauseRequest | None = None) -> QueueView:
    """The same as having the service go on."""
    plane, said = plane_of(request), body or PauseRequest()
    await plane.engine.admission.resume(name, reason=said.reason, by=by_of(request, said.by))
    return await plane.across.queue(inquiry(request, fresh=True), name)
