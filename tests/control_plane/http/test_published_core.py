"""The published control plane's routes, asked what clients of its two generations ask."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from tests.control_plane.http.conftest import Served

from llama_deploy.types.reserved import MEMORY_KEY


async def a_session(http: httpx2.AsyncClient) -> str:
    answer = await http.post("/sessions/create")
    assert answer.status_code == 200
    session_id: str = answer.json()
    return session_id


async def submit(http: httpx2.AsyncClient, session_id: str, service: str, **fields: Any) -> str:
    """As 0.2.x does it."""
    task = {"input": json.dumps(fields), "task_id": f"of-{service}", "session_id": session_id, "agent_id": service}
    answer = await http.post(f"/sessions/{session_id}/tasks", json=task)
    assert answer.status_code == 200, answer.text
    task_id: str = answer.json()
    return task_id


@pytest.mark.parametrize("name", ["agent_id", "service_id"])
async def test_a_task_of_either_generation_is_done(http: httpx2.AsyncClient, name: str) -> None:
    session_id = await a_session(http)
    task = {"input": '{"text": "hello"}', "task_id": "t", "session_id": session_id, name: "shout"}
    assert (await http.post(f"/sessions/{session_id}/tasks", json=task)).json() == "t"
    result = (await http.get(f"/sessions/{session_id}/tasks/t/result")).json()
    assert (result["task_id"], result["result"], result["history"], result["data"]) == ("t", "HELLO", [], {})
    (listed,) = (await http.get(f"/sessions/{session_id}/tasks")).json()
    assert (listed["agent_id"], listed["service_id"], listed["input"]) == ("shout", "shout", task["input"])
    assert (await http.get(f"/sessions/{session_id}/current_task")).json()["task_id"] == "t"


async def test_a_result_that_is_not_there_is_null_and_comes_as_soon_as_it_is(
    http: httpx2.AsyncClient, served: Served
) -> None:
    session_id = await a_session(http)
    task_id = await submit(http, session_id, "gate", name="g")
    route = f"/sessions/{session_id}/tasks/{task_id}/result"
    assert (await http.get(route)).json() is None
    asked = asyncio.create_task(http.get(route))
    served.open("g")
    assert (await asked).json()["result"] == "went through"


async def test_a_failed_task_has_its_error_as_text_and_says_that_it_failed(http: httpx2.AsyncClient) -> None:
    session_id = await a_session(http)
    task_id = await submit(http, session_id, "fail", text="no ink")
    result = (await http.get(f"/sessions/{session_id}/tasks/{task_id}/result")).json()
    assert (result["result"], result["status"]) == ("no ink", "failed")


async def test_a_stream_is_one_object_a_line_without_what_published_readers_do_not_know(
    http: httpx2.AsyncClient,
) -> None:
    session_id = await a_session(http)
    task_id = await submit(http, session_id, "tell", events=2)
    answer = await http.get(f"/sessions/{session_id}/tasks/{task_id}/result_stream")
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line) for line in answer.text.splitlines()] == [{"n": 0}, {"n": 1}]


async def test_a_stream_is_sent_as_it_happens(live: httpx2.AsyncClient, served: Served) -> None:
    session_id = await a_session(live)
    task_id = await submit(live, session_id, "gate", name="g")
    async with live.stream("GET", f"/sessions/{session_id}/tasks/{task_id}/result_stream") as answer:
        lines = answer.aiter_lines()
        assert json.loads(await anext(lines)) == {"value": "before"}
        served.open("g")
        assert [json.loads(line) async for line in lines] == [{"value": "after"}]


async def test_sessions_are_listed_read_and_deleted(http: httpx2.AsyncClient) -> None:
    session_id = await a_session(http)
    task_id = await submit(http, session_id, "shout", text="a")
    session = (await http.get(f"/sessions/{session_id}")).json()
    assert session == {"session_id": session_id, "task_ids": [task_id], "state": {}}
    assert (await http.get("/sessions")).json()[session_id] == session
    assert (await http.post(f"/sessions/{session_id}/delete")).json() is None
    assert (await http.get(f"/sessions/{session_id}")).status_code == 404
    assert (await http.get("/sessions")).json() == {}


async def test_state_is_put_key_by_key_and_kept(http: httpx2.AsyncClient, served: Served) -> None:
    session_id = await a_session(http)
    route = f"/sessions/{session_id}/state"
    assert (await http.post(route, json={"a": 1, "b": {"c": [2]}})).json() is None
    await http.post(route, json={"a": 3})
    assert (await http.get(route)).json() == {"a": 3, "b": {"c": [2]}}
    kept = await served.deployment.plane.store.load_shared(session_id)
    assert {value.key: value.version for value in kept} == {"a": 2, "b": 1}
    assert (await http.post(route, json={"a": "x" * 30_000})).status_code == 413
    assert (await http.post(route, json={f"{MEMORY_KEY}shout": {}})).json()["code"] == "LD201"
    assert (await http.get(route)).json()["a"] == 3


async def test_services_are_known_by_name_and_forgotten_in_either_way(http: httpx2.AsyncClient) -> None:
    definition = {"service_name": "elsewhere", "description": "d", "prompt": [], "host": "h", "port": 1}
    assert (await http.post("/services/register", json=definition)).json() is None
    found = (await http.get("/services/elsewhere")).json()
    assert {key: found[key] for key in definition} == definition
    assert set((await http.get("/services")).json()) == {"elsewhere", "shout", "echo", "tell", "gate", "fail", "person"}
    await http.post("/services/deregister", json={"service_name": "elsewhere"})
    assert (await http.get("/services/elsewhere")).status_code == 404
    await http.post("/services/register", json=definition)
    await http.post("/services/deregister", params={"service_name": "elsewhere"})
    assert (await http.get("/services/elsewhere")).status_code == 404
    refused = await http.post("/services/deregister")
    assert (refused.status_code, refused.json()["code"]) == (400, "LD201")


async def test_a_registration_is_recorded_and_leaves_what_the_instance_said(
    http: httpx2.AsyncClient, served: Served
) -> None:
    await http.post("/services/register", json={"service_name": "shout", "description": "loud"})
    found = (await http.get("/services/shout")).json()
    assert (found["description"], found["kind"]) == ("loud", "function")
    assert found["input_schema"]["properties"]["text"]["type"] == "string"
    kept = await served.deployment.plane.store.load_services()
    assert json.loads(kept["shout"])["description"] == "loud"


@pytest.mark.parametrize("name", ["__timer__", ""])
async def test_a_name_of_our_own_is_refused(http: httpx2.AsyncClient, name: str) -> None:
    answer = await http.post("/services/register", json={"service_name": name, "description": ""})
    assert (answer.status_code, answer.json()["code"]) == (400, "LD201")


async def test_what_does_not_exist_is_refused(http: httpx2.AsyncClient) -> None:
    session_id = await a_session(http)
    task = {"input": "", "agent_id": "nobody"}
    unserved = await http.post(f"/sessions/{session_id}/tasks", json=task)
    assert (unserved.status_code, unserved.json()["code"]) == (404, "LD202")
    for path in ("/sessions/x", "/sessions/x/tasks", "/sessions/x/current_task", "/sessions/x/state"):
        answer = await http.get(path)
        assert (path, answer.status_code, answer.json()["code"]) == (path, 404, "LD204")
    for path in ("/sessions/x/tasks", "/sessions/x/delete", "/sessions/x/state"):
        answer = await http.post(path, json={"input": ""})
        assert (path, answer.status_code, answer.json()["code"]) == (path, 404, "LD204")
    assert (await http.get(f"/sessions/{session_id}/tasks/x/result")).json() is None
    refused = str(unserved.json())  # what a client of 0.2 takes for the id of the task
    told = await http.get(f"/sessions/{session_id}/tasks/{quote(refused, safe='')}/result")
    assert (told.status_code, told.json()["code"]) == (404, "LD203")
    task_id = await submit(http, session_id, "shout", text="a")
    other = await a_session(http)
    assert (await http.get(f"/sessions/{other}/tasks/{task_id}/result")).json() is None
    invalid = await http.post(f"/sessions/{session_id}/tasks", json={"agent_id": "shout"})
    assert (invalid.status_code, invalid.json()["code"]) == (400, "LD201")


async def test_an_event_for_a_service_that_is_not_at_work_is_refused(http: httpx2.AsyncClient, served: Served) -> None:
    session_id = await a_session(http)
    task_id = await submit(http, session_id, "gate", name="g")
    event = {"service_id": "shout", "event_obj_str": "{}"}
    answer = await http.post(f"/sessions/{session_id}/tasks/{task_id}/send_event", json=event)
    assert (answer.status_code, answer.json()["code"]) == (409, "LD207")
    assert "gate" in answer.json()["why"]
    served.open("g")


async def test_the_queue_is_told_without_secrets(http: httpx2.AsyncClient) -> None:
    assert (await http.get("/queue_config")).json() == {"SimpleMessageQueueConfig": {"host": "test", "port": None}}
    assert (await http.get("/")).json()["running"] is True


async def test_a_message_is_a_task_or_refused(http: httpx2.AsyncClient) -> None:
    session_id = await a_session(http)
    task = {"input": '{"text": "a"}', "task_id": "t", "session_id": session_id, "agent_id": "shout"}
    sent = await http.post("/process_message", json={"action": "new_task", "data": {"task": task, "state": {}}})
    assert sent.json() is None
    assert (await http.get(f"/sessions/{session_id}/tasks/t/result")).json()["result"] == "A"
    refused = await http.post("/process_message", json={"action": "completed_task", "data": {}})
    assert (refused.status_code, refused.json()["code"]) == (400, "LD241")
    refused = await http.post("/process_message", json={"action": "new_task", "data": {}})
    assert (refused.status_code, refused.json()["code"]) == (400, "LD201")


async def test_a_list_of_sessions_leaves_out_what_is_erased_meanwhile(
    http: httpx2.AsyncClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays, goes = await a_session(http), await a_session(http)
    store = served.deployment.plane.store
    list_sessions = store.list_sessions

    async def listed(**page: Any) -> Any:
        found = await list_sessions(**page)
        await store.delete_session(goes)
        return found

    monkeypatch.setattr(store, "list_sessions", listed)
    answer = await http.get("/sessions")
    assert (answer.status_code, [*answer.json()]) == (200, [stays])


async def test_a_current_task_that_is_removed_meanwhile_is_none(
    http: httpx2.AsyncClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = await a_session(http)
    await submit(http, session_id, "shout", text="hello")
    plane = served.deployment.plane
    assert (await http.get("/v1/tasks/of-shout/result?wait_s=60")).json()["result"]["result"] == "HELLO"
    shown = plane.views.session

    async def session(session_id: str) -> Any:
        found = await shown(session_id)
        await plane.bulk.delete("of-shout")
        return found

    monkeypatch.setattr(plane.views, "session", session)
    answer = await http.get(f"/sessions/{session_id}/current_task")
    assert (answer.status_code, answer.json()) == (200, None)
