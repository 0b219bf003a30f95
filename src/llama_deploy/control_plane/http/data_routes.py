"""The routes about the data itself: taking a copy of all of it, and erasing what belongs to a session."""

from __future__ import annotations

import os
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from llama_deploy.control_plane.copies import pieces
from llama_deploy.control_plane.http.access.who import by_of
from llama_deploy.control_plane.http.bodies import JSONRoute
from llama_deploy.control_plane.http.problems import answers
from llama_deploy.control_plane.http.routes import NUMBER_MAX, plane_of
from llama_deploy.control_plane.ledgers import PAGE_ITEMS_MAX
from llama_deploy.control_plane.refusals import clean
from llama_deploy.types import ErasurePage, ErasureView, LedgerPage

router = APIRouter(prefix="/v1", route_class=JSONRoute, tags=["data"])

SQLITE = "application/vnd.sqlite3"
_FILE: dict[str, Any] = {SQLITE: {"schema": {"type": "string", "format": "binary"}}}


@router.get("/tasks/{task_id}/ledgers/{name:path}", responses=answers(400, 404))
async def get_ledger(
    request: Request,
    task_id: str,
    name: str,
    first: Annotated[int, Query(ge=0, le=NUMBER_MAX, description="The position of the first item.")] = 0,
    limit: Annotated[int, Query(ge=1, le=PAGE_ITEMS_MAX)] = PAGE_ITEMS_MAX,
) -> LedgerPage:
    """A page of a list that the task's orchestrator keeps and only adds to, such as `transcript` of a group chat."""
    return await plane_of(request).engine.ledgers.page(task_id, name, first=first, limit=limit)


@router.get(
    "/backup",
    response_class=StreamingResponse,
    responses=answers() | {200: {"description": "The file.", "content": _FILE}},
)
async def get_backup(request: Request) -> StreamingResponse:
    """A copy of the whole store as it is now, as one file; work goes on meanwhile. `llamactl restore` puts it back."""
    file = await plane_of(request).copies.open()
    headers = {
        "content-length": str(os.fstat(file.fileno()).st_size),
        "content-disposition": 'attachment; filename="llama_deploy.db"',
    }
    return StreamingResponse(pieces(file), media_type=SQLITE, headers=headers)


@router.delete("/sessions/{session_id}/data", responses=answers(400, 404))
async def erase_session(
    request: Request,
    session_id: str,
    *,
    dry_run: Annotated[bool, Query(description="Change nothing; say what would go.")] = False,
    by: Annotated[str, Query(max_length=200, description="Who asks for it; it stays on record.")] = "",
) -> ErasureView:
    """Cancel what runs in a session, then erase its tasks, what came of them, and its state; from the files too."""
    erasure = plane_of(request).erasure
    return (
        await erasure.look(session_id)
        if dry_run
        else await erasure.erase(session_id, by=by_of(request, clean(by), otherwise=""))
    )


@router.get("/erasures", responses=answers())
async def list_erasures(request: Request) -> ErasurePage:
    """What was ever erased, the latest first: numbers, and who asked for it; never content."""
    return ErasurePage(items=await plane_of(request).erasure.erasures())
