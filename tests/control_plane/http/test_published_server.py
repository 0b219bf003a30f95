"""The published API server's routes: one deployment, its tasks and sessions."""

from __future__ import annotations

import json

import httpx2
import pytest
from tests.control_plane.http.conftest import Served

D = "/deployments/default"


async def test_the_one_deployment_is_listed(http: httpx2.AsyncClient) -> None:
    for slash in ("", "/"):
        assert (await http.get("/deployments" + slash)).json() == ["default"]
        status = (await http.get("/status" + slash)).json()
        assert status == {"status": "Healthy", "max_deployments": 1, "deployments": ["default"]}
    assert (await http.get(D)).json() == {"name": "default"}


async def test_a_task_runs_to_its_end(http: httpx2.AsyncClient) -> None:
    task = {"input": '{"text": "a"}', "session_id": None, "service_id": "shout"}
    assert (await http.post(f"{D}/tasks/run", json=task)).json() == "A"
    session = (await http.post(f"{D}/sessions/create")).json()
    inside = {"input": '{"text": "b"}', "agent_id": "shout"}
    answer = await http.post(f"{D}/tasks/run", params={"session_id": session["session_id"]}, json=inside)
    assert answer.json() == "B"
    found = (await http.get(f"{D}/sessions/{session['session_id']}")).json()
    assert len(found["task_ids"]) == 1
    assert [one["input"] for one in (await http.get(f"{D}/tasks")).json()] == [task["input"], inside["input"]]


async def test_a_task_is_made_followed_and_read(live: httpx2.AsyncClient, served: Served) -> None:
    made = (await live.post(f"{D}/tasks/create", json={"input": '{"name": "g"}', "service_id": "gate"})).json()
    assert made["session_id"]
    route, session = f"{D}/tasks/{made['task_id']}", {"session_id": made["session_id"]}
    early = await live.get(f"{route}/results", params=session)
    assert (early.status_code, early.json()["code"]) == (404, "LD203")
    async with live.stream("GET", f"{route}/events", params=session) as answer:
        lines = answer.aiter_lines()
        assert json.loads(await anext(lines)) == {"value": "before"}
        served.open("g")
        assert [json.loads(line) async for line in lines] == [{"value": "after"}]
    assert (await live.get(f"{route}/results", params=session)).json()["result"] == "went through"
    assert (await live.get(f"{route}/results", params={"session_id": "other"})).status_code == 404


async def test_sessions_come_and_go(http: httpx2.AsyncClient) -> None:
    session = (await http.post(f"{D}/sessions/create")).json()
    assert session["task_ids"] == []
    assert (await http.get(f"{D}/sessions")).json() == [session]
    assert (await http.post(f"{D}/sessions/delete", params={"session_id": session["session_id"]})).json() is None
    assert (await http.get(f"{D}/sessions")).json() == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("POST", "/tasks/run"),
        ("POST", "/tasks/create"),
        ("GET", "/tasks"),
        ("GET", "/tasks/t/results"),
        ("GET", "/tasks/t/events"),
        ("GET", "/sessions"),
        ("POST", "/sessions/create"),
        ("GET", "/sessions/s"),
        ("POST", "/sessions/delete?session_id=s"),
    ],
)
async def test_another_deployment_is_not_found(http: httpx2.AsyncClient, method: str, path: str) -> None:
    body = {"input": ""} if path.startswith("/tasks/") and method == "POST" else None
    answer = await http.request(method, f"/deployments/other{path}", json=body)
    assert (answer.status_code, answer.json()["code"]) == (404, "LD240")
    assert answer.json()["details"]["known"] == ["default"]


async def test_what_is_not_offered_says_so(http: httpx2.AsyncClient) -> None:
    created = await http.post("/deployments/create", files={"config_file": b"name: other"})
    assert (created.status_code, created.json()["code"]) == (400, "LD241")
    assert "llamactl serve FILE" in created.json()["fix"]


async def test_numbers_are_told_as_monitoring_systems_read_them(http: httpx2.AsyncClient) -> None:
    await http.post(f"{D}/tasks/run", json={"input": '{"text": "a"}', "service_id": "shout"})
    answer = await http.get("/status/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    told = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    assert told['llama_deploy_tasks{state="completed"}'] == "1"
    assert told['llama_deploy_service_instances{service="shout"}'] == "1"
    assert told["llama_deploy_ready"] == "1"
