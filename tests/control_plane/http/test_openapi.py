"""The OpenAPI document: version 3.1, valid, and complete down to the problems of each route."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import schemathesis


@pytest.fixture
async def document(http: httpx2.AsyncClient) -> dict[str, Any]:
    answer = await http.get("/openapi.json")
    found: dict[str, Any] = answer.json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


async def test_it_is_valid(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(document).validate()


async def test_every_route_is_in_it(document: dict[str, Any]) -> None:
    assert {f"{method.upper()} {path}" for method, path, _ in operations(document)} == {
        "POST /v1/tasks",
        "GET /v1/tasks",
        "POST /v1/tasks/batch",
        "GET /v1/tasks/{task_id}",
        "GET /v1/tasks/{task_id}/result",
        "GET /v1/tasks/{task_id}/history",
        "GET /v1/tasks/{task_id}/stream",
        "GET /v1/tasks/{task_id}/graph",
        "POST /v1/tasks/{task_id}/input",
        "POST /v1/tasks/{task_id}/cancel",
        "DELETE /v1/tasks/{task_id}",
        "POST /v1/tasks/bulk",
        "POST /v1/tasks/lookup",
        "POST /v1/tasks/{task_id}/redrive",
        "POST /v1/tasks/{task_id}/retry",
        "POST /v1/tasks/{task_id}/migrate",
        "POST /v1/tasks/{task_id}/replay",
        "POST /v1/tasks/{task_id}/fork",
        "POST /v1/tasks/{task_id}/pause",
        "POST /v1/tasks/{task_id}/resume",
        "GET /v1/schedules",
        "PUT /v1/schedules/{name}",
        "GET /v1/schedules/{name}",
        "DELETE /v1/schedules/{name}",
        "POST /v1/schedules/{name}/pause",
        "POST /v1/schedules/{name}/resume",
        "POST /v1/schedules/{name}/trigger",
        "GET /v1/schedules/{name}/next",
        "POST /v1/sessions",
        "GET /v1/sessions",
        "GET /v1/sessions/{session_id}",
        "GET /v1/sessions/{session_id}/state",
        "GET /v1/services",
        "GET /v1/services/{name}",
        "GET /v1/queues",
        "GET /v1/queues/{name}",
        "GET /v1/queues/{name}/waiting",
        "POST /v1/queues/{name}/pause",
        "POST /v1/queues/{name}/resume",
        "POST /v1/services/{name}/pause",
        "POST /v1/services/{name}/resume",
        "PUT /v1/services/{name}/limits",
        "DELETE /v1/services/{name}/limits",
        "POST /v1/services/{name}/instances/{instance_id}/drain",
        "GET /v1/releases",
        "PUT /v1/releases/{release}",
        "DELETE /v1/releases/{release}",
        "DELETE /v1/sessions/{session_id}/data",
        "GET /v1/erasures",
        "POST /v1/artifacts",
        "PUT /v1/artifacts/{hash}",
        "GET /v1/artifacts/{hash}",
        "GET /v1/backup",
        "GET /v1/logs",
        "GET /v1/dead",
        "POST /v1/dead/redrive",
        "POST /v1/dead/purge",
        "GET /v1/dead/{step_id}",
        "POST /v1/dead/{step_id}/redrive",
        "DELETE /v1/dead/{step_id}",
        "GET /v1/tasks/{task_id}/export",
        "GET /v1/export",
        "POST /v1/import",
        "GET /v1/status",
        "GET /v1/tasks/{task_id}/ledgers/{name}",
        "GET /v1/sessions/{session_id}/memory",
        "DELETE /v1/sessions/{session_id}/memory",
        "GET /healthz",
        "GET /readyz",
    }


async def test_every_answer_has_a_schema_and_every_error_is_a_problem(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        where = f"{method} {path}"
        assert operation["description"], where
        assert re.fullmatch(r"[a-z_]+", operation["operationId"]), where
        good = {status: answer for status, answer in operation["responses"].items() if status < "300"}
        assert good, where
        for status, answer in operation["responses"].items():
            for media, content in answer["content"].items():
                assert content["schema"], f"{where} {status} {media}"
            if status >= "400" and path.startswith("/v1/"):
                assert answer["content"] == {
                    "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
                }, f"{where} {status}"
        if path.startswith("/v1/"):
            assert {"500", "503"} <= set(operation["responses"]), where
        if "requestBody" in operation:
            assert {"400", "413"} <= set(operation["responses"]), where


async def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    names = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert names <= set(schemas)
    assert set(schemas) <= names, "nothing is described that nobody answers with"


async def test_operations_have_names_of_their_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
