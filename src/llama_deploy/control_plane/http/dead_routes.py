"""The `/v1/dead` routes: steps that were given up, and what an operator does about them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from llama_deploy.control_plane.dead_letters import DeadFilter
from llama_deploy.control_plane.http.bodies import JSONRoute
from llama_deploy.control_plane.http.inquiries import inquiry
from llama_deploy.control_plane.http.problems import answers
from llama_deploy.control_plane.http.routes import PAGE_ITEMS_MAX, Limit, plane_of
from llama_deploy.errors import InvalidRequestError
from llama_deploy.types import TaskView
from llama_deploy.types.control import DeadLetterAnswer, DeadLetterDetail, DeadLetterPage, DeadLetterView
from llama_deploy.types.options import SECONDS_MAX

router = APIRouter(prefix="/v1/dead", route_class=JSONRoute, tags=["dead letters"])


class DeadRequest(BaseModel):
    """Which dead letters are meant: those that fit all that is given; at least one thing is."""

    model_config = ConfigDict(extra="forbid", strict=True)

    service: str | None = None
    task_id: str | None = None
    code: str | None = Field(default=None, description="The code of the last error.")
    older_than_s: float | None = Field(default=None, ge=0, le=10 * SECONDS_MAX, allow_inf_nan=False)
    limit: int = Field(default=100, ge=1, le=PAGE_ITEMS_MAX)
    dry_run: bool = Field(default=False, description="Only count them.")

    @property
    def where(self) -> DeadFilter:
        """What was given. Raises `InvalidRequestError` where that is nothing."""
        given = self.model_dump(include={"service", "task_id", "code", "older_than_s"}, exclude_none=True)
        if not given:
            raise InvalidRequestError("nothing says which dead letters are meant", fix="older_than_s: 0 means all")
        return DeadFilter(**given)


@router.get("", responses=answers(400))
async def list_dead_letters(
    request: Request,
    service: str | None = None,
    task_id: str | None = None,
    limit: Limit = 100,
    cursor: str | None = None,
) -> DeadLetterPage:
    """One page of steps that were given up, newest first, those that were sent again included."""
    return await plane_of(request).dead_letters.page(service=service, task_id=task_id, limit=limit, cursor=cursor)


class RedriveRequest(DeadRequest):
    """Which dead letters are sent again: those that fit, or those that are named."""

    step_ids: list[str] | None = Field(
        default=None, max_length=PAGE_ITEMS_MAX, description="These, in the place of what they have to fit."
    )


@router.post("/redrive", responses=answers(400, 413))
async def redrive_dead_letters(request: Request, body: RedriveRequest) -> DeadLetterAnswer:
    """Send all again that fit, or that are named. While `more` is true, there are further ones: ask again."""
    letters = plane_of(request).dead_letters
    if body.step_ids is None:
        return await letters.redrive_all(body.where, limit=body.limit, dry_run=body.dry_run)
    if body.model_fields_set != {"step_ids"}:
        raise InvalidRequestError("with step_ids nothing else is to be said", fix="leave the rest out")
    return await letters.redrive_these(body.step_ids, here_only=inquiry(request).passed_on)


@router.post("/purge", responses=answers(400, 413))
async def purge_dead_letters(request: Request, body: DeadRequest) -> DeadLetterAnswer:
    """Remove all that fit for good. While `more` is true, there are further ones: ask again."""
    return await plane_of(request).dead_letters.purge_all(body.where, limit=body.limit, dry_run=body.dry_run)


@router.get("/{step_id}", responses=answers(404))
async def get_dead_letter(request: Request, step_id: str) -> DeadLetterDetail:
    """One, with the message that it was sent and what became of its attempts."""
    return await plane_of(request).dead_letters.detail(step_id)


@router.post("/{step_id}/redrive", responses=answers(400, 404, 409, 413, 429))
async def redrive_dead_letter(request: Request, step_id: str) -> TaskView:
    """Send one again; the answer is the task in which that happens. Repeating it finds the same task."""
    plane = plane_of(request)
    return plane.views.task(await plane.engine.cache.get(await plane.dead_letters.redrive(step_id)))


@router.delete("/{step_id}", responses=answers(404))
async def purge_dead_letter(request: Request, step_id: str) -> DeadLetterView:
    """Remove one for good; its task stays."""
    return await plane_of(request).dead_letters.purge(step_id)
