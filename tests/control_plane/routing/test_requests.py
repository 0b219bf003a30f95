"""Requests over HTTP that another control plane answers: where they go, and that nothing of them changes on the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Self

import httpx2
import pytest
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from tests.control_plane.harness import until
from tests.control_plane.served_planes import ServedPlane, served_planes
from tests.support import DEADLINE_S

from llama_deploy.control_plane import ControlPlane, EngineSettings
from llama_deploy.control_plane.http.app import build_app
from llama_deploy.control_plane.http.subjects import Subjects, may_repeat, rule_of
from llama_deploy.control_plane.peers import HOPS
from llama_deploy.errors import ShardLostError, ShuttingDownError
from llama_deploy.state_stores import MemoryStore

SETTINGS = EngineSettings(recovery_grace_s=0.2, payload_bytes_max=20_000, leader_wait_s=60.0, shard_lease_s=20.0)


def routes() -> Iterator[tuple[str, str]]:
    """Every method and path of the application."""

    def of(found: list[BaseRoute]) -> Iterator[tuple[str, str]]:
        for route in found:
            if isinstance(route, APIRoute):
                yield from ((method, route.path) for method in sorted(route.methods or ()))
            else:
                inner = getattr(route, "original_router", None) or getattr(route, "router", None)
                yield from of(inner.routes if inner is not None else [])

    yield from of(build_app(ControlPlane(store=MemoryStore())).app.routes)


def test_every_route_says_what_it_is_about() -> None:
    found = list(routes())
    assert len(found) > 100
    unknown = [route for route in found if rule_of(*route) is None]
    assert unknown == [], "give it a line in `subjects`, so that it is answered by whoever leads what it is about"


@pytest.mark.parametrize("name", ["task_id", "session_id", "step_id"])
def test_what_has_a_task_or_a_session_in_its_path_is_about_it(name: str) -> None:
    there = [route for route in routes() if f"{{{name}}}" in route[1]]
    assert len(there) > 2
    assert [route for route in there if rule_of(*route)[0] is Subjects.nothing] == []  # type: ignore[index]


def test_what_is_asked_twice_does_no_harm() -> None:
    assert may_repeat("GET", "/v1/tasks/x/result")
    assert may_repeat("POST", "/v1/tasks")
    assert may_repeat("POST", "/v1/tasks/x/retry")
    assert may_repeat("POST", "/v1/tasks/x/cancel")
    assert not may_repeat("POST", "/v1/tasks/x/input")
    assert not may_repeat("POST", "/sessions/s/tasks/x/send_event")
    assert not may_repeat("DELETE", "/v1/tasks/x")


class _Counted:
    """How many requests the control planes have passed on within a block."""

    def __init__(self, *planes: ServedPlane) -> None:
        self._planes = planes
        self.count = 0

    def __enter__(self) -> Self:
        self._before = sum(served.plane.peers.passed_on for served in self._planes)
        return self

    def __exit__(self, *_: object) -> None:
        self.count = sum(served.plane.peers.passed_on for served in self._planes) - self._before


def without_names(problem: dict[str, Any], *names: str) -> str:
    text = json.dumps(problem)
    for name in names:
        text = text.replace(name, "NAME")
    return text


@pytest.mark.slow
async def test_requests_are_answered_by_whoever_leads(store_url: str) -> None:
    async with served_planes(store_url, "a", "b", settings=SETTINGS) as made:
        here, there = made["a"], made["b"]
        async with (
            httpx2.AsyncClient(base_url=here.url, timeout=DEADLINE_S) as http,
            httpx2.AsyncClient(base_url=there.url, timeout=DEADLINE_S) as leader,
        ):
            await _errors_pass_unchanged(http, leader, here, there)
            await _keys_hold(http, here, there)
            await _bodies_are_limited(http, here, there)
            await _nothing_is_passed_on_twice(leader, here)
            await _server_sent_events(http, there)
            await _published_routes(http, here, there)
            await _batches(http, here, there)


async def _errors_pass_unchanged(
    http: httpx2.AsyncClient, leader: httpx2.AsyncClient, here: ServedPlane, there: ServedPlane
) -> None:
    for body in (
        {"service": "nobody", "input": ""},
        {"service": "echo", "input": "x" * 30_000},
        {"service": "echo", "input": {}, "options": {"priority": 99}},
    ):
        answers = []
        for client in (http, leader):
            task_id = there.led()
            with _Counted(here, there) as passed_on:
                answer = await client.post("/v1/tasks", json={**body, "task_id": task_id})
            assert passed_on.count == (1 if client is http else 0)
            answers.append((answer.status_code, without_names(answer.json(), task_id), answer.headers["content-type"]))
        assert answers[0] == answers[1]
        assert answers[0][0] >= 400


async def _keys_hold(http: httpx2.AsyncClient, here: ServedPlane, there: ServedPlane) -> None:
    body = {"service": "echo", "input": {"value": 1}, "session_id": there.led()}
    keyed = {"idempotency-key": "once"}
    first = await http.post("/v1/tasks", json=body, headers=keyed)
    again = await http.post("/v1/tasks", json=body, headers=keyed)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["task_id"] == again.json()["task_id"]
    other = await http.post("/v1/tasks", json={**body, "input": {"value": 2}}, headers=keyed)
    assert other.status_code == 409
    # without a session: whoever leads the task that was made under the key answers, whatever is asked
    alone = {"service": "echo", "input": {"value": 1}, "idempotency_key": "alone"}
    made = (await http.post("/v1/tasks", json={**alone, "task_id": there.led()})).json()["task_id"]
    for asked in (alone, {**alone, "task_id": here.led()}, {**alone, "task_id": there.led()}):
        found = await http.post("/v1/tasks?wait_s=60", json=asked)
        assert (found.status_code, found.json()["task_id"], found.json()["state"]) == (200, made, "completed")
    with _Counted(here, there) as passed_on:  # nothing is said of it: it is made where it is asked for
        assert (await http.post("/v1/tasks", json={"service": "echo", "input": {"value": 1}})).status_code == 201
        assert (await http.post("/v1/sessions")).status_code == 201
    assert passed_on.count == 0


async def _bodies_are_limited(http: httpx2.AsyncClient, here: ServedPlane, there: ServedPlane) -> None:
    async def much() -> Any:
        for _ in range(10):
            yield b"x" * 10_000

    with _Counted(here, there) as passed_on:
        for content in (b"x" * 100_000, much()):
            answer = await http.post(f"/v1/tasks/{there.led()}/input", content=content)
            assert answer.status_code == 413
            assert answer.json()["details"]["setting"] == "payload_bytes_max"
        for path in ("/v1/tasks", "/v1/tasks/bulk", "/v1/sessions", "/process_message"):
            answer = await http.post(path, content=b"[" * 5_000, headers={"content-type": "application/json"})
            assert answer.status_code == 400, path
    assert passed_on.count == 0


async def _nothing_is_passed_on_twice(leader: httpx2.AsyncClient, here: ServedPlane) -> None:
    """What was passed on to one that does not lead it is refused there, with a word for whoever has passed it on."""
    answer = await leader.post(
        "/v1/tasks", json={"service": "echo", "input": {}, "task_id": here.led()}, headers={HOPS: "1"}
    )
    assert answer.status_code == 409
    assert answer.json()["code"] == ShardLostError.code
    assert answer.headers["llama-deploy-elsewhere"] == "1"


async def _server_sent_events(http: httpx2.AsyncClient, there: ServedPlane) -> None:
    task_id = there.led()
    await http.post("/v1/tasks", json={"service": "tell", "input": {"events": 1000}, "task_id": task_id})
    headers = {"accept": "text/event-stream", "last-event-id": "499"}
    ids = []
    async with http.stream("GET", f"/v1/tasks/{task_id}/stream", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-accel-buffering"] == "no"
        ids = [int(line[4:]) async for line in answer.aiter_lines() if line.startswith("id: ")]
    assert ids == list(range(500, 1000))


async def _published_routes(http: httpx2.AsyncClient, here: ServedPlane, there: ServedPlane) -> None:
    for number in range(4):
        session_id = (await http.post("/sessions/create")).json()
        assert here.plane.leadership.leads(session_id)
        session_id = there.led()
        await http.post("/v1/sessions", json={"session_id": session_id})
        task = {"input": json.dumps({"value": number}), "agent_id": "echo"}
        task_id = (await http.post(f"/sessions/{session_id}/tasks", json=task)).json()
        lines = [json.loads(line) for line in (await _text(http, session_id, task_id)).splitlines()]
        assert lines == []
        result = (await http.get(f"/sessions/{session_id}/tasks/{task_id}/result")).json()
        assert result["result"] == str(number)
        assert (await http.get(f"/sessions/{session_id}/current_task")).json()["task_id"] == task_id
        assert (await http.post(f"/sessions/{session_id}/state", json={"k": number})).status_code == 200
        assert (await http.get(f"/sessions/{session_id}/state")).json()["k"] == number
        ran = await http.post(f"/deployments/default/tasks/run?session_id={session_id}", json=task)
        assert ran.json() == str(number)
        message = {"action": "new_task", "data": {"task": {**task, "session_id": session_id}}}
        assert (await http.post("/process_message", json=message)).status_code == 200
        assert (await http.post("/process_message", json={"action": "new_task", "data": task})).status_code == 200
        created = (await http.post("/deployments/default/tasks/create", json=task)).json()
        assert here.plane.leadership.leads(created["session_id"])
        await until(lambda: here.plane.engine.cache.unfinished == there.plane.engine.cache.unfinished == 0)
        assert (await http.post(f"/sessions/{session_id}/delete")).status_code == 200
        assert (await http.get(f"/sessions/{session_id}")).status_code == 404


async def _text(http: httpx2.AsyncClient, session_id: str, task_id: str) -> str:
    return (await http.get(f"/sessions/{session_id}/tasks/{task_id}/result_stream")).text


async def _batches(http: httpx2.AsyncClient, here: ServedPlane, there: ServedPlane) -> None:
    tasks: list[dict[str, Any]] = [
        {"service": "echo", "input": {"value": n}, "task_id": (here if n % 2 else there).led()} for n in range(50)
    ]
    tasks += [{"service": "nobody"}, {"service": "echo", "input": {"value": 1}}]
    items = (await http.post("/v1/tasks/batch", json={"tasks": tasks})).json()["items"]
    assert [item["task"]["task_id"] for item in items[:50]] == [task["task_id"] for task in tasks[:50]]
    assert [sorted(item) for item in items[50:]] == [["problem"], ["task"]]


async def test_a_client_that_leaves_ends_its_request_at_the_leader(store_url: str) -> None:
    async with served_planes(store_url, "a", "b", settings=SETTINGS) as made:
        there = made["b"]
        task_id = there.led()
        async with httpx2.AsyncClient(base_url=made["a"].url, timeout=DEADLINE_S) as http:
            await http.post("/v1/tasks", json={"service": "gate", "input": {"name": "g"}, "task_id": task_id})
            entry = there.plane.engine.cache.tasks[task_id]
            idle = len(entry.watchers)
            waiting = asyncio.create_task(_wait(http, f"/v1/tasks/{task_id}/result?wait_s=60"))
            await until(lambda: len(entry.ended_callbacks) == 1)
            waiting.cancel()
            await until(lambda: entry.ended_callbacks == [])
            following = asyncio.create_task(_wait(http, f"/v1/tasks/{task_id}/stream"))
            await until(lambda: len(entry.watchers) > idle)
            following.cancel()
            await until(lambda: len(entry.watchers) == idle)
        made.gate("g").set()


async def _wait(http: httpx2.AsyncClient, path: str) -> None:
    await http.get(path)


@pytest.mark.slow
async def test_one_that_stops_breaks_off_what_it_passes_on_and_ends_at_once(store_url: str) -> None:
    async with served_planes(store_url, "a", "b", settings=SETTINGS) as made:
        here, there = made["a"], made["b"]
        task_id = there.led()
        async with httpx2.AsyncClient(base_url=here.url, timeout=DEADLINE_S) as http:
            await http.post("/v1/tasks", json={"service": "gate", "input": {"name": "stop"}, "task_id": task_id})
            entry = there.plane.engine.cache.tasks[task_id]
            streaming = asyncio.create_task(_wait(http, f"/v1/tasks/{task_id}/stream"))
            waiting = asyncio.create_task(_answer(http, f"/v1/tasks/{task_id}/result?wait_s=60"))
            await until(lambda: len(entry.ended_callbacks) == 1 and here.plane.peers.passed_on == 3)
            async with asyncio.timeout(DEADLINE_S):  # what it passes on has no end
                await made.stop_one("a")
            answer = await waiting
            assert (answer.status_code, answer.json()["code"]) == (503, ShuttingDownError.code)
            with pytest.raises(httpx2.RemoteProtocolError):
                await streaming
        await until(lambda: entry.ended_callbacks == [])
        made.gate("stop").set()


async def _answer(http: httpx2.AsyncClient, path: str) -> httpx2.Response:
    return await http.get(path)
