"""The `/v1/schedules` routes: what is submitted again and again, and when."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from llama_deploy.control_plane.http.access.who import by_of
from llama_deploy.control_plane.http.bodies import JSONRoute
from llama_deploy.control_plane.http.models import PauseRequest, ScheduleRequest
from llama_deploy.control_plane.http.problems import answers
from llama_deploy.control_plane.http.routes import plane_of
from llama_deploy.control_plane.schedules import NEXT_TIMES_MAX
from llama_deploy.types.schedules import SchedulePage, ScheduleTask, ScheduleTimes, ScheduleView

router = APIRouter(prefix="/v1/schedules", route_class=JSONRoute, tags=["schedules"])


@router.get("", responses=answers())
async def list_schedules(request: Request) -> SchedulePage:
    """Every schedule and how it stands."""
    return SchedulePage(items=await plane_of(request).schedules.list())


@router.put("/{name}", responses=answers(400, 409, 413))
async def put_schedule(request: Request, name: str, body: ScheduleRequest) -> ScheduleView:
    """Create a schedule, or replace it; where the times stay the same it goes on from where it is."""
    return await plane_of(request).schedules.put(name, body.schedule())


@router.get("/{name}", responses=answers(404))
async def get_schedule(request: Request, name: str) -> ScheduleView:
    """One schedule and how it stands."""
    return await plane_of(request).schedules.get(name)


@router.delete("/{name}", responses=answers(404, 409))
async def delete_schedule(request: Request, name: str) -> ScheduleView:
    """Forget a schedule; the answer is how it stood. Its tasks stay."""
    return await plane_of(request).schedules.delete(name)


@router.post("/{name}/pause", responses=answers(400, 404, 413))
async def pause_schedule(request: Request, name: str, body: PauseRequest | None = None) -> ScheduleView:
    """Submit nothing until it is resumed. Repeating it is harmless."""
    said = body or PauseRequest()
    return await plane_of(request).schedules.pause(name, reason=said.reason, by=by_of(request, said.by))


@router.post("/{name}/resume", responses=answers(404))
async def resume_schedule(request: Request, name: str) -> ScheduleView:
    """Go on with the next time; what came while it was paused is over. Repeating it is harmless."""
    return await plane_of(request).schedules.resume(name)


@router.post("/{name}/trigger", status_code=201, responses=answers(400, 404, 409, 413, 429))
async def trigger_schedule(request: Request, name: str) -> ScheduleTask:
    """Submit a task of the schedule now, whatever runs or is paused."""
    return ScheduleTask(task_id=await plane_of(request).schedules.trigger(name))


@router.get("/{name}/next", responses=answers(400, 404))
async def get_next_times(
    request: Request, name: str, count: Annotated[int, Query(ge=1, le=NEXT_TIMES_MAX)] = 5
) -> ScheduleTimes:
    """The next times of a schedule, in its own time zone."""
    return ScheduleTimes(items=await plane_of(request).schedules.next_times(name, count))
