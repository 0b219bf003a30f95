"""The `/v1/releases` routes: which release new tasks are bound to, and which ones still finish theirs.

What they say is on record when they answer, and survives a restart.
"""

from __future__ import annotations

from fastapi import APIRouter, Request

from llama_deploy.control_plane.http.access.who import by_of
from llama_deploy.control_plane.http.bodies import JSONRoute
from llama_deploy.control_plane.http.models import ReleaseRequest
from llama_deploy.control_plane.http.problems import answers
from llama_deploy.control_plane.http.routes import plane_of
from llama_deploy.types import ReleasesView

router = APIRouter(prefix="/v1/releases", route_class=JSONRoute, tags=["releases"])


@router.get("")
async def list_releases(request: Request) -> ReleasesView:
    """The releases that tasks are bound to, the current one last."""
    return await plane_of(request).engine.releases.view()


@router.put("/{release}", responses=answers(400, 413))
async def use_release(request: Request, release: str, body: ReleaseRequest | None = None) -> ReleasesView:
    """Bind new tasks to a release; the one before goes on with its own for a while. It may be repeated."""
    within_s = body.finish_within_s if body is not None else None
    return await plane_of(request).engine.releases.use(release, finish_within_s=within_s, by=by_of(request))


@router.delete("/{release}", responses=answers(400, 404))
async def retire_release(request: Request, release: str) -> ReleasesView:
    """Have the tasks of a release that is not current go on with the current one, at once."""
    return await plane_of(request).engine.releases.retire(release, by=by_of(request))
