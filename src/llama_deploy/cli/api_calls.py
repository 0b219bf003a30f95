"""How a command talks to an API server, and how a deployment is shown."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from llama_deploy.cli.settings import Settings

if TYPE_CHECKING:
    from llama_deploy.client.deployments import DeploymentsClient

Value = TypeVar("Value")

API_SERVER = "http://127.0.0.1:4501"
API_SERVER_VARIABLE = "LLAMA_DEPLOY_API_SERVER_URL"


def api_server(settings: Settings) -> str:
    """The API server that the settings name: the server that was given, else the variable, else this machine's."""
    if settings.server_said:
        return settings.server
    return (os.environ.get(API_SERVER_VARIABLE) or settings.api_server or API_SERVER).rstrip("/")


def at_deployment(settings: Settings, name: str) -> Settings:
    """The settings of a client of a deployment's control plane: behind its API server, or the server that is named.

    Raises `DeploymentNotFoundError` where that is the control plane of another deployment.
    """
    return replace(settings, server=_place_of(settings, name), server_given=True)


def _place_of(settings: Settings, name: str) -> str:
    """Where the control plane of a deployment is. Where nobody names a server and no API server is there, it may be
    the control plane of this machine, as `llamactl serve` runs it.
    """
    from llama_deploy.errors import CannotReachError, DeploymentNotFoundError

    try:
        return with_deployments(settings, lambda client: client.control_plane_url(name))
    except CannotReachError:
        if api_server(settings) != API_SERVER:
            raise
        with contextlib.suppress(CannotReachError, DeploymentNotFoundError):
            here = replace(settings, server=settings.server, server_said=True)
            return with_deployments(here, lambda client: client.control_plane_url(name))
        raise


def with_deployments(settings: Settings, work: Callable[[DeploymentsClient], Awaitable[Value]]) -> Value:
    """Run `work` with a client of the API server that the settings name."""
    from llama_deploy.cli.credentials import credentials_of
    from llama_deploy.client.deployments import DeploymentsClient

    async def main() -> Value:
        async with DeploymentsClient(api_server(settings), credentials=credentials_of(settings)) as client:
            return await work(client)

    return asyncio.run(main())


def document_of_deployment(view: dict[str, Any]) -> dict[str, Any]:
    """A deployment as a document: its times as ISO 8601."""
    from llama_deploy.cli.output import iso_time

    document = {key: iso_time(value) if key.endswith("_at") else value for key, value in view.items()}
    if "finishing" in view:
        document["finishing"] = [{**one, "finish_by": iso_time(one["finish_by"])} for one in view["finishing"]]
    return document


def services_text(services: list[dict[str, Any]]) -> str:
    """The services of a deployment in one line, with how many of their processes are ready."""
    return ", ".join(f"{one['name']} {one['ready']}/{one['replicas']}" for one in services) or "-"


def finishing_text(finishing: list[dict[str, Any]]) -> str:
    """The versions that still finish tasks, in one line."""

    def told(one: dict[str, Any]) -> str:
        many = "1 task finishes" if one["tasks"] == 1 else f"{one['tasks']} tasks finish"
        return f"{many} on version {one['version']}"

    return ", ".join(map(told, finishing)) or "-"


def deployment_text(view: dict[str, Any]) -> str:
    """A deployment for a person."""
    from llama_deploy.cli.output import fields

    document = document_of_deployment(view)
    shown = {key: document.get(key) for key in ("name", "state", "wanted", "version", "created_at", "updated_at")}
    finishing = finishing_text(view["finishing"]) if view.get("finishing") else None
    described = {"services": services_text(view["services"]), "finishing": finishing, "page": view.get("page")}
    lines = [fields({**shown, **described, "why": view["why"]}), "", "processes"]
    for process in view["processes"]:
        ready = "ready" if process["ready"] else process["state"]
        restarts = f", {process['restarts']} restarts ({process['ended']})" if process["restarts"] else ""
        lines.append(f"  {process['name']}  {ready}  {process['pid'] or '-'}{restarts}")
    return "\n".join(lines)
