"""Requests that wait: until their task has ended, their time is over, nobody listens any more, or the server stops."""

from __future__ import annotations

import asyncio

from fastapi import Request

from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.control_plane.tasks import TaskEntry


async def ended(request: Request, plane: ControlPlane, entry: TaskEntry, wait_s: float) -> TaskEntry:
    """The task as it is once it has ended, or once there is no point in waiting any longer."""
    closing: asyncio.Event = request.app.state.closing
    if not wait_s or entry.ended or closing.is_set():
        return entry
    reasons = [
        asyncio.ensure_future(reason)
        for reason in (plane.engine.wait_ended(entry, wait_s), closing.wait(), _gone(request))
    ]
    try:
        await asyncio.wait(reasons, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for reason in reasons:
            reason.cancel()
        await asyncio.gather(*reasons, return_exceptions=True)
    return await plane.engine.cache.get(entry.row.task_id)


async def _gone(request: Request) -> None:
    """Returns when the client has closed its connection; its body has been read already."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
