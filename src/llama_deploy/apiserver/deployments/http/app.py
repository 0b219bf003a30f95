"""The ASGI application of an API server: its own routes, the published ones, and the way to each deployment.

Below `/deployments/NAME/` is the control plane of that deployment: `/v1/…` with everything that it has, WebSockets
included, so that `http://host:4501/deployments/NAME` is the URL of a control plane for every client.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket
from pydantic import BaseModel, Field

from llama_deploy._version import __version__
from llama_deploy.apiserver.deployments.http import page_routes, views
from llama_deploy.apiserver.deployments.http.forms import read_form
from llama_deploy.apiserver.deployments.http.proxy import Proxy
from llama_deploy.apiserver.deployments.server import DeploymentServer
from llama_deploy.apiserver.deployments.versions import Offer
from llama_deploy.control_plane.http import problems
from llama_deploy.control_plane.http.access.guard import CALLER
from llama_deploy.control_plane.http.access.tokens import ANYBODY, FOR, said_of
from llama_deploy.control_plane.http.exposition import exposition
from llama_deploy.control_plane.http.lines import HEADERS, NDJSON, EndlessResponse, log_response
from llama_deploy.control_plane.http.problems import answers
from llama_deploy.errors import (
    DeploymentFileError,
    InvalidRequestError,
    LimitExceededError,
    LlamaDeployError,
)

FORM_BYTES_MAX = 64 * 1024 * 1024
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class ScaleBody(BaseModel):
    """How many processes of a service are wanted."""

    service: str
    replicas: int | None = Field(description="`null`: as many as the deployment file says.")


class RollbackBody(BaseModel):
    """Which version to go back to."""

    version: int | None = Field(None, description="By default the last one before the present that was seen to run.")
    now: bool = Field(default=False, description="Tasks of the present version do not finish on it.")


class FinishBody(BaseModel):
    """Which version is to finish nothing more."""

    version: int | None = Field(None, description="By default every one that still finishes tasks.")


def build_app(server: DeploymentServer) -> FastAPI:
    """The application over a server that somebody else starts and stops."""
    app = FastAPI(
        title="llama_deploy API server",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.closing = asyncio.Event()
    proxy = app.state.proxy = Proxy()
    _add_deployments(app, server)
    _add_changes(app, server)
    _add_following(app, server)
    _add_published(app, server)
    _add_proxy(app, server, proxy)
    problems.install(app)
    return app


def _add_deployments(app: FastAPI, server: DeploymentServer) -> None:
    @app.get("/v1/deployments", responses=answers())
    async def list_deployments() -> dict[str, Any]:
        """Every deployment, by name."""
        return views.items([_view(server, name) for name in server.names])

    @app.post("/v1/deployments", responses=answers(400, 409, 413))
    async def deploy(
        request: Request,
        base_path: str | None = None,
        *,
        replace: bool = True,
        dry_run: bool = False,
        now: bool = False,
    ) -> dict[str, Any]:
        """Run a deployment file, in the place of what runs under its name; answers when all of it is ready.

        Tasks finish on the version that they began with, for a while; with `now` they do not. With
        `dry_run` nothing is changed, and the answer says what would be.
        """
        if dry_run:
            return await server.compare(await _offer(request, base_path))
        name, changed = await server.deploy(await _offer(request, base_path), replace=replace, now=now)
        return {**_view(server, name).model_dump(), "changed": changed}

    @app.get("/v1/deployments/{name}", responses=answers(404))
    async def get_deployment(name: str) -> views.DeploymentView:
        """One deployment: what is wanted, what runs, and why not."""
        return _view(server, name)

    @app.delete("/v1/deployments/{name}", responses=answers(404))
    async def delete_deployment(name: str) -> dict[str, Any]:
        """End a deployment after its processes have drained, and remove all that it has kept."""
        await server.delete(name)
        return {"name": name, "deleted": True}

    @app.get("/v1/deployments/{name}/versions", responses=answers(404))
    async def list_versions(name: str) -> dict[str, Any]:
        """The versions of a deployment, the newest first."""
        current = server.row(name).version
        return views.items([views.version_view(row, current) for row in server.history(name)])


def _add_changes(app: FastAPI, server: DeploymentServer) -> None:
    @app.post("/v1/deployments/{name}/rollback", responses=answers(400, 404))
    async def roll_back(name: str, body: RollbackBody) -> views.DeploymentView:
        """Go back to an earlier version."""
        await server.rollback(name, body.version, now=body.now)
        return _view(server, name)

    @app.post("/v1/deployments/{name}/finish", responses=answers(404))
    async def finish(name: str, body: FinishBody | None = None) -> views.DeploymentView:
        """Have tasks that finish on an earlier version go on with the present one, at once."""
        await server.finish(name, body.version if body is not None else None)
        return _view(server, name)

    @app.post("/v1/deployments/{name}/scale", responses=answers(400, 404))
    async def scale(name: str, body: ScaleBody) -> views.DeploymentView:
        """Have so many processes of a service."""
        await server.scale(name, body.service, body.replicas)
        return _view(server, name)

    @app.post("/v1/deployments/{name}/stop", responses=answers(404))
    async def stop(name: str) -> views.DeploymentView:
        """End its processes; what is unfinished is kept."""
        await server.stop(name)
        return _view(server, name)

    @app.post("/v1/deployments/{name}/start", responses=answers(404))
    async def start(name: str) -> views.DeploymentView:
        """Start it again, or what of it has failed."""
        await server.start(name)
        return _view(server, name)


def _add_following(app: FastAPI, server: DeploymentServer) -> None:
    @app.get("/v1/deployments/{name}/events", responses=answers(404))
    async def events(name: str, after: int = 0, *, follow: bool = False) -> Response:
        """What happened to it, one JSON document a line; with `follow`, what is to come too."""
        server.find(name)

        async def lines() -> AsyncIterator[bytes]:
            async for row in server.events(name, after=after, follow=follow):
                document = {"number": row.number, "at": row.at, "kind": row.kind, "version": row.version}
                yield json.dumps({**document, "message": row.message}, ensure_ascii=False).encode() + b"\n"

        return EndlessResponse(lines(), media_type=NDJSON, headers=HEADERS)

    @app.get("/v1/deployments/{name}/logs", responses=answers(404))
    async def logs(name: str, last: int = 200, *, follow: bool = False) -> Response:
        """What its processes print, line by line; with `follow`, what is to come too."""
        return log_response(server.find(name).log, last=last, follow=follow)


def _add_published(app: FastAPI, server: DeploymentServer) -> None:
    @app.get("/", include_in_schema=False)
    async def root() -> dict[str, Any]:
        """What this is."""
        return {"name": "llama_deploy API server", "version": __version__, "deployments": server.names}

    @app.get("/healthz", include_in_schema=False)
    @app.get("/readyz", include_in_schema=False)
    async def health() -> dict[str, str]:
        """It answers, so it is well; each deployment has a word of its own about itself."""
        return {"status": "ok"}

    @app.get("/status", include_in_schema=False)
    @app.get("/status/", include_in_schema=False)
    async def get_status() -> dict[str, Any]:
        """Whether it is well, and which deployments it runs."""
        return {"status": "Healthy", "max_deployments": server.deployments_max, "deployments": server.names}

    @app.get("/status/metrics", include_in_schema=False)
    async def get_metrics() -> Response:
        """Numbers for a monitoring system; those of a deployment's tasks are below it, at the same path."""
        return exposition(views.measures([_view(server, name) for name in server.names]))

    @app.get("/deployments", include_in_schema=False)
    @app.get("/deployments/", include_in_schema=False)
    async def list_names() -> list[str]:
        """The deployments by name."""
        return server.names

    @app.post("/deployments/create", include_in_schema=False)
    async def create(
        request: Request, base_path: str | None = None, *, reload: bool = False, local: bool = False
    ) -> dict[str, str]:
        """Run a deployment file; with `reload`, in the place of what runs under its name."""
        del local  # sources are where the file says
        offer = await _offer(request, base_path)
        try:
            name, _ = await server.deploy(offer, replace=reload)
        except DeploymentFileError as error:
            if offer.folder is None and offer.archive is None and "beside the deployment file" in error.why:
                error.fix += "\nthe request had the file alone: name its folder on this server, ?base_path=FOLDER"
            raise
        return {"name": name}

    @app.get("/deployments/{name}", include_in_schema=False)
    async def get_name(name: str) -> dict[str, str]:
        """One deployment."""
        return {"name": server.find(name).name}


def _add_proxy(app: FastAPI, server: DeploymentServer, proxy: Proxy) -> None:
    @app.api_route("/deployments/{name}/{path:path}", methods=METHODS, include_in_schema=False)
    async def pass_on(request: Request, name: str, path: str) -> Response:
        """A request to the control plane of a deployment."""
        running = server.serving(name)
        if path.partition("/")[0] == "ui":
            return await page_routes.answer(request, running, path, proxy)
        url = running.url + _target(request.scope, name, path)
        return await proxy.request(request, url, headers=running.headers | _on_behalf(request.scope))

    @app.websocket("/deployments/{name}/{path:path}")
    async def pass_socket_on(socket: WebSocket, name: str, path: str) -> None:
        """A WebSocket to the control plane of a deployment."""
        try:
            running = server.serving(name)
        except LlamaDeployError as error:
            await socket.send_denial_response(problems.problem(error))
            return
        if path.partition("/")[0] == "ui":
            await page_routes.connect(socket, running, path, proxy)
            return
        host, port = running.address
        url = f"ws://{host}:{port}{_target(socket.scope, name, path)}"
        await proxy.websocket(socket, url, headers=running.headers | _on_behalf(socket.scope))


def _on_behalf(scope: Any) -> dict[str, str]:
    """Who asks, for the control plane that is asked; nobody can say it in our place."""
    return {FOR.decode(): said_of(scope.get(CALLER, ANYBODY))}


def _target(scope: Any, name: str, path: str) -> str:
    """The path and query at a deployment's control plane: published paths as they are, all others below its root."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    whole = raw.decode("latin-1").partition("?")[0]
    prefix = f"/deployments/{name}"
    below = whole.removeprefix(prefix)
    published = path.partition("/")[0] in {"tasks", "sessions"}
    query = scope["query_string"].decode("latin-1")
    return (whole if published else below) + (f"?{query}" if query else "")


def _view(server: DeploymentServer, name: str) -> views.DeploymentView:
    return views.deployment_view(server.row(name), server.find(name))


async def _offer(request: Request, base_path: str | None) -> Offer:
    """What a request asks to run: a form with `config_file`, and with `archive` where the files come along."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > FORM_BYTES_MAX:
            raise LimitExceededError(
                f"the request has more than {FORM_BYTES_MAX} bytes",
                fix="leave out of the folder what the code does not need, or fetch it from git",
                setting="form_bytes_max",
                limit=FORM_BYTES_MAX,
            )
    form = read_form(request.headers.get("content-type", ""), bytes(body))
    config = form.get("config_file")
    if config is None:
        raise InvalidRequestError("the form has no `config_file`", fix="send the deployment file under that name")
    archive = form.get("archive")
    name = Path((config.file_name or "deployment.yml").replace("\\", "/")).name or "deployment.yml"
    folder = Path(base_path) if base_path is not None else None
    if folder is not None and not folder.is_dir():
        raise InvalidRequestError(
            f"there is no folder {base_path} on the server", fix="leave --base-path out, and the files are sent along"
        )
    return Offer(
        source=config.data,
        file_name=name,
        folder=folder if archive is None else None,
        archive=io.BytesIO(archive.data) if archive is not None else None,
    )
