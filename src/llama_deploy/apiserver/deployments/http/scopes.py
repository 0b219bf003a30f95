"""Which scope each route of an API server asks for; below a deployment, what its control plane's routes ask for."""

from __future__ import annotations

from llama_deploy.control_plane.http.access.scopes import ROUTES, ScopeTable

OWN = """
-       GET     /healthz
-       GET     /readyz

read    GET     /
read    GET     /openapi.json
read    GET     /status
read    GET     /status/
read    GET     /status/metrics
read    GET     /deployments
read    GET     /deployments/
read    GET     /deployments/{name}
read    GET     /v1/deployments
read    GET     /v1/deployments/{name}
read    GET     /v1/deployments/{name}/versions
read    GET     /v1/deployments/{name}/events
read    GET     /v1/deployments/{name}/logs

deploy  POST    /deployments/create
deploy  POST    /v1/deployments
deploy  POST    /v1/deployments/{name}/rollback
deploy  POST    /v1/deployments/{name}/finish
deploy  POST    /v1/deployments/{name}/scale
deploy  POST    /v1/deployments/{name}/stop
deploy  POST    /v1/deployments/{name}/start

admin   DELETE  /v1/deployments/{name}

read    GET     /deployments/{name}/ui
read    GET     /deployments/{name}/ui/{path:path}
run     POST    /deployments/{name}/ui/{path:path}
run     PUT     /deployments/{name}/ui/{path:path}
run     DELETE  /deployments/{name}/ui/{path:path}
read    WS      /deployments/{name}/ui
read    WS      /deployments/{name}/ui/{path:path}
"""

_PUBLISHED = "/deployments/{name}/"
"""Where the published routes of one deployment are, which are passed on as they are."""


def _passed_on() -> str:
    """The routes of a control plane below each deployment."""
    lines = []
    for line in ROUTES.splitlines():
        if line.strip():
            scope, method, path = line.split()
            place = path if path.startswith(_PUBLISHED) else f"/deployments/{{name}}{path}"
            lines.append(f"{scope} {method} {place}")
    return "\n".join(lines)


SCOPES = ScopeTable(f"{OWN}\n{_passed_on()}")
