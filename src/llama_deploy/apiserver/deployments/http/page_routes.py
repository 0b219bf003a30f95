"""The page of a deployment below `/deployments/NAME/ui`: its files, or what its own process answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import Request, Response, WebSocket
from fastapi.responses import FileResponse, RedirectResponse

from llama_deploy.apiserver.deployments.http.proxy import Proxy
from llama_deploy.apiserver.deployments.pages import base_path
from llama_deploy.apiserver.deployments.running import RunningDeployment
from llama_deploy.control_plane.http import problems
from llama_deploy.errors import NotOfferedError

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' ws: wss:; frame-ancestors 'self'"
)
"""Of a page that says none itself: what comes from here, and what is written in it."""


async def answer(request: Request, running: RunningDeployment, path: str, proxy: Proxy) -> Response:
    """A request for the page. Raises `NotOfferedError` where the deployment has none."""
    if running.page_port is not None:
        url = f"http://127.0.0.1:{running.page_port}{_target(request.scope, running)}"
        response: Response = await proxy.request(request, url)
    else:
        if path == "ui":  # links of the page start in its folder
            return RedirectResponse(f"{base_path(running.name)}/")
        response = _file(running, path.removeprefix("ui/"))
    if "content-security-policy" not in response.headers:
        response.headers["content-security-policy"] = POLICY
    return response


async def connect(socket: WebSocket, running: RunningDeployment, path: str, proxy: Proxy) -> None:
    """A WebSocket to the page's process."""
    del path
    if running.page_port is None:
        await socket.send_denial_response(problems.problem(_no_page(running)))
        return
    await proxy.websocket(socket, f"ws://127.0.0.1:{running.page_port}{_target(socket.scope, running)}")


def _file(running: RunningDeployment, path: str) -> Response:
    page = running.version.page if running.version is not None else None
    if page is None or page.command:
        raise _no_page(running)
    root = page.folder.resolve()
    place = (root / path).resolve()
    if place.is_relative_to(root) and place.is_dir():
        place /= "index.html"
    if not (place.is_relative_to(root) and place.is_file()):
        return problems.no_route(path)
    return FileResponse(Path(place), headers={"cache-control": "no-cache"})


def _target(scope: Any, running: RunningDeployment) -> str:
    """The path and query that the page's process is asked for."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    path = raw.decode("latin-1").partition("?")[0]
    spec = running.version.file.page if running.version is not None else None
    if spec is not None and spec.strips:
        path = path.removeprefix(base_path(running.name)) or "/"
    query = scope["query_string"].decode("latin-1")
    return path + (f"?{query}" if query else "")


def _no_page(running: RunningDeployment) -> NotOfferedError:
    return NotOfferedError(f"the deployment {running.name} has no page there", fix="describe one with the key `ui`")
