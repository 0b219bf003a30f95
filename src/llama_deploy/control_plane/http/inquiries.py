"""Which control planes answer a request about what each of them knows alone, and with whose credentials."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request

from llama_deploy.control_plane.across import Inquiry
from llama_deploy.control_plane.http.access.tokens import FOR
from llama_deploy.control_plane.peers import FRESH, HOPS

WhichPlane = Annotated[
    str | None,
    Query(
        max_length=1000,
        description="Only what this control plane knows, by its name or URL. Where several share a store, the one that "
        "is asked asks the others too, by default, and names those that do not answer under `missing`.",
    ),
]

_CREDENTIALS = ("authorization", FOR.decode())


def inquiry(request: Request, control_plane: str | None = None, *, fresh: bool = False) -> Inquiry:
    """Who is to answer a request. `fresh` where the request has changed what control planes have in common."""
    headers = request.headers
    return Inquiry(
        which=control_plane,
        passed_on=headers.get(HOPS) is not None,
        credentials={name: headers[name] for name in _CREDENTIALS if name in headers},
        fresh=fresh or headers.get(FRESH) is not None,
    )
