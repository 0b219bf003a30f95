"""The `/v1` routes that hold a task back, let it go on, and move it to another version of its orchestrator."""

from __future__ import annotations

from fastapi import APIRouter, Request

from llama_deploy.control_plane.http.access.who import by_of
from llama_deploy.control_plane.http.bodies import JSONRoute
from llama_deploy.control_plane.http.models import PauseRequest
from llama_deploy.control_plane.http.problems import answers
from llama_deploy.control_plane.http.routes import plane_of
from llama_deploy.types import TaskView

router = APIRouter(prefix="/v1/tasks", route_class=JSONRoute, tags=["tasks"])


@router.post("/{task_id}/pause", responses=answers(400, 404, 409, 413))
async def pause_task(request: Request, task_id: str, body: PauseRequest | None = None) -> TaskView:
    """Hand out no further step of a task. What runs goes on. Repeating it is harmless."""
    plane, said = plane_of(request), body or PauseRequest()
    return plane.views.task(await plane.pauses.pause(task_id, reason=said.reason, by=by_of(request, said.by)))


@router.post("/{task_id}/resume", responses=answers(400, 404, 409, 413))
async def resume_task(request: Request, task_id: str, body: PauseRequest | None = None) -> TaskView:
    """Have a paused task go on. Repeating it is harmless."""
    plane, said = plane_of(request), body or PauseRequest()
    return plane.views.task(await plane.pauses.resume(task_id, reason=said.reason, by=by_of(request, said.by)))


@router.post("/{task_id}/migrate", responses=answers(400, 404, 409, 413))
async def migrate_task(request: Request, task_id: str, body: PauseRequest | None = None) -> TaskView:
    """Have the deployed version of its orchestrator go on with a task that began with another one."""
    plane, said = plane_of(request), body or PauseRequest()
    return plane.views.task(await plane.migrations.migrate(task_id, reason=said.reason, by=by_of(request, said.by)))
