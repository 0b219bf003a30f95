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
    problems,
    queue_routes,
    routes,
    schedule_routes,
    service_routes,
    sockets,
    transfer_routes,
)
from llama_deploy.control_plane.http.bodies import BodyLimit
from llama_deploy.control_plane.plane import ControlPlane


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
    app.include_router(routes.router)
    app.include_router(control_routes.router)
    app.include_router(dead_routes.router)
    app.include_router(transfer_routes.router)
    app.include_router(pause_routes.router)
    app.include_router(service_routes.router)
    app.include_router(queue_routes.router)
    app.include_router(data_routes.router)
    app.include_router(schedule_routes.router)
    app.include_router(artifact_routes.router)
    app.include_router(routes.probes)
    app.include_router(sockets.router)
    openapi.install(app)
    problems.install(app)
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
