"""The routes by which recorded tasks leave as lines of JSON, and come in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from llama_deploy.control_plane.http.bodies import JSONRoute
from llama_deploy.control_plane.http.lines import NDJSON
from llama_deploy.control_plane.http.problems import answers
from llama_deploy.control_plane.http.routes import NUMBER_MAX, plane_of
from llama_deploy.types import TaskView
from llama_deploy.types.filters import FILTER_CHARACTERS_MAX

router = APIRouter(prefix="/v1", route_class=JSONRoute, tags=["data"])

_LINES: dict[str, Any] = {NDJSON: {"schema": {"type": "string", "description": "One JSON object a line."}}}
_BODY: dict[str, Any] = {
    "requestBody": {
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        "required": True,
    }
}
_FILE: dict[int | str, dict[str, Any]] = {200: {"description": "The file.", "content": _LINES}}


Unredacted = Annotated[bool, Query(description="With what `redact` leaves out elsewhere.")]


class Imported(BaseModel):
    """The tasks that were taken in."""

    items: list[TaskView]


@router.get("/tasks/{task_id}/export", response_class=StreamingResponse, responses=answers(400, 404) | _FILE)
async def export_task(request: Request, task_id: str, unredacted: Unredacted = False) -> StreamingResponse:
    """All that is recorded of a task: history, stream, the contents that it uses. `POST /v1/import` takes it in."""
    return _file(await plane_of(request).exports.one(task_id, unredacted=unredacted))


@router.get("/export", response_class=StreamingResponse, responses=answers(400) | _FILE)
async def export_tasks(
    request: Request,
    filter: Annotated[str, Query(max_length=FILTER_CHARACTERS_MAX, description="Not empty; `id:*` means all.")],
    limit: Annotated[int | None, Query(ge=1, le=NUMBER_MAX, description="At most so many, the newest.")] = None,
    unredacted: Unredacted = False,
) -> StreamingResponse:
    """All tasks that fit a filter, newest first, in one file. The action `export` on many tasks counts them."""
    return _file(await plane_of(request).exports.matching(filter, limit=limit, unredacted=unredacted))


@router.post("/import", status_code=201, responses=answers(400, 409, 413), openapi_extra=_BODY)
async def import_tasks(
    request: Request,
    new_task_id: Annotated[str | None, Query(description="Another id for the one task of the file.")] = None,
) -> Imported:
    """Take in the tasks of a file that an export has written. All of it is checked before anything is written."""
    plane = plane_of(request)
    rows = await plane.imports.take(await request.body(), task_id=new_task_id)
    return Imported(items=[plane.views.row(row) for row in rows])


def _file(lines: AsyncIterator[bytes]) -> StreamingResponse:
    headers = {"content-disposition": 'attachment; filename="tasks.jsonl"'}
    return StreamingResponse(lines, media_type=NDJSON, headers=headers)
