"""The OpenAPI 3.1 document: FastAPI's own, with our problems in the place of its validation errors."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from llama_deploy.control_plane.http.access.scopes import Rule, ScopeTable
from llama_deploy.control_plane.http.problems import Problem, answers

_FOREIGN_SCHEMAS = ("HTTPValidationError", "ValidationError")


def install(app: FastAPI) -> None:
    """Serve this document as the app's own; it is made at the first request."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    # FastAPI documents this as the way to change the document.
    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        separate_input_output_schemas=app.separate_input_output_schemas,
    )
    schemas = found["components"]["schemas"]
    for name in _FOREIGN_SCHEMAS:
        schemas.pop(name, None)
    schemas.setdefault("Problem", Problem.model_json_schema())
    found["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "Where the control plane asks for tokens."}
    }
    table = ScopeTable()
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            _say_scope(operation, table.rules_of(method.upper(), path.replace(":path}", "}")))
    return found


def _say_scope(operation: dict[str, Any], rules: list[Rule]) -> None:
    """What a token has to allow for this operation; without tokens nothing is asked for."""
    scopes = {rule.scope for rule in rules if rule.scope is not None}
    if not scopes:
        return
    operation["security"] = [{}, {"token": []}]
    operation["x-scope"] = ", ".join(sorted(scope.value for scope in scopes))
    operation["responses"] |= {str(status): answer for status, answer in answers(401, 403, 429).items()} | operation[
        "responses"
    ]
