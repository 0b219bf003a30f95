"""Whose doing a request is, as it is recorded with what it changes: the token's name, and what was said beside it."""

from __future__ import annotations

from starlette.requests import Request

from llama_deploy.control_plane.http.access.guard import CALLER
from llama_deploy.control_plane.http.access.tokens import ANYBODY, Caller

SAID_CHARACTERS_MAX = 200


def by_of(request: Request, said: str = "", *, otherwise: str = "http") -> str:
    """Who wants it: what they said of themselves, with the name of their token, which nobody can choose.

    `otherwise` where neither is known.
    """
    caller: Caller = request.scope.get(CALLER, ANYBODY)
    if caller.token is None:
        return said or otherwise
    return f"{said[:SAID_CHARACTERS_MAX]} (token {caller.name})" if said else f"token {caller.name}"
