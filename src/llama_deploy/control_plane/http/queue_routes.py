"""The `/v1/queues` routes: what waits for each service, and what an operator does about it."""

from __future__ import annotations

from fastapi import APIRouter, Request

from llama_deploy.control_plane.http.bodies import JSONRoute
from llama_deploy.control_plane.http.problems import answers
from llama_deploy.control_plane.http.routes import plane_of
from llama_deploy.types import QueuePage, QueueView

router = APIRouter(prefix="/v1/queues", route_class=JSONRoute, tags=["queues"])


@router.get("", responses=answers())
async def list_queues(request: Request) -> QueuePage:
    """What waits for each known service."""
    return QueuePage(items=plane_of(request).views.queues())


@router.get("/{name}", responses=answers(404))
async def get_queue(request: Request, name: str) -> QueueView:
    """What waits for one service."""
    return plane_of(request).views.queue(name)
