"""Tasks over HTTP: submitted, waited for, listed, answered, canceled."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from tests.control_plane.http.conftest import Served
from tests.support import eventually


async def submit(http: httpx2.AsyncClient, service: str, *, wait_s: float = 0, **fields: Any) -> httpx2.Response:
    return await http.post("/v1/tasks", params={"wait_s": wait_s}, json={"service": service, **fields})


async def test_a_task_is_recorded_then_done(http: httpx2.AsyncClient) -> None:
    answer = await submit(http, "shout", input={"text": "hello"}, task_id="t", metadata={"a": "b"})
    assert answer.status_code == 201
    task = answer.json()
    assert task["task_id"] == "t"
    assert task["service"] == "shout"
    assert task["result"] is None
    result = (await http.get("/v1/tasks/t/result", params={"wait_s": 60})).json()
    assert (result["task_id"], result["state"]) == ("t", "completed")
    assert result["result"]["result"] == "HELLO"
    task = (await http.get("/v1/tasks/t")).json()
    assert (task["state"], task["hops"], task["waiting_for"]) == ("completed", 1, None)


async def test_with_a_wait_the_result_comes_along(http: httpx2.AsyncClient) -> None:
    answer = await submit(http, "echo", input={"value": [1, None, "ü", 2**70, {"a": 0.5}]}, wait_s=60)
    assert answer.status_code == 201
    assert answer.json()["state"] == "completed"
    assert answer.json()["result"]["value"] == [1, None, "ü", 2**70, {"a": 0.5}]


@pytest.mark.parametrize(
    ("sent", "given"),
    [("plain text", "plain text"), ({"value": 1}, '{"value":1}'), ([1, 2], "[1,2]"), (7, "7"), (None, "null")],
)
async def test_the_input_is_text_or_the_json_of_anything(http: httpx2.AsyncClient, sent: Any, given: str) -> None:
    await submit(http, "person", input=sent, task_id="t")
    history = (await http.get("/v1/tasks/t/history")).json()["items"]
    assert history[0]["messages"][0]["data"]["task"]["input"] == given


async def test_a_failed_task_is_a_good_answer_that_says_so(http: httpx2.AsyncClient) -> None:
    answer = await submit(http, "fail", input={"text": "no ink"}, wait_s=60)
    assert answer.status_code == 201
    result = answer.json()["result"]
    assert (answer.json()["state"], result["status"], result["error"]["message"]) == ("failed", "failed", "no ink")


async def test_repeating_a_request_finds_the_first_task(http: httpx2.AsyncClient) -> None:
    assert (await submit(http, "shout", input="a", task_id="t")).status_code == 201
    again = await submit(http, "shout", input="a", task_id="t")
    assert (again.status_code, again.json()["task_id"]) == (200, "t")
    other = await submit(http, "shout", input="b", task_id="t")
    assert (other.status_code, other.json()["code"]) == (409, "LD205")


@pytest.mark.parametrize("where", ["header", "body"])
async def test_an_idempotency_key_finds_the_first_task(http: httpx2.AsyncClient, where: str) -> None:
    def ask(text: str) -> Any:
        headers = {"Idempotency-Key": "k"} if where == "header" else {}
        body = {"service": "shout", "input": text} | ({"idempotency_key": "k"} if where == "body" else {})
        return http.post("/v1/tasks", json=body, headers=headers)

    first = await ask("a")
    again = await ask("a")
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["task_id"] == again.json()["task_id"]
    assert (await ask("b")).status_code == 409


async def test_a_batch_is_accepted_or_refused_item_by_item(http: httpx2.AsyncClient) -> None:
    tasks = [
        {"service": "shout", "input": {"text": "a"}, "task_id": "a"},
        {"service": "nobody", "input": "b"},
        {"service": "shout", "input": "x" * 30_000},
        {"service": "shout", "input": {"text": "a"}, "task_id": "a"},
        {"service": "shout", "input": {"text": "c"}, "task_id": "c", "metadata": {"k": "v"}},
    ]
    answer = await http.post("/v1/tasks/batch", json={"tasks": tasks})
    assert answer.status_code == 200
    items = answer.json()["items"]
    assert [item["task"]["task_id"] if "task" in item else item["problem"]["code"] for item in items] == [
        "a",
        "LD202",
        "LD208",
        "a",
        "c",
    ]
    assert (await http.post("/v1/tasks/batch", json={"tasks": []})).json() == {"items": []}
    for task_id in ("a", "c"):
        result = (await http.get(f"/v1/tasks/{task_id}/result", params={"wait_s": 60})).json()
        assert result["state"] == "completed"


async def test_a_long_wait_is_woken_by_the_end(served: Served, live: httpx2.AsyncClient) -> None:
    await submit(live, "gate", input={"name": "g"}, task_id="g")
    waiting = asyncio.ensure_future(live.get("/v1/tasks/g/result", params={"wait_s": 60}))
    entry = await served.deployment.plane.engine.cache.get("g")
    await eventually(lambda: entry.ended_callbacks)
    assert len(entry.ended_callbacks) == 1, "it waits to be called, and asks for nothing meanwhile"
    served.open("g")
    answer = await waiting
    assert answer.json()["result"]["result"] == "went through"


async def test_a_wait_that_is_too_short_says_where_the_task_stands(http: httpx2.AsyncClient) -> None:
    answer = await submit(http, "gate", input={"name": "g"}, task_id="g", wait_s=0.05)
    assert answer.status_code == 201
    assert (answer.json()["state"], answer.json()["result"]) == ("working", None)
    result = await http.get("/v1/tasks/g/result", params={"wait_s": 0.05})
    assert (result.status_code, result.json()) == (200, {"task_id": "g", "state": "working", "result": None})


async def test_who_hangs_up_is_not_waited_for(served: Served, live: httpx2.AsyncClient) -> None:
    await submit(live, "gate", input={"name": "g"}, task_id="g")
    entry = await served.deployment.plane.engine.cache.get("g")
    waiting = asyncio.ensure_future(live.get("/v1/tasks/g/result", params={"wait_s": 60}))
    reading = asyncio.ensure_future(live.get("/v1/tasks/g/stream"))
    await eventually(lambda: entry.ended_callbacks and entry.watchers)
    waiting.cancel()
    reading.cancel()
    await eventually(lambda: not entry.ended_callbacks and not entry.watchers)


async def test_lists_are_filtered_and_paged(http: httpx2.AsyncClient) -> None:
    for number in range(5):
        await submit(http, "shout", input={"text": "a"}, task_id=f"s{number}", session_id="s", wait_s=60)
    await submit(http, "person", input="?", task_id="h")
    await eventually(lambda: _state(http, "h", "input_required"))

    async def ids(**params: Any) -> list[str]:
        found: list[str] = []
        cursor: str | None = None
        while True:
            page = (await http.get("/v1/tasks", params=params | ({"cursor": cursor} if cursor else {}))).json()
            found += [task["task_id"] for task in page["items"]]
            cursor = page["next"]
            if cursor is None:
                return found

    assert await ids(limit=2) == ["h", "s4", "s3", "s2", "s1", "s0"]
    assert await ids(limit=4, oldest_first=True) == ["s0", "s1", "s2", "s3", "s4", "h"]
    assert await ids(session_id="s", limit=3) == ["s4", "s3", "s2", "s1", "s0"]
    assert await ids(service="person") == ["h"]
    assert await ids(state="input_required") == ["h"]
    assert await ids(state="completed,failed", limit=1) == ["s4", "s3", "s2", "s1", "s0"]
    assert await ids(state=["failed", "input_required"]) == ["h"]
    assert await ids(session_id="nobody") == []


async def _state(http: httpx2.AsyncClient, task_id: str, state: str) -> bool:
    return bool((await http.get(f"/v1/tasks/{task_id}")).json()["state"] == state)


async def test_a_question_is_answered_once(http: httpx2.AsyncClient) -> None:
    await submit(http, "person", input="red or blue?", task_id="h")
    await eventually(lambda: _state(http, "h", "input_required"))
    task = (await http.get("/v1/tasks/h")).json()
    assert task["prompt"]["prompt"] == "red or blue?"
    assert "a person's input" in task["waiting_for"]
    wrong = await http.post("/v1/tasks/h/input", json={"value": "x", "step_id": "h:9"})
    assert (wrong.status_code, wrong.json()["code"]) == (409, "LD207")
    answered = await http.post("/v1/tasks/h/input", json={"value": {"colour": "blue"}, "step_id": "h:1"})
    assert answered.status_code == 200
    result = (await http.get("/v1/tasks/h/result", params={"wait_s": 60})).json()
    assert result["result"]["value"] == {"colour": "blue"}
    again = await http.post("/v1/tasks/h/input", json={"value": "red"})
    assert (again.status_code, again.json()["code"]) == (409, "LD206")


async def test_input_that_nobody_asked_for_is_refused(http: httpx2.AsyncClient) -> None:
    await submit(http, "gate", input={"name": "g"}, task_id="g")
    answer = await http.post("/v1/tasks/g/input", json={"value": 1})
    assert (answer.status_code, answer.json()["code"]) == (409, "LD207")


async def test_canceling_is_recorded_and_repeatable(http: httpx2.AsyncClient) -> None:
    await submit(http, "gate", input={"name": "g"}, task_id="g")
    answer = await http.post("/v1/tasks/g/cancel", json={"reason": "enough"})
    assert (answer.status_code, answer.json()["state"]) == (200, "canceled")
    assert (await http.post("/v1/tasks/g/cancel")).json()["state"] == "canceled"
    history = (await http.get("/v1/tasks/g/history")).json()["items"]
    assert (history[-1]["kind"], history[-1]["reason"], history[-1]["by"]) == ("canceled", "enough", "http")
    await submit(http, "shout", input={"text": "a"}, task_id="s", wait_s=60)
    late = await http.post("/v1/tasks/s/cancel")
    assert (late.status_code, late.json()["code"]) == (409, "LD206")


async def test_sessions_and_their_state(http: httpx2.AsyncClient) -> None:
    made = await http.post("/v1/sessions", json={"session_id": "s"})
    assert (made.status_code, made.json()["session_id"]) == (201, "s")
    assert (await http.post("/v1/sessions", json={"session_id": "s"})).json()["created_at"] == made.json()["created_at"]
    other = (await http.post("/v1/sessions")).json()["session_id"]
    await submit(http, "shout", input={"text": "a"}, session_id="s", task_id="t", wait_s=60)
    view = (await http.get("/v1/sessions/s")).json()
    assert (view["task_count"], view["open_task_count"], view["current_task_id"]) == (1, 0, "t")
    assert isinstance((await http.get("/v1/sessions/s/state")).json(), dict)
    first = (await http.get("/v1/sessions", params={"limit": 1})).json()
    second = (await http.get("/v1/sessions", params={"limit": 1, "cursor": first["next"]})).json()
    assert [page["items"][0]["session_id"] for page in (first, second)] == [other, "s"]
    assert second["next"] is None


async def test_services_status_and_probes(served: Served, http: httpx2.AsyncClient) -> None:
    views = {view["definition"]["service_name"]: view for view in (await http.get("/v1/services")).json()["items"]}
    assert set(views) == {"shout", "echo", "tell", "gate", "fail", "person"}
    assert views["shout"]["state"] == "up"
    assert views["shout"]["definition"]["input_schema"]["required"] == ["text"]
    assert (await http.get("/v1/services/shout")).json()["definition"] == views["shout"]["definition"]
    status = (await http.get("/v1/status")).json()
    assert status["ready"] is True
    assert status["services"]["shout"] is True
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "store": True})
    served.deployment.plane.ready = False
    not_ready = await http.get("/readyz")
    assert (not_ready.status_code, not_ready.json()["ready"]) == (503, False)


async def test_a_control_plane_that_stops_takes_nothing_new(served: Served, http: httpx2.AsyncClient) -> None:
    served.deployment.plane.refuse_new_work()
    answer = await submit(http, "shout", input={"text": "a"})
    assert (answer.status_code, answer.json()["code"]) == (503, "LD305")
    assert answer.headers["retry-after"]
