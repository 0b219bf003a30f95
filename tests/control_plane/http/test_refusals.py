"""Requests that cannot be meant: each is refused by name, as a problem, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from tests.control_plane.http.conftest import PAYLOAD_BYTES_MAX, Served
from tests.support import eventually

JSON = {"Content-Type": "application/json"}


def check_problem(answer: httpx2.Response, status: int, code: str = "LD201") -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert set(problem) == {"type", "title", "status", "detail", "code", "what", "why", "fix", "details"}
    assert problem["status"] == status
    assert problem["code"] == code
    assert problem["type"] == f"urn:llama-deploy:error:{code}"
    assert problem["what"]
    return problem


async def check_nothing_is_recorded(served: Served) -> None:
    plane = served.deployment.plane
    assert await plane.store.count_tasks() == {}
    assert plane.engine.cache.tasks == {}
    assert plane.store.healthy


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"service": "shout", "input": ', "line 1 column 31"),
        (b"{'service': 'shout'}", "double quotes"),
        (b'{"service": "shout", "input": "a"} x', "Extra data"),
        (b"\xff\xfe\x00", "invalid character"),
        (b'{"service": "\xff"}', "utf-8"),
        (b'{"service": "shout", "input": NaN}', "NaN"),
        (b'{"service": "shout", "input": -Infinity}', "Infinity"),
        (b'{"service": "shout", "input": 1e400}', "out of range"),
        (b'{"service": "shout", "input": "\\ud800"}', "surrogate"),
        (b'{"service": "shout", "input": "a", "metadata": {"\\udfff": "a"}}', "surrogate"),
        (b'{"service": "shout", "input": ' + b"9" * 5000 + b"}", "out of range"),
        (b"nothing", "Expecting value"),
    ],
)
async def test_a_body_that_is_not_json(served: Served, http: httpx2.AsyncClient, body: bytes, why: str) -> None:
    for route in ("/v1/tasks", "/v1/tasks/batch", "/v1/sessions", "/v1/tasks/t/input", "/v1/tasks/t/cancel"):
        problem = check_problem(await http.post(route, content=body, headers=JSON), 400)
        assert problem["what"] == "the body is not JSON"
        assert why in problem["why"]
    await check_nothing_is_recorded(served)


@pytest.mark.parametrize("depth", [101, 900, 5_000, PAYLOAD_BYTES_MAX // 2 - 50])
@pytest.mark.parametrize(("left", "right"), [(b"[", b"]"), (b'{"a":', b"}")])
async def test_a_body_that_is_nested_too_deeply(
    served: Served, http: httpx2.AsyncClient, depth: int, left: bytes, right: bytes
) -> None:
    depth = min(depth, PAYLOAD_BYTES_MAX // len(left + right) - 50)
    body = b'{"service": "echo", "input": %s1%s}' % (left * depth, right * depth)
    problem = check_problem(await http.post("/v1/tasks", content=body, headers=JSON), 400)
    assert "nests arrays and objects more than 100 deep" in problem["what"]
    await check_nothing_is_recorded(served)


async def test_what_is_nested_as_deeply_as_allowed_comes_back(http: httpx2.AsyncClient) -> None:
    value = json.loads("[" * 97 + "]" * 97)  # the body and the input are two more
    answer = await http.post("/v1/tasks?wait_s=60", json={"service": "echo", "input": {"value": value}})
    assert answer.json()["result"]["value"] == value
    for route in ("result", "history"):
        assert (await http.get(f"/v1/tasks/{answer.json()['task_id']}/{route}")).status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "body"),
        ("text", "body"),
        (None, "body"),
        ({"service": 5, "input": "a"}, "body.service"),
        ({"service": "shout", "inputs": "a"}, "body.inputs"),
        ({"service": "shout", "input": "a", "session_id": ["s"]}, "body.session_id"),
        ({"service": "shout", "input": "a", "wait_for_service": "perhaps"}, "body.wait_for_service"),
        ({"service": "shout", "input": "a", "metadata": {"a": 1}}, "body.metadata.a"),
        ({"service": "shout", "input": "a", "task_id": True}, "body.task_id"),
    ],
)
async def test_a_field_of_another_type_is_named(
    served: Served, http: httpx2.AsyncClient, body: Any, field: str
) -> None:
    content = json.dumps(body).encode()
    problem = check_problem(await http.post("/v1/tasks", content=content, headers=JSON), 400)
    assert problem["what"].startswith(f"{field}: ")
    assert problem["details"]["problems"][0]["field"] == field
    assert problem["fix"]
    await check_nothing_is_recorded(served)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_another_content_type_is_named(http: httpx2.AsyncClient, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    problem = check_problem(await http.post("/v1/tasks", content=b'{"service": "shout"}', headers=headers), 400)
    assert (content_type or "not given") in problem["why"]
    assert "application/json" in problem["fix"]


@pytest.mark.parametrize("name", ["task_id", "session_id", "service", "idempotency_key"])
@pytest.mark.parametrize("value", ["", "a\0b", "a\nb", "\x7f", "x" * 201, "\u202e"], ids=repr)
async def test_an_id_that_cannot_be_used(served: Served, http: httpx2.AsyncClient, name: str, value: str) -> None:
    body = {"service": "shout", "input": "a", name: value}
    answer = await http.post("/v1/tasks", json=body)
    if name == "service" and value == "":
        assert answer.status_code == 400, "no service is named, and there is no default"
    else:
        problem = check_problem(answer, 400)
        assert problem["what"].startswith("agent_id" if name == "service" else name)
    await check_nothing_is_recorded(served)


@pytest.mark.parametrize("value", ["a/b", "/", ".", ".."])
async def test_an_id_that_no_address_could_carry(served: Served, http: httpx2.AsyncClient, value: str) -> None:
    for name in ("task_id", "session_id"):
        check_problem(await http.post("/v1/tasks", json={"service": "shout", "input": "a", name: value}), 400)
    check_problem(await http.post("/v1/sessions", json={"session_id": value}), 400)
    await check_nothing_is_recorded(served)


@pytest.mark.parametrize("task_id", ["a b", "a?b=c", "a#b", "a%2Fb", "ü", "日本", "a:b:1", "-", "a\\b", "..."])
async def test_every_other_id_can_be_asked_for(http: httpx2.AsyncClient, task_id: str) -> None:
    body = {"service": "shout", "input": {"text": "a"}, "task_id": task_id}
    assert (await http.post("/v1/tasks?wait_s=60", json=body)).json()["state"] == "completed"
    assert (await http.get(f"/v1/tasks/{quote(task_id, safe='')}")).json()["task_id"] == task_id


@pytest.mark.parametrize("segment", ["%00", "%FF%FE", "a%00b", "x" * 5000, "%ED%A0%80", "%2e%2e"])
async def test_an_address_with_rubbish_is_not_found(http: httpx2.AsyncClient, segment: str) -> None:
    for route in (f"/v1/tasks/{segment}/result", f"/v1/sessions/{segment}", f"/v1/services/{segment}"):
        answer = await http.get(route)
        check_problem(answer, 404, answer.json()["code"])


@pytest.mark.parametrize(
    "query",
    [
        "/v1/tasks?limit=0",
        "/v1/tasks?limit=1001",
        "/v1/tasks?limit=x",
        "/v1/tasks?state=asleep",
        "/v1/tasks?state=",
        "/v1/tasks?cursor=x",
        "/v1/tasks?cursor=-1",
        "/v1/tasks?cursor=" + "9" * 40,
        "/v1/tasks?oldest_first=perhaps",
        "/v1/sessions?cursor=x",
        "/v1/sessions?limit=-1",
        "/v1/tasks/t/result?wait_s=-1",
        "/v1/tasks/t/result?wait_s=nan",
        "/v1/tasks/t/result?wait_s=inf",
        "/v1/tasks/t/result?wait_s=3601",
        "/v1/tasks/t/history?after=-1",
        "/v1/tasks/t/history?after=" + "9" * 30,
        "/v1/tasks/t/history?follow=perhaps",
        "/v1/tasks/t/stream?first=-1",
        "/v1/tasks/t/stream?first=" + "9" * 30,
    ],
)
async def test_a_parameter_that_makes_no_sense(http: httpx2.AsyncClient, query: str) -> None:
    await http.post("/v1/tasks?wait_s=60", json={"service": "shout", "input": {"text": "a"}, "task_id": "t"})
    check_problem(await http.get(query), 400)


async def test_rubbish_in_a_filter_finds_nothing(http: httpx2.AsyncClient) -> None:
    for query in ("service=%00", "session_id=%FF", "service=' OR 1=1 --", "cursor=999999999999999999&oldest_first=1"):
        assert (await http.get(f"/v1/tasks?{query}")).json() == {"items": [], "next": None, "missing": []}


async def test_a_name_that_nobody_serves(served: Served, http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/tasks", json={"service": "shuot", "input": "a"})
    problem = check_problem(answer, 404, "LD202")
    assert problem["details"]["known"] == ["echo", "fail", "gate", "person", "shout", "tell"]
    assert 'did you mean "shout"?' in problem["fix"]
    await check_nothing_is_recorded(served)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v2/tasks", 404),
        ("GET", "/v1/tasks/t/nothing", 404),
        ("POST", "/v1/tasks/t/input/more", 404),
        ("DELETE", "/v1/tasks", 405),
        ("PUT", "/v1/tasks/t", 405),
        ("PATCH", "/v1/sessions/s", 405),
        ("GET", "/v1/tasks/t/cancel", 405),
        ("POST", "/healthz", 405),
        ("NONSENSE", "/v1/tasks", 405),
    ],
)
async def test_a_route_or_method_that_does_not_exist(
    http: httpx2.AsyncClient, method: str, path: str, status: int
) -> None:
    answer = await http.request(method, path)
    problem = check_problem(answer, status)
    assert "/openapi.json" in problem["fix"]
    if status == 405:
        assert answer.headers["allow"]


async def test_what_is_too_large_names_the_setting(served: Served, http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/tasks", json={"service": "shout", "input": "x" * (PAYLOAD_BYTES_MAX + 1)})
    problem = check_problem(answer, 413, "LD208")
    assert problem["details"] == {"setting": "payload_bytes_max", "limit": PAYLOAD_BYTES_MAX}
    body = b"x" * (2 * PAYLOAD_BYTES_MAX + 1)
    problem = check_problem(await http.post("/v1/tasks", content=body, headers=JSON), 413, "LD208")
    assert problem["details"]["setting"] == "payload_bytes_max"
    await check_nothing_is_recorded(served)


async def test_what_is_too_large_without_saying_so_is_refused_as_well(served: Served, live: httpx2.AsyncClient) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100 * PAYLOAD_BYTES_MAX:
            sent += 4096
            yield b" " * 4096

    check_problem(await live.post("/v1/tasks", content=body(), headers=JSON), 413, "LD208")
    assert (await live.get("/healthz")).status_code == 200
    await check_nothing_is_recorded(served)


async def test_an_answer_that_is_too_large_is_refused_and_can_be_given_again(http: httpx2.AsyncClient) -> None:
    await http.post("/v1/tasks", json={"service": "person", "input": "?", "task_id": "h"})
    await eventually(lambda: _asks(http, "h"))
    long = {"value": "x" * (PAYLOAD_BYTES_MAX + 1)}
    check_problem(await http.post("/v1/tasks/h/input", json=long), 413, "LD208")
    check_problem(await http.post("/v1/tasks/h/cancel", json={"reason": "x" * 10_001}), 400)
    check_problem(await http.post("/v1/tasks/h/input", json={}), 400)
    assert (await http.post("/v1/tasks/h/input", json={"value": "short"})).status_code == 200


async def _asks(http: httpx2.AsyncClient, task_id: str) -> bool:
    return bool((await http.get(f"/v1/tasks/{task_id}")).json()["state"] == "input_required")


async def test_a_batch_of_too_many(http: httpx2.AsyncClient) -> None:
    problem = check_problem(await http.post("/v1/tasks/batch", json={"tasks": [{"service": "x"}] * 1001}), 400)
    assert problem["what"].startswith("body.tasks: ")


async def test_no_defect_shows_its_insides(
    served: Served, http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(served.deployment.plane, "status", broken)
    problem = check_problem(await http.get("/v1/status"), 500, "LD900")
    assert "a secret" not in json.dumps(problem)
    assert problem["why"] == "RuntimeError"
    assert "request failed" in caplog.text
