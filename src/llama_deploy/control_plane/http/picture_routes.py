"""The route that draws a task: as JSON, as SVG, as Mermaid text."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response

from llama_deploy.control_plane.http.bodies import JSONRoute
from llama_deploy.control_plane.http.problems import JSON_TYPE, answers
from llama_deploy.control_plane.http.routes import plane_of
from llama_deploy.control_plane.pictures import task_picture
from llama_deploy.orchestrators.picture import Picture

SVG_TYPE, MERMAID_TYPE = "image/svg+xml", "text/vnd.mermaid"
FORMATS = {"json": JSON_TYPE, "svg": SVG_TYPE, "mermaid": MERMAID_TYPE}

router = APIRouter(prefix="/v1", route_class=JSONRoute, tags=["tasks"])

_DRAWN: dict[str, Any] = {media: {"schema": {"type": "string"}} for media in (SVG_TYPE, MERMAID_TYPE)}
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
}
"""What is drawn has names of users in it: nothing in it may run or fetch, wherever it is opened."""

Format = Annotated[
    Literal["json", "svg", "mermaid"] | None,
    Query(alias="format", description="Wins over the Accept header; JSON where neither asks."),
]


@router.get(
    "/tasks/{task_id}/graph",
    response_model=Picture,
    responses=answers(400, 404) | {200: {"description": "The picture.", "content": _DRAWN}},
)
async def get_graph(request: Request, task_id: str, form: Format = None, accept: Annotated[str, Header()] = "") -> Any:
    """The graph of the task's orchestrator, and where the task stands on it."""
    plane = plane_of(request)
    picture = await task_picture(plane.engine, await plane.engine.cache.get(task_id))
    media = FORMATS[form] if form is not None else _asked_for(accept)
    if media == SVG_TYPE:
        return Response(picture.svg(), media_type=SVG_TYPE, headers=_HEADERS)
    if media == MERMAID_TYPE:
        return Response(picture.mermaid(), media_type=MERMAID_TYPE, headers=_HEADERS)
    return picture


def _asked_for(accept: str) -> str:
    """The first type of an Accept header that there is."""
    named = (part.partition(";")[0].strip().lower() for part in accept.split(","))
    return next((name for name in named if name in FORMATS.values()), JSON_TYPE)
