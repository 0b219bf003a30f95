"""The routes about the data itself: taking a copy of all of it."""

from __future__ import annotations

import os
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from llama_deploy.control_plane.copies import pieces
from llama_deploy.control_plane.http.bodies import JSONRoute
from llama_deploy.control_plane.http.problems import answers
from llama_deploy.control_plane.http.routes import plane_of

router = APIRouter(prefix="/v1", route_class=JSONRoute, tags=["data"])

SQLITE = "application/vnd.sqlite3"
_FILE: dict[str, Any] = {SQLITE: {"schema": {"type": "string", "format": "binary"}}}


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
