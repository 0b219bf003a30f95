"""The `/v1/queues` routes: what waits for each service, and what an operator does about it.

A queue is what waits for one service and has its name; pausing the one is pausing the other.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from llama_deploy.control_plane.http.bodies import JSONRoute
from llama_deploy.control_plane.http.models import ServicePauseRequest
from llama_deploy.control_plane.http.problems import answers
from llama_deploy.control_plane.http.routes import Limit, plane_of
from llama_deploy.types import QueuePage, QueueView, WaitingPage

router = APIRouter(prefix="/v1/queues", route_class=JSONRoute, tags=["queues"])

PLACE_MAX = 1_000_000
"""The furthest place in a queue that a page may begin after."""


@router.get("", responses=answers())
async def list_queues(request: Request) -> QueuePage:
    """What waits for each known service."""
    return QueuePage(items=plane_of(request).views.queues())


@router.get("/{name}", responses=answers(404))
async def get_queue(request: Request, name: str) -> QueueView:
    """What waits for one service, and how much of it is held back by what."""
    return plane_of(request).views.queue(name)


@router.get("/{name}/waiting", responses=answers(400, 404))
async def list_waiting(
    request: Request,
    name: str,
    after: Annotated[int, Query(ge=0, le=PLACE_MAX, description="Places above this one.")] = 0,
    limit: Limit = 100,
) -> WaitingPage:
    """What waits, in the order in which it would go if nothing changed; each with the reason why it waits."""
    return plane_of(request).views.waiting(name, first=after, limit=limit)


@router.post("/{name}/pause", responses=answers(400, 404, 413))
async def pause_queue(request: Request, name: str, body: ServicePauseRequest | None = None) -> QueueView:
    """The same as pausing the service."""
    plane, said = plane_of(request), body or ServicePauseRequest()
    await plane.engine.admission.pause(name, reason=said.reason, by=said.by or "http")
    return plane.views.queue(name)


@router.post("/{name}/resume", responses=answers(400, 404, 413))
async def resume_queue(request: Request, name: str, body: ServicePauseRequest | None = None) -> QueueView:
    """The same as having the service go on."""
    plane, said = plane_of(request), body or ServicePauseRequest()
    await plane.engine.admission.resume(name, reason=said.reason, by=said.by or "http")
    return plane.views.queue(name)
