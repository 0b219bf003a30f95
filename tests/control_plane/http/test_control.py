"""Doing tasks again, and acting on many, over HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest


async def submit(http: httpx2.AsyncClient, service: str, value: Any, **query: Any) -> dict[str, Any]:
    answer = await http.post("/v1/tasks", json={"service": service, "input": value}, params={"wait_s": 60, **query})
    found: dict[str, Any] = answer.json()
    return found


async def test_a_retry_is_a_new_task_that_names_the_old_one(http: httpx2.AsyncClient) -> None:
    old = await submit(http, "fail", {"text": "broken"})
    path = f"/v1/tasks/{old['task_id']}/retry"
    answer = await http.post(path, json={"task_id": "again"}, params={"wait_s": 60})
    assert answer.status_code == 201
    assert answer.json()["origin"] == f"retry:{old['task_id']}"
    assert answer.json()["state"] == "failed"
    assert (await http.post(path, json={"task_id": "again"})).status_code == 200
    first = (await http.get("/v1/tasks/again/history")).json()["items"][0]
    assert first["kind"] == "forked"
    assert first["origin"]["task_id"] == old["task_id"]
    made = (await http.get("/v1/tasks", params={"filter": f"from:{old['task_id']}"})).json()["items"]
    assert [view["task_id"] for view in made] == ["again"]


async def test_a_replay_takes_another_input(http: httpx2.AsyncClient) -> None:
    old = await submit(http, "shout", {"text": "a"})
    refused = await http.post(f"/v1/tasks/{old['task_id']}/retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "LD215")
    for body in ({"input": {"text": "b"}}, {"input": {"text": "b"}, "step_id": f"{old['task_id']}:1"}):
        answer = await http.post(f"/v1/tasks/{old['task_id']}/replay", json=body, params={"wait_s": 60})
        assert (answer.status_code, answer.json()["result"]["result"]) == (201, "B")
    forked = await http.post(f"/v1/tasks/{old['task_id']}/fork", json={"seq": 1}, params={"wait_s": 60})
    assert forked.json()["result"]["result"] == "A"


@pytest.mark.parametrize(
    ("route", "body", "status"),
    [
        ("fork", {}, 400),
        ("fork", {"seq": 0}, 400),
        ("fork", {"seq": 99}, 409),
        ("fork", {"seq": 1, "data": {}}, 400),
        ("replay", {"step_id": "nothing"}, 409),
        ("replay", {"data": []}, 400),
        ("replay", {"step_id": "$:1", "data": {}, "input": "x"}, 400),
        ("retry", {"task_id": "$"}, 409),
        ("retry", {"form_start": True}, 400),
    ],
)
async def test_what_makes_no_sense_is_refused(
    http: httpx2.AsyncClient, route: str, body: dict[str, Any], status: int
) -> None:
    task_id = (await submit(http, "shout", {"text": "a"}))["task_id"]
    body = {key: value.replace("$", task_id) if isinstance(value, str) else value for key, value in body.items()}
    answer = await http.post(f"/v1/tasks/{task_id}/{route}", json=body)
    assert answer.status_code == status
    assert len((await http.get("/v1/tasks")).json()["items"]) == 1


async def test_many_tasks_are_counted_first_then_changed_page_by_page(http: httpx2.AsyncClient) -> None:
    ids = [(await submit(http, "fail", {"text": "no"}))["task_id"] for _ in range(5)]
    await submit(http, "shout", {"text": "fine"})
    body = {"action": "retry", "filter": "service:fail,shout", "idempotency_key": "once"}
    counted = (await http.post("/v1/tasks/bulk", json={**body, "dry_run": True})).json()
    assert (counted["matched"], counted["items"]) == (5, [])
    assert [view["task_id"] for view in counted["first"]] == ids[::-1]
    made: list[tuple[str, str]] = []
    cursor = None
    while cursor is not None or not made:
        page = (await http.post("/v1/tasks/bulk", json={**body, "limit": 2, "cursor": cursor})).json()
        made += [(item["task_id"], item["new_task_id"]) for item in page["items"]]
        cursor = page["next"]
    assert [old for old, _ in made] == ids[::-1]
    again = (await http.post("/v1/tasks/bulk", json={**body, "filter": f"id:{ids[0]}"})).json()
    assert [(item["task_id"], item["new_task_id"]) for item in again["items"]] == [made[-1]]


async def test_all_that_was_given_up_is_sent_again_by_a_filter_and_once(http: httpx2.AsyncClient) -> None:
    ids = [(await submit(http, "fail", {"text": "no"}))["task_id"] for _ in range(3)]
    await submit(http, "shout", {"text": "fine"})
    by_itself = (await http.post(f"/v1/tasks/{ids[0]}/redrive")).json()
    assert by_itself["origin"] == f"redrive:{ids[0]}"
    await http.get(f"/v1/tasks/{by_itself['task_id']}", params={"wait_s": 60})
    body = {"action": "redrive", "filter": f"id:{','.join(ids)}", "limit": 1}
    counted = (await http.post("/v1/tasks/bulk", json={**body, "dry_run": True})).json()
    assert (counted["matched"], [view["task_id"] for view in counted["first"]]) == (2, ids[:0:-1])
    page = (await http.post("/v1/tasks/bulk", json=body)).json()
    rest = (await http.post("/v1/tasks/bulk", json={**body, "cursor": page["next"]})).json()
    items = [*page["items"], *rest["items"]]
    assert [item["task_id"] for item in items] == ids[:0:-1]
    for item in items:
        made = (await http.get(f"/v1/tasks/{item['new_task_id']}")).json()
        assert made["origin"] == f"redrive:{item['task_id']}"
    again = (await http.post("/v1/tasks/bulk", json=body)).json()
    assert (again["matched"], again["items"]) == (0, [])
    refused = await http.post(f"/v1/tasks/{ids[0]}/redrive")
    assert (refused.status_code, "dead:yes" in refused.json()["fix"]) == (404, True)
    assert (await http.post("/v1/tasks/nothing/redrive")).status_code == 404


async def test_an_export_by_a_filter_is_counted_first_and_may_be_cut_off(http: httpx2.AsyncClient) -> None:
    ids = [(await submit(http, "shout", {"text": "a"}))["task_id"] for _ in range(3)]
    body = {"action": "export", "filter": "service:shout"}
    assert (await http.post("/v1/tasks/bulk", json={**body, "dry_run": True})).json()["matched"] == 3
    refused = await http.post("/v1/tasks/bulk", json=body)
    assert (refused.status_code, "GET /v1/export" in refused.json()["fix"]) == (400, True)
    for limit, expected in ((2, ids[:0:-1]), (None, ids[::-1])):
        params = {"filter": "service:shout"} | ({} if limit is None else {"limit": limit})
        lines = [json.loads(line) for line in (await http.get("/v1/export", params=params)).text.splitlines()]
        assert [line["task"]["task_id"] for line in lines if "task" in line] == expected
    assert (await http.get("/v1/export", params={"filter": "id:*", "limit": 0})).status_code == 400


async def test_one_refusal_keeps_nobody_back_and_a_filter_must_say_something(http: httpx2.AsyncClient) -> None:
    ids = [(await submit(http, "shout", {"text": "a"}))["task_id"] for _ in range(3)]
    gone = (await http.post("/v1/tasks/bulk", json={"action": "delete", "filter": f"id:{ids[0]},{ids[1]}"})).json()
    assert [item["problem"] for item in gone["items"]] == [None, None]
    assert [view["task_id"] for view in (await http.get("/v1/tasks")).json()["items"]] == [ids[2]]
    assert (await http.get(f"/v1/tasks/{ids[0]}")).status_code == 404
    for body in ({"action": "retry", "filter": " "}, {"action": "explode", "filter": "id:*"}, {"action": "retry"}):
        assert (await http.post("/v1/tasks/bulk", json=body)).status_code == 400
    nothing = (await http.post("/v1/tasks/bulk", json={"action": "cancel", "filter": "id:*"})).json()
    assert (nothing["matched"], nothing["items"]) == (0, [])


async def test_an_ended_task_is_deleted_and_one_that_has_not_ended_stays(http: httpx2.AsyncClient) -> None:
    task_id = (await submit(http, "shout", {"text": "a"}))["task_id"]
    asking = (await submit(http, "person", "May I?", wait_s=0))["task_id"]
    assert (await http.delete(f"/v1/tasks/{asking}")).status_code == 409
    assert (await http.delete(f"/v1/tasks/{task_id}")).json()["state"] == "completed"
    assert (await http.delete(f"/v1/tasks/{task_id}")).status_code == 404
    assert (await http.get(f"/v1/tasks/{asking}")).status_code == 200
