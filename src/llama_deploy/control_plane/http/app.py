"""The ASGI application of a control plane."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI

from llama_deploy._version import __version__
from llama_deploy.control_plane.http import problems, routes, sockets
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.errors import LimitExceededError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def build_app(plane: ControlPlane) -> Any:
    """The application over a control plane that somebody else starts and stops."""
    app = FastAPI(
        title="llama_deploy control plane",
        version=__version__,
        description="Submit tasks, follow them, answer their questions. Errors are problem+json.",
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.state.plane = plane
    app.include_router(routes.router)
    app.include_router(routes.probes)
    app.include_router(sockets.router)
    problems.install(app)
    return BodyLimit(app, plane.engine.settings.payload_bytes_max * 2)


class BodyLimit:
    """Refuses request bodies above a size before they are read into memory."""

    def __init__(self, app: FastAPI, bytes_max: int) -> None:
        self.app = app
        self._bytes_max = bytes_max

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._bytes_max:
            await problems.problem(self._refusal())(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._bytes_max:
                raise self._refusal()
            return message

        await self.app(scope, counted, send)

    def _refusal(self) -> LimitExceededError:
        return LimitExceededError(
            f"the request body has more than {self._bytes_max} bytes",
            fix="pass a reference to large data, or raise payload_bytes_max",
            setting="payload_bytes_max",
            limit=self._bytes_max,
        )
