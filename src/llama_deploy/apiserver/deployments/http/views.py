"""Deployments as the API shows them. Times are seconds since the epoch."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from llama_deploy.apiserver.deployments.pages import base_path
from llama_deploy.apiserver.deployments.processes import PLANE
from llama_deploy.apiserver.deployments.records import DeploymentRow, VersionRow
from llama_deploy.apiserver.deployments.running import RunningDeployment, State
from llama_deploy.apiserver.supervisor import ChildStatus
from llama_deploy.control_plane.http.exposition import Measure

STATES = tuple(state.value for state in State)


class ProcessView(BaseModel):
    """One process of a deployment."""

    name: str
    service: str = Field(description="The service that it serves; empty for the control plane.")
    state: str = Field(description="running, backoff, stopping, stopped, failed")
    ready: bool
    pid: int | None
    restarts: int
    ended: str = Field(description="How the process before it ended, in words.")


class ServiceLine(BaseModel):
    """One service of a deployment."""

    name: str
    replicas: int = Field(description="Processes that are wanted.")
    ready: int = Field(description="Processes of the present version that are ready.")


class FinishingView(BaseModel):
    """An earlier version that finishes the tasks which began with it."""

    version: int
    tasks: int = Field(description="Its tasks that have not ended.")
    finish_by: float | None = Field(description="When the rest goes on with the present version.")


class DeploymentView(BaseModel):
    """One deployment."""

    name: str
    state: str = Field(description="starting, running, updating, degraded, failed, stopping, stopped")
    wanted: str = Field(description="running or stopped")
    version: int = Field(description="The version that runs, or is to.")
    created_at: float
    updated_at: float
    services: list[ServiceLine]
    finishing: list[FinishingView] = Field(description="Earlier versions that still finish tasks.")
    processes: list[ProcessView]
    why: str = Field(description="How what has failed ended, with the last lines that it printed.")
    page: str | None = Field(description="The path of its page on this server, if it has one.")


class VersionView(BaseModel):
    """One version of a deployment."""

    version: int
    current: bool
    state: str = Field(description="new, proved (it was seen to run), failed")
    reason: str
    created_at: float
    digest: str


def deployment_view(row: DeploymentRow, running: RunningDeployment) -> DeploymentView:
    """How a deployment stands."""
    file = running.version.file if running.version is not None else None
    return DeploymentView(
        name=row.name,
        state=running.state.value,
        wanted=row.wanted.value,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
        services=[
            ServiceLine(
                name=service.name,
                replicas=running.replicas.get(service.name, service.replicas),
                ready=sum(_is_ready_for(child, service.name, running.label) for child in running.children),
            )
            for service in (file.services if file is not None else ())
        ],
        finishing=[
            FinishingView(version=one.number, tasks=one.tasks, finish_by=one.finish_by)
            for one in running.finishing.versions
        ],
        processes=[
            _process(child) for child in sorted(running.children, key=lambda one: (one.name != PLANE, one.name))
        ],
        why=running.why_failed(),
        page=f"{base_path(row.name)}/" if file is not None and file.page is not None else None,
    )


def version_view(row: VersionRow, current: int) -> VersionView:
    """One version."""
    return VersionView(
        version=row.number,
        current=row.number == current,
        state=row.state.value,
        reason=row.reason,
        created_at=row.created_at,
        digest=row.digest,
    )


def measures(views: list[DeploymentView]) -> list[Measure]:
    """How the deployments stand, in numbers."""
    processes = [
        ({"deployment": view.name, "process": process.name}, process) for view in views for process in view.processes
    ]
    return [
        Measure(
            "llama_deploy_deployment_state",
            "1 for the state that a deployment is in.",
            [({"deployment": view.name, "state": state}, view.state == state) for view in views for state in STATES],
        ),
        Measure(
            "llama_deploy_deployment_version",
            "The version that runs, or is to.",
            [({"deployment": view.name}, view.version) for view in views],
        ),
        Measure(
            "llama_deploy_finishing_tasks",
            "Tasks that finish on an earlier version.",
            [
                ({"deployment": view.name, "version": str(one.version)}, one.tasks)
                for view in views
                for one in view.finishing
            ],
        ),
        Measure(
            "llama_deploy_process_ready",
            "Whether a process is ready.",
            [(labels, process.ready) for labels, process in processes],
        ),
        Measure(
            "llama_deploy_process_restarts",
            "How often a process was started again.",
            [(labels, process.restarts) for labels, process in processes],
        ),
    ]


def items(views: list[Any]) -> dict[str, Any]:
    """A list as every list of the API is."""
    return {"items": views, "next": None}


def _is_ready_for(child: ChildStatus, service: str, label: str) -> bool:
    return child.service == service and child.ready and child.name.endswith(f"@{label}")


def _process(child: ChildStatus) -> ProcessView:
    return ProcessView(
        name=child.name,
        service=child.service,
        state=child.state.value,
        ready=child.ready,
        pid=child.pid,
        restarts=child.restarts,
        ended=child.ended,
    )
