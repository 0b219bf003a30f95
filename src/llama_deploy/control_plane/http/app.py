"""The ASGI application of a control plane."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI
from fastapi.routing import APIRoute

from llama_deploy._version import __version__
from llama_deploy.control_plane.http import (
    artifact_routes,
    control_routes,
    data_routes,
    dead_routes,
    openapi,
    pause_routes,
    picture_routes,
    problems,
    queue_routes,
    release_routes,
    routes,
    schedule_routes,
    service_routes,
    sockets,
    transfer_routes,
)
from llama_deploy.control_plane.http.bodies import BodyLimit
from llama_deploy.control_plane.http.forwarding import Forwarding
from llama_deploy.control_plane.http.published import core_routes, server_routes
from llama_deploy.control_plane.plane import ControlPlane

ROUTERS = (
    routes.router,
    control_routes.router,
    picture_routes.router,
    dead_routes.router,
    transfer_routes.router,
    pause_routes.router,
    service_routes.router,
    queue_routes.router,
    release_routes.router,
    data_routes.router,
    schedule_routes.router,
    artifact_routes.router,
    routes.probes,
    sockets.router,
    core_routes.router,
    server_routes.router,
)
"""Everything that answers, in this order. Which scope each route asks for is said in `access/scopes.py`."""


def build_app(plane: ControlPlane) -> BodyLimit:
    """The application over a control plane that somebody else starts and stops.

    Whoever serves it sets `app.state.closing` of what is inside when it stops, so that nobody goes on waiting.
    """
    app = FastAPI(
        title="llama_deploy control plane",
        version=__version__,
        description="Submit tasks, follow them, answer their questions. Errors are problem+json.",
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
        generate_unique_id_function=_operation_id,
    )
    app.state.plane = plane
    app.state.closing = asyncio.Event()
    for router in ROUTERS:
        app.include_router(router)
    openapi.install(app)
    problems.install(app)
    if plane.routing.shared:
        app.add_middleware(Forwarding, plane=plane, closing=app.state.closing)
    settings = plane.engine.settings
    return BodyLimit(
        app,
        settings.payload_bytes_max * 2,
        {
            "/v1/artifacts": (settings.artifact_bytes_max, "artifact_bytes_max"),
            "/v1/import": (settings.import_bytes_max, "import_bytes_max"),
        },
    )


def _operation_id(route: APIRoute) -> str:
    return route.name
