"""The routes of the published API server (its port 4501), thin over the one deployment that this control plane is.

A task of a deployment is a task of the control plane; its session, where the request names none, is made with it.
Creating further deployments is not offered here, and said so.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from llama_deploy.control_plane.http.access.who import by_of
from llama_deploy.control_plane.http.bodies import JSONRoute
from llama_deploy.control_plane.http.exposition import Measure, exposition
from llama_deploy.control_plane.http.published import records
from llama_deploy.control_plane.http.routes import plane_of
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.errors import DeploymentNotFoundError, NotOfferedError, TaskNotFoundError
from llama_deploy.types import EventDefinition, SessionDefinition, TaskDefinition, TaskResult

router = APIRouter(route_class=JSONRoute, include_in_schema=False)


def _deployment(request: Request, name: str) -> ControlPlane:
    """The control plane of a deployment. Raises `DeploymentNotFoundError`."""
    plane = plane_of(request)
    if name != plane.name:
        raise DeploymentNotFoundError(
            f"there is no deployment {name!r}", why=f"this server runs {plane.name!r}", known=[plane.name]
        )
    return plane


@router.get("/status")
@router.get("/status/")
async def get_status(request: Request) -> dict[str, Any]:
    """Whether it is well, and which deployments it runs."""
    plane = plane_of(request)
    well = plane.ready and plane.store.healthy
    return {"status": "Healthy" if well else "Unhealthy", "max_deployments": 1, "deployments": [plane.name]}


@router.get("/status/metrics", response_class=Response)
async def get_metrics(request: Request) -> Response:
    """Numbers for a monitoring system."""
    plane = plane_of(request)
    status, services = await plane.status(), plane.views.services()
    by_name = [({"service": view.definition.service_name}, view) for view in services]
    return exposition(
        [
            Measure("llama_deploy_ready", "Whether tasks are taken.", [({}, plane.ready and plane.store.healthy)]),
            Measure("llama_deploy_tasks", "Tasks by state.", [({"state": s}, n) for s, n in status["tasks"].items()]),
            Measure(
                "llama_deploy_dead_letters",
                "Steps that were given up, by service.",
                [({"service": name}, count) for name, count in status["dead_letters"].items()],
            ),
            Measure(
                "llama_deploy_service_instances",
                "Instances that are connected.",
                [(labels, len(view.instances)) for labels, view in by_name],
            ),
            Measure(
                "llama_deploy_service_steps_waiting",
                "Steps that no instance has taken yet.",
                [(labels, view.waiting) for labels, view in by_name],
            ),
            Measure(
                "llama_deploy_service_steps_running",
                "Steps that instances hold.",
                [(labels, view.running) for labels, view in by_name],
            ),
            Measure(
                "llama_deploy_service_oldest_waiting_seconds",
                "Age of the step that waits longest.",
                [(labels, view.oldest_waiting_s or 0.0) for labels, view in by_name],
            ),
            Measure("llama_deploy_clients", "Clients that are connected.", [({}, status["clients"])]),
            Measure("llama_deploy_commits_total", "Commits of the store.", [({}, status["commits"])], "counter"),
        ]
    )


@router.get("/deployments")
@router.get("/deployments/")
async def list_deployments(request: Request) -> list[str]:
    """The deployments by name."""
    return [plane_of(request).name]


@router.post("/deployments/create")
async def create_deployment(request: Request) -> None:
    """Running another deployment: not offered."""
    raise NotOfferedError(
        "this server runs one deployment, and takes no further ones",
        why=f"it was started as {plane_of(request).name!r}",
        fix="llamactl serve FILE   runs a deployment file, in a server of its own",
    )


@router.get("/deployments/{name}")
async def get_deployment(request: Request, name: str) -> dict[str, str]:
    """One deployment."""
    return {"name": _deployment(request, name).name}


# --- tasks ------------------------------------------------------------------------------------------------------------


@router.post("/deployments/{name}/tasks/run")
async def run_task(request: Request, name: str, body: dict[str, Any], session_id: str | None = None) -> str:
    """Run a task to its end; the answer is the text of its result."""
    plane, definition = _deployment(request, name), records.read(TaskDefinition, body)
    entry = await records.submit(plane, definition, session_id or definition.session_id)
    return (await records.result_in_the_end(request, plane, entry)).result


@router.post("/deployments/{name}/tasks/create")
async def create_task(
    request: Request, name: str, body: dict[str, Any], session_id: str | None = None
) -> TaskDefinition:
    """Submit a task; the answer is the task as it was recorded, with its session."""
    plane, definition = _deployment(request, name), records.read(TaskDefinition, body)
    chosen = session_id or definition.session_id or await plane.signals.create_session()
    return (await records.submit(plane, definition, chosen)).definition


@router.get("/deployments/{name}/tasks")
async def list_tasks(request: Request, name: str) -> list[TaskDefinition]:
    """What was submitted, in that order."""
    return await records.tasks_of(_deployment(request, name))


@router.get("/deployments/{name}/tasks/{task_id}/results")
async def get_results(request: Request, name: str, task_id: str, session_id: str | None = None) -> TaskResult:
    """The outcome. 404 while there is none."""
    plane = _deployment(request, name)
    result = await records.result_of(request, plane, await records.find_task(plane, task_id, session_id))
    if result is None:
        raise TaskNotFoundError(f"task {task_id} has no result yet", fix="ask again, or follow its events to their end")
    return result


@router.get("/deployments/{name}/tasks/{task_id}/events", response_class=StreamingResponse)
async def get_events(request: Request, name: str, task_id: str, session_id: str | None = None) -> StreamingResponse:
    """The events of a task, one a line, as they happen; the answer ends with the task."""
    plane = _deployment(request, name)
    return records.stream_of(plane, await records.find_task(plane, task_id, session_id))


@router.post("/deployments/{name}/tasks/{task_id}/events")
async def send_event(
    request: Request, name: str, task_id: str, body: dict[str, Any], session_id: str | None = None
) -> EventDefinition:
    """Send an event to a running workflow; the answer is what was recorded."""
    plane, event = _deployment(request, name), records.read(EventDefinition, body)
    await records.send_event(plane, await records.find_task(plane, task_id, session_id), event, by=by_of(request))
    return event


# --- sessions ---------------------------------------------------------------------------------------------------------


@router.get("/deployments/{name}/sessions")
async def list_sessions(request: Request, name: str) -> list[SessionDefinition]:
    """The sessions."""
    return await records.sessions(_deployment(request, name))


@router.post("/deployments/{name}/sessions/create")
async def create_session(request: Request, name: str) -> SessionDefinition:
    """A new session."""
    plane = _deployment(request, name)
    return SessionDefinition(session_id=await plane.signals.create_session())


@router.post("/deployments/{name}/sessions/delete")
async def delete_session(request: Request, name: str, session_id: str) -> None:
    """Erase a session: its tasks, what came of them, its state."""
    await _deployment(request, name).erasure.erase(session_id, by=by_of(request))


@router.get("/deployments/{name}/sessions/{session_id}")
async def get_session(request: Request, name: str, session_id: str) -> SessionDefinition:
    """One session."""
    return await records.session_definition(_deployment(request, name), session_id)
