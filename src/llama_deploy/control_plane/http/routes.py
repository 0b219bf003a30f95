"""The `/v1` routes: thin over the control plane, one function each.

What a stream of answers looks like on the wire is in `lines.py`, how errors do in `problems.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from llama_deploy.control_plane.http import waiting
from llama_deploy.control_plane.http.access.who import by_of
from llama_deploy.control_plane.http.bodies import JSONRoute
from llama_deploy.control_plane.http.inquiries import WhichPlane, inquiry
from llama_deploy.control_plane.http.lines import (
    EVENT_STREAM,
    NDJSON,
    log_response,
    number_of,
    streamed,
    streaming_type,
)
from llama_deploy.control_plane.http.models import (
    BatchAnswer,
    BatchRequest,
    CancelRequest,
    Health,
    InputRequest,
    LookupRequest,
    Readiness,
    SessionRequest,
    Status,
    TaskRequest,
)
from llama_deploy.control_plane.http.problems import answers
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.control_plane.records import to_entry
from llama_deploy.errors import LlamaDeployError, NotOfferedError
from llama_deploy.runtime.line_log import LINES_KEPT
from llama_deploy.types import (
    HistoryPage,
    ServicePage,
    ServiceView,
    SessionPage,
    SessionView,
    TaskPage,
    TaskResultView,
    TaskView,
)

router = APIRouter(prefix="/v1", route_class=JSONRoute)

probes = APIRouter(tags=["probes"])

NUMBER_MAX = 2**53 - 1
"""The largest number that every JSON reader keeps exactly."""

PAGE_ITEMS_MAX = 1_000
"""Items on one page of a list."""
WAIT_S_MAX = 3_600.0
"""How long one HTTP request may wait for a result, in seconds."""

Limit = Annotated[int, Query(ge=1, le=PAGE_ITEMS_MAX)]

STREAMS: dict[str, Any] = {
    EVENT_STREAM: {"schema": {"type": "string", "description": "Server-sent events; `id` is the item's number."}},
    NDJSON: {"schema": {"type": "string", "description": "One JSON value a line."}},
}

WaitS = Annotated[float, Query(ge=0, le=WAIT_S_MAX, description="Seconds to wait for the end of the task.")]


def plane_of(request: Request) -> ControlPlane:
    """The control plane behind this app."""
    plane: ControlPlane = request.app.state.plane
    return plane


# --- tasks ------------------------------------------------------------------------------------------------------------


@router.post(
    "/tasks",
    tags=["tasks"],
    status_code=201,
    responses=answers(400, 404, 409, 413, 429) | {200: {"description": "It was recorded before.", "model": TaskView}},
)
async def submit_task(
    request: Request,
    response: Response,
    body: TaskRequest,
    wait_s: WaitS = 0.0,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> TaskView:
    """Submit a task. 201: recorded; 200: the same request was recorded before. With `wait_s` the result comes along."""
    plane = plane_of(request)
    if idempotency_key is not None:
        body.idempotency_key = idempotency_key
    definition = body.definition()
    entry = await plane.engine.submissions.submit_and_wait(definition)
    if entry.definition is not definition:
        response.status_code = 200
    entry = await waiting.ended(request, plane, entry, wait_s)
    view = plane.views.task(entry)
    if entry.ended:
        view.result = (await plane.views.result(entry)).result
    return view


@router.post("/tasks/batch", tags=["tasks"], response_model=BatchAnswer, responses=answers(400, 413))
async def submit_tasks(request: Request, body: BatchRequest) -> JSONResponse:
    """Submit up to 1,000 tasks. Each item of the answer has a `task` or a `problem`, in the order of the request."""
    plane = plane_of(request)

    async def one(item: TaskRequest) -> dict[str, Any]:
        item.task_id = item.task_id or plane.routing.own_id()
        try:
            view = await plane.submit(item.definition())
        except LlamaDeployError as error:
            return {"problem": error.to_problem()}
        return {"task": view.model_dump(mode="json")}

    return JSONResponse({"items": await asyncio.gather(*(one(item) for item in body.tasks))})


@router.get("/tasks", tags=["tasks"], responses=answers(400))
async def list_tasks(
    request: Request,
    state: Annotated[list[str] | None, Query()] = None,
    service: str | None = None,
    session_id: str | None = None,
    filter: Annotated[
        str | None, Query(description="Terms that must all hold: `state:failed service:writer age<2d`.")
    ] = None,
    oldest_first: bool = False,
    limit: Limit = 100,
    cursor: str | None = None,
) -> TaskPage:
    """One page of tasks, newest first; `next` is the cursor of the next page."""
    states = [part for item in state or () for part in item.split(",")]
    plane = plane_of(request)
    page = await plane.views.list_tasks(
        states=states,
        service=service,
        session_id=session_id,
        filter=filter,
        oldest_first=oldest_first,
        limit=limit,
        cursor=cursor,
    )
    page.missing = await plane.across.complete(inquiry(request), page.items)
    return page


@router.post("/tasks/lookup", tags=["tasks"], responses=answers(400, 413))
async def look_tasks_up(request: Request, body: LookupRequest) -> TaskPage:
    """Where tasks stand, up to 1,000 by their ids, in that order; those that there are not are left out."""
    return await plane_of(request).across.lookup(inquiry(request), body.task_ids)


@router.get("/tasks/{task_id}", tags=["tasks"], responses=answers(404))
async def get_task(request: Request, task_id: str) -> TaskView:
    """Where a task stands, and why it waits."""
    plane = plane_of(request)
    return await plane.views.task_in_full(await plane.engine.cache.get(task_id))


@router.get("/tasks/{task_id}/result", tags=["tasks"], responses=answers(400, 404))
async def get_result(request: Request, task_id: str, wait_s: WaitS = 0.0) -> TaskResultView:
    """The outcome; `result` is null while the task has none. With `wait_s` the answer waits for the end."""
    plane = plane_of(request)
    entry = await waiting.ended(request, plane, await plane.engine.cache.get(task_id), wait_s)
    return await plane.views.result(entry)


@router.get(
    "/tasks/{task_id}/history",
    tags=["tasks"],
    response_model=HistoryPage,
    responses=answers(400, 404) | {200: {"description": "A page, or all of it as a stream.", "content": STREAMS}},
)
async def get_history(
    request: Request,
    task_id: str,
    after: Annotated[int, Query(ge=0, le=NUMBER_MAX, description="Entries above this number.")] = 0,
    limit: Limit = 1000,
    follow: bool = False,
    accept: Annotated[str, Header()] = "",
    last_event_id: Annotated[str | None, Header()] = None,
) -> Any:
    """The task's history. With `follow` or an Accept header for SSE or NDJSON: as it is recorded, until the end."""
    plane = plane_of(request)
    entry = await plane.engine.cache.get(task_id)
    media = streaming_type(accept) or (NDJSON if follow else None)
    if media is None:
        return await plane.views.history(entry, after=after, limit=limit)
    start = number_of(last_event_id, default=after)

    async def items() -> AsyncIterator[tuple[int, bytes]]:
        async for row in plane.engine.streams.follow_history(entry, start):
            yield row.seq, to_entry(row.seq, row.at, row.kind, row.data, plane.engine.redact).model_dump_json().encode()

    return streamed(media, "entry", items(), partial(_state, plane, task_id))


@router.get(
    "/tasks/{task_id}/stream",
    tags=["tasks"],
    response_class=StreamingResponse,
    responses=answers(400, 404) | {200: {"description": "The events.", "content": STREAMS}},
)
async def get_stream(
    request: Request,
    task_id: str,
    first: Annotated[int, Query(ge=0, le=NUMBER_MAX, description="Number of the first event wanted, from 0.")] = 0,
    accept: Annotated[str, Header()] = "",
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """The task's stream from event `first` on, live until the task ends; SSE (`id` is the number) or NDJSON."""
    plane = plane_of(request)
    entry = await plane.engine.cache.get(task_id)
    start = number_of(last_event_id, default=first - 1) + 1

    async def items() -> AsyncIterator[tuple[int, bytes]]:
        async for number, events in plane.engine.streams.follow(entry, start):
            for offset, event in enumerate(events):
                yield number + offset, event

    return streamed(streaming_type(accept) or NDJSON, "event", items(), partial(_state, plane, task_id))


async def _state(plane: ControlPlane, task_id: str) -> str:
    return (await plane.engine.cache.get(task_id)).shown.state


@router.post("/tasks/{task_id}/input", tags=["tasks"], responses=answers(400, 404, 409, 413))
async def send_input(request: Request, task_id: str, body: InputRequest) -> TaskView:
    """Answer a question of the task. When this returns, the input is recorded."""
    plane = plane_of(request)
    await plane.signals.send_input(task_id, body.value, step_id=body.step_id, by=by_of(request))
    return await plane.show(task_id)


@router.post("/tasks/{task_id}/cancel", tags=["tasks"], responses=answers(400, 404, 409, 413))
async def cancel_task(request: Request, task_id: str, body: CancelRequest | None = None) -> TaskView:
    """Cancel a task. When this returns, the cancellation is recorded; repeating it is harmless."""
    plane = plane_of(request)
    said = body or CancelRequest()
    entry = await plane.signals.cancel(task_id, reason=said.reason, by=by_of(request, said.by))
    return plane.views.task(entry)


# --- sessions ---------------------------------------------------------------------------------------------------------


@router.post("/sessions", tags=["sessions"], status_code=201, responses=answers(400, 413))
async def create_session(request: Request, body: SessionRequest | None = None) -> SessionView:
    """Create a session; one that exists is returned as it is."""
    plane = plane_of(request)
    session_id = await plane.signals.create_session(body.session_id if body else None)
    return await plane.views.session(session_id)


@router.get("/sessions", tags=["sessions"], responses=answers(400))
async def list_sessions(request: Request, limit: Limit = 100, cursor: str | None = None) -> SessionPage:
    """One page of sessions, newest first."""
    return await plane_of(request).views.list_sessions(limit=limit, cursor=cursor)


@router.get("/sessions/{session_id}", tags=["sessions"], responses=answers(404))
async def get_session(request: Request, session_id: str) -> SessionView:
    """A session; its tasks are listed by `/v1/tasks?session_id=`."""
    return await plane_of(request).views.session(session_id)


@router.get("/sessions/{session_id}/state", tags=["sessions"], responses=answers(404))
async def get_session_state(request: Request, session_id: str) -> dict[str, Any]:
    """The state that the session's tasks share."""
    return await plane_of(request).views.session_state(session_id)


@router.get("/sessions/{session_id}/memory", tags=["sessions"], responses=answers(404))
async def get_session_memory(request: Request, session_id: str) -> dict[str, Any]:
    """What each service remembers of the session, by its name."""
    return await plane_of(request).views.session_memory(session_id)


@router.delete("/sessions/{session_id}/memory", tags=["sessions"], responses=answers(400, 404, 409))
async def clear_session_memory(
    request: Request,
    session_id: str,
    service: Annotated[str | None, Query(max_length=1000, description="This one's only.")] = None,
) -> list[str]:
    """Forget what services remember of the session; the names of those that had something. Repeating it is harmless."""
    return await plane_of(request).engine.memory.clear(session_id, service)


# --- services ---------------------------------------------------------------------------------------------------------


@router.get("/services", tags=["services"], responses=answers(400))
async def list_services(request: Request, control_plane: WhichPlane = None) -> ServicePage:
    """Every known service with its instances, at all control planes together."""
    return await plane_of(request).across.services(inquiry(request, control_plane))


@router.get("/services/{name}", tags=["services"], responses=answers(400, 404))
async def get_service(request: Request, name: str, control_plane: WhichPlane = None) -> ServiceView:
    """One service."""
    return await plane_of(request).across.service(inquiry(request, control_plane), name)


# --- logs -------------------------------------------------------------------------------------------------------------


@router.get(
    "/logs",
    tags=["status"],
    response_class=StreamingResponse,
    responses=answers(400)
    | {200: {"description": "The lines.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def get_logs(
    request: Request,
    last: Annotated[int, Query(ge=0, le=LINES_KEPT, description="How many of the newest lines.")] = 200,
    *,
    follow: bool = False,
) -> StreamingResponse:
    """What `llamactl serve` and the services that it started have printed, as text; with `follow`, what is to come."""
    log = plane_of(request).log
    if log is None:
        raise NotOfferedError(
            "this control plane keeps no log",
            why="it runs within a program, which has its output",
            fix="look where that program's standard error goes; `llamactl serve` keeps one",
        )
    return log_response(log, last=last, follow=follow)


# --- status -----------------------------------------------------------------------------------------------------------


@router.get("/status", tags=["status"], response_model=Status, responses=answers(400))
async def get_status(request: Request, control_plane: WhichPlane = None) -> dict[str, Any]:
    """What the control planes are doing, in numbers: of all together, and of each under `control_planes`."""
    return await plane_of(request).across.status(inquiry(request, control_plane))


@probes.get("/healthz")
async def healthz() -> Health:
    """The process lives."""
    return Health()


@probes.get("/readyz", response_model=Readiness, responses={503: {"description": "Not now.", "model": Readiness}})
async def readyz(request: Request) -> JSONResponse:
    """Whether tasks are taken: 200, or 503 while starting, stopping, or without a store that can be written."""
    plane = plane_of(request)
    ready = plane.ready and plane.store.healthy
    return JSONResponse({"ready": ready, "store": plane.store.healthy}, 200 if ready else 503)
