"""The routes of the published control plane (its port 8000), thin over this one.

Both generations of clients are served: the field that names a task's service may be `agent_id` or `service_id`, and a
service is deregistered by a query or by a body. Errors are problem+json, as everywhere.
"""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import StreamingResponse

from llama_deploy._version import __version__
from llama_deploy.control_plane.http.access.guard import CALLER
from llama_deploy.control_plane.http.access.tokens import ANYBODY, Caller
from llama_deploy.control_plane.http.access.who import by_of
from llama_deploy.control_plane.http.bodies import JSONRoute
from llama_deploy.control_plane.http.published import records
from llama_deploy.control_plane.http.routes import plane_of
from llama_deploy.control_plane.registrations import deregister, register
from llama_deploy.control_plane.session_writes import write_state
from llama_deploy.errors import InvalidRequestError, NotOfferedError, TaskNotFoundError
from llama_deploy.messages import QueueMessage
from llama_deploy.types import (
    ActionTypes,
    EventDefinition,
    ServiceDefinition,
    SessionDefinition,
    TaskDefinition,
    TaskResult,
)

JSONObject = dict[str, Any]

router = APIRouter(route_class=JSONRoute, include_in_schema=False)


@router.get("/")
async def home(request: Request) -> dict[str, Any]:
    """That it runs, and where everything else is."""
    plane = plane_of(request)
    return {
        "running": plane.ready,
        "name": plane.name,
        "version": __version__,
        "api": "/v1",
        "openapi": "/openapi.json",
    }


@router.get("/queue_config")
async def queue_config(request: Request) -> dict[str, dict[str, Any]]:
    """What carries messages, without anything secret: here it is within the control plane's own process."""
    url = request.url
    return {"SimpleMessageQueueConfig": {"host": url.hostname, "port": url.port}}


@router.post("/process_message")
async def process_message(request: Request, body: JSONObject) -> None:
    """Take a new task as a message. What published services would send here is refused: ours have a connection."""
    message = records.read(QueueMessage, body)
    if message.action is not ActionTypes.NEW_TASK:
        raise NotOfferedError(
            f"a message with the action {message.action.value if message.action else None!r} cannot be taken here",
            why="services are connected to this control plane by themselves, and answer on that connection",
            fix="run the service with this package: llamactl serve, deploy_workflow, or serve_services",
        )
    definition = records.read(TaskDefinition, message.data.get("task", message.data))
    await records.submit(plane_of(request), definition, definition.session_id)


# --- services ---------------------------------------------------------------------------------------------------------


@router.post("/services/register")
async def register_service(request: Request, body: JSONObject) -> None:
    """Know a service by name; tasks for it are accepted while an instance of it is connected."""
    definition = records.read(ServiceDefinition, body)
    _check_served(request, definition.service_name)
    await register(plane_of(request).engine, definition)


@router.post("/services/deregister")
async def deregister_service(
    request: Request,
    service_name: str | None = None,
    body: Annotated[JSONObject | None, Body()] = None,
) -> None:
    """Know a service no more."""
    name = service_name or (body or {}).get("service_name")
    if not isinstance(name, str) or not name:
        raise InvalidRequestError("no service is named", fix="POST /services/deregister?service_name=NAME")
    _check_served(request, name)
    await deregister(plane_of(request).engine, name)


def _check_served(request: Request, name: str) -> None:
    """Raise `ForbiddenError` for a service that whoever asks may not serve."""
    caller: Caller = request.scope.get(CALLER, ANYBODY)
    if (refusal := caller.unserved([name])) is not None:
        raise refusal


@router.get("/services")
async def list_services(request: Request) -> dict[str, ServiceDefinition]:
    """Every known service by its name."""
    return {view.definition.service_name: view.definition for view in plane_of(request).views.services()}


@router.get("/services/{name}")
async def get_service(request: Request, name: str) -> ServiceDefinition:
    """One service."""
    return plane_of(request).views.service(name).definition


# --- sessions ---------------------------------------------------------------------------------------------------------


@router.post("/sessions/create")
async def create_session(request: Request) -> str:
    """A new session; the answer is its id."""
    return await plane_of(request).signals.create_session()


@router.get("/sessions")
async def list_sessions(request: Request) -> dict[str, SessionDefinition]:
    """Sessions by their ids."""
    return {session.session_id: session for session in await records.sessions(plane_of(request))}


@router.get("/sessions/{session_id}")
async def get_session(request: Request, session_id: str) -> SessionDefinition:
    """One session."""
    return await records.session_definition(plane_of(request), session_id)


@router.post("/sessions/{session_id}/delete")
async def delete_session(request: Request, session_id: str) -> None:
    """Erase a session: its tasks, what came of them, its state. What runs is canceled first."""
    await plane_of(request).erasure.erase(session_id, by=by_of(request))


@router.get("/sessions/{session_id}/state")
async def get_state(request: Request, session_id: str) -> dict[str, Any]:
    """The state that the session's tasks share."""
    return await plane_of(request).views.session_state(session_id)


@router.post("/sessions/{session_id}/state")
async def update_state(request: Request, session_id: str, body: JSONObject) -> None:
    """Put these keys into the state; the others stay."""
    plane = plane_of(request)
    await records.check_session(plane, session_id)
    await write_state(plane.engine, session_id, body)


# --- tasks ------------------------------------------------------------------------------------------------------------


@router.post("/sessions/{session_id}/tasks")
async def add_task(request: Request, session_id: str, body: JSONObject) -> str:
    """Submit a task; the answer is its id. Repeating the request finds the same task."""
    definition = records.read(TaskDefinition, body)
    return (await records.submit(plane_of(request), definition, session_id)).row.task_id


@router.get("/sessions/{session_id}/tasks")
async def list_tasks(request: Request, session_id: str) -> list[TaskDefinition]:
    """What was submitted in a session, in that order."""
    plane = plane_of(request)
    await records.check_session(plane, session_id)
    return await records.tasks_of(plane, session_id)


@router.get("/sessions/{session_id}/current_task")
async def get_current_task(request: Request, session_id: str) -> TaskDefinition | None:
    """The task that was submitted last; null where there is none, or it was removed."""
    plane = plane_of(request)
    current = (await plane.views.session(session_id)).current_task_id
    with contextlib.suppress(TaskNotFoundError):
        return (await plane.engine.cache.get(current)).definition if current is not None else None
    return None


@router.get("/sessions/{session_id}/tasks/{task_id}/result")
async def get_result(request: Request, session_id: str, task_id: str) -> TaskResult | None:
    """The outcome; null while there is none, also of a task that the session does not have."""
    plane = plane_of(request)
    await records.check_session(plane, session_id)
    try:
        entry = await records.find_task(plane, task_id, session_id)
    except TaskNotFoundError:
        if records.is_no_id(task_id):
            raise
        return None
    return await records.result_of(request, plane, entry)


@router.get("/sessions/{session_id}/tasks/{task_id}/result_stream", response_class=StreamingResponse)
async def get_result_stream(request: Request, session_id: str, task_id: str) -> StreamingResponse:
    """The events of a task, one a line, as they happen; the answer ends with the task."""
    plane = plane_of(request)
    return records.stream_of(plane, await records.find_task(plane, task_id, session_id))


@router.post("/sessions/{session_id}/tasks/{task_id}/send_event")
async def send_event(request: Request, session_id: str, task_id: str, body: JSONObject) -> None:
    """Send an event to a running workflow. When this returns, it is recorded."""
    plane, event = plane_of(request), records.read(EventDefinition, body)
    await records.send_event(plane, await records.find_task(plane, task_id, session_id), event, by=by_of(request))
