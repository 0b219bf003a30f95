"""The `/v1` routes: thin over the control plane, one function each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from llama_deploy.control_plane.http.models import (
    BatchRequest,
    CancelRequest,
    InputRequest,
    SessionRequest,
    TaskRequest,
)
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.control_plane.records import to_entry
from llama_deploy.control_plane.tasks import TaskEntry
from llama_deploy.errors import InvalidRequestError, LlamaDeployError
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

router = APIRouter(prefix="/v1")
probes = APIRouter()

EVENT_STREAM = "text/event-stream"
NDJSON = "application/x-ndjson"

DIGITS_MAX = 15

PAGE_ITEMS_MAX = 1_000
"""Items on one page of a list."""
WAIT_S_MAX = 3_600.0
"""How long one HTTP request may wait for a result, in seconds."""

Limit = Annotated[int, Query(ge=1, le=PAGE_ITEMS_MAX)]
WaitS = Annotated[float, Query(ge=0, le=WAIT_S_MAX, description="Seconds to wait for the end of the task.")]


def plane_of(request: Request) -> ControlPlane:
    """The control plane behind this app."""
    plane: ControlPlane = request.app.state.plane
    return plane


# --- tasks ------------------------------------------------------------------------------------------------------------


@router.post("/tasks", status_code=201)
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
    if wait_s:
        await plane.engine.wait_ended(entry, wait_s)
    view = plane.views.task(entry)
    if entry.ended:
        view.result = (await plane.views.result(entry)).result
    return view


@router.post("/tasks/batch")
async def submit_tasks(request: Request, body: BatchRequest) -> JSONResponse:
    """Submit up to 1,000 tasks. Each item of the answer has a `task` or a `problem`, in the order of the request."""
    import asyncio

    plane = plane_of(request)

    async def one(item: TaskRequest) -> dict[str, Any]:
        try:
            entry = await plane.engine.submissions.submit_and_wait(item.definition())
        except LlamaDeployError as error:
            return {"problem": error.to_problem()}
        return {"task": plane.views.task(entry).model_dump(mode="json")}

    return JSONResponse({"items": await asyncio.gather(*(one(item) for item in body.tasks))})


@router.get("/tasks")
async def list_tasks(
    request: Request,
    state: Annotated[list[str] | None, Query()] = None,
    service: str | None = None,
    session_id: str | None = None,
    oldest_first: bool = False,
    limit: Limit = 100,
    cursor: str | None = None,
) -> TaskPage:
    """One page of tasks, newest first; `next` is the cursor of the next page."""
    states = [part for item in state or () for part in item.split(",")]
    return await plane_of(request).views.list_tasks(
        states=states, service=service, session_id=session_id, oldest_first=oldest_first, limit=limit, cursor=cursor
    )


@router.get("/tasks/{task_id}")
async def get_task(request: Request, task_id: str) -> TaskView:
    """Where a task stands, and why it waits."""
    plane = plane_of(request)
    return plane.views.task(await plane.engine.cache.get(task_id))


@router.get("/tasks/{task_id}/result")
async def get_result(request: Request, task_id: str, wait_s: WaitS = 0.0) -> TaskResultView:
    """The outcome; `result` is null while the task has none. With `wait_s` the answer waits for the end."""
    plane = plane_of(request)
    entry = await plane.engine.cache.get(task_id)
    if wait_s:
        await plane.engine.wait_ended(entry, wait_s)
    return await plane.views.result(entry)


@router.get("/tasks/{task_id}/history", response_model=HistoryPage)
async def get_history(
    request: Request,
    task_id: str,
    after: Annotated[int, Query(ge=0)] = 0,
    limit: Limit = 1000,
    follow: bool = False,
    accept: Annotated[str, Header()] = "",
    last_event_id: Annotated[str | None, Header()] = None,
) -> Any:
    """The task's history. With `follow` or an Accept header for SSE or NDJSON: as it is recorded, until the end."""
    plane = plane_of(request)
    entry = await plane.engine.cache.get(task_id)
    media = _stream_type(accept) or (NDJSON if follow else None)
    if media is None:
        return await plane.views.history(entry, after=after, limit=limit)
    start = _number(last_event_id, default=after)

    async def items() -> AsyncIterator[tuple[int, bytes]]:
        async for row in plane.engine.streams.follow_history(entry, start):
            yield row.seq, to_entry(row.seq, row.at, row.kind, row.data).model_dump_json().encode()

    return StreamingResponse(_lines(media, "entry", items(), entry), media_type=media)


@router.get("/tasks/{task_id}/stream")
async def get_stream(
    request: Request,
    task_id: str,
    first: Annotated[int, Query(ge=0, description="Number of the first event wanted, from 0.")] = 0,
    accept: Annotated[str, Header()] = "",
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """The task's stream from event `first` on, live until the task ends; SSE (`id` is the number) or NDJSON."""
    plane = plane_of(request)
    entry = await plane.engine.cache.get(task_id)
    media = _stream_type(accept) or NDJSON
    start = _number(last_event_id, default=first - 1) + 1

    async def items() -> AsyncIterator[tuple[int, bytes]]:
        async for number, events in plane.engine.streams.follow(entry, start):
            for offset, event in enumerate(events):
                yield number + offset, event

    return StreamingResponse(_lines(media, "event", items(), entry), media_type=media)


def _stream_type(accept: str) -> str | None:
    for media in (EVENT_STREAM, NDJSON):
        if media in accept:
            return media
    return None


def _number(text: str | None, *, default: int) -> int:
    """The number in a `Last-Event-ID` header. Raises `InvalidRequestError`."""
    if text is None or text == "":
        return default
    if not text.isascii() or not text.isdigit() or len(text) > DIGITS_MAX:
        raise InvalidRequestError(f"Last-Event-ID {text!r} is not a number", fix="send back an `id` of this stream")
    return int(text)


async def _lines(
    media: str, name: str, items: AsyncIterator[tuple[int, bytes]], entry: TaskEntry
) -> AsyncIterator[bytes]:
    """Items as SSE or NDJSON; SSE closes with an `end` event that carries the task's state."""
    async for number, item in items:
        yield (
            b"id: %d\nevent: %s\ndata: %s\n\n" % (number, name.encode(), item)
            if media == EVENT_STREAM
            else item + b"\n"
        )
    if media == EVENT_STREAM:
        yield b'event: end\ndata: {"state":"%s"}\n\n' % entry.row.state.encode()


@router.post("/tasks/{task_id}/input")
async def send_input(request: Request, task_id: str, body: InputRequest) -> TaskView:
    """Answer a question of the task. When this returns, the input is recorded."""
    plane = plane_of(request)
    await plane.signals.send_input(task_id, body.value, step_id=body.step_id, by="http")
    return plane.views.task(await plane.engine.cache.get(task_id))


@router.post("/tasks/{task_id}/cancel")
async def cancel_task(request: Request, task_id: str, body: CancelRequest | None = None) -> TaskView:
    """Cancel a task. When this returns, the cancellation is recorded; repeating it is harmless."""
    plane = plane_of(request)
    entry = await plane.signals.cancel(task_id, reason=body.reason if body else "", by="http")
    return plane.views.task(entry)


# --- sessions ---------------------------------------------------------------------------------------------------------


@router.post("/sessions", status_code=201)
async def create_session(request: Request, body: SessionRequest | None = None) -> SessionView:
    """Create a session; one that exists is returned as it is."""
    plane = plane_of(request)
    session_id = await plane.signals.create_session(body.session_id if body else None)
    return await plane.views.session(session_id)


@router.get("/sessions")
async def list_sessions(request: Request, limit: Limit = 100, cursor: str | None = None) -> SessionPage:
    """One page of sessions, newest first."""
    return await plane_of(request).views.list_sessions(limit=limit, cursor=cursor)


@router.get("/sessions/{session_id}")
async def get_session(request: Request, session_id: str) -> SessionView:
    """A session; its tasks are listed by `/v1/tasks?session_id=`."""
    return await plane_of(request).views.session(session_id)


@router.get("/sessions/{session_id}/state")
async def get_session_state(request: Request, session_id: str) -> dict[str, Any]:
    """The state that the session's tasks share."""
    return await plane_of(request).views.session_state(session_id)


# --- services ---------------------------------------------------------------------------------------------------------


@router.get("/services")
async def list_services(request: Request) -> ServicePage:
    """Every known service with its instances."""
    return ServicePage(items=plane_of(request).views.services())


@router.get("/services/{name}")
async def get_service(request: Request, name: str) -> ServiceView:
    """One service."""
    return plane_of(request).views.service(name)


# --- status -----------------------------------------------------------------------------------------------------------


@router.get("/status")
async def get_status(request: Request) -> dict[str, Any]:
    """What the control plane is doing, in numbers."""
    return await plane_of(request).status()


@probes.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}


@probes.get("/readyz")
async def readyz(request: Request) -> JSONResponse:
    """Whether tasks are taken: 200, or 503 while starting, stopping, or without a store that can be written."""
    plane = plane_of(request)
    ready = plane.ready and plane.store.healthy
    return JSONResponse({"ready": ready, "store": plane.store.healthy}, 200 if ready else 503)
